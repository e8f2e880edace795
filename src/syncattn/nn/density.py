"""How densely an operator call locks, counted; and the coupling and bandwidth that give a wanted density."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from syncattn import locking
from syncattn.backends.call import Call
from syncattn.backends.counting import allowed_counts, allowed_pairs_of
from syncattn.backends.select import locked_counts

# Calibration looks at all pairs of a head if they are no more than these,
_MAX_PAIRS = 2**20
# else at those of so many receivers, all over the batch.
_RECEIVERS = 64


class Locking(NamedTuple):
    """How many pairs of a call lock, (H,) int64 each, on the CPU."""

    locked: Tensor
    allowed: Tensor
    receivers: Tensor  # that may attend to somebody

    @property
    def density(self) -> Tensor:
        """The fraction of allowed pairs that lock, (H,) float32; 0 where no pair is allowed."""
        return self.locked.float() / self.allowed.clamp(min=1)

    @property
    def partners(self) -> Tensor:
        """k, how many senders a receiver locks with, the mean over those that may attend to somebody, (H,)
        float32."""
        return self.locked.float() / self.receivers.clamp(min=1)


@torch.no_grad()
def count_locked(call: Call, receivers: Tensor | None = None) -> Locking:
    """Count the call's pairs.

    Args:
        call: top_k leaves of a receiver's pairs the nearest k.
        receivers: (B, N) bool, False = its pairs do not count; None: all do.
    """
    counts = locked_counts(call)
    allowed = allowed_counts(call).expand_as(counts)
    if receivers is not None:
        counts, allowed = counts * receivers[:, None], allowed * receivers[:, None]
    # Counted where the call is, and brought here as one: a GPU would be waited for each time.
    return Locking(*torch.stack((counts, allowed, (allowed > 0).long())).sum((1, 3)).cpu())


def excess_coupling(
    found: Locking, frame: str, limit: float | None, max_partners: float | None = None
) -> Tensor:
    """By how much each head's log K exceeds what the limits allow, (H,) float32.

    Of an excess log(mean density / limit), each head is given its share relative to the densest head's. A
    bound on the mean number of partners is a limit of the density, too, another one in each text. In the
    nearest frame every row locks to one sender, whatever the coupling: the limit is then at least twice the
    share of those pairs, as in `fit_coupling`, so that short rows do not drive couplings to 0.
    """
    heads = found.density
    share = int(found.receivers.sum()) / max(int(found.allowed.sum()), 1)  # of one pair a row
    limits = [limit] if limit is not None else []
    limits += [max_partners * share] if max_partners is not None else []
    lowest = min(limits, default=1.0)
    if frame == "nearest":
        lowest = max(lowest, 2 * share)
    excess = torch.log(heads.mean() / (lowest or 1.0)).clamp(min=0)
    return excess * heads / heads.max().clamp(min=1e-12)


@torch.no_grad()
def partners_ladder(call: Call, receivers: Tensor | None, low: float, high: float) -> Tensor:
    """The densities (H,) float32 with which the heads have, in the mean of this call's receivers, from `low`
    partners to `high`, in geometric progression; 1 where that is more than they may attend to.

    Raises:
        ValueError: unless 0 < low <= high, both finite, or no pair is allowed.
    """
    if not 0 < low <= high < math.inf:
        raise ValueError(f"partners_range must be (low, high) with 0 < low <= high, got {(low, high)}")
    allowed = allowed_counts(call)
    allowed = allowed.expand(call.receive.shape[0], -1, -1)
    if receivers is not None:
        allowed = allowed * receivers[:, None]
    pairs, rows = int(allowed.sum()), int((allowed > 0).sum())
    if pairs == 0:
        raise ValueError("calibration needs at least one allowed pair, got none: every pair is masked")
    ladder = locking.density_ladder(low / high, 1.0, call.receive.shape[1], dtype=torch.float64, device="cpu")
    return (ladder * high * rows / pairs).clamp(max=1).float()


@torch.no_grad()
def fit_coupling(
    call: Call,
    coupling: Tensor,
    density: Tensor,
    sharpness: float,
    receivers: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(K, alpha), each (H,), with which each head locks the wanted fraction of this call's allowed pairs.

    Args:
        call: its frequencies, masks and frame count, not its bandwidth; top_k is not considered. Of a large
            call, evenly spaced rows stand for all.
        coupling: the K that is in the call's coupling kappa = K r, (H,): what remains is r.
        density: wanted, (H,).
        sharpness: c = 2 alpha kappa^2, met up to the spread of r.

    In the nearest frame every row locks to its nearest sender, whatever the coupling. Where that alone comes
    near the wanted density, in short rows, the density is raised to twice that, with a warning.

    Raises:
        ValueError: no pair is allowed, or all frequencies of a head are equal.
    """
    heads, sampled = call.receive.shape[1], _sample(call, receivers)
    couplings, bandwidths, raised = [], [], []
    for h in range(heads):
        pairs, coherence = _allowed_detuning(call, h, sampled)
        if pairs.numel() == 0:
            raise ValueError("calibration needs at least one allowed pair, got none: every pair is masked")
        wanted, forced = float(density[h]), 0.0
        if call.frame == "nearest":
            forced = float((pairs == 0).double().mean())
        if wanted < 2 * forced < 1:
            raised.append(h)
            wanted = 2 * forced
        share = torch.tensor([wanted], dtype=torch.float64, device=pairs.device)
        _, bandwidth = locking.calibrate_from_detuning(pairs[None], share, sharpness)
        # A pair locks from K r = sqrt(D) exp(alpha D) on; that threshold's quantile is K, whatever r varies.
        threshold = 0.5 * pairs.log() + bandwidth * pairs - (coherence / coupling[h].double()).log()
        couplings.append(_between(threshold, wanted).exp())
        bandwidths.append(bandwidth[0])
    if raised:
        warnings.warn(
            f"the wanted densities of heads {raised} are out of reach: in rows so short the nearest senders, "
            "which always lock, are too large a share. They were calibrated to twice that share",
            stacklevel=3,
        )
    return torch.stack(couplings), torch.stack(bandwidths)


class _Sampled(NamedTuple):
    """Some receivers of one sequence, and whom they may attend to."""

    sequence: int
    rows: Tensor  # (R,) int64
    allowed: Tensor  # (H or 1, R, M) bool


def _sample(call: Call, receivers: Tensor | None) -> list[_Sampled]:
    """All receivers of a small call, of a larger one as many as `_RECEIVERS`, evenly spaced."""
    batch, _, queries, _ = call.receive.shape
    device = call.receive.device
    if batch * queries * call.send.shape[2] <= _MAX_PAIRS or batch * queries <= _RECEIVERS:
        places = {b: list(range(queries)) for b in range(batch)}
    else:  # each from another place in the text, each sequence as often as any other
        places = {}
        for k in range(_RECEIVERS):
            place = int((k + 0.5) * queries / _RECEIVERS)
            places.setdefault(k * max(1, batch // _RECEIVERS) % batch, []).append(place)
    found = []
    for b, chosen in places.items():
        rows = torch.tensor(chosen, dtype=torch.int64, device=device)
        allowed = allowed_pairs_of(call, rows)
        allowed = allowed[b if allowed.shape[0] > 1 else 0]
        if receivers is not None:
            allowed = allowed & receivers[b, rows, None]
        found.append(_Sampled(b, rows, allowed))
    return found


def _allowed_detuning(call: Call, head: int, sampled: list[_Sampled]) -> tuple[Tensor, Tensor]:
    """D of one head's allowed pairs, in the call's frame, and their receivers' kappa."""
    pairs, kappas = [], []
    _, heads, queries, _ = call.receive.shape
    group = heads // call.send.shape[1]
    for b, rows, allowed_by in sampled:
        receive, send = call.receive[b, head, rows].double(), call.send[b, head // group].double()
        # the differences themselves, without a product's cancellation and without a (rows, M, m) tensor
        detuning = torch.cdist(receive, send, compute_mode="donot_use_mm_for_euclid_dist").square()
        allowed = allowed_by[head if allowed_by.shape[0] > 1 else 0]
        if call.frame == "nearest":
            detuning = detuning - detuning.masked_fill(~allowed, torch.inf).amin(-1, keepdim=True)
        kappa = call.coupling[b if call.coupling.shape[0] > 1 else 0, head].double()
        kappa = kappa.expand(queries)[rows, None].expand_as(detuning)
        pairs.append(detuning[allowed])
        kappas.append(kappa[allowed])
    return torch.cat(pairs), torch.cat(kappas)


def _between(values: Tensor, share: float) -> Tensor:
    """A number that this share of the values lies below, midway to the next larger one."""
    last = values.kthvalue(min(max(round(share * len(values)), 1), len(values))).values
    beyond = values[values > last]
    if len(beyond) == 0:
        return last + 1e-3
    beyond = beyond.min()
    return 0.5 * (last + beyond) if last.isfinite() else beyond - 1e-3  # log 0: only equal pairs lock
