"""The Triton backend as an operator: which calls it takes, dtypes, layouts, decoding, NaN, autograd,
compilation."""

import itertools
import re

import pytest
import torch

import syncattn
from syncattn import locking
from syncattn.backends.call import prepare
from syncattn.backends.operator import pack

attention = syncattn.selective_synchronization_attention
explain = syncattn.backends.explain
pytestmark = pytest.mark.usefixtures("poisoned_memory")
LAYER = {"frame": "nearest", "power": 2, "is_causal": True, "self_coupling": False}
on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="about the interpreter")


def on(device, inputs):
    moved = {id(x): x.to(device) for x in inputs}
    return [moved[id(x)] for x in inputs]


@on_cpu
def test_it_takes_cpu_tensors_only_by_name(draw, monkeypatch):
    inputs = draw(1, 1, 3, 3, 2, 2)
    chosen = explain(*inputs)
    assert chosen.backend != "triton" and "only when asked for by name" in chosen.reasons["triton"]
    assert explain(*inputs, backend="triton").backend == "triton"
    monkeypatch.delenv("TRITON_INTERPRET")
    assert explain(*inputs).reasons["triton"] == "there is no GPU"
    with pytest.raises(ValueError, match="backend='triton' cannot take this call: there is no GPU"):
        attention(*inputs, backend="triton")


@pytest.mark.parametrize(
    ("capability", "m", "d", "reason"),
    [
        ((9, 0), 16, 64, None),
        ((9, 0), 65, 64, "a freq_dim above 64 was not checked"),
        ((9, 0), 16, 129, "float32 values of above 128 columns were not checked"),
        ((8, 0), 16, 64, "it was checked on an H100 and an H200 alone"),
        ((10, 0), 16, 64, "it was checked on an H100 and an H200 alone"),
    ],
    ids=str,
)
def test_it_is_the_default_where_it_was_checked(capability, m, d, reason, monkeypatch):
    from syncattn.backends.call import prepare
    from syncattn.backends.triton import operator

    monkeypatch.setattr(operator, "_capability", lambda device: capability)
    w, v = (torch.empty(1, 2, 5, n, device="meta") for n in (m, d))
    one = torch.ones(2, device="meta")
    found = operator.only_by_name(prepare(w, w, v, one, one))
    assert found is None if reason is None else found.startswith(reason)


def test_the_nearest_senders_detuning_has_its_gradient_by_name_until_that_is_checked():
    from syncattn.backends.triton import operator

    w, v, one = torch.randn(1, 2, 5, 3), torch.randn(1, 2, 5, 4), torch.ones(2)
    for recorded, by_name in itertools.product((False, True), repeat=2):
        call = prepare(w.clone().requires_grad_(recorded), w, v, one, one, frame="nearest")
        assert operator.gives_nearest_here(call, by_name) == (by_name or not recorded)
    assert not operator.gives_nearest_here(prepare(w, w, v, one, one), True)


@on_cpu
def test_without_a_compiler_it_is_not_there(draw, monkeypatch):
    from syncattn.backends.triton import operator

    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(operator, "_has_gpu", lambda: True)
    operator._has_compiler.cache_clear()
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CC", "no-such-compiler")
    try:
        assert "found no C compiler" in explain(*draw(1, 1, 3, 3, 2, 2)).reasons["triton"]
    finally:
        operator._has_compiler.cache_clear()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"return_weights": True}, r"it never holds S and P \(return_weights=True\)"),
        ({"power": 3}, "it has powers 1 and 2, got 3"),
        ({"top_k": 2}, "it has no top_k"),
        ({"dtype": torch.float64}, "it computes in float32, this call needs float64"),
        ({"m": 129}, "it takes a freq_dim of up to 128, got 129"),
        ({"d": 257}, "it takes values of up to 256 columns, got 257"),
    ],
    ids=str,
)
def test_what_it_refuses_is_refused_by_name(options, reason, device):
    options = dict(options)
    dtype, m, d = options.pop("dtype", torch.float32), options.pop("m", 3), options.pop("d", 4)
    w, v = (torch.randn(1, 2, 5, n, dtype=dtype, device=device) for n in (m, d))
    one = torch.ones(2, dtype=dtype, device=device)
    with pytest.raises(ValueError, match="backend='triton' cannot take this call: " + reason):
        attention(w, w, v, one, one, backend="triton", **options)
    assert re.match(reason, explain(w, w, v, one, one, **options).reasons["triton"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("m", "options"), [(3, LAYER), (8, {"power": 2}), (40, LAYER | {"edge": 0.05})], ids=str
)
def test_narrow_inputs(m, options, dtype, evaluate, with_room, draw, device):
    """Within a few steps of this dtype of eager in float64: its products take operands of this dtype, as
    those of softmax attention do on tensor cores."""
    inputs = draw(1, 2, 40, 40, m, 16, same=m == 8)
    receive = inputs[0].to(dtype)
    inputs = [receive, receive if m == 8 else inputs[1].to(dtype), inputs[2].to(dtype), *inputs[3:]]
    inputs = with_room(inputs, options)
    wide = [x.double() for x in inputs]
    wide[1] = wide[0] if m == 8 else wide[1]
    want, wanted = evaluate(wide, options, "eager")
    out, gradients = evaluate(inputs, options, "triton", device=device)
    assert out.dtype == dtype
    step = torch.finfo(dtype).eps
    assert (out.double() - want).abs().max() <= 2 * step * inputs[2].abs().max()
    names = ["receive", "value", "coupling", "bandwidth"] if m == 8 else [
        "receive", "send", "value", "coupling", "bandwidth",
    ]  # fmt: skip
    for name, a, b in zip(names, gradients, wanted, strict=True):
        assert a.dtype == (torch.float32 if name in ("coupling", "bandwidth") else dtype)
        assert (a.double() - b).norm() <= 4 * step * b.norm(), name


def test_mixed_dtypes(within_rounding, draw):
    """Narrow frequencies with wide values are read exactly."""
    inputs = draw(1, 1, 30, 40, 5, 6)
    within_rounding([inputs[0].half(), inputs[1].half(), *inputs[2:]], {"power": 2}, "triton")


CASES = {
    "one": (1, 1, 1, 1, 2, 2, {}),
    "parts": (1, 2, 1, 200, 5, 5, {"edge": 0.1}),
    "layer": (1, 2, 3, 100, 5, 80, LAYER),
    "dropout": (1, 2, 2, 130, 20, 16, {"frame": "nearest", "dropout_p": 0.3, "power": 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_few_receivers_split_over_the_senders(case, within_rounding, draw, per_query):
    *sizes, options = CASES[case]
    receive, send, value, coupling, bandwidth = per_query(draw(*sizes))
    within_rounding([receive, send[:, :1], value[:, :1], coupling, bandwidth], options, "triton")
    mask = torch.rand(1, 1, 1, sizes[3], generator=torch.Generator().manual_seed(0)) > 0.4
    within_rounding([receive, send, value, coupling, bandwidth], options | {"attn_mask": mask}, "triton")


def test_decoding_reads_no_value_that_does_not_lock(draw, device):
    """They may hold anything, NaN too: pages of a cache that were never written."""
    inputs = draw(1, 1, 1, 200, 3, 4, density=0.1)
    _, sync, _ = attention(*inputs, power=2, return_weights=True)
    holes = torch.where(sync[0, 0, 0, :, None] > 0, inputs[2], torch.nan)
    want, got = (
        attention(*on(device, [*inputs[:2], v, *inputs[3:]]), power=2, backend="triton")
        for v in (inputs[2], holes)
    )
    assert torch.equal(want, got) and got.any()


def own_call(inputs, device, **options):
    """A call whose tensors are nobody else's: the checks of values are behind it."""
    call = prepare(*inputs, **options)
    return call._make([*(x.to(device).clone() for x in call[:5]), *call[5:]])


@pytest.mark.parametrize("queries", [1, 5])
def test_bounds_of_the_law_are_kept_as_elsewhere(queries, draw, device):
    from syncattn.backends.triton.operator import OPERATOR

    strange = torch.tensor([-1.0, 0.0, float("nan"), float("inf"), 1e-12, 1e-10, 1e16, 1e15, 2e30, 1e30, 0.5])
    heads = len(strange)
    w, _, v = (x.to(device) for x in draw(1, heads, 5, 5, 3, 4)[:3])
    plain = torch.full((heads,), 0.5)
    laws = [
        (strange, plain),
        (plain, strange),
        (plain[:, None].expand(heads, queries) * strange[:, None], plain),
    ]
    for law in laws:
        results = []
        for bounded in (False, True):
            leaves = [x.clone().to(device).requires_grad_() for x in law]
            coupling, bandwidth = leaves
            if bounded:
                keep = lambda x: torch.where((x > 0) & (x < torch.inf), x, torch.nan)  # noqa: E731
                coupling, bandwidth = keep(coupling).clamp(1e-10, 1e15), keep(bandwidth).clamp(max=1e30)
            call = prepare(
                w[:, :, -queries:], w, v, plain.to(device), plain.to(device), frame="nearest", power=2
            )
            coupling = coupling[None] if coupling.ndim == 2 else coupling[None, :, None]
            out = OPERATOR(call._replace(coupling=coupling, bandwidth=bandwidth))
            gradients = torch.autograd.grad(out, leaves, torch.ones_like(out)) if queries > 1 else ()
            results.append([out.detach(), *gradients])
        for kept, expected in zip(*results, strict=True):
            assert torch.equal(kept.nan_to_num(nan=7e7), expected.nan_to_num(nan=7e7))


@pytest.mark.parametrize(
    ("queries", "m", "options"), [(2, 3, {"power": 2}), (2, 3, LAYER), (40, 20, {}), (40, 3, LAYER)], ids=str
)
def test_what_is_not_a_number_shows_and_touches_no_other_row(options, queries, m, draw, device):
    from syncattn.backends.triton import passes

    inputs = draw(1, 2, queries, 40, m, 4)
    clean, *_ = passes.forward(own_call(inputs, device, **options))
    call = own_call(inputs, device, **options)
    call.receive[0, 0, 1, 0] = torch.nan
    out, *saved = passes.forward(call)
    touched = out.isnan().all(-1)
    assert touched[0, 0, 1] and touched.sum() == 1
    torch.testing.assert_close(out[~touched], clean[~touched])  # its tile's centre is another
    gradients = passes.backward(call, torch.ones_like(out), out, *saved)
    assert gradients[0][0, 0, 1].isnan().any()
    call = own_call(inputs, device, **options)
    call.bandwidth[1] = torch.nan
    out, *_ = passes.forward(call)
    allowed = clean.abs().sum(-1) > 0
    assert out[0, 1][allowed[0, 1]].isnan().all() and torch.equal(out[:, 0], clean[:, 0])
    call = own_call(inputs, device, **options)
    call.send[0, 0, 3, 1] = torch.inf  # nobody locks to it, and the gradients know no NaN
    out, *saved = passes.forward(call)
    gradients = passes.backward(call, torch.ones_like(out), out, *saved)
    assert all(torch.isfinite(x).all() for x in (out, *gradients))


@pytest.mark.parametrize("empty", ["batch", "queries", "keys", "columns"])
@pytest.mark.parametrize("options", [{}, {"frame": "nearest", "dropout_p": 0.5}], ids=str)
def test_nothing_at_all(empty, options, evaluate, device):
    sizes = {"batch": 2, "heads": 2, "queries": 9, "keys": 5, "columns": 4} | {empty: 0}
    b, h, n, k, d = sizes.values()
    inputs = [torch.randn(shape) for shape in ((b, h, n, 3), (b, h, k, 3), (b, h, k, d))]
    out, gradients = evaluate([*inputs, torch.ones(2), torch.ones(2)], options, "triton", device=device)
    assert out.shape == (b, h, n, d) and not out.any()
    assert all(not x.any() for x in gradients)


LAYOUTS = {
    "transposed": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "columns of more": lambda x: torch.cat((x, x), -1)[..., : x.shape[-1]],
    "last dimension first": lambda x: x.mT.contiguous().mT,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("queries", [2, 20])
def test_layouts_do_not_change_a_bit(layout, queries, evaluate, draw, per_query, device):
    receive, send, value, coupling, bandwidth = per_query(draw(2, 2, queries, 20, 4, 5))
    mask = torch.rand(2, 2, queries, 20, generator=torch.Generator().manual_seed(0)) > 0.3
    options = LAYER | {"attn_mask": mask}
    want, gradients = evaluate([receive, send, value, coupling, bandwidth], options, "triton", device=device)
    change = LAYOUTS[layout]
    moved = [change(x) for x in (receive, send, value)] + [change(coupling[..., None])[..., 0], bandwidth]
    out, again = evaluate(moved, options | {"attn_mask": change(mask)}, "triton", device=device)
    assert torch.equal(out, want)
    assert all(torch.equal(a, b) for a, b in zip(again, gradients, strict=True))


def test_expanded_gradients(draw, device):
    leaves = [x.requires_grad_() for x in on(device, draw(1, 2, 20, 20, 4, 5))]
    out = attention(*leaves, **LAYER, backend="triton")
    got = torch.autograd.grad(out, leaves, torch.ones((), device=device).expand_as(out), retain_graph=True)
    want = torch.autograd.grad(out, leaves, torch.ones_like(out))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_custom_operators_keep_their_contracts(draw, device):
    from syncattn.backends.triton.operator import OPERATOR

    call = own_call(draw(1, 1, 9, 9, 3, 4), device, **LAYER, dropout_p=0.2)
    arguments = pack(call._replace(seed=torch.tensor(5, device=device)))
    arguments = [x.requires_grad_() if torch.is_tensor(x) and x.is_floating_point() else x for x in arguments]
    torch.library.opcheck(OPERATOR.forward, arguments)
    with torch.no_grad():
        out, *saved = OPERATOR.forward(*arguments)
        detached = [x.detach() if torch.is_tensor(x) else x for x in arguments]
        tests = ("test_schema", "test_faketensor")
        for asked in (None, torch.ones_like(saved[OPERATOR.nearest - 1])):
            torch.library.opcheck(
                OPERATOR.backward, (torch.randn_like(out), asked, out, *saved, *detached), test_utils=tests
            )


def test_compiled_equals_not_compiled(draw, fresh_compiler, device):
    compute = lambda *x: attention(*x, **LAYER, backend="triton")  # noqa: E731
    compiled = torch.compile(compute, fullgraph=True, backend="aot_eager")
    leaves = [x.requires_grad_() for x in on(device, draw(1, 2, 12, 20, 4, 5))]
    want, got = compute(*leaves), compiled(*leaves)
    assert torch.equal(want, got)
    for a, b in zip(*(torch.autograd.grad(y.sum(), leaves) for y in (want, got)), strict=True):
        assert torch.equal(a, b)


def test_a_second_derivative_is_refused(draw, device):
    leaves = [x.requires_grad_() for x in on(device, draw(1, 1, 3, 3, 2, 2))]
    out = attention(*leaves, backend="triton")
    (grad,) = torch.autograd.grad(out.square().sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match=r"backend='triton' has no second derivative.*backend='eager'"):
        grad.sum().backward()


def test_under_autocast_the_arithmetic_stays_float32(evaluate, draw, device):
    inputs = draw(1, 1, 20, 20, 4, 5)
    want = evaluate(inputs, LAYER, "triton", device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        got = evaluate(inputs, LAYER, "triton", device=device)
    assert torch.equal(want[0], got[0]) and all(map(torch.equal, want[1], got[1]))


def test_positions_far_along_a_drift_do_not_cancel(evaluate, draw, device):
    """D is a product of float32 frequencies counted from the own tile: 10,000 window widths cost nothing."""
    receive, _, value, _, _ = draw(1, 1, 80, 80, 8, 8, same=True)
    receive = receive + torch.arange(80.0)[:, None] * torch.eye(8)[0] + 4e4
    parameters = locking.coupling_from_radius(torch.tensor([6.0]), 100.0)
    inputs = [receive, receive, value.bfloat16(), *parameters]
    want, wanted = evaluate([inputs[0].double()] * 2 + [x.double() for x in inputs[2:]], LAYER, "eager")
    out, gradients = evaluate(inputs, LAYER, "triton", device=device)
    step = torch.finfo(torch.bfloat16).eps
    assert (out.double() - want).abs().max() <= 2 * step * value.abs().max()
    for a, b in zip(gradients[:2], wanted[:2], strict=True):  # the others are sums that cancel
        assert (a.double() - b).norm() <= 4 * step * b.norm()
