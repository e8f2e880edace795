"""The published implementation's parameters, loaded into this library's layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from syncattn.nn.attention import SelectiveSynchronizationAttention

# published name -> ours; K and alpha are raw (before softplus) in both
_NAMES = {
    "K": "raw_coupling",
    "alpha": "raw_bandwidth",
    "W_omega": "frequency.receive_proj",
    "W_theta": "phase_proj",
    "W_v": "value_proj",
    "W_o": "out_proj",
}


def from_reference(
    state_dict: Mapping[str, Tensor], num_heads: int, top_k: int | None = None
) -> SelectiveSynchronizationAttention:
    """The published formulation, exact up to the 1e-8 that it adds to the locking threshold.

    Symmetric frequencies of head_dim coordinates without position, self kept, absolute frame, power 1, one
    coupling for all heads through softplus, and the global order parameter.

    Args:
        state_dict: K (), alpha (H,), and weight (E, E) and bias (E,) of W_omega, W_theta, W_v and W_o.
        num_heads: H.
        top_k: senders kept per row, None for all.

    Raises:
        ValueError: a parameter is missing, unknown, or of another shape.
    """
    wanted = {"K", "alpha"} | {f"{w}.{p}" for w in list(_NAMES)[2:] for p in ("weight", "bias")}
    if set(state_dict) != wanted:
        missing, unknown = sorted(wanted - set(state_dict)), sorted(set(state_dict) - wanted)
        raise ValueError(
            f"state_dict must hold the published parameters {sorted(wanted)}: "
            f"missing {missing}, unknown {unknown}"
        )
    weight = state_dict["W_v.weight"]
    embed_dim = weight.shape[0]
    if num_heads < 1 or embed_dim % num_heads:
        raise ValueError(f"num_heads must divide the embedding size {embed_dim}, got {num_heads}")
    layer = SelectiveSynchronizationAttention(
        embed_dim,
        num_heads,
        **published(embed_dim // num_heads),
        top_k=top_k,
        device=weight.device,
        dtype=weight.dtype,
    )
    with torch.no_grad():
        for name, tensor in state_dict.items():
            head, _, tail = name.partition(".")
            target = layer.get_parameter(f"{_NAMES[head]}.{tail}" if tail else _NAMES[head])
            if tensor.shape != target.shape:
                raise ValueError(
                    f"{name} must have shape {tuple(target.shape)} with {num_heads} heads, "
                    f"got {tuple(tensor.shape)}"
                )
            target.copy_(tensor)
    return layer


def published(head_dim: int) -> dict:
    """The layer's arguments that make it the published formulation."""
    return {
        "freq_dim": head_dim,
        "phase_dim": head_dim,
        "position": "none",
        "delay": 0.0,
        "token_shift": False,  # the models' default is another
        "self_coupling": True,
        "frame": "absolute",
        "power": 1,
        "parametrisation": "softplus",
        "freq_bias": True,
        "density_range": None,
    }
