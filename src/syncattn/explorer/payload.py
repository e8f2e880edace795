"""The numbers that the explorer's page gets: frequencies, couplings and phases without loss, and what the
model thinks comes next."""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from syncattn.backends import eager
from syncattn.explorer.gather import Heard, adopted, find_layers

MOST_TOKENS = 512
"""Of one page: matrices of more cannot be seen on a screen, nor recomputed while a slider moves."""
MOST_BYTES = 4_500_000
"""Of the numbers in one page, as they are written there: with everything else it stays below 5 MB."""
_LIKELIEST = 6


def tokens_that_fit(model: nn.Module) -> int:
    """How many tokens of a text one page can show.

    Raises:
        TypeError, ValueError: as `explore`, for the model.
    """
    kind = adopted(model)
    if kind is not None:
        numbers = sum(heads * (2 * freq_dim + 2) for heads, freq_dim in kind.sizes(model) or [])
        return _room(numbers, model.parameters())
    layers = find_layers(model).values()
    numbers = 0
    for layer in layers:
        phases = 0 if layer.phase_proj is None else layer.phase_proj.out_features
        numbers += layer.num_heads * (2 * layer.freq_dim + 2) + phases
    return _room(numbers, (parameter for layer in layers for parameter in layer.parameters()))


def _room(numbers: int, parameters: Iterable[Tensor]) -> int:
    """How many tokens fit that have so many numbers each."""
    wide = any(parameter.dtype == torch.float64 for parameter in parameters)
    size = (8 if wide else 4) * 4 / 3  # base64 writes 3 bytes as 4
    return max(1, min(MOST_TOKENS, int(MOST_BYTES / (numbers * size + 400))))


def pack(numbers: Tensor) -> dict[str, str]:
    """Real numbers as base64 of little-endian float32, or float64 where they are that: none is rounded."""
    kind, dtype = ("f8", torch.float64) if numbers.dtype == torch.float64 else ("f4", torch.float32)
    array = numbers.detach().to("cpu", dtype).contiguous().numpy()
    if sys.byteorder != "little":
        array = array.byteswap()
    return {"kind": kind, "data": base64.b64encode(array.tobytes()).decode("ascii")}


def pack_bits(flags: Tensor) -> str:
    """Booleans as base64 of bits, the first one the highest of its byte."""
    bits = torch.nn.functional.pad(flags.flatten().cpu().to(torch.uint8), (0, -flags.numel() % 8)).view(-1, 8)
    worth = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8)
    return base64.b64encode(bytes((bits * worth).sum(-1).tolist())).decode("ascii")


def layer_payload(heard: Heard) -> dict[str, Any]:
    """One layer's call: what the page computes synchronization from."""
    call = heard.call
    _, heads, tokens, freq_dim = call.receive.shape
    kappa = call.coupling[0].expand(heads, tokens)
    heads_found = []
    for h in range(heads):
        receive, send = call.receive[0, h], call.send[0, h]
        basis, share = principal_plane(torch.cat((receive, send)))
        heads_found.append(
            {
                "receive": pack(receive),
                "send": None if torch.equal(receive, send) else pack(send),
                "kappa": pack(kappa[h] if call.coupling.shape[2] > 1 else kappa[h, :1]),
                "coupling": float(heard.coupling[h]),
                "bandwidth": float(call.bandwidth[h]),
                "mask": None if call.mask is None else pack_bits(_mask_of(call.mask, h, tokens)),
                "phase": None if heard.phase is None else pack(heard.phase[h].float()),
                "plane": basis,
                "share": share,
            }
        )
    return {
        "name": heard.name,
        "freqDim": freq_dim,
        "phaseDim": 0 if heard.phase is None else heard.phase.shape[-1],
        "frame": call.frame,
        "power": call.power,
        "edge": call.edge,
        "eps": call.eps,
        "topK": call.top_k,
        "causal": call.is_causal,
        "selfCoupling": call.self_coupling,
        "heads": heads_found,
    }


def _mask_of(mask: Tensor, head: int, tokens: int) -> Tensor:
    return mask[0, head if mask.shape[1] > 1 else 0].expand(tokens, tokens)


def principal_plane(points: Tensor) -> tuple[list[list[float]], float]:
    """The two directions in which points (n, m) vary most, each of m numbers, and the share of the variance
    that lies in them. Where there is one coordinate only, the second direction is 0."""
    points = points.double().cpu()
    points = points - points.mean(0)
    values, vectors = torch.linalg.eigh(points.mT @ points)
    basis = vectors.flip(-1).mT[:2]
    if len(basis) < 2:
        basis = torch.cat((basis, torch.zeros_like(basis)))
    share = float(values[-2:].sum() / values.sum().clamp(min=1e-300))
    return [[float(f"{x:.7g}") for x in row] for row in basis.tolist()], round(share, 4)


def next_payload(
    logits: Tensor, actual: Sequence[int] | None, decode: Callable[[int], str]
) -> dict[str, Any]:
    """The likeliest next tokens after each token, and how likely the one was that came.

    Args:
        logits: (N, V).
        actual: the N tokens themselves; None if they are not known.
        decode: a token's label.
    """
    chances = logits.softmax(-1)
    best, ids = chances.topk(min(_LIKELIEST, logits.shape[-1]), dim=-1)
    top = [
        [[decode(token), float(f"{p:.4g}")] for token, p in zip(row, ps)]
        for row, ps in zip(ids.tolist(), best.tolist())
    ]
    came = None
    if actual is not None:
        came = [float(f"{float(chances[i, actual[i + 1]]):.4g}") for i in range(len(actual) - 1)]
    return {"top": top, "came": came}


def switched_off(whole: Tensor, without: Sequence[Tensor], actual: Sequence[int]) -> list[list[float]]:
    """By how much the loss of each token but the first rises, in nats, when a head is silent: (heads, N - 1).

    Args:
        whole: the logits of the model as it is, (N, V).
        without: those without one head, for each head of each layer.
        actual: the N tokens.
    """
    if len(actual) < 2:
        return []
    came = torch.tensor(actual[1:], device=whole.device)[:, None]
    before = whole[:-1].log_softmax(-1).gather(1, came)
    rises = [(before - one[:-1].log_softmax(-1).gather(1, came))[:, 0] for one in without]
    return [[float(f"{x:.4g}") for x in rise.tolist()] for rise in rises]


def weights(heard: Heard) -> tuple[Tensor, Tensor]:
    """(S, P) of the call, each (H, N, N), by the definition."""
    _, sync, weight = eager.run(heard.call._replace(return_weights=True, dropout_p=0.0, seed=None))
    return sync[0], weight[0]
