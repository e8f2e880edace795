"""Launches without Triton's binder: a kernel is found again exactly when Triton would not compile another."""

import pytest
import torch


@pytest.fixture
def begin(kernels, stubs, monkeypatch):
    """Starts a kernel as on a GPU, and says how many were compiled so far."""
    from syncattn.backends.triton import start

    class Active:
        @staticmethod
        def get_current_stream(device):
            return 70 + device

    monkeypatch.setattr(start, "driver", type("Driver", (), {"active": Active}))
    kernel = stubs.Kernel()

    def begun(x, rows, tokens, eps=0.1, device=0, block=32, warps=4):
        start._start_here(
            kernel, device, (5,), (x, rows, tokens, eps), [{"BLOCK": block}], {"num_warps": warps}
        )
        return len(kernel.compiled)

    begun.kernel = kernel
    return begun


def test_the_second_start_takes_what_the_first_found(begin, stubs):
    x = torch.zeros(64)
    rows = stubs.Rows(x, 32, 16, 1)
    assert begin(x, rows, 7) == begin(x, rows, 7, eps=0.2) == 1
    ((*where, stream, function, metadata, _, _, _, y, group, tokens, eps, block),) = begin.kernel.compiled[
        0
    ].started
    assert where == [5, 1, 1] and (stream, function, metadata) == (70, 1, 2)
    assert (y, group, tokens, eps, block) == (x.data_ptr(), (x.data_ptr(), 32, 16, 1), 7, 0.2, 32)


def test_what_changes_the_kernel_finds_another(begin, stubs):
    x = torch.zeros(64)
    rows = stubs.Rows(x, 32, 16, 2)
    assert begin(x, rows, 7) == 1
    assert begin(x, stubs.Rows(x, 48, 160, 3), 9) == 1, "as divisible, and none is 1"
    others = [
        (x.double(), rows, 7), (x[1:], rows, 7), (None, rows, 7), (x, None, 7),
        (x, stubs.Rows(x[1:], 32, 16, 2), 7),
        (x, stubs.Rows(x, 33, 16, 2), 7), (x, stubs.Rows(x, 32, 16, 1), 7),
        (x, stubs.Rows(x, 2**31, 16, 2), 7), (x, rows, 1),
        (x, rows, 16), (x, rows, 2**31 + 1), (x, rows, 7, 1),
    ]  # fmt: skip
    for number, arguments in enumerate(others, 2):
        assert begin(*arguments) == begin(*arguments) == number, arguments
    for option in ({"device": 1}, {"block": 64}, {"warps": 8}):
        assert begin(x, rows, 7, **option) == begin(x, rows, 7, **option) == len(begin.kernel.compiled)
    assert len(begin.kernel.compiled) == 1 + len(others) + 3


def test_a_profiler_is_told_of_each_start(begin, monkeypatch):
    from syncattn.backends.triton import start

    x = torch.zeros(64)
    begin(x, None, 7)
    monkeypatch.setattr(start, "is_watched", lambda: True)
    assert begin(x, None, 7) == 2


@pytest.mark.parametrize(
    ("name", "need", "there", "said"),
    [
        ("shared memory", 73728, 65536, "needs 72 KiB of shared memory, this GPU has 64 for a program"),
        ("tensor memory", 640, 512, "needs 640 tensor memory, this GPU has 512 for a program"),
    ],
)
def test_a_gpu_that_lacks_what_a_kernel_takes(begin, monkeypatch, name, need, there, said):
    """Where no shapes told it before, as on AMD's: the error is ours, with a way out."""
    from triton.runtime.errors import OutOfResources

    def lacks(kernel, grid):
        raise OutOfResources(need, there, name)

    monkeypatch.setattr(type(begin.kernel), "__getitem__", lacks)
    monkeypatch.setattr(begin.kernel, "fn", lacks)
    with pytest.raises(RuntimeError, match=f"lacks {said}. Take backend='tiled'"):
        begin(torch.zeros(64), None, 7)


def test_the_order_of_lists_is_that_of_a_stable_sort(kernels, device):
    from syncattn.backends.triton.lists import order_kernel

    counts = torch.randint(0, 9, (2, 73, 3), dtype=torch.int32, device=device)
    order = torch.empty(146, dtype=torch.int32, device=device)
    order_kernel[(5,)](counts, order, 146, BLOCK=32, CHUNK=128)
    expected = counts[..., 0].flatten().argsort(descending=True, stable=True)
    assert torch.equal(order.long(), expected)


def test_variants_are_started_in_turn_each_its_own_kernel(begin):
    from syncattn.backends.triton import start

    each = [{"BLOCK": 16}, {"BLOCK": 32}]
    for _ in range(2):
        start._start_here(begin.kernel, 0, (5,), (torch.zeros(64), None, 7, 0.1), each, {})
    assert [[one[-1] for one in found.started] for found in begin.kernel.compiled] == [[16], [32]]
