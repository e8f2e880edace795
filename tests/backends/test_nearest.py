"""The nearest sender of each receiver and its D, beside all pairs compared one by one; and given out by the
operator, beside eager in float64."""

import pytest
import torch

import syncattn
from syncattn.backends import nearest
from syncattn.backends.call import prepare
from syncattn.backends.counting import allowed_pairs_of


def call(queries=7, keys=7, heads=4, senders=4, dtype=torch.float64, **options):
    generator = torch.Generator().manual_seed(0)

    def made(*sizes):
        return torch.randn(2, *sizes, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    receive, send, value = made(heads, queries, 3), made(senders, keys, 3), made(senders, keys, 2)
    ones = torch.ones(heads, dtype=dtype)
    return prepare(receive, send, value, ones, ones, frame="nearest", **options)


@pytest.mark.parametrize("rows_at_a_time", [10**9, 1])
@pytest.mark.parametrize(
    "given",
    [
        pytest.param({}, id="all"),
        pytest.param({"is_causal": True, "self_coupling": False}, id="causal"),
        pytest.param({"keys": 12, "is_causal": True}, id="after a past"),
        pytest.param({"senders": 2}, id="grouped"),
        pytest.param({"attn_mask": torch.arange(2 * 4 * 7 * 7).view(2, 4, 7, 7) * 37 % 101 < 40}, id="mask"),
        pytest.param(
            {"sequence_ids": torch.tensor([[0, 0, 0, 1, 1, -1, -1]]), "is_causal": True}, id="packed"
        ),
        pytest.param({"keys": 0}, id="no senders"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])  # the native kernel is of float32 alone
def test_it_is_the_least_of_all_allowed_pairs(given, rows_at_a_time, dtype, monkeypatch):
    monkeypatch.setattr(nearest, "MOST_PAIRS", rows_at_a_time)
    if rows_at_a_time == 1:
        monkeypatch.setattr(nearest, "seeker", lambda asked: None)
    asked = call(**given, dtype=dtype)
    found = nearest.nearest_detuning(asked)
    send = asked.send.repeat_interleave(4 // asked.send.shape[1], 1)
    detuning = (asked.receive[:, :, :, None] - send[:, :, None]).square().sum(-1)
    allowed = allowed_pairs_of(asked, torch.arange(7)).expand_as(detuning)
    expected = torch.zeros_like(found)
    if asked.send.shape[2]:
        least = detuning.masked_fill(~allowed, torch.inf).amin(-1)
        expected = torch.where(allowed.any(-1), least, 0.0)
    torch.testing.assert_close(found, expected)
    if found.requires_grad and expected.requires_grad:
        inputs = asked.receive, asked.send
        wanted = torch.autograd.grad(expected.sum(), inputs)
        torch.testing.assert_close(torch.autograd.grad(found.sum(), inputs), wanted)


def test_far_from_the_origin_the_nearest_is_found_all_the_same():
    asked = call(dtype=torch.float32)
    moved = asked._replace(receive=asked.receive.detach() + 5000, send=asked.send.detach() + 5000)
    exact = moved._replace(receive=moved.receive.double(), send=moved.send.double())
    assert torch.equal(nearest.nearest_senders(moved), nearest.nearest_senders(exact))


@pytest.mark.parametrize("self_coupling", [True, False])
def test_the_kernel_finds_the_same_in_an_order_of_its_own(self_coupling):
    """Where it sorts tokens, which it does in long calls without causality."""
    receive = torch.randn(1, 2, 2100, 8, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(2)
    asked = prepare(receive, receive, receive, ones, ones, self_coupling=self_coupling)
    assert torch.equal(nearest.nearest_senders(asked), nearest._by_pairs(asked))


attention = syncattn.selective_synchronization_attention
NO_KERNEL = syncattn.backends.availability()["cpu"]
DTYPES = {"eager": torch.float32, "tiled": torch.float64, "cpu": torch.float32}
NEAREST = {"frame": "nearest", "power": 2}
LAYER = NEAREST | {"is_causal": True, "self_coupling": False}
MASK = torch.arange(2 * 4 * 40 * 70).view(2, 4, 40, 70) * 37 % 101 < 40
ONE_ALONE = MASK & (torch.arange(40) != 7)[:, None]  # row 7 has no sender
CALLS = {
    "all": (NEAREST, {}),
    "layer": (LAYER, {"queries": 70}),
    "symmetric": (LAYER, {"queries": 70, "same": True}),
    "symmetric, with itself": (NEAREST, {"queries": 70, "same": True}),
    "after a past": (LAYER, {"queries": 5}),
    "one token": (LAYER, {"queries": 1}),
    "grouped": (LAYER, {"senders": 2}),
    "mask": (NEAREST | {"attn_mask": ONE_ALONE}, {}),
    "padding": (LAYER | {"attn_mask": MASK[:, :1, :1]}, {"queries": 70}),
    "packed": (LAYER | {"sequence_ids": torch.arange(70)[None] // 9 - 1}, {}),
    "dropout": (LAYER | {"dropout_p": 0.3}, {"queries": 70}),
    "power 1": ({"frame": "nearest", "edge": 0.1}, {}),
    "many coordinates": (NEAREST, {"m": 20}),
    "absolute": ({"power": 2, "attn_mask": ONE_ALONE}, {}),
    "no senders": (NEAREST, {"keys": 0}),
    "no receivers": (NEAREST, {"queries": 0}),
    "no columns": (NEAREST, {"d": 0}),
    "no sequences": (NEAREST, {"batch": 0}),
}


def drawn(dtype, batch=2, queries=40, keys=70, senders=4, m=3, d=5, same=False):
    """Leaves, coupling by receiver."""
    generator = torch.Generator().manual_seed(0)
    sizes = (4, queries, m), (senders, keys, m), (senders, keys, d)
    receive, send, value = (torch.randn(batch, *x, generator=generator).to(dtype) for x in sizes)
    wide = torch.promote_types(dtype, torch.float32)
    coupling = (1 + torch.rand(batch, 4, queries, generator=generator)).to(wide)
    leaves = [receive, receive if same else send, value, coupling, torch.full((4,), 0.2, dtype=wide)]
    return [x.requires_grad_() for x in leaves]


def given_out(leaves, options, which=(1.0, 1.0), **more):
    """(out, D of the nearest, the gradients of a functional of both)."""
    torch.manual_seed(0)
    out, least = attention(*leaves, **options, return_nearest=True, **more)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator).to(x) for x in (out, least)]
    loss = sum(share * (x * w).sum() for share, x, w in zip(which, (out, least), weights, strict=True))
    different = list({id(x): x for x in leaves}.values())
    return out.detach(), least.detach(), torch.autograd.grad(loss, different)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("name", [*CALLS, "half precision"])
@pytest.mark.parametrize("backend", DTYPES)
def test_the_operator_gives_it_out_with_its_gradient(backend, name):
    if backend == "cpu" and NO_KERNEL is not None:
        pytest.skip(NO_KERNEL)
    half = name == "half precision"
    (options, sizes), dtype = CALLS["layer" if half else name], torch.bfloat16 if half else DTYPES[backend]
    leaves = drawn(dtype, **sizes)
    wide = {id(x): x.detach().double().requires_grad_() for x in leaves}
    want, wanted, slopes = given_out([wide[id(x)] for x in leaves], options, backend="eager")
    out, least, gradients = given_out(leaves, options, backend=backend)
    assert least.dtype == torch.promote_types(dtype, torch.float32) and least.shape == out.shape[:3]
    exact = {torch.float32: 1e-4, torch.float64: 1e-9, torch.bfloat16: 5e-2}[dtype]
    near = {"rtol": exact, "atol": exact, "check_dtype": False}
    torch.testing.assert_close(out, want, **near)
    torch.testing.assert_close(least, wanted, rtol=1e-5, atol=1e-6, check_dtype=False)
    for leaf, found, expected in zip({id(x): x for x in leaves}.values(), gradients, slopes, strict=True):
        assert found.dtype == leaf.dtype
        torch.testing.assert_close(found, expected, **near)
    if "attn_mask" in options and options["attn_mask"] is ONE_ALONE:
        assert not least[:, :, 7].any() and not gradients[0][:, :, 7].any()


@pytest.mark.parametrize("backend", ["eager", "tiled", "cpu"])
def test_it_is_the_least_of_all_allowed_pairs_in_the_operator(backend):
    if backend == "cpu" and NO_KERNEL is not None:
        pytest.skip(NO_KERNEL)
    leaves = drawn(torch.float32 if backend == "cpu" else torch.float64)
    _, least, (of_receive, of_send, *others) = given_out(
        leaves, NEAREST | {"attn_mask": ONE_ALONE}, (0.0, 1.0), backend=backend
    )
    receive, send = leaves[:2]
    detuning = (receive[:, :, :, None] - send[:, :, None]).square().sum(-1).masked_fill(~ONE_ALONE, torch.inf)
    expected = torch.where(ONE_ALONE.any(-1), detuning.amin(-1), 0.0)
    generator = torch.Generator().manual_seed(1)
    torch.randn(2, 4, 40, 5, generator=generator)
    weight = torch.randn(least.shape, generator=generator).to(least)
    wanted = torch.autograd.grad((expected * weight).sum(), (receive, send))
    torch.testing.assert_close(least, expected.detach(), rtol=1e-5, atol=1e-6)
    for found, want in zip((of_receive, of_send), wanted, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)
    assert not any(x.any() for x in others)


@pytest.mark.parametrize("backend", [None, "eager", "tiled"])
def test_asking_for_it_changes_nothing_else(backend):
    """Not a bit of the result; alone it has a gradient, too; with weights it comes last."""
    options = LAYER | {"backend": backend}
    leaves = drawn(torch.float32, queries=70)
    out = attention(*leaves, **options)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(out.shape, generator=generator)
    with_it, least, gradients = given_out(leaves, options, (1.0, 0.0))
    assert torch.equal(out, with_it)
    for found, expected in zip(gradients, torch.autograd.grad((out * weight).sum(), leaves), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    _, again = attention(*leaves, **options, return_nearest=True)
    alone = torch.autograd.grad(again.sum(), leaves, allow_unused=True)
    assert alone[0].any() and (alone[2] is None or not alone[2].any())
    if backend != "tiled":
        _, sync, _, last = attention(*leaves, **LAYER, return_weights=True, return_nearest=True)
        assert sync.shape == (2, 4, 70, 70)
        torch.testing.assert_close(last, least, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(attention(*leaves, **options, return_nearest=True)[1], least)


def test_the_kernel_gives_it_out_in_an_order_of_its_own(monkeypatch):
    """Where it sorts tokens, rows come back in the call's order, and so does what is asked of each."""
    if NO_KERNEL is not None:
        pytest.skip(NO_KERNEL)
    from syncattn.backends.cpu import problem

    monkeypatch.setattr(problem, "_PAIRS_WORTH_ORDERING", 1)
    generator = torch.Generator().manual_seed(0)
    place = 10.0 * torch.randint(4, (1, 2, 300, 1), generator=generator)
    leaves = [x.detach().requires_grad_() for x in drawn(torch.float32, batch=1, queries=300, keys=300)]
    leaves = [*(x[:, :2] for x in leaves[:4]), leaves[4][:2]]
    leaves[0] = leaves[1] = leaves[0] + place
    leaves = [x.detach().requires_grad_() for x in leaves]
    leaves[1] = leaves[0]
    call = prepare(*leaves, **NEAREST, self_coupling=False)
    assert problem.describe(call, None).order.receive is not None
    options = NEAREST | {"self_coupling": False}
    wide = [x.detach().double().requires_grad_() for x in leaves]
    wide[1] = wide[0]
    for found, want in zip(given_out(leaves, options), given_out(wide, options), strict=True):
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4, check_dtype=False)


@pytest.mark.parametrize("backend", ["cpu", "tiled", "eager"])
def test_it_goes_through_the_compiler(backend, fresh_compiler):
    if backend == "cpu" and NO_KERNEL is not None:
        pytest.skip(NO_KERNEL)
    leaves = drawn(torch.float32, queries=70)
    options = LAYER | {"backend": backend}

    def compute(*leaves):
        out, least = attention(*leaves, **options, return_nearest=True)
        return out * torch.sigmoid(1 - least)[..., None]

    compiled = torch.compile(compute, fullgraph=True, backend="aot_eager")
    for way in (compute, compiled):
        out = way(*leaves)
        found = out.detach(), *torch.autograd.grad(out.square().sum(), leaves)
        if way is compute:
            want = found
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_transforms_have_it():
    leaves = [x.detach() for x in drawn(torch.float64, queries=7, keys=9)]

    def least(receive):
        return attention(receive, *leaves[1:], **NEAREST, return_nearest=True)[1]

    receive, tangent = leaves[0], torch.randn_like(leaves[0])
    several = torch.stack((receive, tangent))
    torch.testing.assert_close(torch.vmap(least)(several), torch.stack([least(x) for x in several]))
    slope = torch.func.grad(lambda x: least(x).square().sum())(receive)
    moved = torch.func.jvp(lambda x: least(x).square().sum(), (receive,), (tangent,))[1]
    torch.testing.assert_close((slope * tangent).sum(), moved)
