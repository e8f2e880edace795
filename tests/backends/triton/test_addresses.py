"""What the interpreter does not notice: access beyond a tensor, memory read that nobody wrote, programs of
one launch that touch the same memory (`checked_addresses` in conftest.py)."""

import pytest
import torch

import syncattn

NEAREST = {"frame": "nearest", "power": 2}
LAYER = NEAREST | {"is_causal": True, "self_coupling": False}
SORTED = {"FEWEST_SORTED": 1}
LISTED = {"_FEWEST_ORDERED": 1, "_CHUNK": 4}


def mask(*shape, share=0.5):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) < share


def strided(x):
    """The same numbers, every second of a tensor whose others are NaN."""
    wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan)
    wide[..., ::2] = x
    return wide[..., ::2]


def inside(x):
    """The same numbers amid NaN, with other tokens' strides than a tensor of their own would have."""
    wide = x.new_full([n + 3 for n in x.shape], torch.nan)
    part = wide[1:-2, 1:-2, 1:-2, 1:-2]
    part.copy_(x)
    return part


def heads_last(x):
    return x.transpose(1, 2).contiguous().transpose(1, 2)


# (B, H, N, M, m, d), options, what is set in launch.py
CASES = {
    "one of each": ((1, 1, 1, 1, 1, 1), {}, {}),
    "odd": ((1, 2, 37, 71, 5, 3), {"edge": 0.1}, {}),
    "odd, listed": ((1, 2, 37, 101, 5, 19), LAYER, LISTED),
    "whole tiles": ((1, 1, 64, 96, 4, 16), {"power": 2}, {}),
    "whole tiles, listed, granules past the end": ((1, 1, 96, 96, 4, 16), LAYER, LISTED | {"CAPACITY": 2}),
    "granules": ((1, 1, 70, 160, 3, 5), {"power": 2}, LISTED | {"CAPACITY": 1}),
    "granules, causal": ((1, 1, 70, 160, 3, 5), LAYER | {"dropout_p": 0.3}, LISTED | {"CAPACITY": 3}),
    "wide m": ((1, 1, 20, 40, 100, 8), LAYER, {}),
    "packed m": ((1, 1, 33, 40, 20, 17), NEAREST, LISTED),
    "wide d": ((1, 1, 10, 40, 2, 130), {"edge": 0.1}, {}),
    "dropout": ((2, 1, 9, 70, 3, 5), NEAREST | {"dropout_p": 0.5}, LISTED),
    "sorted": ((1, 2, 40, 101, 3, 5), NEAREST | {"dropout_p": 0.5, "self_coupling": False}, SORTED | LISTED),
    "sorted granules": ((1, 1, 70, 100, 20, 16), {"power": 2}, SORTED | LISTED | {"CAPACITY": 2}),
    "sorted by sender": ((2, 2, 10, 101, 3, 5), NEAREST | {"attn_mask": mask(2, 1, 1, 101)}, SORTED | LISTED),
    "mask by sender": ((2, 2, 10, 101, 3, 5), LAYER | {"attn_mask": mask(2, 2, 1, 101, share=0.2)}, LISTED),
    "mask by pair": (
        (2, 2, 10, 101, 3, 5),
        NEAREST | {"attn_mask": mask(10, 101, share=0.2)},
        LISTED | {"CAPACITY": 2},
    ),
    "mask by row": ((2, 1, 41, 70, 3, 5), {"power": 2, "attn_mask": mask(2, 1, 41, 1)}, LISTED),
    "texts": ((1, 2, 60, 101, 20, 16), LAYER | {"sequence_ids": torch.arange(101)[None] // 30}, LISTED),
    "decode": ((1, 2, 1, 321, 5, 17), LAYER, {}),
    "decode, masked": ((1, 2, 4, 130, 20, 16), {"attn_mask": mask(4, 130), "dropout_p": 0.5}, {}),
}


@pytest.mark.parametrize("narrow", [False, True])  # values of 2 bytes, with which D is a product
@pytest.mark.parametrize("case", CASES)
def test_every_access_is_of_its_tensor(case, narrow, evaluate, draw, kernels, monkeypatch, checked_addresses):
    sizes, options, settings = CASES[case]
    for name, value in settings.items():
        monkeypatch.setattr(kernels, name, value)
    inputs = draw(*sizes, density=0.3, structure="drift")
    if narrow:
        inputs[0][..., -1, -1] += 1e6  # its tile is too far for a product
        inputs[2] = inputs[2].bfloat16()
    out, gradients = evaluate(inputs, options, "triton")
    assert all(torch.isfinite(x).all() for x in (out, *gradients))
    assert not checked_addresses


@pytest.mark.parametrize("narrow", [False, True])
def test_the_gradient_of_the_nearest_senders_detuning_too(narrow, draw, kernels, checked_addresses):
    leaves = draw(1, 2, 37, 71, 5, 3, density=0.3, structure="drift")
    if narrow:
        leaves[0][..., -1, -1] += 1e6
        leaves[2] = leaves[2].bfloat16()
    leaves = [x.requires_grad_() for x in leaves]
    attention = syncattn.selective_synchronization_attention
    out, least = attention(*leaves, **LAYER, backend="triton", return_nearest=True)
    gradients = torch.autograd.grad((out.float().sum(), least.sum()), leaves)
    assert all(torch.isfinite(x).all() for x in gradients)
    assert not checked_addresses


@pytest.mark.parametrize(("queries", "fewest_sorted"), [(2, 1), (19, 1), (19, 10**9)])
def test_whatever_the_strides(
    queries, fewest_sorted, evaluate, draw, kernels, monkeypatch, checked_addresses
):
    """What lies between a tensor's elements is not read. Shared heads; unsorted also a mask by pair."""
    monkeypatch.setattr(kernels, "FEWEST_SORTED", fewest_sorted)
    receive, send, value, *parameters = draw(2, 2, queries, 35, 3, 6)
    send, value = send[:, :1], value[:, :1]
    options = NEAREST if fewest_sorted == 1 else NEAREST | {"attn_mask": mask(2, 1, 35, queries).mT}
    want, wanted = evaluate([receive, send, value, *parameters], options, "triton")
    got, gradients = evaluate(
        [strided(receive), inside(send), strided(value), *parameters], options, "triton"
    )
    assert torch.equal(got, want) and all(map(torch.equal, gradients, wanted))
    got, gradients = evaluate(
        [inside(receive), strided(send), heads_last(value), *parameters], options, "triton"
    )
    assert torch.equal(got, want) and all(map(torch.equal, gradients, wanted))
    assert not checked_addresses


@pytest.mark.parametrize("same", [False, True])
def test_walked_in_halves(same, evaluate, draw, walked_in_pieces, checked_addresses):
    evaluate(draw(1, 1, 50, 50, 20, 16, same=same), {"power": 2}, "triton")
    evaluate(draw(1, 1, 50, 50, 4, 3, same=same), LAYER, "triton")
    assert not checked_addresses


def combined(kernels, rows=2, *, total=None, mixed=None, out=None, row_sum=None):
    """decode.py's last kernel over rows of 3 parts and 5 columns."""
    from syncattn.backends.triton.decode import combine_kernel

    total = torch.ones(2, 3) if total is None else total
    mixed = torch.ones(2, 3, 5) if mixed is None else mixed
    out = torch.ones(2, 5) if out is None else out
    row_sum = torch.ones(2) if row_sum is None else row_sum
    combine_kernel[(rows,)](mixed, total, out, row_sum, 3, 0.0, DIM=5, BLOCK_D=16, num_warps=4)


def test_the_check_finds_access_beyond_a_tensor(kernels, checked_addresses):
    combined(kernels)
    assert not checked_addresses
    with pytest.raises(Exception, match=r"combine_kernel.*out: 5 of 5 accesses are outside of its elements"):
        combined(kernels, out=torch.ones(4, 5)[:1])
    with pytest.raises(Exception, match="total_of_part: 1 of 1 accesses"):  # another row, the same storage
        combined(kernels, total=torch.ones(4, 3)[:2, ::2])
    with pytest.raises(Exception, match="row_sum: 1 of 1 accesses"):
        combined(kernels, row_sum=torch.ones(0))


@pytest.mark.parametrize(
    ("tensors", "what"),
    [
        ({"mixed": slice(30), "row_sum": slice(15, 17)}, "mixed_of_part: reads what the same launch wrote"),
        (
            {"mixed": slice(30), "row_sum": slice(13, 15)},
            "row_sum: is written after another program has read it",
        ),
        ({"out": slice(10), "row_sum": slice(4, 6)}, "row_sum: is written twice"),
    ],
    ids=["read", "overwritten", "twice"],
)
def test_the_check_finds_programs_that_meet(tensors, what, kernels, checked_addresses):
    memory, shapes = torch.ones(30), {"mixed": (2, 3, 5), "out": (2, 5), "row_sum": (2,)}
    combined(kernels, **{name: memory[part].view(shapes[name]) for name, part in tensors.items()})
    assert checked_addresses and all(what in x for x in checked_addresses)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_check_finds_what_nobody_wrote(evaluate, draw, kernels, monkeypatch, checked_addresses):
    class Idle:
        def __getitem__(self, grid):
            return lambda *_, **__: None

    monkeypatch.setattr(kernels, "arrange_kernel", Idle())
    evaluate(draw(1, 1, 8, 8, 2, 2), {}, "triton")
    assert any(
        "lists_kernel" in x and "own_boxes.low: reads what nobody wrote" in x for x in checked_addresses
    )
