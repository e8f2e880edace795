"""What the operator must do, whichever backend computes it: properties over shapes, masks and options."""

import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import syncattn
from syncattn import locking

attention = syncattn.selective_synchronization_attention
NAMES = [
    name for name, reason in syncattn.backends.availability().items() if reason is None and name != "triton"
]  # which takes no CPU tensors unasked: tests/backends/triton
every_backend = pytest.mark.parametrize("backend", NAMES)
# What a backend computes in: float64 where it can, so that only its logic is looked at. In float32 a row of
# these problems, in which a pair may stand near the locking edge, is good to about 1e-5.
DTYPES = {"cpu": torch.float32}
WITHOUT_TOP_K = {"cpu"}
with_top_k = pytest.mark.parametrize("backend", [name for name in NAMES if name not in WITHOUT_TOP_K])


def dtype_of(backend):
    return DTYPES.get(backend, torch.float64)


def tolerance_of(backend, tolerance):
    return tolerance if dtype_of(backend) == torch.float64 else max(tolerance, 1e-5)


def as_taken(backend, arguments, options):
    """The arguments in the dtype that the backend computes in; None if it does not have these options."""
    if backend == "cpu" and (options["top_k"] is not None or options["power"] not in (1, 2)):
        return None
    receive, send, *others = (x.to(dtype_of(backend)) for x in arguments)
    return [receive, receive if arguments[1] is arguments[0] else send, *others]


pytestmark = pytest.mark.usefixtures("poisoned_memory")


def draw_problem(seed, shape, *, same=False, mask="none", dtype=torch.float64):
    """Positional arguments and mask of a call in which some pairs lock and others do not."""
    batch, heads, queries, keys, m, d = shape
    g = torch.Generator().manual_seed(seed)
    receive = torch.randn(batch, heads, queries, m, generator=g, dtype=dtype)
    send = receive if same else torch.randn(batch, heads, keys, m, generator=g, dtype=dtype)
    value = torch.randn(batch, heads, send.shape[2], d, generator=g, dtype=dtype)
    radius = (2 * m) ** 0.5 * (0.4 + torch.rand(heads, generator=g, dtype=dtype))
    sharpness = torch.exp(6 * torch.rand(heads, generator=g, dtype=dtype) - 2)
    coupling, bandwidth = locking.coupling_from_radius(radius, sharpness)
    allowed = None
    if mask == "pairs":
        allowed = torch.rand(queries, send.shape[2], generator=g) > 0.4
    elif mask == "heads":
        allowed = torch.rand(1, heads, queries, send.shape[2], generator=g) > 0.4
    elif mask == "keys":
        allowed = torch.rand(batch, 1, 1, send.shape[2], generator=g) > 0.3
    elif mask == "none allowed":
        allowed = torch.zeros(batch, 1, 1, send.shape[2], dtype=torch.bool)
    return (receive, send, value, coupling, bandwidth), allowed


@st.composite
def problems(draw, same=None):
    """(arguments, keyword arguments) over shapes, masks and every option but dropout."""
    same = draw(st.booleans()) if same is None else same
    queries, keys = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    keys = queries if same else keys
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 3)), queries, keys)
    shape += (draw(st.sampled_from([1, 2, 5])), draw(st.sampled_from([1, 3])))
    mask = draw(st.sampled_from(["none", "pairs", "heads", "keys", "none allowed"]))
    arguments, allowed = draw_problem(draw(st.integers(0, 999)), shape, same=same, mask=mask)
    at_the_end = keys >= queries
    return arguments, {
        "attn_mask": allowed,
        "is_causal": at_the_end and draw(st.booleans()),
        "self_coupling": not at_the_end or draw(st.booleans()),
        "top_k": draw(st.sampled_from([None, 1, 3, 99])),
        "frame": draw(st.sampled_from(["absolute", "nearest"])),
        "power": draw(st.sampled_from([1, 2, 3, 0.5])),
        "edge": draw(st.sampled_from([0.0, 0.01, 0.3])),
    }


def naive(receive, send, value, coupling, bandwidth, **options):
    """The operator once more, in loops over rows and pairs and plain numbers: (out, S, P, D, allowed)."""
    batch, heads, queries, _ = receive.shape
    keys = send.shape[2]
    mask = options.get("attn_mask")
    mask = torch.ones(()).bool() if mask is None else mask
    mask = mask.expand(batch, heads, queries, keys)
    shape = (batch, heads, queries, keys)
    sync, weight, squared = (torch.zeros(shape, dtype=value.dtype) for _ in range(3))
    allowed = torch.zeros(shape, dtype=torch.bool)
    for b, h, i in itertools.product(range(batch), range(heads), range(queries)):
        distances = {}
        for j in range(keys):
            squared[b, h, i, j] = sum((receive[b, h, i] - send[b, h, j]) ** 2)
            ahead = j - (i + keys - queries)
            if not mask[b, h, i, j] or (options.get("is_causal") and ahead > 0):
                continue
            if not options.get("self_coupling", True) and ahead == 0:
                continue
            distances[j] = squared[b, h, i, j].item()
        chosen = sorted(distances, key=lambda j: (distances[j], j))[: options.get("top_k")]
        base = min((distances[j] for j in chosen), default=0.0)
        edge = options.get("edge", 0.0)
        for j in chosen:
            allowed[b, h, i, j] = True
            d = distances[j] - (base if options.get("frame") == "nearest" else 0.0)
            kappa, alpha = coupling[h].item(), bandwidth[h].item()
            margin = math.exp(-2 * alpha * d) - d / kappa**2
            sync[b, h, i, j] = math.sqrt(max(margin, 0) + edge**2) - edge if margin > 0 else 0.0
        strength = torch.where(sync[b, h, i] > 0, sync[b, h, i] ** options.get("power", 1), 0.0)
        weight[b, h, i] = strength / (strength.sum() + 1e-8)
    return weight @ value, sync, weight, squared, allowed


@given(problems())
def test_is_what_the_definition_says(problem):
    """Every option against a loop over pairs; the weights; the locking radius decides who locks."""
    arguments, options = problem
    want, want_sync, want_weight, squared, allowed = naive(*arguments, **options)
    out, sync, weight = attention(*arguments, **options, return_weights=True)
    assert torch.equal(sync > 0, want_sync > 0)
    for got, expected in ((out, want), (sync, want_sync), (weight, want_weight)):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(attention(*arguments, **options, backend="tiled"), want, rtol=0, atol=1e-9)

    assert (weight >= 0).all() and (weight.sum(-1) <= 1).all()
    assert not sync[~allowed].any() and not weight[~allowed].any()
    locks = (sync > 0).any(-1)
    total = torch.where(sync > 0, sync ** options["power"], 0.0).sum(-1)
    torch.testing.assert_close(weight.sum(-1)[locks], (1 / (1 + 1e-8 / total))[locks], rtol=1e-12, atol=0)
    if options["frame"] == "nearest":
        assert torch.equal(locks, allowed.any(-1))
    else:
        rho = locking.locking_radius(arguments[3], arguments[4])[:, None, None]
        inside, near = squared <= rho**2, (squared - rho**2).abs() < 1e-9
        assert torch.equal((sync > 0) | near, (inside & allowed) | near)


@given(problems())
def test_rows_without_lock_are_zero_and_have_no_gradient(problem):
    arguments, options = problem
    _, sync, *_ = naive(*arguments, **options)
    alone = ~(sync > 0).any(-1)
    for backend in NAMES:
        taken = as_taken(backend, arguments, options)
        if taken is None:
            continue
        receive, *others = (x.clone().requires_grad_() for x in taken)
        if arguments[1] is arguments[0]:
            others[0] = receive
        coupling = others[2][None, :, None].expand(receive.shape[:3]).detach().clone().requires_grad_()
        out = attention(receive, *others[:2], coupling, others[3], **options, backend=backend)
        assert torch.count_nonzero(out[alone]) == 0
        out.square().sum().backward()
        for x in (receive, others[0], others[1], coupling, others[3]):
            assert torch.isfinite(x.grad).all()
        assert torch.count_nonzero(coupling.grad[alone]) == 0
        if arguments[1] is not arguments[0]:
            assert torch.count_nonzero(receive.grad[alone]) == 0


@given(problems(), st.sampled_from(NAMES), st.integers(0, 99))
def test_translation_invariance_and_permutation_equivariance(problem, backend, seed):
    arguments, options = problem
    taken = as_taken(backend, arguments, options)
    assume(taken is not None)
    receive, send, value, coupling, bandwidth = taken
    g = torch.Generator().manual_seed(seed)
    shift = torch.randn(*receive.shape[:2], 1, receive.shape[-1], generator=g, dtype=receive.dtype)
    shift = (
        10 * shift if receive.dtype == torch.float64 else shift.sign()
    )  # little of float32 is rounded away
    out = attention(receive, send, value, coupling, bandwidth, **options, backend=backend)
    shifted = attention(receive + shift, send + shift, value, coupling, bandwidth, **options, backend=backend)
    torch.testing.assert_close(shifted, out, rtol=0, atol=tolerance_of(backend, 1e-6))

    # Order enters through the causal mask and the pair with itself only.
    options |= {"is_causal": False, "self_coupling": True}
    out = attention(receive, send, value, coupling, bandwidth, **options, backend=backend)
    rows, columns = (torch.randperm(x.shape[2], generator=g) for x in (receive, send))
    mask = options.pop("attn_mask")
    if mask is not None:
        mask = mask.expand(*receive.shape[:3], send.shape[2])[:, :, rows][..., columns]
    moved = attention(
        receive[:, :, rows],
        send[:, :, columns],
        value[:, :, columns],
        coupling,
        bandwidth,
        attn_mask=mask,
        **options,
        backend=backend,
    )
    torch.testing.assert_close(moved, out[:, :, rows], rtol=0, atol=tolerance_of(backend, 1e-9))


@given(problems(same=True))
def test_symmetric_form_is_symmetric(problem):
    arguments, options = problem
    options |= {"attn_mask": None, "is_causal": False, "top_k": None, "frame": "absolute"}
    _, sync, _ = attention(*arguments, **options, return_weights=True)
    assert torch.equal(sync, sync.mT)
    if options["self_coupling"]:
        edge = options["edge"]
        diagonal = sync.diagonal(dim1=-2, dim2=-1)
        assert torch.allclose(diagonal, torch.full_like(diagonal, math.sqrt(1 + edge**2) - edge))
        assert (sync <= diagonal[..., None]).all()


@every_backend
@pytest.mark.parametrize("extra", [{}, {"frame": "nearest", "self_coupling": False}, {"top_k": 3}], ids=str)
def test_causal_is_a_loop_over_prefixes(extra, backend):
    if "top_k" in extra and backend in WITHOUT_TOP_K:
        pytest.skip(f"{backend} has no top_k")
    dtype = dtype_of(backend)
    (w, _, v, coupling, bandwidth), _ = draw_problem(1, (2, 3, 9, 9, 4, 5), same=True, dtype=dtype)
    out = attention(w, w, v, coupling, bandwidth, is_causal=True, power=2, backend=backend, **extra)
    for n in range(1, 10):
        prefix = attention(
            w[:, :, n - 1 : n],
            w[:, :, :n],
            v[:, :, :n],
            coupling,
            bandwidth,
            power=2,
            backend=backend,
            **extra,
        )
        torch.testing.assert_close(
            prefix[:, :, 0], out[:, :, n - 1], rtol=0, atol=tolerance_of(backend, 1e-12)
        )


@every_backend
def test_queries_sit_at_the_end(backend):
    """With fewer receivers than senders, causality and the self pair are those of the last rows."""
    dtype = dtype_of(backend)
    (w, _, v, coupling, bandwidth), _ = draw_problem(2, (2, 2, 11, 11, 4, 3), same=True, dtype=dtype)
    options = {"is_causal": True, "self_coupling": False, "frame": "nearest", "backend": backend}
    out = attention(w, w, v, coupling, bandwidth, **options)
    for n in (0, 1, 4, 11):
        tail = attention(w[:, :, 11 - n :], w, v, coupling, bandwidth, **options)
        torch.testing.assert_close(tail, out[:, :, 11 - n :], rtol=0, atol=tolerance_of(backend, 1e-12))


@with_top_k
@given(st.integers(0, 99), st.booleans(), st.sampled_from(["absolute", "nearest"]), st.integers(1, 3))
@settings(max_examples=10)
def test_top_k_among_equal_tokens_keeps_the_earlier(backend, seed, same, frame, k):
    """Real text repeats: without position equal tokens are equally near, and the earlier wins."""
    g = torch.Generator().manual_seed(seed)
    for m in (2, 5, 16, 64):
        vocabulary = torch.randn(4, m, generator=g, dtype=torch.float64)
        w = vocabulary[torch.randint(4, (1, 1, 15), generator=g)]
        send = w if same else w.clone()
        value = torch.randn(1, 1, 15, 2, generator=g, dtype=torch.float64)
        coupled = locking.coupling_from_radius(torch.tensor([2.0 * m**0.5], dtype=torch.float64), 2.0)
        want = naive(w, send, value, *coupled, top_k=k, frame=frame)[0]
        for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
            w32 = w.to(dtype)
            arguments = (
                w32,
                w32 if same else send.to(dtype),
                value.to(dtype),
                *(x.to(dtype) for x in coupled),
            )
            out = attention(*arguments, top_k=k, frame=frame, backend=backend)
            assert (out.double() - want).abs().max() < tolerance, (m, dtype)


@with_top_k
def test_top_k_keeps_the_strongest_and_more_than_all_keeps_all(backend):
    arguments, _ = draw_problem(3, (2, 2, 9, 14, 4, 3))
    _, sync, _ = attention(*arguments, return_weights=True)
    assert torch.equal(
        attention(*arguments, top_k=14, backend=backend), attention(*arguments, backend=backend)
    )
    assert torch.equal(
        attention(*arguments, top_k=10**9, backend=backend), attention(*arguments, backend=backend)
    )
    least = sync.topk(4, dim=-1).values[..., -1:]
    kept = torch.where(sync >= least, sync, 0.0)
    want = (kept / (kept.sum(-1, keepdim=True) + 1e-8)) @ arguments[2]
    torch.testing.assert_close(attention(*arguments, top_k=4, backend=backend), want, rtol=0, atol=1e-9)


@every_backend
def test_grouped_heads_are_repeated_heads(backend):
    (receive, send, value, coupling, bandwidth), _ = draw_problem(
        4, (2, 6, 7, 9, 4, 3), dtype=dtype_of(backend)
    )
    for send_heads, value_heads in ((2, 6), (1, 3), (6, 2), (3, 3)):
        s, v = (x[:, :n].clone().requires_grad_() for x, n in ((send, send_heads), (value, value_heads)))
        out = attention(receive, s, v, coupling, bandwidth, power=2, backend=backend)
        repeated = (x.repeat_interleave(6 // x.shape[1], dim=1) for x in (s, v))
        want = attention(receive, *repeated, coupling, bandwidth, power=2, backend=backend)
        torch.testing.assert_close(out, want, rtol=0, atol=tolerance_of(backend, 1e-12))
        got, expected = (torch.autograd.grad(y.square().sum(), (s, v)) for y in (out, want))
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=tolerance_of(backend, 1e-10))


@every_backend
def test_coupling_per_batch_and_per_query(backend):
    (receive, send, value, _, bandwidth), _ = draw_problem(5, (2, 3, 5, 8, 4, 3), dtype=dtype_of(backend))
    coupling = 1 + 5 * torch.rand(2, 3, 5, dtype=dtype_of(backend))
    tolerance = tolerance_of(backend, 1e-12)
    out = attention(receive, send, value, coupling, bandwidth, backend=backend)
    for b, i in itertools.product(range(2), range(5)):
        at = slice(b, b + 1), slice(None), slice(i, i + 1)
        one = attention(receive[at], send[at[0]], value[at[0]], coupling[b, :, i], bandwidth, backend=backend)
        torch.testing.assert_close(one, out[at], rtol=0, atol=tolerance)
    same = attention(receive, send, value, coupling[:, :, 0], bandwidth, backend=backend)
    spread = coupling[:, :, :1].expand(2, 3, 5)
    torch.testing.assert_close(
        same, attention(receive, send, value, spread, bandwidth, backend=backend), rtol=0, atol=tolerance
    )


@every_backend
def test_float_mask_of_zero_and_minus_infinity_is_boolean(backend):
    arguments, allowed = draw_problem(6, (2, 2, 7, 8, 3, 3), mask="pairs", dtype=dtype_of(backend))
    want = attention(*arguments, attn_mask=allowed, backend=backend)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        additive = torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, -torch.inf)
        assert torch.equal(attention(*arguments, attn_mask=additive, backend=backend), want)


@every_backend
@pytest.mark.parametrize(
    "shape", [(), (1,), (9,), (7, 1), (2, 1, 1), (3, 1, 7, 1), (1, 2, 7, 9), (3, 2, 7, 9)]
)
def test_masks_broadcast(shape, backend):
    arguments, _ = draw_problem(7, (3, 2, 7, 9, 4, 3), dtype=dtype_of(backend))
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 0.4
    full = mask.expand(3, 2, 7, 9).contiguous()
    options = {"frame": "nearest", "power": 2, "backend": backend}
    torch.testing.assert_close(
        attention(*arguments, attn_mask=mask, **options),
        attention(*arguments, attn_mask=full, **options),
        rtol=0,
        atol=tolerance_of(backend, 1e-12),
    )


@every_backend
def test_softmax_is_the_limit_of_strong_coupling(backend):
    """w^r = (q, 0), w^s = (k, sqrt(R^2 - |k|^2)): softmax(2 alpha q k) as the coupling grows."""
    g, dtype = torch.Generator().manual_seed(0), dtype_of(backend)
    q, k, v = (torch.randn(2, 3, 10, 8, generator=g, dtype=torch.float64).to(dtype) for _ in range(3))
    q, k = q / 2, k / 2
    square = k.square().sum(-1, keepdim=True)
    receive = torch.cat((q, torch.zeros_like(q[..., :1])), -1)
    send = torch.cat((k, (square.max() - square).sqrt()), -1)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    for power in (1, 2):
        alpha = torch.full((3,), 0.5 / 8**0.5 / power, dtype=dtype)
        for kappa, tolerance in ((1e4, 1e-5), (1e6, 1e-9), (1e8, 1e-12)):
            coupling = torch.full((3,), kappa, dtype=dtype)
            out = attention(receive, send, v, coupling, alpha, power=power, eps=0.0, backend=backend)
            assert (out - want).abs().max() < tolerance_of(backend, tolerance)


@pytest.mark.parametrize("power", [1, 2, 3])
def test_edge_lowers_s_by_at_most_e_and_keeps_the_zeros(power):
    arguments, _ = draw_problem(8, (2, 3, 20, 20, 4, 3))
    _, sync, _ = attention(*arguments, power=power, return_weights=True)
    for edge in (1e-3, 1e-2, 0.3):
        _, softer, weight = attention(*arguments, power=power, edge=edge, return_weights=True)
        assert torch.equal(softer == 0, sync == 0) and torch.equal(weight == 0, sync == 0)
        assert ((sync - softer) >= 0).all() and ((sync - softer) <= edge).all()


@pytest.mark.parametrize("power", [0.5, 1, 2, 3])
def test_power(power):
    arguments, _ = draw_problem(9, (1, 2, 8, 8, 4, 3))
    _, sync, weight = attention(*arguments, power=power, return_weights=True)
    assert torch.equal(sync, attention(*arguments, return_weights=True)[1])  # S itself has no power
    strength = torch.where(sync > 0, sync**power, 0.0)
    torch.testing.assert_close(weight, strength / (strength.sum(-1, keepdim=True) + 1e-8), rtol=0, atol=1e-14)


@every_backend
@pytest.mark.parametrize(
    "shape", itertools.product((0, 2), (1, 3), (0, 1, 4), (0, 1, 5), (1, 4), (0, 1)), ids=str
)
@pytest.mark.parametrize("frame", ["absolute", "nearest"])
def test_empty_and_single(shape, frame, backend):
    """No sequence, receiver, sender or value dimension, or one: the right shape, zeros, gradients."""
    arguments, _ = draw_problem(0, shape, dtype=dtype_of(backend))
    arguments = [x.requires_grad_() for x in arguments]
    options = {"frame": frame, "backend": backend}
    if shape[3] >= shape[2]:
        options |= {"is_causal": True} | ({} if backend in WITHOUT_TOP_K else {"top_k": 2})
    out = attention(*arguments, **options)
    assert out.shape == (*shape[:3], shape[5]) and torch.isfinite(out).all()
    if shape[3] == 0:
        assert not out.any()
    grads = torch.autograd.grad(out.sum(), arguments, allow_unused=True)
    assert all(g is None or torch.isfinite(g).all() for g in grads)
    if backend == "eager":
        out, sync, weight = attention(*arguments, **options, return_weights=True)
        assert sync.shape == weight.shape == shape[:4]


@every_backend
@pytest.mark.parametrize("eps", [0.0, 1e-300, 1e-8, 0.5])
def test_eps(eps, backend):
    """A row without lock is 0 even when nothing is added to its sum."""
    (w, _, v, coupling, bandwidth), _ = draw_problem(
        10, (1, 2, 6, 6, 3, 3), same=True, dtype=dtype_of(backend)
    )
    allowed = torch.ones(6, 6, dtype=torch.bool)
    allowed[2] = False
    w, v = w.requires_grad_(), v.requires_grad_()
    out = attention(w, w, v, coupling, bandwidth, attn_mask=allowed, eps=eps, backend=backend)
    assert torch.isfinite(out).all() and not out[:, :, 2].any()
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(out.square().sum(), (w, v)))
    _, sync, weight = attention(w, w, v, coupling, bandwidth, attn_mask=allowed, eps=eps, return_weights=True)
    others = [0, 1, 3, 4, 5]
    total = sync[:, :, others].sum(-1)
    share = weight[:, :, others].sum(-1)
    torch.testing.assert_close(share, total / (total + eps), rtol=tolerance_of(backend, 1e-12), atol=0)
    ones = torch.ones_like(v[..., :1])  # so is the sum of this backend's weights
    mixed = attention(w, w, ones, coupling, bandwidth, attn_mask=allowed, eps=eps, backend=backend)
    torch.testing.assert_close(mixed[:, :, others, 0], share, rtol=0, atol=tolerance_of(backend, 1e-12))


@every_backend
@pytest.mark.parametrize("kappa", [1e-30, 1e-20, 1e-12, 1e12, 1e18, 1e25, 1e38])
def test_couplings_of_any_size(kappa, backend):
    """Every positive float32 is a coupling: the pair of equal frequencies locks, a masked one never does."""
    (w, _, v, _, bandwidth), _ = draw_problem(11, (1, 2, 6, 6, 5, 3), same=True, dtype=torch.float32)
    w, v = w.requires_grad_(), v.requires_grad_()
    coupling = torch.full((2,), kappa, requires_grad=True)
    out = attention(w, w, v, coupling, bandwidth, is_causal=True, power=2, eps=1e-30, backend=backend)
    assert torch.allclose(out[:, :, 0], v[:, :, 0])  # nobody else is allowed
    if kappa < 1:
        assert torch.allclose(out, v)
    gradients = torch.autograd.grad(out.square().sum(), (w, v, coupling))
    assert all(torch.isfinite(g).all() for g in gradients)
    allowed = torch.zeros(6, 6, dtype=torch.bool)
    out = attention(w, w, v, coupling, bandwidth, attn_mask=allowed, eps=1e-30, backend=backend)
    assert torch.count_nonzero(out) == 0


@every_backend
def test_layouts_do_not_matter_and_inputs_are_left_alone(backend):
    arguments, allowed = draw_problem(12, (2, 4, 6, 7, 5, 3), mask="heads", dtype=dtype_of(backend))
    receive, send, value, coupling, bandwidth = arguments
    options = {"frame": "nearest", "power": 2, "backend": backend}
    if backend not in WITHOUT_TOP_K:
        options["top_k"] = 4
    tolerance = tolerance_of(backend, 1e-12)
    want = attention(receive, send, value, coupling, bandwidth, attn_mask=allowed, **options)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (receive, send, value)]
    padded = [torch.cat((x, x), -1)[..., : x.shape[-1]] for x in strided]
    assert not any(x.is_contiguous() for x in padded)
    before = [x.clone() for x in (*padded, coupling, bandwidth, allowed)]
    leaves = [x.detach().requires_grad_() for x in padded]
    out = attention(*leaves, coupling, bandwidth, attn_mask=allowed, **options)
    torch.testing.assert_close(out, want, rtol=0, atol=tolerance)
    out.mT.sum(1).sum().backward()  # an expanded, transposed gradient
    assert all(x.grad.shape == x.shape and x.grad.isfinite().all() for x in leaves)
    after = (*padded, coupling, bandwidth, allowed)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    # one sequence and one head, expanded to all
    one = [x[:1, :1].expand(2, 4, -1, -1) for x in (receive, send, value)]
    out = attention(*one, coupling[:1].expand(4), bandwidth[:1].expand(4), **options)
    torch.testing.assert_close(out, out[:1, :1].expand_as(out).contiguous(), rtol=0, atol=tolerance)
