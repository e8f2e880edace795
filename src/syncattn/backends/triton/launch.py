"""From a call's tensors to kernel launches: layouts, grids. Nothing here waits for the device."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from syncattn.backends.call import Call
from syncattn.backends.triton.arrange import arrange_kernel, frame_kernel
from syncattn.backends.triton.blocks import (
    BLOCKS,
    FEWEST_COORDINATES,
    MOST_DIRECT,
    blocks_for,
    cdiv,
    drawn_columns,
    next_power_of_2,
    product_columns,
)
from syncattn.backends.triton.detuning import NOWHERE_RECEIVE, NOWHERE_SEND
from syncattn.backends.triton.groups import (
    Boxes,
    Dropout,
    Form,
    Frames,
    Frequencies,
    Heads,
    Law,
    Look,
    Mask,
    Planes,
    Rows,
    Texts,
    Tile,
    Walk,
    constant,
)
from syncattn.backends.triton.lists import lists_kernel, mask_tiles_kernel, order_kernel
from syncattn.backends.triton.order import Order, order_of, places, taken, values_taken
from syncattn.backends.triton.start import Host

# Into how many bfloat16 dL/dD is split before it is multiplied by frequencies: as exact as the values are.
SPLIT = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 3}
_CHUNK = 128  # tiles that a program of lists.py looks at together
CHUNK_OF_NEAREST = 256  # and one of nearest.py
# Entries that a list has room for; where more tiles than that can lock, an entry is several. So lists take
# 4 KiB a tile at most, however many tiles there are.
CAPACITY = 1024
_TWO_WARPS = {"num_warps": 2}
# From this many programs on they start in the order of their work, the longest first.
_FEWEST_ORDERED = 1024
# Up to this many each is compared with each to find that order; above, they are sorted.
_MOST_COMPARED = 8192
# From this many receivers and senders on, calls whose tokens may come in any order are put in that of a k-d
# tree. By the shape alone: whether it pays depends on the values, but to look at them would wait for the
# device. Below, sorting costs more than it can save: at 16,384 it took 1 ms on an H200.
FEWEST_SORTED = 16384


class Side(NamedTuple):
    """The frequencies of one side as the kernels read them."""

    planes: Planes
    boxes: Boxes
    heads: int
    tiles: int
    block: int


class Launch:
    """One call's tensors, and what every kernel is told about them; the kernels over pairs are named. In the
    nearest frame's backward base (B, H, N) is each receiver's nearest sender's D."""

    def __init__(
        self,
        call: Call,
        *kernels: str,
        arranged: bool = True,
        base: Tensor | None = None,
        host: Host | None = None,
    ) -> None:
        receive, send, value, coupling, bandwidth, mask, seed = call[:7]
        self.call, self.nearest = call, call.frame == "nearest"
        self.batch, self.heads, self.queries, self.freq_dim = receive.shape
        self.keys, self.value_dim = value.shape[-2:]
        self.value = last_contiguous(value)
        self.coupling = coupling.expand(self.batch, self.heads, self.queries)
        self.bandwidth = bandwidth.contiguous()
        self.device = receive.device
        self.host = host or Host(self.device)
        self.empty, self.start = self.host.empty, self.host.start
        self.block_m = max(16, next_power_of_2(self.freq_dim))
        self.block_d = max(16, next_power_of_2(self.value_dim))
        self.wide = wide = value.dtype == torch.float32
        sizes = self.block_d, self.freq_dim, value.element_size()
        self.blocks = {name: blocks_for(name, *sizes) for name in kernels}
        (self.query_tile, self.key_tile), *others = {b[:2] for b in self.blocks.values()}
        assert not others, self.blocks
        allowed = _by_sender(mask, send, self.keys) if arranged else None
        if allowed is not None:
            mask = None  # those senders stand nowhere
        self.order: Order | None = None
        any_order = arranged and mask is None and call.sequence_ids is None and not self.call.is_causal
        if any_order and min(self.queries, self.keys) >= FEWEST_SORTED:
            self._sort(receive, send, allowed)
        self.numbered = allowed is not None or self.order is not None
        self.direct = self.freq_dim <= MOST_DIRECT[self.wide]
        # how D is taken, in a launch each: the second sees to tiles for which a product is not exact enough
        self.ways = tuple({"DIRECT": x} for x in ((True,) if self.direct else (False, True)))
        self.product, self.drawn = product_columns(self.freq_dim), drawn_columns(self.freq_dim)
        self.frames = Frames(None, None)
        if arranged:
            at = (None, None) if self.order is None else self.order[:2]
            if not self.direct:
                self._frame(send)
            self.send, _ = self._arrange(send, self.key_tile, at[1], allowed)
            self.receive, self.reach = self._arrange(
                receive, self.query_tile, at[0], None, base, receives=True
            )
        exact = "tf32x3" if torch.version.hip is None else "ieee"
        self.value_precision = exact if wide else "tf32"  # the latter concerns float32 operands only
        self.texts = None if call.sequence_ids is None else self._texts(call.sequence_ids)
        self.mask: Mask | None = None
        if mask is not None:
            by_pair = mask.expand(self.batch, self.heads, self.queries, self.keys).view(torch.uint8)
            self.mask = Mask(by_pair, *by_pair.stride())
        # Which tiles of pairs hold one that may attend, for the lists: 1 byte for each, quadratic, but a
        # thousandth and less of the mask itself.
        self.mask_tiles: Mask | None = None
        if arranged and mask is not None:
            self.mask_tiles = self._mask_tiles(mask)
        self.dropout: Dropout | None = None
        if seed is not None:
            p = self.call.dropout_p
            self.dropout = Dropout(seed, int(p * 2**32), 1 / (1 - p))

    def _sort(self, receive: Tensor, send: Tensor, allowed: Tensor | None) -> None:
        tile = min(self.query_tile, self.key_tile)
        self.order = order = order_of(self.host, receive, send, tile, allowed, self.call.symmetric)
        self.value = values_taken(self.value, order.senders, self.heads)
        if self.coupling.stride(2):  # 0: the same for all rows
            self.coupling = taken(self.coupling, order.receivers)

    def sorted_rows(self, x: Tensor) -> Tensor:
        """x (B, H, N, ...) in the order in which the kernels see the receivers."""
        return x if self.order is None else taken(x, self.order.receivers)

    def rows_back(self, x: Tensor) -> Tensor:
        """x (B, H, N, ...), as a kernel over receivers wrote it, in the order of the call."""
        return x if self.order is None else taken(x, self.order.receivers_back)

    def senders_back(self, x: Tensor) -> Tensor:
        """x (B, H, M, ...), as a kernel over senders wrote it, in the order of the call."""
        return x if self.order is None else taken(x, self.order.senders_back)

    def places(self, sender: Tensor) -> Tensor:
        """Where the senders of these numbers (B, H, N) are for the kernels."""
        return sender if self.order is None else places(sender, self.order.senders_back)

    def _frame(self, send: Tensor) -> None:
        rows = self.batch * send.shape[1]
        vectors = self.empty(rows, 2, self.block_m)
        self.frames = Frames(vectors, self.empty(rows))
        self.start(
            frame_kernel, (rows,),
            Frequencies(send, *send.stride()), self.frames, send.shape[1], self.keys,
            FREQ=self.freq_dim, BLOCK_M=self.block_m, options={"num_warps": 4},
        )  # fmt: skip

    def _arrange(
        self,
        x: Tensor,
        block: int,
        order: Tensor | None,
        allowed: Tensor | None,
        base: Tensor | None = None,
        receives: bool = False,
    ) -> tuple[Side, Tensor | None]:
        """One side; of the receivers also reach, (B H, tiles): the largest D at which a tile can lock."""
        heads, tokens = x.shape[1:3]
        rows, tiles = self.batch * heads, _whole_granules(cdiv(tokens, block))
        plane = tiles * block

        new = partial(self.empty, rows)
        numbers = new(plane, dtype=torch.int32) if self.numbered else None
        operands = along = drawn = bound = None
        if not self.direct:
            operands = new(plane, self.product, dtype=torch.float16)
            along, bound = new(plane), new(tiles)
            drawn = new(plane, self.drawn, dtype=torch.bfloat16) if "receivers" in self.blocks else None
        planes = Planes(new(self.freq_dim, plane), plane, numbers, operands, along, drawn, bound)
        boxes = Boxes(new(self.freq_dim, tiles), new(self.freq_dim, tiles))
        reach = new(tiles) if receives else None
        self.start(
            arrange_kernel, (rows * tiles,),
            Frequencies(x, *x.stride()), order,
            None if allowed is None else Rows(allowed, *allowed.stride()), planes, boxes,
            self.frames, self.law() if receives else None, base, reach,
            heads, self.call.send.shape[1], tokens, tiles,
            nowhere=(NOWHERE_RECEIVE if receives else NOWHERE_SEND).value, nobody=-2 if receives else -1,
            FREQ=self.freq_dim, BLOCK_M=self.block_m, BLOCK=block, PRODUCT=self.product, DRAWN=self.drawn,
            RECEIVES=receives,
        )  # fmt: skip
        return Side(planes, boxes, heads, tiles, block), reach

    def _texts(self, ids: Tensor) -> Texts:
        """The ids of a call, and the range of those of each tile."""
        ids = ids.contiguous()
        sides = []
        for own, tile in ((ids[:, self.keys - self.queries :], self.query_tile), (ids, self.key_tile)):
            tiles = _whole_granules(cdiv(own.shape[1], tile))
            # a last tile that is not full has its last token's id to the end
            at = torch.arange(tiles * tile, dtype=torch.int64, device=self.device).clamp(max=own.shape[1] - 1)
            of_tiles = own[:, at].view(len(own), tiles, tile)
            sides.append(torch.stack((of_tiles.amin(-1), of_tiles.amax(-1)), -1))
        of_rows = [0 if len(x) == 1 else x.stride(0) for x in (ids, *sides)]
        return Texts(ids, of_rows[0], sides[0], of_rows[1], sides[1], of_rows[2])

    def _mask_tiles(self, mask: Tensor) -> Mask:
        """(B, H, tiles of receivers, tiles of senders) uint8, with strides of 0 where the mask has size 1."""
        batch, heads, rows, columns = mask.shape
        sides = self.receive.tiles, self.send.tiles
        shape = [t if n > 1 else 1 for t, n in zip(sides, (rows, columns), strict=True)]
        tiles = self.empty(batch, heads, *shape, dtype=torch.uint8)
        self.start(
            mask_tiles_kernel, (tiles.numel(),),
            Mask(mask.view(torch.uint8), *mask.stride()), heads, rows, columns, tiles, *shape,
            BLOCK_ROWS=self.query_tile, BLOCK_COLUMNS=self.key_tile,
        )  # fmt: skip
        tiles = tiles.expand(self.batch, self.heads, *sides)
        return Mask(tiles, *tiles.stride())

    def lists(self, of_queries: bool) -> Walk:
        """The tiles of senders for each tile of receivers, or, not of_queries, the other way round."""
        own, other = (self.receive, self.send) if of_queries else (self.send, self.receive)
        rows = self.batch * self.heads
        width = min(other.tiles, CAPACITY)
        granule = _largest_granule(other.tiles)
        entries = self.empty(rows, own.tiles, width, dtype=torch.int32)
        counts = self.empty(rows, own.tiles, 3, dtype=torch.int32)
        mask = self.mask_tiles
        if mask is not None and not of_queries:
            mask = mask._replace(row=mask.column, column=mask.row)
        look = Look(
            FREQ=self.freq_dim, BLOCK_M=self.block_m, OWN=own.block, OTHER=other.block,
            CHUNK=max(_CHUNK, granule), LEVELS=granule.bit_length(), OF_QUERIES=of_queries,
            CAUSAL=self.call.is_causal,
        )  # fmt: skip
        self.start(
            lists_kernel, (rows * own.tiles,),
            own.boxes, other.boxes, own.planes.bound, other.planes.bound, self.reach, mask, self.texts,
            Walk(entries, counts, None), width, own.heads, other.heads, self.heads, own.tiles, other.tiles,
            self.keys - self.queries, self.queries, LOOK=constant(look), options=_TWO_WARPS,
        )  # fmt: skip
        return Walk(entries, counts, self._longest_first(counts))

    def _longest_first(self, counts: Tensor) -> Tensor | None:
        number = counts.numel() // 3
        if number < _FEWEST_ORDERED:
            return None
        if number > _MOST_COMPARED:
            return counts[..., 0].flatten().argsort(descending=True, stable=True).int()
        order = self.empty(number, dtype=torch.int32)
        self.start(order_kernel, (cdiv(number, 8),), counts, order, number, BLOCK=8, CHUNK=1024)
        return order

    def values(self) -> Rows:
        return Rows(self.value, *self.value.stride()[:3])

    def law(self) -> Law:
        edge = self.call.edge
        batch, head, row = self.coupling.stride()
        return Law(self.coupling, batch, head, row, self.bandwidth, edge if edge > 0 else None)

    def head_counts(self, send_heads: int) -> Heads:
        return Heads(self.heads, send_heads, self.value.shape[1])

    def tile(self, kernel: str, **other: int) -> Tile:
        """How this kernel over pairs computes, but for what is said otherwise."""
        tile = Tile(
            FREQ=self.freq_dim,
            BLOCK_M=self.block_m,
            DIM=self.value_dim,
            BLOCK_D=self.block_d,
            QUERIES=self.query_tile,
            KEYS=self.key_tile,
            WALK=self.blocks[kernel].walk,
            DIRECT=self.direct,
            PRODUCT=self.product,
            CHUNK=min(128, self.product),
            DRAWN=self.drawn,
            SPLIT=SPLIT[self.value.dtype],
            VALUE_PRECISION=self.value_precision,
        )
        return constant(tile._replace(**other))

    def compiled(self, kernel: str) -> dict[str, Any]:
        """What this kernel over pairs is compiled with."""
        blocks = self.blocks[kernel]
        form = {"TILE": self.tile(kernel), "FORM": self.form()}
        options = {"num_warps": blocks.warps, "num_stages": blocks.stages}
        if blocks.registers is not None:
            options["maxnreg"] = blocks.registers
        return form | {"options": options}

    def form(self) -> Form:
        call, order = self.call, self.order
        # of one order for both sides the own pairs are where they are without
        is_sorted = order is not None and order.receivers is not order.senders
        power = int(call.power)
        return constant(Form(call.is_causal, call.self_coupling, call.symmetric, is_sorted, power))


def settings(call: Call) -> tuple[Any, ...]:
    """What launches follow from besides the call. It is the same for all, but tests and benchmarks set it."""
    width, size = max(64, next_power_of_2(call.value.shape[-1])), call.value.element_size()
    blocks = BLOCKS[width, size, call.receive.shape[-1] <= FEWEST_COORDINATES]
    return blocks, FEWEST_SORTED, CAPACITY, _CHUNK, CHUNK_OF_NEAREST, _FEWEST_ORDERED, _MOST_COMPARED


def tiles_of_receivers(call: Call) -> int:
    """In the backward, of each head."""
    value = call.value
    width = max(16, next_power_of_2(value.shape[-1]))
    blocks = blocks_for("receivers", width, call.receive.shape[-1], value.element_size())
    return _whole_granules(cdiv(call.receive.shape[2], blocks.queries))


def _largest_granule(tiles: int) -> int:
    """The tiles of an entry with which a list of so many tiles has room for all of them: a power of two."""
    return next_power_of_2(cdiv(tiles, CAPACITY))


def _whole_granules(tiles: int) -> int:
    """So many tiles, and those past the end that are read with the last entry of a list."""
    granule = _largest_granule(tiles)
    return cdiv(tiles, granule) * granule


def _by_sender(mask: Tensor | None, send: Tensor, keys: int) -> Tensor | None:
    """(B, heads of senders, M) uint8: the mask, if it says the same to every receiver that hears a sender.

    Those whom it leaves out then stand nowhere, and pairs with them need no test. So where a receiver is NaN
    and may hear nobody its row can be NaN, too, while with other masks it is 0."""
    if mask is None or mask.shape[2] != 1 or mask.shape[1] not in (1, send.shape[1]):
        return None
    return mask.view(torch.uint8).expand(*send.shape[:2], 1, keys)[:, :, 0]


def last_contiguous(x: Tensor) -> Tensor:
    """x with consecutive elements in its last dimension."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
