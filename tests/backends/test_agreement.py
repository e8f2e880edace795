"""Every backend computes what eager defines: forward and gradients, every option, odd shapes.

In float64 where the backend has it, so that nothing but its logic is looked at; the native kernel, in
float32, is held to eager in float64 up to rounding: conftest.py.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import syncattn
from syncattn.backends.tiled import tiles

AVAILABLE = [
    name for name, reason in syncattn.backends.availability().items() if reason is None and name != "triton"
]  # which takes no CPU tensors unasked: tests/backends/triton
OTHERS = [name for name in AVAILABLE if name != "eager"]
ONLY_FLOAT32 = ("cpu",)
pytestmark = pytest.mark.usefixtures("poisoned_memory")

SHAPES = [  # B, H, Hs, Hv, N, M, m, d
    (2, 2, 2, 2, 63, 63, 8, 60),
    (1, 4, 4, 2, 17, 33, 5, 3),
    (2, 4, 1, 2, 1, 40, 16, 8),
    (1, 2, 2, 2, 1, 1, 1, 1),
    (3, 6, 2, 3, 130, 257, 3, 7),
]
WIDE = [  # more receivers than senders, for which neither causality nor the self pair means anything
    (2, 4, 2, 4, 150, 31, 9, 5),
    (1, 2, 1, 2, 70, 1, 2, 3),
]
OPTIONS = [
    {},
    {"power": 2},
    {"power": 2, "frame": "nearest"},
    {"power": 1, "frame": "nearest", "edge": 0.05},
    {"power": 3, "edge": 0.1},
    {"is_causal": True},
    {"is_causal": True, "self_coupling": False, "frame": "nearest", "power": 2},
    {"self_coupling": False, "power": 0.5, "edge": 0.2},
    {"top_k": 3, "power": 2},
    {"top_k": 7, "is_causal": True, "frame": "nearest", "edge": 0.01},
    {"mask": "keys", "power": 2},
    {"mask": "random", "is_causal": True, "frame": "nearest"},
    {"mask": "none allowed", "frame": "nearest", "power": 2},
    {"dropout_p": 0.3, "power": 2},
    {"dropout_p": 0.3, "top_k": 5, "is_causal": True, "mask": "random", "frame": "nearest"},
]


def make(shape, options, dtype=torch.float64, coupling="query", same=False, seed=0):
    """Random inputs in which about half of the pairs lock, and the operator's keyword arguments."""
    b, h, hs, hv, n, m_tokens, m, d = shape
    g = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=g, dtype=torch.float64).to(dtype)

    receive = normal(b, h, n, m) + 3.0
    send = receive if same else normal(b, hs, m_tokens, m) + 3.0
    value = normal(b, hv, receive.shape[2] if same else m_tokens, d)
    size = {"head": (h,), "batch": (b, h), "query": (b, h, n)}[coupling]
    radius = (2.0 * m) ** 0.5 * (0.7 + 0.6 * torch.rand(size, generator=g, dtype=torch.float64))
    bandwidth = (0.3 + torch.rand(h, generator=g, dtype=torch.float64)) / (2.0 * m)
    alpha = bandwidth if coupling == "head" else bandwidth if coupling == "batch" else bandwidth[:, None]
    kappa = radius * torch.exp(alpha * radius**2)
    options = dict(options)
    keys = send.shape[2]
    kind = options.pop("mask", None)
    if kind == "keys":
        options["attn_mask"] = torch.rand(b, 1, 1, keys, generator=g) > 0.3
    elif kind == "random":
        options["attn_mask"] = torch.rand(h, n, keys, generator=g) > 0.4
    elif kind == "batch":
        options["attn_mask"] = torch.rand(b, 1, n, keys, generator=g) > 0.4
    elif kind == "pairs":
        options["attn_mask"] = torch.rand(b, h, n, keys, generator=g) > 0.4
    elif kind == "rows":
        options["attn_mask"] = torch.rand(1, h, n, 1, generator=g) > 0.4
    elif kind == "all":
        options["attn_mask"] = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    elif kind == "none allowed":
        options["attn_mask"] = torch.zeros(b, 1, n, 1, dtype=torch.bool)
        options["attn_mask"][:, :, ::2] = True
    return [receive, send, value, kappa.to(dtype), bandwidth.to(dtype)], options


def close(got, want, tolerance=1e-9):
    assert got.shape == want.shape and got.dtype == want.dtype
    assert torch.isfinite(got).all()
    scale = want.double().abs().max().clamp(min=1.0)
    assert (got.double() - want.double()).abs().max() <= tolerance * scale


@pytest.fixture
def agree_to(evaluate):
    def check(inputs, options, backend, tolerance):
        want, want_gradients = evaluate(inputs, options, "eager")
        got, gradients = evaluate(inputs, options, backend)
        close(got, want, tolerance)
        for a, b in zip(gradients, want_gradients, strict=True):
            close(a, b, tolerance)

    return check


@pytest.fixture
def agree(agree_to, within_rounding):
    def check(inputs, options, backend, tolerance=1e-9):
        if backend not in ONLY_FLOAT32:
            agree_to(inputs, options, backend, tolerance)
            return
        receive, send, *others = (x.float() for x in inputs)
        send = receive if inputs[1] is inputs[0] else send
        within_rounding([receive, send, *others], options, backend)

    return check


def refused(options, backend):
    """Whether the backend has no such option; it then says so."""
    if backend != "cpu":
        return False
    power, top_k = options.get("power", 1), options.get("top_k")
    return power not in (1, 2) or top_k is not None


def skip_what_is_refused(options, backend):
    if refused(options, backend):
        pytest.skip("the backend says that it has no such option: test_select")


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_eager(shape, options, backend, monkeypatch, agree):
    skip_what_is_refused(options, backend)
    monkeypatch.setattr(tiles, "_CPU_TILE", 2**14)  # several tiles in every direction
    inputs, keywords = make(shape, options, seed=(SHAPES + WIDE).index(shape) * 100 + OPTIONS.index(options))
    agree(inputs, keywords, backend)


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize(
    "options", [o for o in OPTIONS if o.get("self_coupling", True) and "is_causal" not in o], ids=str
)
@pytest.mark.parametrize("shape", WIDE, ids=str)
def test_more_receivers_than_senders(shape, options, backend, monkeypatch, agree):
    skip_what_is_refused(options, backend)
    monkeypatch.setattr(tiles, "_CPU_TILE", 2**14)
    inputs, keywords = make(shape, options, seed=(SHAPES + WIDE).index(shape) * 100 + OPTIONS.index(options))
    agree(inputs, keywords, backend)


MASKS = [None, "keys", "random", "batch", "pairs", "rows", "all", "none allowed"]


@pytest.mark.parametrize("backend", OTHERS)
@given(st.data())
@settings(max_examples=2 * settings().max_examples)
def test_any_combination_agrees_with_eager(backend, agree, data):
    """Shapes, masks, couplings and all options together, with tiles of a few rows and senders."""
    draw = data.draw
    same = draw(st.booleans(), "symmetric")
    heads = draw(st.sampled_from([1, 2, 4]), "heads")
    send_heads = heads if same else draw(st.sampled_from([n for n in (1, 2, 4) if n <= heads]), "send heads")
    value_heads = draw(st.sampled_from([n for n in (1, 2, 4) if n <= heads]), "value heads")
    queries = draw(st.integers(1, 150), "queries")
    keys = queries if same else draw(st.integers(1, 300), "keys")
    m, d = draw(st.sampled_from([1, 3, 4, 17]), "freq_dim"), draw(st.sampled_from([1, 5]), "value_dim")
    shape = (draw(st.integers(1, 3), "batch"), heads, send_heads, value_heads, queries, keys, m, d)
    options = {
        "mask": draw(st.sampled_from(MASKS), "mask"),
        "is_causal": keys >= queries and draw(st.booleans(), "causal"),
        "self_coupling": keys < queries or draw(st.booleans(), "self"),
        "top_k": draw(st.sampled_from([None] if backend == "cpu" else [None, 1, 9, 400]), "top_k"),
        "dropout_p": draw(st.sampled_from([0.0, 0.25]), "dropout_p"),
        "frame": draw(st.sampled_from(["absolute", "nearest"]), "frame"),
        "power": draw(st.sampled_from([1, 2] if backend == "cpu" else [1, 2, 2.5]), "power"),
        "edge": draw(st.sampled_from([0.0, 0.1]), "edge"),
        "eps": draw(st.sampled_from([0.0, 1e-8, 0.1]), "eps"),
    }
    # where the slope at the edge is infinite, the thousands of pairs of one coupling have no room
    per_query = backend in ONLY_FLOAT32 and options["power"] == 1 and not options["edge"]
    coupling = draw(st.sampled_from(["query"] if per_query else ["head", "batch", "query"]), "coupling")
    inputs, keywords = make(
        shape, options, coupling=coupling, same=same, seed=draw(st.integers(0, 999), "seed")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_CPU_TILE", 2**13)
        patch.setattr(tiles, "_ROWS", draw(st.sampled_from([1, 7, 64]), "rows"))
        # at power 1 a pair at the very edge has a gradient beyond all bounds, and its rounding with it
        agree(inputs, keywords, backend, 1e-9 if options["power"] >= 2 or options["edge"] else 1e-6)


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("coupling", ["head", "batch"])
def test_symmetric_agrees_with_eager(coupling, options, backend, agree):
    skip_what_is_refused(options, backend)
    inputs, keywords = make((2, 3, 3, 3, 65, 65, 6, 5), options, coupling=coupling, same=True)
    agree(inputs, keywords, backend)


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("same", [True, False])
def test_dtypes_agree_with_eager(dtype, same, backend, agree_to):
    inputs, options = make((2, 2, 2, 2, 70, 70, 8, 16), {"power": 2}, dtype=dtype, coupling="head", same=same)
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    agree_to(inputs, options, backend, tolerance)


@pytest.mark.parametrize("backend", OTHERS)
def test_mixed_dtypes(backend, agree_to, evaluate):
    """float32 frequencies with bfloat16 values: what a drifting frequency wants under autocast."""
    inputs, options = make((1, 2, 2, 2, 40, 40, 4, 8), {"power": 2}, dtype=torch.float32)
    inputs[2] = inputs[2].bfloat16()
    out, gradients = evaluate(inputs, options, backend)
    assert out.dtype == torch.bfloat16
    assert [g.dtype for g in gradients] == [x.dtype for x in inputs]
    agree_to(inputs, options, backend, 2e-2)


@pytest.mark.parametrize("backend", ["eager", *OTHERS])
@pytest.mark.parametrize("frame", ["absolute", "nearest"])
@pytest.mark.parametrize(("queries", "keys"), [(3, 0), (0, 3), (0, 0)])
def test_where_there_is_nobody_every_gradient_is_zero(queries, keys, frame, backend):
    shapes = [(1, 2, queries, 4), (1, 2, keys, 4), (1, 2, keys, 5), (2,), (2,)]
    leaves = [torch.ones(shape, requires_grad=True) for shape in shapes]
    out = syncattn.selective_synchronization_attention(*leaves, frame=frame, backend=backend)
    assert out.shape == (1, 2, queries, 5) and not out.any()
    gradients = torch.autograd.grad(out.sum(), leaves)
    assert [x.shape for x in gradients] == [x.shape for x in leaves]
    assert not any(x.any() for x in gradients)
