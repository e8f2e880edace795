"""The kernels' arguments in groups, as named tuples of what belongs together.

What a call does not have is None, and a kernel is compiled without it. Nothing that grows with a text is in
a group: Triton compiles a kernel again when a member becomes 1 or a multiple of 16, and `do_not_specialize`
does not reach it (docs/NOTES.md). So numbers of tokens and tiles are arguments of their own, listed here.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, TypeVar, cast

import triton.language as tl
from triton import knobs

# Kernels are not compiled again for each kind of number (1, a multiple of 16) that these can be. What loads
# of several numbers at a time depend on is not among them.
GROWING = [
    "queries", "keys", "tokens", "rows", "columns", "tiles", "own_tiles", "other_tiles",
    "row_tiles", "column_tiles", "width", "offset", "parts", "part_tiles",
]  # fmt: skip


class Planes(NamedTuple):
    """The frequencies of one side, as arrange.py lays them out."""

    base: Any  # (B heads, m, stride) float32
    stride: Any  # tokens of a plane: whole tiles
    numbers: Any  # (B heads, stride) int32: what its tokens are called in the call; None: by their places
    operands: Any  # (B heads, stride, PRODUCT) float16: detuning.py; None, as all below: D is not a product
    along: Any  # (B heads, stride) float32: the coordinate along the axis, in units
    drawn: Any  # (B heads, stride, DRAWN) bfloat16: all coordinates in two parts, from the centre, in units
    bound: Any  # (B heads, tiles) float32: of senders the largest size, of receivers how large it may be


class Frames(NamedTuple):
    """What each head of the senders counts frequencies in."""

    vectors: Any  # (B heads, 2, BLOCK_M) float32: its centre; the axis of its largest variance, of length 1
    units: Any  # (B heads,) float32: a power of two, how far tokens are from that axis


class Boxes(NamedTuple):
    """Around each tile's tokens, (B heads, m, tiles) float32."""

    low: Any
    high: Any


class Frequencies(NamedTuple):
    """Those of one side as the caller has them, (B, heads, tokens, m)."""

    base: Any
    batch: Any
    head: Any
    token: Any
    coordinate: Any


class Rows(NamedTuple):
    """(B, heads, tokens, columns), the columns consecutive; or (B, heads, tokens)."""

    base: Any
    batch: Any
    head: Any
    token: Any


class Law(NamedTuple):
    """What S takes besides D (margin.py): kappa (B, H, N), first, with its strides."""

    base: Any
    batch: Any
    head: Any
    token: Any
    bandwidth: Any  # (H,)
    edge: Any  # None: none


class Mask(NamedTuple):
    """By pair, (B, H, N, M): 1 where it may attend. By tile of pairs: 2 where all may, 1 where some."""

    base: Any
    batch: Any
    head: Any
    row: Any
    column: Any


class Texts(NamedTuple):
    """Several texts in one row: only tokens of one id that is not negative attend to each other."""

    ids: Any  # (B or 1, M) int64; receivers are the last N
    batch: Any
    receivers: Any  # (B or 1, tiles, 2) int64: a tile's smallest id and its largest
    of_receivers: Any  # from one row to the next
    senders: Any
    of_senders: Any


class Dropout(NamedTuple):
    seed: Any
    threshold: Any  # pairs whose hash is below are dropped
    scale: Any  # of those that are kept


class Nearest(NamedTuple):
    """Each receiver's nearest allowed sender, (B, H, N): its D, and its place or number; 0 and -1: none."""

    squared: Any
    sender: Any


class Walk(NamedTuple):
    """Which tiles meet which (lists.py)."""

    entries: Any  # (B H, tiles, width) int32: tiles, or granules of 2^log2 tiles
    # (B H, tiles, 3) int32: how many tiles the entries are; log2 of the tiles of one; 1 if D as a product
    # would not be exact enough for some of them
    counts: Any
    order: Any  # (B H tiles,) int32: which tile a program takes, the longest lists first; None: by its number


class Heads(NamedTuple):
    """How many; those of the senders and of the values are shared by equal numbers of the receivers'."""

    receive: Any
    send: Any
    value: Any


class ForSenders(NamedTuple):
    """What the backward's first kernel, over receivers, leaves to its second."""

    numbers: Any  # (B H, 6, plane) float32: backward.py says which
    ranges: Any  # (B H, 2, tiles) int32: a tile's nearest senders: the first place, and how many to the last


class Gradients(NamedTuple):
    """Of the receivers."""

    receive: Any  # (B, H, N, m)
    coupling: Any  # (B, H, N)
    bandwidth: Any  # (B H, tiles)


class Tile(NamedTuple):
    """How a kernel computes, known when it is compiled."""

    FREQ: Any  # m
    BLOCK_M: Any  # rounded up to a power of two
    DIM: Any  # d
    BLOCK_D: Any
    QUERIES: Any  # of a tile
    KEYS: Any
    WALK: Any  # of a tile that is walked, so many at a time
    DIRECT: Any  # D as differences, not as a product of matrices
    PRODUCT: Any  # columns of the operands of that product,
    CHUNK: Any  # of which so many at a time
    DRAWN: Any  # columns of what dL/dD is multiplied by
    SPLIT: Any  # parts of dL/dD
    VALUE_PRECISION: Any


class Form(NamedTuple):
    """What a call is, besides what it has, known when a kernel is compiled."""

    CAUSAL: Any
    SELF: Any  # with the own pair
    SYMMETRIC: Any
    SORTED: Any  # in the order of a k-d tree, of each side its own
    POWER: Any


class Look(NamedTuple):
    """How lists.py looks for tiles, known when it is compiled."""

    FREQ: Any
    BLOCK_M: Any
    OWN: Any  # tokens of an own tile
    OTHER: Any
    CHUNK: Any  # other tiles that are looked at together
    LEVELS: Any  # an entry is up to 2^(LEVELS - 1) tiles
    OF_QUERIES: Any  # the own tiles are the receivers'
    CAUSAL: Any


Group = TypeVar("Group", Tile, Form, Look)
_INTERPRETED = knobs.runtime.interpret


class _Constants:
    """A group as the compiler takes it, every member called a constant. Triton hashes, or prints, and
    compares what it is given at each launch: so by identity, and the text is ready."""

    def __init__(self, group: Tile | Form | Look) -> None:
        self.__dict__.update({name: tl.constexpr(x) for name, x in group._asdict().items()})
        self._text = repr(group)

    def __repr__(self) -> str:
        return self._text


@lru_cache(maxsize=None, typed=True)
def constant(group: Group) -> Group:
    """As kernels take it: one object for each content. In the interpreter constants are plain numbers."""
    return group if _INTERPRETED else cast("Group", _Constants(group))
