"""Plain PyTorch in O(N) memory: tiles of the N x M matrix, a backward that recomputes them.

Works wherever torch works and takes every option but returning the weights. It is one custom operator, so
`torch.compile` and `torch.export` see a single node. Per tile:

    D   in float64 by one matrix product of (-2 w^r, |w^r|^2, 1) with (w^s, 1, |w^s|^2), rounded once: the
        Gram expansion cancels in float32, and a drifting frequency makes it cancel more the longer the text
    F   = exp(-2 alpha D) - D / kappa^2, and W = F^(p/2) where it is positive
    out += W v, Z += sum_j W;    out / (Z + eps) at the end

and backward, with delta_i = <dO_i, out_i>:  dW = (dO v^T - delta) / (Z + eps), dD = dW W'(F) F'(D).
The nearest frame and top_k need the whole row first: one more pass over D, saved when the row is one tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from syncattn.backends.call import Call, expand_heads
from syncattn.backends.dropout import keep_mask, row_numbers

# Elements of one tile's temporaries. 2**19 float32 numbers are 2 MiB: a core's second-level cache.
_CPU_TILE = 2**19
_GPU_TILE = 2**24
_ROWS = 128


def unavailable() -> str | None:
    """Why this backend cannot run on this machine: it can, always."""
    return None


def refuses(call: Call) -> str | None:
    """Why this backend cannot take the call, or None."""
    return "it never holds S and P (return_weights=True)" if call.return_weights else None


def run(call: Call) -> Tensor:
    """The operator: out (B, H, N, d)."""
    heads = call.receive.shape[1]
    out, _ = _forward(
        call.receive,
        expand_heads(call.send, heads),
        expand_heads(call.value, heads),
        call.coupling.expand(call.receive.shape[0], -1, -1),
        call.bandwidth,
        call.mask,
        call.seed,
        call.is_causal,
        call.self_coupling,
        call.top_k or 0,
        call.dropout_p,
        call.frame == "nearest",
        call.power,
        call.edge,
        call.eps,
        call.symmetric,
    )
    return out


class _Tile(NamedTuple):
    """The numbers of one tile, (b, H, n, k) each."""

    columns: slice
    locked: Tensor  # bool
    detuning: Tensor  # D, counted from the row's frame
    kernel: Tensor  # J^2 = exp(-2 alpha D)
    margin: Tensor  # F where locked, else 1
    strength: Tensor  # W, 0 where not locked


class _Problem:
    """One call's tensors in compute dtype, and the walk over its tiles."""

    def __init__(
        self,
        receive: Tensor,
        send: Tensor,
        value: Tensor,
        coupling: Tensor,
        bandwidth: Tensor,
        mask: Tensor | None,
        seed: Tensor | None,
        is_causal: bool,
        self_coupling: bool,
        top_k: int,
        dropout_p: float,
        nearest: bool,
        power: float,
        edge: float,
        eps: float,
        symmetric: bool,
    ) -> None:
        self.batch, self.heads, self.queries, self.freq_dim = receive.shape
        self.keys, self.value_dim = value.shape[-2:]
        self.dtype = bandwidth.dtype
        self.receive, self.send = _centred(receive, send)
        self.value = value.to(self.dtype)
        self.inverse_square = coupling.square().reciprocal()[..., None]  # (B, H, N or 1, 1)
        self.coupling, self.bandwidth = coupling, bandwidth
        self.rate = -2 * bandwidth[:, None, None]
        self.mask, self.seed = mask, seed
        self.is_causal, self.self_coupling, self.symmetric = is_causal, self_coupling, symmetric
        self.top_k = top_k if top_k < self.keys else 0
        self.dropout_p, self.nearest, self.power, self.edge, self.eps = dropout_p, nearest, power, edge, eps
        self.offset = self.keys - self.queries
        # exp of anything below this is 0 for every purpose but would be a slow denormal number
        self.floor = math.log(torch.finfo(self.dtype).tiny) + 7
        if self.direct:
            self.left, self.right = self.receive.to(self.dtype), self.send.to(self.dtype)
        else:
            self.left, self.right = _augmented(self.receive, self.send)

    @property
    def direct(self) -> bool:
        """Sum the squared differences: as fast for few coordinates, and MPS has no float64."""
        return self.freq_dim <= 3 or self.receive.device.type == "mps"

    def blocks(self) -> Iterator[tuple[slice, slice, list[slice]]]:
        """(batch, rows, columns of each tile) in a fixed order; tiles that causality empties are left out."""
        budget = _CPU_TILE if self.receive.device.type == "cpu" else _GPU_TILE
        rows = min(self.queries, _ROWS)
        width = max(_ROWS, budget // max(1, self.heads * rows))
        batches = max(1, budget // max(1, self.heads * rows * min(width, self.keys)))
        for b in range(0, self.batch, batches):
            for i in range(0, self.queries, rows):
                last = min(i + rows, self.queries)
                end = min(self.keys, last + self.offset) if self.is_causal else self.keys
                tiles = [slice(j, min(j + width, end)) for j in range(0, end, width)]
                yield slice(b, min(b + batches, self.batch)), slice(i, last), tiles

    def tiles(self, batch: slice, rows: slice, columns: list[slice]) -> Iterator[_Tile]:
        """The tiles of one block of rows, evaluated."""
        base = limit = None
        ready: Tensor | None = None
        if self.nearest or self.top_k:
            base, limit, ready = self._look_over(batch, rows, columns)
        rate = self.rate
        inverse_square = self.inverse_square[batch, :, _rows_of(self.inverse_square, rows)]
        for c in columns:
            detuning = self._detuning(batch, rows, c) if ready is None else ready
            locked = None
            if limit is not None:
                locked = _not_beyond(detuning, c, limit)
            if base is not None:
                detuning = detuning - base
            blocked = self._blocked(batch, rows, c)
            kernel = (detuning * rate).clamp_(self.floor, 0.0).exp_()
            margin = torch.addcmul(kernel, detuning, inverse_square, value=-1)
            lockable = (margin <= 0).logical_not_()  # NaN counts as locked: it must show, not vanish
            locked = lockable if locked is None else locked.logical_and_(lockable)
            if blocked is not None:
                locked = locked & ~blocked
            margin = torch.where(locked, margin, 1.0)
            yield _Tile(c, locked, detuning, kernel, margin, self._strength(margin, locked))

    def keep(self, batch: slice, rows: slice, columns: slice) -> Tensor | None:
        """The dropout mask of one tile, scaled: 1 / (1 - p) where kept."""
        if self.seed is None:
            return None
        device = self.receive.device
        numbers = row_numbers(self.batch, self.heads, self.queries, device)[batch, :, rows]
        j = torch.arange(columns.start, columns.stop, device=device)
        return keep_mask(self.seed, numbers, j, self.dropout_p).to(self.dtype) / (1 - self.dropout_p)

    def slope(self, tile: _Tile) -> Tensor:
        """dW/dF, 0 where not locked."""
        if self.power == 2 and self.edge == 0:
            return tile.locked.to(self.dtype)
        root = torch.sqrt(tile.margin + self.edge**2)
        slope = 0.5 * self.power / root
        if self.power != 1:
            slope = slope * (root - self.edge) ** (self.power - 1)
        return slope.mul_(tile.locked)

    def nearest_sender(self, batch: slice, rows: slice, columns: list[slice]) -> Tensor:
        """The index of the frame each row is seen from, (b, H, n, 1)."""
        best, index, _ = self._minimum(batch, rows, columns)
        return index

    def _strength(self, margin: Tensor, locked: Tensor) -> Tensor:
        if self.power == 2 and self.edge == 0:
            return margin * locked
        strength = torch.sqrt(margin + self.edge**2)
        if self.edge:
            strength -= self.edge
        if self.power != 1:
            strength = strength**self.power
        return strength.mul_(locked)

    def _detuning(self, batch: slice, rows: slice, columns: slice) -> Tensor:
        """D of one tile, in compute dtype, not negative, exactly 0 on the diagonal of the symmetric form."""
        left, right = self.left[batch, :, rows], self.right[batch, :, columns]
        if self.direct:
            detuning = (left[..., :, None, 0] - right[..., None, :, 0]).square_()
            for k in range(1, self.freq_dim):
                difference = left[..., :, None, k] - right[..., None, :, k]
                detuning.addcmul_(difference, difference)
            return detuning
        detuning = (left @ right.mT).to(self.dtype).clamp_(min=0.0)
        if self.symmetric:
            detuning.diagonal(rows.start - columns.start, -2, -1).zero_()
        return detuning

    def _blocked(self, batch: slice, rows: slice, columns: slice) -> Tensor | None:
        """The pairs of one tile that may not attend, True = may not; None where all may."""
        blocked = None
        i = torch.arange(rows.start, rows.stop, device=self.receive.device)[:, None] + self.offset
        j = torch.arange(columns.start, columns.stop, device=self.receive.device)
        if self.is_causal and columns.stop - 1 > rows.start + self.offset:
            blocked = j > i
        if not self.self_coupling:
            blocked = j == i if blocked is None else blocked | (j == i)
        if self.mask is not None:
            mask = self.mask[
                batch if self.mask.shape[0] > 1 else slice(None),
                :,
                _rows_of(self.mask, rows),
                columns if self.mask.shape[3] > 1 else slice(None),
            ]
            blocked = ~mask if blocked is None else blocked | ~mask
        return blocked

    def _look_over(self, batch: slice, rows: slice, columns: list[slice]):
        """What a row must know before its first tile: the frame's D, the top-k limit, D itself if one tile."""
        ready = limit = base = None
        if self.top_k:
            limit, ready = self._kth(batch, rows, columns)
        if self.nearest:
            base, _, ready = self._minimum(batch, rows, columns)
        return base, limit, ready if len(columns) == 1 else None

    def _minimum(self, batch: slice, rows: slice, columns: list[slice]):
        """(smallest allowed D, its sender, the last tile's D): the earliest on a tie, 0 where none is allowed."""
        best = index = detuning = None
        for c in columns:
            detuning = self._detuning(batch, rows, c)
            blocked = self._blocked(batch, rows, c)
            seen = detuning if blocked is None else detuning.masked_fill(blocked, torch.inf)
            value, at = seen.min(-1, keepdim=True)
            at = at + c.start
            if best is None or index is None:
                best, index = value, at
            else:
                closer = value < best
                best, index = torch.where(closer, value, best), torch.where(closer, at, index)
        assert best is not None and index is not None
        return torch.where(torch.isinf(best), 0.0, best), index, detuning

    def _kth(self, batch: slice, rows: slice, columns: list[slice]):
        """((D, index) of each row's k-th nearest allowed sender, the last tile's D)."""
        best = index = detuning = None
        for c in columns:
            detuning = self._detuning(batch, rows, c)
            blocked = self._blocked(batch, rows, c)
            seen = detuning if blocked is None else detuning.masked_fill(blocked, torch.inf)
            at = torch.arange(c.start, c.stop, device=seen.device).expand_as(seen)
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


def _rows_of(tensor: Tensor, rows: slice) -> slice:
    return rows if tensor.shape[2] > 1 else slice(None)


def _not_beyond(detuning: Tensor, columns: slice, limit: tuple[Tensor, Tensor]) -> Tensor:
    """Whether (D, j) comes no later than the row's k-th nearest sender, in that order."""
    value, index = limit
    j = torch.arange(columns.start, columns.stop, device=detuning.device)
    return (detuning < value) | ((detuning == value) & (j <= index))


_ARGUMENTS = (
    "Tensor receive, Tensor send, Tensor value, Tensor coupling, Tensor bandwidth, Tensor? mask, Tensor? seed, "
    "bool is_causal, bool self_coupling, int top_k, float dropout_p, bool nearest, float power, float edge, "
    "float eps, bool symmetric"
)


@torch.library.custom_op(
    "syncattn::tiled_forward", mutates_args=(), schema=f"({_ARGUMENTS}) -> (Tensor, Tensor)"
)
def _forward(*arguments) -> tuple[Tensor, Tensor]:
    """(out (B, H, N, d) in value's dtype, row sums Z (B, H, N) in compute dtype)."""
    p = _Problem(*arguments)
    value = arguments[2]
    out = value.new_zeros(p.batch, p.heads, p.queries, p.value_dim)
    row_sum = value.new_zeros(p.batch, p.heads, p.queries, dtype=p.dtype)
    for batch, rows, columns in p.blocks():
        if not columns:
            continue
        total: Tensor | float = 0.0
        mixed: Tensor | float = 0.0
        for tile in p.tiles(batch, rows, columns):
            total = total + tile.strength.sum(-1)
            keep = p.keep(batch, rows, tile.columns)
            kept = tile.strength if keep is None else tile.strength * keep
            mixed = mixed + kept @ p.value[batch, :, tile.columns]
        assert isinstance(total, Tensor) and isinstance(mixed, Tensor)
        row_sum[batch, :, rows] = total
        out[batch, :, rows] = mixed / (total + p.eps)[..., None]
    return out, row_sum


@_forward.register_fake
def _(receive, send, value, coupling, bandwidth, *_):
    batch, heads, queries, _ = receive.shape
    out = value.new_empty(batch, heads, queries, value.shape[-1])
    return out, bandwidth.new_empty(batch, heads, queries)


@torch.library.custom_op(
    "syncattn::tiled_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor out, Tensor row_sum, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward(grad: Tensor, out: Tensor, row_sum: Tensor, *arguments) -> tuple[Tensor, ...]:
    """The gradients of receive, send, value, coupling and bandwidth."""
    p = _Problem(*arguments)
    receive, send, value, coupling, bandwidth = arguments[:5]
    grad_receive, grad_send = torch.zeros_like(p.receive), torch.zeros_like(p.send)
    grad_value = torch.zeros_like(p.value)
    grad_coupling, grad_bandwidth = torch.zeros_like(coupling), torch.zeros_like(bandwidth)
    wide = p.receive.dtype
    for batch, rows, columns in p.blocks():
        if not columns:
            continue
        dout = grad[batch, :, rows].to(p.dtype)
        delta = (dout * out[batch, :, rows].to(p.dtype)).sum(-1, keepdim=True)
        scale = (row_sum[batch, :, rows] + p.eps).reciprocal()[..., None]
        at = (batch, slice(None), _rows_of(coupling, rows))
        kappa = coupling[at][..., None]
        inverse_square = p.inverse_square[at]
        received, framed = p.receive[batch, :, rows], 0.0
        for tile in p.tiles(batch, rows, columns):
            keep = p.keep(batch, rows, tile.columns)
            kept = tile.strength if keep is None else tile.strength * keep
            grad_value[batch, :, tile.columns] += kept.mT @ (dout * scale)
            flow = dout @ p.value[batch, :, tile.columns].mT
            if keep is not None:
                flow = flow * keep
            dmargin = (flow - delta).mul_(scale).mul_(p.slope(tile))  # dL/dF
            through = dmargin * tile.kernel
            weighed = dmargin * tile.detuning
            grad_bandwidth -= 2 * (through * tile.detuning).sum((0, 2, 3))
            dkappa = 2 * weighed.sum(-1, keepdim=True) / kappa**3
            grad_coupling[at] += (dkappa if coupling.shape[2] > 1 else dkappa.sum(2, keepdim=True))[..., 0]
            ddetuning = torch.addcmul(through * p.rate, dmargin, inverse_square, value=-1).to(wide)
            sent = p.send[batch, :, tile.columns]
            total = ddetuning.sum(-1, keepdim=True)
            framed = framed + total
            grad_receive[batch, :, rows] += 2 * (total * received - ddetuning @ sent)
            grad_send[batch, :, tile.columns] += 2 * (
                ddetuning.sum(-2)[..., None] * sent - ddetuning.mT @ received
            )
        if p.nearest:
            # D is counted from D of the nearest sender, so that pair takes back what the row received
            index = p.nearest_sender(batch, rows, columns).expand(-1, -1, -1, p.freq_dim)
            difference = 2 * framed * (received - p.send[batch].gather(2, index))
            grad_receive[batch, :, rows] -= difference
            grad_send[batch] = grad_send[batch].scatter_add(2, index, difference)
    return (
        grad_receive.to(receive.dtype),
        grad_send.to(send.dtype),
        grad_value.to(value.dtype),
        grad_coupling,
        grad_bandwidth,
    )


@_backward.register_fake
def _(grad, out, row_sum, receive, send, value, coupling, bandwidth, *_):
    return tuple(torch.empty_like(x) for x in (receive, send, value, coupling, bandwidth))


def _setup_context(ctx, inputs, output) -> None:
    ctx.options = inputs[7:]
    ctx.save_for_backward(*output, *inputs[:7])


def _differentiate(ctx, grad, _grad_row_sum):
    gradients = _backward(grad, *ctx.saved_tensors, *ctx.options)
    return (*gradients, *(None,) * (2 + len(ctx.options)))


_forward.register_autograd(_differentiate, setup_context=_setup_context)
