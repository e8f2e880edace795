"""The definition of the operator. Every other backend is tested against this file.

It materialises every N x M matrix, in float32 or float64 whatever the inputs are, and leaves the
gradients to autograd: clarity first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from syncattn.backends.backend import Backend
from syncattn.backends.call import Call, expand_heads, exports_to_onnx
from syncattn.backends.dropout import keep_mask, row_numbers
from syncattn.margin import margin_of, strength_of, synchronization_of


def run(call: Call) -> Tensor | tuple[Tensor, ...]:
    """The operator: out (B, H, N, d), with `return_weights` also S and P, each (B, H, N, M), and with
    `return_nearest` also D of each receiver's nearest sender (B, H, N)."""
    batch, heads, queries, _ = call.receive.shape
    dtype = call.compute_dtype
    receive = call.receive.to(dtype)
    send = expand_heads(call.send, heads).to(dtype)
    value = expand_heads(call.value, heads).to(dtype)
    keys = send.shape[-2]
    if keys == 0:  # nobody to listen to; every argument has a gradient of 0 all the same
        nothing = (receive @ send.mT) * call.coupling[..., None] * call.bandwidth[:, None, None]
        return _asked_for(call, (nothing @ value).to(call.value.dtype), nothing, nothing, nothing.sum(-1))

    # Differences first, squares after: exact where tokens are close, 0 on the diagonal, no centring needed.
    detuning = (receive[..., :, None, :] - send[..., None, :, :]).square().sum(-1)  # (B, H, N, M)
    allowed = allowed_pairs(call)
    if call.top_k is not None and call.top_k < keys:
        allowed = allowed & _nearest_k(detuning.detach(), allowed, call.top_k)
    least = None
    if call.frame == "nearest" or call.return_nearest:
        nearest = detuning.detach().masked_fill(~allowed, torch.inf).argmin(-1, keepdim=True)
        base = detuning.gather(-1, nearest)
        least = torch.where(allowed.any(-1), base[..., 0], 0.0)
        if call.frame == "nearest":
            detuning = detuning - base
    detuning = detuning.masked_fill(~allowed, 0.0)  # out of exp's range and of the gradient

    margin = margin_of(detuning, call.coupling[..., None], call.bandwidth[:, None, None])
    locked = allowed & ~(margin <= 0)  # NaN counts as locked: it must show, not vanish
    margin = torch.where(locked, margin, 1.0)
    sync = torch.where(locked, synchronization_of(margin, call.edge), 0.0)
    strength = torch.where(locked, strength_of(margin, call.power, call.edge), 0.0)
    total = strength.sum(-1, keepdim=True)
    # a row without lock is 0, whatever eps is
    weight = strength / (total + call.eps).masked_fill(total == 0, 1.0)

    kept = weight
    if call.seed is not None:
        rows = row_numbers(batch, heads, queries, weight.device)
        columns = torch.arange(keys, dtype=torch.int64, device=weight.device)
        kept = weight * keep_mask(call.seed, rows, columns, call.dropout_p) / (1 - call.dropout_p)
    return _asked_for(call, (kept @ value).to(call.value.dtype), sync, weight, least)


def _asked_for(
    call: Call, out: Tensor, sync: Tensor, weight: Tensor, least: Tensor | None
) -> Tensor | tuple[Tensor, ...]:
    found = (out, sync, weight) if call.return_weights else (out,)
    if call.return_nearest and least is not None:
        found = (*found, least)
    return found if len(found) > 1 else out


def allowed_pairs(call: Call) -> Tensor:
    """(B or 1, H or 1, N, M) bool: the pairs that may exchange information, True = may attend."""
    queries, keys = call.receive.shape[-2], call.send.shape[-2]
    device = call.receive.device
    i = torch.arange(queries, dtype=torch.int64, device=device)[:, None] + (keys - queries)
    j = torch.arange(keys, dtype=torch.int64, device=device)
    allowed = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device)
    if call.is_causal:
        allowed = allowed & (j <= i)
    if not call.self_coupling:
        allowed = allowed & (j != i)
    if call.sequence_ids is not None:
        theirs = call.sequence_ids
        own = theirs.narrow(1, keys - queries, queries)
        alike = (own[:, :, None] == theirs[:, None]) & (own >= 0)[:, :, None]  # (B or 1, N, M)
        allowed = allowed & alike[:, None]
    if call.mask is not None:
        allowed = allowed & call.mask
    return allowed


def _nearest_k(detuning: Tensor, allowed: Tensor, k: int) -> Tensor:
    """The k allowed senders nearest in frequency, hence of largest S; the earlier one on a tie."""
    far = detuning.masked_fill(~allowed, torch.inf)
    # ONNX has one way to sort, which is stable, and no translation of asking for it
    order = far.sort(dim=-1).indices if exports_to_onnx() else far.sort(dim=-1, stable=True).indices
    return torch.zeros_like(detuning, dtype=torch.bool).scatter(-1, order[..., :k], True)


def _refuses(call: Call) -> str | None:
    if torch.jit.is_tracing() and exports_to_onnx():
        return (
            "the older exporter to ONNX records the lengths that it sees: call torch.onnx.export(dynamo=True)"
        )
    return None


BACKEND = Backend(run=run, refuses=_refuses, gives_nearest=lambda call, by_name: True)
