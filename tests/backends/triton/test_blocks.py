"""The table of block sizes, what shared memory calls need, and that GPUs which have less refuse them."""

import pytest
import torch

import syncattn
from syncattn.backends import select
from syncattn.backends.triton import operator
from syncattn.backends.triton.blocks import BLOCKS, ENOUGH, Kernels, blocks_for, shared_memory


@pytest.fixture(autouse=True)
def kernels():
    """The block sizes as they are, not the small ones of the tests beside this."""


@pytest.mark.parametrize(("d", "size"), sorted({key[:2] for key in BLOCKS}))
def test_no_kernel_is_compiled_in_one_stage(d, size, monkeypatch):
    """blocks.py says why."""
    for m in (1, 8, 16, 64, 65, 128):
        found = [blocks_for(name, d, m, size) for name in Kernels._fields]
        assert all(x.stages >= 2 for x in found), m
        assert found[1][:2] == found[2][:2], "the backward's kernels share their tiles"
    one = Kernels(*(x._replace(stages=1) for x in BLOCKS[d, size, False]))
    monkeypatch.setitem(BLOCKS, (d, size, False), one)
    with pytest.raises(AssertionError, match="miscompiled"):
        blocks_for("receivers", d, 16, size)


# What Triton 3.6 gave the largest kernel, in bytes, of plain calls with power 2: by the capability, m, d, the
# bytes of a value, and whether the backward counts. `shared_memory` may say up to 16 KiB more.
FOUND = {
    (8, 64, 64, 2, True): 107520,
    (8, 128, 64, 2, True): 102656,
    (8, 128, 256, 2, True): 133376,
    (8, 128, 256, 2, False): 92224,
    (8, 8, 128, 4, True): 81920,
    (8, 8, 256, 4, True): 163840,
    (9, 64, 64, 2, False): 116992,
    (9, 64, 64, 2, True): 158720,
    (9, 64, 256, 2, True): 148992,
    (9, 128, 64, 2, True): 127744,
    (9, 128, 256, 2, True): 164608,
    (9, 8, 256, 4, True): 196608,
    (9, 128, 256, 4, True): 163840,
    (10, 64, 64, 2, True): 183392,
    (10, 128, 256, 2, True): 222080,
}


@pytest.mark.parametrize("case", FOUND, ids=str)
def test_it_is_what_the_compiler_takes(case):
    major, *shape = case
    assert 0 <= shared_memory(*shape, (major, 0)) - FOUND[case] <= 16 * 1024


@pytest.mark.parametrize("major", [9, 10])
def test_hopper_and_blackwell_hold_every_call(major):
    for d, size, _ in BLOCKS:
        assert max(shared_memory(m, d, size, True, (major, 0)) for m in range(1, 129)) <= ENOUGH


def test_an_a100_holds_every_call():
    for d, size, _ in BLOCKS:
        assert max(shared_memory(m, d, size, True, (8, 0)) for m in range(1, 129)) <= 163 * 1024


def draw(m, d, dtype, gradients):
    w, v = torch.randn(1, 2, 5, m).to(dtype), torch.randn(1, 2, 5, d).to(dtype)
    return w, w, v.requires_grad_(gradients), torch.ones(2), torch.ones(2)


@pytest.fixture
def small_gpu(monkeypatch):
    """As if the tensors were on an RTX 4090: 99 KiB for a program."""
    monkeypatch.setattr(operator, "_shared_memory", lambda device: 99 * 1024)
    monkeypatch.setattr(operator, "_capability", lambda device: (8, 9))
    stub = operator.BACKEND._replace(
        unavailable=lambda: None, refuses=operator._too_small, only_by_name=lambda call: None
    )
    monkeypatch.setitem(select.BACKENDS, "triton", stub)


@pytest.mark.parametrize(
    ("m", "d", "dtype", "said"),
    [
        (64, 64, torch.bfloat16, "m 64 and d 64 in bfloat16 need up to 113 KiB of shared memory, gradients"),
        (
            8,
            200,
            torch.float32,
            "m 8 and d 200 in float32 need up to 160 KiB of shared memory, gradients inc",
        ),
        (
            128,
            256,
            torch.float32,
            "m 128 and d 256 in float32 need up to 144 KiB of shared memory, gradients inc",
        ),
    ],
    ids=str,
)
def test_a_smaller_gpu_leaves_calls_to_others_and_says_why(small_gpu, m, d, dtype, said):
    inputs = draw(m, d, dtype, True)
    found = syncattn.backends.explain(*inputs)
    assert found.backend != "triton" and said in found.reasons["triton"]
    assert found.reasons["triton"].endswith("this GPU has 99 KiB for a program")
    syncattn.selective_synchronization_attention(*inputs)
    with pytest.raises(ValueError, match="backend='triton' cannot take this call: " + said):
        syncattn.selective_synchronization_attention(*inputs, backend="triton")
    with torch.no_grad():  # the forward alone fits
        assert syncattn.backends.explain(*inputs).backend == "triton"
    assert syncattn.backends.explain(*draw(m, d, dtype, False)).backend == "triton"


@pytest.mark.parametrize(("m", "d", "dtype"), [(16, 64, torch.bfloat16), (128, 128, torch.float32)], ids=str)
def test_what_fits_a_smaller_gpu_is_taken_there(small_gpu, m, d, dtype):
    assert syncattn.backends.explain(*draw(m, d, dtype, True)).backend == "triton"


def test_what_is_too_wide_for_itself_is_refused_for_that(small_gpu):
    for m, d, said in ((129, 8, "a freq_dim of up to 128"), (8, 257, "values of up to 256 columns")):
        assert said in syncattn.backends.explain(*draw(m, d, torch.float32, True)).reasons["triton"]
