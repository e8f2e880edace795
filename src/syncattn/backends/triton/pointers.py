"""Where things are: a head's elements, the tile that a program owns, the tiles that it walks."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def head_of(x, b, h):
    """A pointer to where a head begins, in a group with strides over batch and heads."""
    return x.base + (b.to(tl.int64) * x.batch + h.to(tl.int64) * x.head)


@triton.jit
def shared_head(b, h, heads, fewer):
    """The number, over the whole batch, of the one among fewer heads that serves a head of the receivers."""
    return (b * fewer + h // (heads // fewer)).to(tl.int64)


@triton.jit
def own_place(walk, tiles, LATEST_FIRST: tl.constexpr):
    """(number of the head over the whole batch, tile) of this program. Without an order the last tiles can
    come first: of a causal call's receivers they have the most to do."""
    program = tl.program_id(0)
    if walk.order is not None:
        program = tl.load(walk.order + program)
    bh, tile = program // tiles, program % tiles
    if LATEST_FIRST and walk.order is None:
        tile = tiles - 1 - tile
    return bh, tile


@triton.jit
def numbers_of(planes, bh, tokens):
    """What the tokens at these places are called in the call itself: their places, but where the call is
    sorted; negative for those that stand nowhere, which only kernels with numbers are told."""
    if planes.numbers is not None:
        return tl.load(planes.numbers + bh.to(tl.int64) * planes.stride + tokens)
    return tokens


@triton.jit
def is_far(walk, own):
    """Whether D has to be taken as differences for some tile of an own tile's list."""
    return tl.load(walk.counts + 3 * own + 2) != 0


@triton.jit
def walk_of(walk, own):
    """(the tiles that an own tile walks, log2 of those of an entry of its list)."""
    return tl.load(walk.counts + 3 * own), tl.load(walk.counts + 3 * own + 1)


@triton.jit
def first_of(walk, width, own, shift, step, TILE: tl.constexpr, WALK: tl.constexpr):
    """The first token of a step of the walk: tiles are walked in pieces of WALK tokens, and an entry of the
    list is 2^shift tiles."""
    tile = step // (TILE // WALK)
    entries = walk.entries + own.to(tl.int64) * width
    tile = (tl.load(entries + (tile >> shift)) << shift) + (tile & ((1 << shift) - 1))
    return tile * TILE + step % (TILE // WALK) * WALK


@triton.jit
def last_key_tile(tile, queries, keys, key_tiles, TILE: tl.constexpr):
    """The tiles of senders up to the last receiver's own place."""
    last = tl.minimum((tile + 1) * TILE.QUERIES, queries) + (keys - queries) - 1
    return tl.minimum(key_tiles, last // TILE.KEYS + 1)


@triton.jit
def meet(first, number, other_first, other_number):
    """Whether [first, first + number) and [other_first, ...) overlap."""
    return (first < other_first + other_number) & (other_first < first + number)


@triton.jit
def load_values(
    base, stride, first, tokens, d, number, TURNED: tl.constexpr, EVEN: tl.constexpr, TILE: tl.constexpr
):
    """Values (tokens, BLOCK_D), TURNED (BLOCK_D, tokens), of tokens counted from the first one. EVEN: they
    fill whole tiles, and none is past their number."""
    start = base + tl.cast(first, tl.int64) * stride
    there, inside = first + tokens < number, d < TILE.DIM
    if TURNED:
        pointers = start + tokens[None, :] * stride + d[:, None]
        mask = there[None, :] & inside[:, None]
    else:
        pointers = start + tokens[:, None] * stride + d[None, :]
        mask = there[:, None] & inside[None, :]
    if EVEN and TILE.DIM == TILE.BLOCK_D:
        return tl.load(pointers)
    return tl.load(pointers, mask=mask, other=0.0)
