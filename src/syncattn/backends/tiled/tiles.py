"""The N x M matrix of pairs in tiles: how a call is cut, and what is evaluated on each tile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from syncattn.backends.call import Call, expand_heads
from syncattn.backends.dropout import keep_mask, row_numbers
from syncattn.margin import TileLaw

# Elements of one tile's temporaries. 2**18 float32 numbers are 1 MiB: several fit the second-level cache.
_CPU_TILE = 2**18
_GPU_TILE = 2**24
_ROWS = 64
# The squared detuning given to pairs that may not attend: none locks from there, and 0 times it is 0.
_FAR = 1e30


class Tile(NamedTuple):
    """The numbers of one tile, (b, H, n, k) each."""

    columns: slice
    detuning: Tensor  # D, counted from the row's frame; about _FAR where the pair may not attend
    decay_square: Tensor  # J^2 = exp(-2 alpha D)
    strength: Tensor  # W, exactly 0 where not locked


class Frame(NamedTuple):
    """What a block of rows must know before it can be evaluated, (b, H, n, 1) each."""

    base: Tensor | None  # D of the nearest allowed sender; nearest frame only
    sender: Tensor | None  # its index
    limit: tuple[Tensor, Tensor] | None  # (D, sender) of the k-th nearest; top_k only


class TiledProblem:
    """One call's tensors in compute dtype, and the walk over its tiles."""

    def __init__(self, call: Call) -> None:
        receive, send, value, coupling, bandwidth = call[:5]
        heads = receive.shape[1]
        send, value = expand_heads(send, heads), expand_heads(value, heads)
        self.batch, self.heads, self.queries, self.freq_dim = receive.shape
        self.keys, self.value_dim = value.shape[-2:]
        self.dtype = bandwidth.dtype
        self.receive, self.send = _centred(receive, send)
        self.value = value.to(self.dtype)
        self._law = TileLaw.of(coupling.expand(self.batch, -1, -1), bandwidth, call.power, call.edge)
        self.mask, self.seed = call.mask, call.seed
        ids = call.sequence_ids
        self.ids = None if ids is None else ids.expand(self.batch, -1)
        self.known_ids = self._known_ids()
        self.is_causal, self.self_coupling, self.symmetric = (
            call.is_causal,
            call.self_coupling,
            call.symmetric,
        )
        self.top_k = 0 if call.top_k is None or call.top_k >= self.keys else call.top_k
        self.nearest = call.frame == "nearest"
        self.dropout_p, self.eps = call.dropout_p, call.eps
        self.offset = self.keys - self.queries
        if self.direct:
            # not the centred ones: differences of the inputs themselves cancel exactly
            self.left, self.right = receive.to(self.dtype), send.to(self.dtype)
        else:
            self.left, self.right = _augmented(self.receive, self.send)

    @property
    def direct(self) -> bool:
        """Sum the squared differences: as fast for few coordinates, MPS has no float64, and in float64 the
        rounding of a matrix product would hide from top_k that equal senders are equally near."""
        few, exact = self.freq_dim <= 3, self.top_k > 0 and self.dtype == torch.float64
        return few or exact or self.receive.device.type == "mps"

    def blocks(self) -> Iterator[tuple[slice, slice, list[slice]]]:
        """(batch, rows, columns of each tile) in a fixed order; tiles that causality empties are left out."""
        budget = _CPU_TILE if self.receive.device.type == "cpu" else _GPU_TILE
        rows = max(1, min(self.queries, _ROWS))
        width = max(128, budget // max(1, self.heads * rows))
        batches = max(1, budget // max(1, self.heads * rows * min(width, self.keys)))
        ids = self.known_ids
        for b in range(0, self.batch, batches):
            for i in range(0, self.queries, rows):
                last = min(i + rows, self.queries)
                end = min(self.keys, last + self.offset) if self.is_causal else self.keys
                start = 0
                if ids is not None:
                    start, end = self._span(ids[b : b + batches], slice(i, last), end)
                tiles = [slice(j, min(j + width, end)) for j in range(start, end, width)]
                yield slice(b, min(b + batches, self.batch)), slice(i, last), tiles

    def _known_ids(self) -> Tensor | None:
        """The texts' numbers where the host may read them, which off the CPU makes it wait once: tiles of
        other texts are then left out. While a CUDA graph is captured it may not, and all are evaluated."""
        if self.ids is None:
            return None
        if self.ids.is_cuda and torch.cuda.is_current_stream_capturing():
            return None
        return self.ids.cpu()

    def _span(self, ids: Tensor, rows: slice, end: int) -> tuple[int, int]:
        """(first, last + 1) of the senders before `end` that may be of the same texts as these receivers."""
        own = ids[:, rows.start + self.offset : rows.stop + self.offset]
        lowest = torch.where(own < 0, torch.iinfo(own.dtype).max, own).amin(1, keepdim=True)
        ids = ids[:, :end]
        near = ((ids >= lowest) & (ids <= own.amax(1, keepdim=True))).any(0).nonzero()
        return (int(near[0]), int(near[-1]) + 1) if len(near) else (0, 0)

    def _is_one_text(self, batch: slice, rows: slice, columns: slice) -> bool:
        """Whether all pairs of a tile are known to be of one text in each row of the batch, so that nothing
        has to tell them apart."""
        if self.known_ids is None:
            return False
        ids = self.known_ids[batch]
        text = ids[:, columns.start, None]
        own = ids[:, rows.start + self.offset : rows.stop + self.offset]
        return bool((text >= 0).all() and (ids[:, columns] == text).all() and (own == text).all())

    def look_over(self, batch: slice, rows: slice, columns: list[slice]) -> tuple[Frame, Tensor | None]:
        """What a block of rows needs before its first tile; and its D, if one tile holds all of it."""
        base = index = limit = ready = None
        if self.top_k:
            limit, ready = self._kth(batch, rows, columns)
        if self.nearest:
            base, index, ready = self._minimum(batch, rows, columns)
        return Frame(base, index, limit), ready if len(columns) == 1 else None

    def tiles(
        self, batch: slice, rows: slice, columns: list[slice], frame: Frame, ready: Tensor | None = None
    ) -> Iterator[Tile]:
        """The tiles of one block of rows, evaluated; frame (and ready) as `look_over` gave them."""
        law = self.law(batch, rows)
        for c in columns:
            detuning = self.allowed_detuning(batch, rows, c) if ready is None else ready
            if frame.limit is not None:
                detuning.masked_fill_(_beyond(detuning, c, frame.limit), _FAR)
            if frame.base is not None:
                detuning.sub_(frame.base)
            yield Tile(c, detuning, *law.weigh(detuning))

    def law(self, batch: slice, rows: slice) -> TileLaw:
        """The law of one block of rows."""
        at = (batch, slice(None), rows_of(self._law.coupling, rows))
        return self._law._replace(
            coupling=self._law.coupling[at], inverse_square=self._law.inverse_square[at]
        )

    def keep(self, batch: slice, rows: slice, columns: slice) -> Tensor | None:
        """The dropout mask of one tile, scaled: 1 / (1 - p) where kept."""
        if self.seed is None:
            return None
        device = self.receive.device
        numbers = row_numbers(self.batch, self.heads, self.queries, device)[batch, :, rows]
        j = torch.arange(columns.start, columns.stop, dtype=torch.int64, device=device)
        return keep_mask(self.seed, numbers, j, self.dropout_p).to(self.dtype) / (1 - self.dropout_p)

    def normaliser(self, total: Tensor) -> Tensor:
        """What a row is divided by: its sum and eps; 1 where nothing locks, as that output is always 0."""
        return (total + self.eps).masked_fill(total == 0, 1.0)

    def _detuning(self, batch: slice, rows: slice, columns: slice) -> Tensor:
        """D of one tile, in compute dtype, not negative, exactly 0 on the diagonal of the symmetric form."""
        left, right = self.left[batch, :, rows], self.right[batch, :, columns]
        if self.direct:
            detuning = (left[..., :, None, 0] - right[..., None, :, 0]).square_()
            for k in range(1, self.freq_dim):
                difference = left[..., :, None, k] - right[..., None, :, k]
                detuning.addcmul_(difference, difference)
            return detuning
        detuning = left @ right.mT
        if self.top_k > 0:  # equal frequencies are at 0, whatever rounding says, and the earlier one wins
            size = left[..., -2, None] + right[..., None, :, -1]  # |w^r|^2 + |w^s|^2
            rounding = (self.freq_dim + 2) * torch.finfo(detuning.dtype).eps
            detuning.masked_fill_(detuning < size * rounding, 0.0)
        detuning = detuning.to(self.dtype).clamp_(min=0.0)
        if self.symmetric:
            detuning.diagonal(rows.start - columns.start, -2, -1).zero_()
        return detuning

    def allowed_detuning(self, batch: slice, rows: slice, columns: slice) -> Tensor:
        """D of one tile, about _FAR where the pair may not attend."""
        detuning = self._detuning(batch, rows, columns)
        blocked = self._blocked(batch, rows, columns)
        if blocked is not None:  # the sum over a broadcast mask is much faster than filling through one
            detuning.add_(detuning.new_zeros(blocked.shape).masked_fill_(blocked, _FAR))
        return detuning

    def _blocked(self, batch: slice, rows: slice, columns: slice) -> Tensor | None:
        """The pairs of one tile that may not attend, True = may not; None where all may."""
        blocked = None
        device = self.receive.device
        i = torch.arange(rows.start, rows.stop, dtype=torch.int64, device=device)[:, None] + self.offset
        j = torch.arange(columns.start, columns.stop, dtype=torch.int64, device=device)
        if self.is_causal and columns.stop - 1 > rows.start + self.offset:
            blocked = j > i
        if not self.self_coupling:
            blocked = j == i if blocked is None else blocked | (j == i)
        if self.ids is not None and not self._is_one_text(batch, rows, columns):
            own = self.ids[batch, rows.start + self.offset : rows.stop + self.offset, None]
            apart = ((own != self.ids[batch, None, columns]) | (own < 0))[:, None]
            blocked = apart if blocked is None else blocked | apart
        if self.mask is not None:
            mask = self.mask[
                batch if self.mask.shape[0] > 1 else slice(None),
                :,
                rows_of(self.mask, rows),
                columns if self.mask.shape[3] > 1 else slice(None),
            ]
            blocked = ~mask if blocked is None else blocked | ~mask
        return blocked

    def _minimum(self, batch: slice, rows: slice, columns: list[slice]):
        """(smallest allowed D, its earliest sender, the last tile's D); 0 where no sender is allowed."""
        best = index = detuning = None
        for c in columns:
            detuning = self.allowed_detuning(batch, rows, c)
            value, at = detuning.min(-1, keepdim=True)
            at = at + c.start
            if best is None or index is None:
                best, index = value, at
            else:
                closer = value < best
                best, index = torch.where(closer, value, best), torch.where(closer, at, index)
        assert best is not None and index is not None
        return torch.where(best >= _FAR, 0.0, best), index, detuning

    def _kth(self, batch: slice, rows: slice, columns: list[slice]):
        """((D, index) of each row's k-th nearest allowed sender, the last tile's D)."""
        best = index = detuning = None
        for c in columns:
            seen = detuning = self.allowed_detuning(batch, rows, c)
            at = torch.arange(c.start, c.stop, dtype=torch.int64, device=seen.device).expand_as(seen)
            if best is not None and index is not None:
                seen, at = torch.cat((best, seen), -1), torch.cat((index, at), -1)
            # earlier senders stand first, and a stable sort keeps them there
            best, order = seen.sort(dim=-1, stable=True)
            best, index = best[..., : self.top_k], at.gather(-1, order[..., : self.top_k])
        assert best is not None and index is not None
        return (best[..., -1:], index[..., -1:]), detuning


def _centred(receive: Tensor, send: Tensor) -> tuple[Tensor, Tensor]:
    """Frequencies in float64 about their senders' mean: D does not change, its rounding does."""
    wide = receive.dtype if receive.device.type == "mps" else torch.float64
    receive, send = receive.to(wide), send.to(wide)
    centre = send.mean(-2, keepdim=True)
    return receive - centre, send - centre


def _augmented(receive: Tensor, send: Tensor) -> tuple[Tensor, Tensor]:
    """(left, right) with left @ right^T = D."""
    one_r, one_s = torch.ones_like(receive[..., :1]), torch.ones_like(send[..., :1])
    left = torch.cat((-2 * receive, receive.square().sum(-1, keepdim=True), one_r), -1)
    return left, torch.cat((send, one_s, send.square().sum(-1, keepdim=True)), -1)


def rows_of(tensor: Tensor, rows: slice) -> slice:
    return rows if tensor.shape[2] > 1 else slice(None)


def _beyond(detuning: Tensor, columns: slice, limit: tuple[Tensor, Tensor]) -> Tensor:
    """Whether (D, j) comes later than the row's k-th nearest sender, in that order."""
    value, index = limit
    j = torch.arange(columns.start, columns.stop, dtype=torch.int64, device=detuning.device)
    return (detuning > value) | ((detuning == value) & (j > index))
