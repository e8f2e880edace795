"""Correctness before any time: each contender is held to the definition, in float64, on a sample of rows.

The definition (the eager backend) computes the sampled rows alone: receive[:, :, rows] against all senders,
with a boolean mask for what causality and self-coupling allow. Gradients are those of a cotangent that is 0
outside of the sampled rows, so that those rows alone give them exactly.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import syncattn
from syncattn import locking
from syncattn.bench.contenders import Contender
from syncattn.bench.inputs import Case, Inputs, allowed_rows, pick_rows, row_detuning
from syncattn.bench.plan import BACKWARD, FORWARD

# Largest relative error of a head, in the norm and in the largest entry.
TOLERANCE = {
    "fp32": {"out": 1e-4, "gradient": 2e-3, "sum": 2e-3},
    "bf16": {"out": 2e-2, "gradient": 5e-2, "sum": 0.2},
    "mixed": {"out": 2e-2, "gradient": 5e-2, "sum": 0.2},
}
# One number per head, summed over all pairs: what rounding to 8 bits leaves of it depends on what cancels.
_SUMS = ("coupling", "bandwidth")
# At the locking edge dL/dD jumps with power 2, from a finite slope to 0, and is 1/S with power 1; where two
# senders are equally near, the nearest frame's gradient jumps from one to the other. Rounding of D alone
# decides what is right there, so rows that are clear of both are preferred, out of this many times the rows
# wanted.
_CANDIDATES = 4
# Clear enough for power 2, in squared locking radii: tens of times what D may be off by in float32 or as a
# product of matrices (2^-21 of the squares from the head's axis, 2^-24 of a distance along it times rho).
_CLEAR = 2.0**-14
_MAX_NUMBERS = 2**24  # of the definition's largest temporary: 128 MiB in float64


class Truth(NamedTuple):
    """What is right for the sampled rows.

    Attributes:
        rows: their numbers (R,).
        out: (B, H, R, d) float64.
        cotangent: (B, H, N, d) in value's dtype, 0 outside of the rows.
        gradients: float64, by the names of a contender's leaves; empty without backward.
    """

    rows: Tensor
    out: Tensor
    cotangent: Tensor
    gradients: dict[str, Tensor]


def truth(case: Case, inputs: Inputs, count: int, seed: int, backward: bool) -> Truth:
    """The definition's output and gradients for up to `count` rows of every head, fewer of a huge case."""
    device = inputs.receive.device
    batch, heads, queries, freq_dim = inputs.receive.shape
    per_row = batch * heads * inputs.send.shape[2] * freq_dim
    count = max(1, min(count, _MAX_NUMBERS // per_row))
    rows = _rows_off_the_edge(case, inputs, count, seed).to(device)

    leaves = {"receive": inputs.receive.double()}
    if not inputs.symmetric:
        leaves["send"] = inputs.send.double()
    leaves |= {name: getattr(inputs, name).double() for name in ("value", "coupling", "bandwidth")}
    for leaf in leaves.values():
        leaf.requires_grad_(backward)
    out = syncattn.selective_synchronization_attention(
        leaves["receive"][:, :, rows],
        leaves.get("send", leaves["receive"]),
        leaves["value"],
        leaves["coupling"],
        leaves["bandwidth"],
        attn_mask=allowed_rows(case, inputs, rows.cpu()),
        frame=case.frame,
        power=case.power,
        backend="eager",
    )
    assert isinstance(out, Tensor)
    generator = torch.Generator().manual_seed(seed + 3)
    some = torch.randn(batch, heads, len(rows), case.head_dim, generator=generator).to(inputs.value)
    cotangent = inputs.value.new_zeros(batch, heads, queries, case.head_dim).index_copy(2, rows, some)
    gradients: dict[str, Tensor] = {}
    if backward:
        found = torch.autograd.grad(out, tuple(leaves.values()), some.double())
        gradients = dict(zip(leaves, found))
    return Truth(rows, out.detach(), cotangent, gradients)


@torch.no_grad()
def _rows_off_the_edge(case: Case, inputs: Inputs, count: int, seed: int) -> Tensor:
    total = inputs.receive.shape[2]
    rows, candidates = (pick_rows(total, number, seed + 4) for number in (count, _CANDIDATES * count))
    if len(candidates) == len(rows):  # there are no others
        return rows
    candidates = torch.cat((rows, candidates[~torch.isin(candidates, rows)]))
    clearance = row_clearance(case, inputs, candidates).cpu()
    if case.power == 2:  # nothing diverges: of those clear enough the first drawn, not those of few senders
        clearance = clearance.clamp(max=_CLEAR)
    order = clearance.sort(descending=True, stable=True).indices
    return candidates[order[: len(rows)]].sort().values


def row_clearance(case: Case, inputs: Inputs, rows: Tensor) -> Tensor:
    """How far some rows are from a jump of the gradient: (R,) float64, the least over all heads.

    In squared locking radii: the distance from rho^2 of the D of any sender, in the nearest frame also by how
    much the second nearest is farther than the nearest. An error of D below it, over rho^2, leaves the
    gradient's error of the same order; one above may change which pairs lock.
    """
    detuning, allowed = row_detuning(case, inputs, rows)
    square = locking.locking_radius(inputs.coupling.double(), inputs.bandwidth.double()).square()
    detuning = (detuning / square[:, None, None]).masked_fill(~allowed, torch.inf)
    clearance = (detuning - 1).abs().amin((0, 1, 3))
    if case.frame == "nearest" and detuning.shape[-1] > 1:
        nearest = detuning.topk(2, dim=-1, largest=False).values
        # a row with one sender has no second; one with none has no difference
        apart = (nearest[..., 1] - nearest[..., 0]).nan_to_num(nan=torch.inf, posinf=torch.inf)
        clearance = torch.minimum(clearance, apart.amin((0, 1)))
    return clearance


def errors(contender: Contender, right: Truth, passes: str) -> dict[str, float]:
    """Relative errors of one contender, by what they are of: "out", or "out" and each leaf's gradient.

    One run, forward or forward and backward. The error is the largest over the heads, of the norm and of the
    largest entry, each over that of the truth; a result that is not finite has an infinite one.
    """
    cotangent = right.cotangent
    if passes == FORWARD:
        with torch.no_grad():
            out = contender.forward()
        return {"out": _error(_sampled(out, contender, right), right.out, 1)}
    assert passes == BACKWARD
    out = contender.forward()
    given = cotangent.transpose(1, 2).contiguous() if contender.heads_last else cotangent
    gradients = torch.autograd.grad(out, tuple(contender.leaves.values()), given)
    found = {"out": _error(_sampled(out.detach(), contender, right), right.out, 1)}
    for name, gradient in zip(contender.leaves, gradients, strict=True):
        if contender.heads_last and gradient.ndim == 4:
            gradient = gradient.transpose(1, 2)
        heads = 1 if gradient.ndim == 4 else None
        found[name] = _error(gradient, right.gradients[name], heads)
    return found


def _sampled(out: Tensor, contender: Contender, right: Truth) -> Tensor:
    out = out.transpose(1, 2) if contender.heads_last else out
    return out[:, :, right.rows]


def _error(found: Tensor, right: Tensor, heads: int | None) -> float:
    if found.shape != right.shape:
        return float("inf")
    found = found.double()
    if not bool(torch.isfinite(found).all()):
        return float("inf")
    # One number per head is a sum of either sign that may be near 0 by chance: all heads together.
    if heads is None:
        found, right = found[None], right[None]
        heads = 0
    difference = (found - right).movedim(heads, 0).flatten(1)
    truth = right.movedim(heads, 0).flatten(1)
    tiny = torch.finfo(torch.float64).tiny
    norm = difference.norm(dim=1) / truth.norm(dim=1).clamp(min=tiny)
    largest = difference.abs().amax(1) / truth.abs().amax(1).clamp(min=tiny)
    return float(torch.maximum(norm, largest).max())


def verdict(found: dict[str, float], dtype: str) -> str | None:
    """What is wrong, or None."""
    bounds = TOLERANCE[dtype]
    bad = [
        f"{'out' if name == 'out' else 'gradient of ' + name} is off by {error:.1e} (allowed {bound:.0e})"
        for name, error in found.items()
        if not error <= (bound := bounds["out" if name == "out" else "sum" if name in _SUMS else "gradient"])
    ]
    return "; ".join(bad) or None


def as_json(found: dict[str, float]) -> dict[str, Any]:
    """Errors without the numbers that JSON lacks: infinite ones become None."""
    return {name: error if error < float("inf") else None for name, error in found.items()}
