"""Block sizes: how the kernels over pairs are cut and compiled, and what shared memory that takes. Nothing
here needs triton, so that a call can be refused without it."""

from __future__ import annotations

from typing import NamedTuple

# Coordinates up to which D is a sum of squared differences on the CUDA cores, with values of 4 bytes and of
# 2. That is as exact as float32; the product on the tensor cores, which costs less, is as exact as narrow
# values are, unless a tile is spread over very many locking radii.
MOST_DIRECT = {True: 128, False: 3}


class Blocks(NamedTuple):
    """The tiles of a kernel over pairs, and how it is compiled."""

    queries: int  # tokens of a tile of receivers
    keys: int  # and of one of senders
    walk: int  # of a tile that is walked so many at a time
    warps: int
    stages: int
    registers: int | None = None  # a thread's, at most; None: as many as the assembler wants


class Kernels(NamedTuple):
    """The blocks of each of them; the two of the backward share their tiles."""

    forward: Blocks
    receivers: Blocks
    senders: Blocks


# By the columns of the value, rounded up, and the bytes of its elements: those with the fewest instructions a
# pair in the compiler's code for sm_90. On an H200 three stages took dense 8,192 tokens 700 microseconds
# forward in place of 780, and 128 receivers 620; the layer form takes more instructions with either and was
# not timed (docs/kernel-gpu.md).
_OF_VALUES = {
    (64, 2): Kernels(*[Blocks(64, 64, 64, 4, 2)] * 3),
    (64, 4): Kernels(*[Blocks(64, 64, 32, 4, 2)] * 3),
    (128, 2): Kernels(*[Blocks(64, 64, 64, 4, 2)] * 3),
    (128, 4): Kernels(*[Blocks(64, 64, 32, 4, 2)] * 3),
    (256, 2): Kernels(*[Blocks(64, 64, 32, 4, 2)] * 3),
    (256, 4): Kernels(*[Blocks(64, 64, 32, 4, 2)] * 3),
}
FEWEST_COORDINATES = 8
# The third: whether there are so few coordinates.
BLOCKS = {(*key, few): found for key, found in _OF_VALUES.items() for few in (False, True)}
# A fourth program fits a multiprocessor: on an H100 dense 16,384 tokens of 16 heads took 2.47 milliseconds in
# place of 2.87, and 2.39 with 128 receivers, which lists are coarser with.
BLOCKS[64, 2, True] = BLOCKS[64, 2, True]._replace(forward=Blocks(64, 64, 64, 4, 3, 128))
_FEW_COORDINATES = 64  # more take the registers and the shared memory
# With one stage all operands that a loop loads lie at one address of shared memory, one after the other. Of
# such kernels the assembler that Triton brings (ptxas 12.8) computes some descriptors of matrices from
# registers that it never sets: products with garbage, or an access outside of memory
# (docs/kernel-gpu.md). From two stages on each operand has an address of its own.
_FEWEST_STAGES = 2


def blocks_for(kernel: str, block_d: int, freq_dim: int, size: int) -> Blocks:
    """For values of block_d columns of this size in bytes, and frequencies of freq_dim coordinates."""
    found: Blocks = getattr(BLOCKS[max(64, block_d), size, freq_dim <= FEWEST_COORDINATES], kernel)
    assert found.stages >= _FEWEST_STAGES, f"kernels of {found.stages} stage are miscompiled"
    if freq_dim <= _FEW_COORDINATES:
        return found
    # the operands of D's product are those that take the memory; float32 values have none
    walk = 32 if size == 4 and block_d <= 128 else 16
    return found._replace(walk=min(found.walk, walk), stages=_FEWEST_STAGES)


def product_columns(freq_dim: int) -> int:
    """Columns of the operands of D as a product, of 2 bytes (arrange.py writes them)."""
    return max(32, next_power_of_2(3 * freq_dim + 6))


def drawn_columns(freq_dim: int) -> int:
    """Columns of what dL/dD is multiplied by, of 2 bytes."""
    return max(16, 2 * next_power_of_2(freq_dim))


# Masks, dropout and changes of layout take up to so much beside what shapes tell; float32 kernels reuse the
# operands' memory for them.
_BESIDE = 8192
_LEAST = 64 * 1024  # which every GPU has that it runs on: below, nothing is told apart
ENOUGH = 227 * 1024  # what all calls fit: a program's on Hopper and on Blackwell's GPUs for data centres


def shared_memory(
    freq_dim: int, value_dim: int, size: int, gradients: bool, capability: tuple[int, int]
) -> int:
    """Bytes of shared memory that a program of the largest kernel needs, at most, on an NVIDIA GPU of this
    compute capability: of values of value_dim columns, of so many bytes each, and with `gradients` of the
    backward, too.

    Where each operand is while a loop runs was read off the compiler's code (Triton 3.6): on Hopper and on
    Blackwell's GPUs for data centres tensor cores take operands from shared memory, which holds as many of
    each as there are stages; elsewhere from registers, and one fewer is held.
    """
    kernels = ("forward", "receivers", "senders") if gradients else ("forward",)
    return max(_LEAST, *[_of_kernel(name, freq_dim, value_dim, size, capability[0]) for name in kernels])


def _of_kernel(name: str, freq_dim: int, value_dim: int, size: int, major: int) -> int:
    block_d = max(16, next_power_of_2(value_dim))
    queries, keys, walk, _, stages, _ = blocks_for(name, block_d, freq_dim, size)
    own, row, backward = max(queries, keys), block_d * size, name != "forward"
    from_shared = major in (9, 10)
    if size == 4:  # each operand twice, in the parts of tf32: of the own tile the gradients of out, or values
        walked = 2 * walk * row if from_shared else walk * row + (0 if backward else own * walk * size)
        return walked + (2 * own * row if backward else 0)
    if freq_dim <= MOST_DIRECT[False]:  # nothing is loaded ahead
        return (own + walk) * row + 2 * _BESIDE
    operands, drawn = 2 * product_columns(freq_dim), 2 * drawn_columns(freq_dim) if backward else 0
    walked = walk * (operands + row + drawn)
    kept = own * (operands + (row if backward else 0)) + (stages - 1) * walk * 16 + _BESIDE
    if not from_shared:
        return (stages - 1) * walked + kept + 2 * own * walk
    blackwell = own * max(0, operands - 256) + walk * row if major == 10 else 0
    return stages * walked + kept + 32 * walk + blackwell


def cdiv(x: int, y: int) -> int:
    """x / y, rounded up. Triton's, and its next power of 2, take a microsecond."""
    return -(-x // y)


def next_power_of_2(x: int) -> int:
    """The least power of 2 from x on."""
    return 1 << (x - 1).bit_length()
