"""The published implementation: its parameters under this library's names, and the options that make it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

# published name -> ours; K and alpha are raw (before softplus) in both
_NAMES = {
    "K": "raw_coupling",
    "alpha": "raw_bandwidth",
    "W_omega": "frequency.receive_proj",
    "W_theta": "phase_proj",
    "W_v": "value_proj",
    "W_o": "out_proj",
}


def renamed_parameters(state_dict: Mapping[str, Tensor], num_heads: int) -> dict[str, Tensor]:
    """The published parameters under the layer's names, checked.

    Args:
        state_dict: K (), alpha (H,), and weight (E, E) and bias (E,) of W_omega, W_theta, W_v and W_o.
        num_heads: H.

    Raises:
        ValueError: a parameter is missing, unknown, or of another shape.
    """
    projections = list(_NAMES)[2:]
    wanted = {"K", "alpha"} | {f"{w}.{p}" for w in projections for p in ("weight", "bias")}
    if set(state_dict) != wanted:
        missing, unknown = sorted(wanted - set(state_dict)), sorted(set(state_dict) - wanted)
        raise ValueError(
            f"state_dict must hold the published parameters {sorted(wanted)}: "
            f"missing {missing}, unknown {unknown}"
        )
    embed_dim = state_dict["W_v.weight"].shape[0]
    if num_heads < 1 or embed_dim % num_heads:
        raise ValueError(f"num_heads must divide the embedding size {embed_dim}, got {num_heads}")
    shapes = {"K": (), "alpha": (num_heads,), "weight": (embed_dim, embed_dim), "bias": (embed_dim,)}
    found = {}
    for name, tensor in state_dict.items():
        head, _, tail = name.partition(".")
        shape = shapes[tail or head]
        if tensor.shape != shape:
            raise ValueError(
                f"{name} must have shape {shape} with {num_heads} heads, got {tuple(tensor.shape)}"
            )
        found[f"{_NAMES[head]}.{tail}" if tail else _NAMES[head]] = tensor
    return found


def published(head_dim: int) -> dict:
    """The layer's arguments that make it the published formulation."""
    return {
        "freq_dim": head_dim,
        "phase_dim": head_dim,
        "position": "none",
        "delay": 0.0,
        # the models' defaults of these three are others
        "directed": False,
        "token_shift": False,
        "nearest_gate": False,
        "self_coupling": True,
        "frame": "absolute",
        "power": 1,
        "parametrisation": "softplus",
        "freq_bias": True,
        "density_range": None,
    }
