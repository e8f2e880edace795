"""The native kernel and its inputs: their layout in memory, their dtypes, which of them have gradients, empty
ones, and the instruction sets that read them."""

import pytest
import torch

import syncattn
from syncattn.backends.cpu import library

attention = syncattn.selective_synchronization_attention
MISSING = syncattn.backends.availability()["cpu"]
pytestmark = [
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
    pytest.mark.usefixtures("poisoned_memory"),
]
NEAREST = {"frame": "nearest", "power": 2}
FORMS = [  # each of the four strengths, both frames
    {**frame, **power, **edge}
    for frame in ({}, {"frame": "nearest"})
    for edge in ({}, {"edge": 0.05})
    for power in ({}, {"power": 2})
]


def odd(x):
    """The same numbers at an address that is a multiple of 4 bytes and of nothing more."""
    memory = torch.empty(x.numel() + 1, dtype=x.dtype)
    return memory[1:].view(x.shape).copy_(x)


LAYOUTS = {
    "transposed": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "columns of more": lambda x: torch.cat((x, x), -1)[..., : x.shape[-1]],
    "every second": lambda x: x.repeat_interleave(2, 2)[:, :, ::2],
    "at an odd address": odd,
    "last dimension first": lambda x: x.mT.contiguous().mT,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("d", [5, 16])
def test_layouts_do_not_change_a_bit(layout, d, evaluate, draw, per_query):
    receive, send, value, coupling, bandwidth = per_query(draw(2, 3, 50, 70, 4, d))
    g = torch.Generator().manual_seed(0)
    mask = torch.rand(2, 3, 50, 70, generator=g) > 0.3
    options = NEAREST | {"attn_mask": mask}
    want, gradients = evaluate([receive, send, value, coupling, bandwidth], options, "cpu")
    change = LAYOUTS[layout]
    moved = [change(x) for x in (receive, send, value)] + [change(coupling[..., None])[..., 0], bandwidth]
    out, again = evaluate(moved, options | {"attn_mask": change(mask)}, "cpu")
    assert torch.equal(out, want)
    assert all(torch.equal(a, b) for a, b in zip(again, gradients, strict=True))


def test_expanded_inputs(evaluate, draw):
    """One sequence and one head for all, and gradients that are expanded themselves."""
    full = draw(1, 1, 50, 70, 4, 16)
    one = [x.expand(2, 3, -1, -1) for x in full[:3]] + [full[3].expand(3), full[4].expand(3)]
    copied = [x.contiguous() for x in one]
    for a, b in zip(*(evaluate(x, NEAREST, "cpu")[1] for x in (one, copied)), strict=True):
        assert torch.equal(a, b)
    leaves = [x.clone().requires_grad_() for x in copied]
    out = attention(*leaves, **NEAREST, backend="cpu")
    got = torch.autograd.grad(out, leaves, torch.ones(()).expand_as(out), retain_graph=True)
    want = torch.autograd.grad(out, leaves, torch.ones_like(out), retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    nothing = torch.autograd.grad(out, leaves, torch.zeros_like(out))
    assert all(x is None or not x.any() for x in nothing)


@pytest.mark.parametrize("which", range(5))
def test_negated_views(which, draw):
    """Their memory holds the numbers with the other sign."""
    inputs = draw(1, 2, 30, 40, 3, 16)
    views = [torch._neg_view(-x) if k == which else x for k, x in enumerate(inputs)]
    assert views[which].is_neg()
    assert torch.equal(
        attention(*views, **NEAREST, backend="cpu"), attention(*inputs, **NEAREST, backend="cpu")
    )


@pytest.mark.parametrize("d", [5, 16])
@pytest.mark.parametrize("tokens", [30, 1100])  # the latter in an order of the kernel's own
def test_outputs_may_be_changed_in_place(tokens, d, draw):
    """They are no views: autograd refuses to change one of several."""
    inputs = draw(1, 1, tokens, tokens, 3, d, density=0.05)
    out = attention(*(x.requires_grad_() for x in inputs), power=2, backend="cpu")
    want = out.detach() + 1
    assert torch.equal(out.add_(1), want)


HOOKS = {
    "another layout": (lambda x: x.mT.contiguous().mT if x.ndim > 1 else x, lambda x: x),
    "another dtype": (lambda x: x.double() if x.is_floating_point() else x.long(), lambda x: x),
    "packed in bfloat16": (lambda x: x.bfloat16() if x.is_floating_point() else x, lambda x: x),
}


@pytest.mark.parametrize("hooks", HOOKS)
@pytest.mark.parametrize("tokens", [30, 1100])
def test_saved_tensors_that_hooks_changed(hooks, tokens, draw):
    leaves = [x.requires_grad_() for x in draw(1, 1, tokens, tokens, 3, 4, density=0.05)]
    want = torch.autograd.grad(attention(*leaves, **NEAREST, backend="cpu").sum(), leaves)
    with torch.autograd.graph.saved_tensors_hooks(*HOOKS[hooks]):
        out = attention(*leaves, **NEAREST, backend="cpu")
    got = torch.autograd.grad(out.sum(), leaves)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b) if "bfloat16" not in hooks else a.isfinite().all()


@pytest.mark.parametrize("which", range(5))
def test_gradients_of_some_inputs_only(which, draw):
    inputs = draw(1, 2, 30, 40, 3, 4)
    every = [x.clone().requires_grad_() for x in inputs]
    cotangent = torch.randn(1, 2, 30, 4)
    want = torch.autograd.grad(attention(*every, **NEAREST, backend="cpu"), every, cotangent)
    some = [x.clone().requires_grad_(k == which) for k, x in enumerate(inputs)]
    attention(*some, **NEAREST, backend="cpu").backward(cotangent)
    assert torch.equal(some[which].grad, want[which])
    assert all(x.grad is None for k, x in enumerate(some) if k != which)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("options", [{"power": 2}, NEAREST | {"is_causal": True}], ids=str)
def test_narrow_inputs_are_computed_in_float32(options, same, dtype, within_rounding, draw):
    """No rounding but that of the inputs and the results."""
    inputs = draw(2, 2, 70, 70, 8, 16, same=same)
    receive = inputs[0].to(dtype)
    send = receive if same else inputs[1].to(dtype)
    within_rounding([receive, send, inputs[2].to(dtype), *inputs[3:]], options, "cpu")
    within_rounding([inputs[0], inputs[1], inputs[2].to(dtype), *inputs[3:]], options, "cpu")
    within_rounding([receive, send, *inputs[2:]], options, "cpu")


@pytest.mark.parametrize("empty", ["batch", "queries", "keys", "columns"])
@pytest.mark.parametrize("options", [{}, NEAREST, {"dropout_p": 0.5}], ids=str)
def test_nothing_at_all(empty, options, evaluate):
    sizes = {"batch": 2, "heads": 2, "queries": 3, "keys": 5, "columns": 4} | {empty: 0}
    b, h, n, k, d = sizes.values()
    g = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=g) for shape in ((b, h, n, 3), (b, h, k, 3), (b, h, k, d))]
    out, gradients = evaluate([*inputs, torch.ones(2), torch.ones(2)], options, "cpu")
    assert out.shape == (b, h, n, d) and not out.any()
    assert all(not x.any() for x in gradients)


@pytest.mark.parametrize("instance", library.instances() if MISSING is None else [])
@pytest.mark.parametrize("options", FORMS, ids=str)
def test_every_instruction_set_of_this_machine(
    options, instance, within_rounding, monkeypatch, draw, per_query
):
    monkeypatch.setenv("SYNCATTN_CPU_INSTANCE", instance)
    for density, m, d in ((0.03, 5, 48), (0.7, 1, 16), (0.7, 20, 130)):
        inputs = per_query(draw(1, 2, 75, 150, m, d, density=density))
        within_rounding(inputs, options, "cpu")
        within_rounding(inputs, options | {"is_causal": True, "dropout_p": 0.3}, "cpu")
        texts = (torch.arange(150)[None] + 7) // 40 - 1  # the first ones are padding
        within_rounding(inputs, options | {"sequence_ids": texts}, "cpu")


def test_large_and_unordered_ids_of_texts(draw, evaluate):
    """Ids are told apart, whatever they are."""
    inputs, number = draw(2, 2, 150, 150, 3, 16, same=True), torch.arange(150)
    large = torch.stack((number // 64 - 1, number // 10)) * 2**40
    for ids in (large, large[:1].flip(1), (number * 37 % 5 - 1)[None]):
        mask = (ids[:, :, None] == ids[:, None]) & (ids >= 0)[:, None]
        found, expected = (
            evaluate(inputs, {"power": 2} | given, "cpu")
            for given in ({"sequence_ids": ids}, {"attn_mask": mask[:, None]})
        )
        for a, b in zip((found[0], *found[1]), (expected[0], *expected[1]), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_causal", [True, False])
def test_parts_of_the_backward_that_have_their_texts_alone(is_causal, draw, evaluate):
    """With many texts the sums over parts of the keys reach over those of few receivers."""
    inputs, number = draw(2, 1, 500, 700, 3, 32, density=0.3), torch.arange(700)
    ids = torch.stack((number // 30, (number + 11) // 25 - 2))
    mask = ((ids[:, 200:, None] == ids[:, None]) & (ids[:, 200:, None] >= 0))[:, None]
    options = {"power": 2, "frame": "nearest", "is_causal": is_causal}
    found, expected = (
        evaluate(inputs, options | given, "cpu") for given in ({"sequence_ids": ids}, {"attn_mask": mask})
    )
    for a, b in zip((found[0], *found[1]), (expected[0], *expected[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * max(1.0, float(b.abs().max())))


def test_an_instruction_set_that_is_not_there_is_an_error(monkeypatch, draw):
    monkeypatch.setenv("SYNCATTN_CPU_INSTANCE", "mmx")
    with pytest.raises(RuntimeError, match=r"SYNCATTN_CPU_INSTANCE .*'mmx'"):
        attention(*draw(1, 1, 3, 3, 2, 2), backend="cpu")
