"""How a backend that computes in float32 is held to the definition in float64."""

from functools import cache

import pytest
import torch

import syncattn
from syncattn import locking

attention = syncattn.selective_synchronization_attention


def evaluate(inputs, options, backend, seed=0, device="cpu"):
    """The output and the gradients of a fixed random functional of it, computed on the device."""
    options = {k: x.to(device) if isinstance(x, torch.Tensor) else x for k, x in options.items()}
    leaves = {id(x): x.detach().to(device).requires_grad_() for x in inputs}
    torch.manual_seed(seed)  # the dropout seed comes from torch's generator
    arguments = [leaves[id(x)] for x in inputs]
    out = attention(*arguments, backend=backend, **options)
    gradients = torch.autograd.grad(out, list(leaves.values()), cotangent(out))
    return out.detach().cpu(), [x.cpu() for x in gradients]


def cotangent(out):
    g = torch.Generator().manual_seed(7)
    return torch.randn(out.shape, generator=g).to(out)


def double(inputs):
    wide = [x.double() for x in inputs]
    return [wide[0], wide[0] if inputs[1] is inputs[0] else wide[1], *wide[2:]]


def squared_detuning(inputs, options):
    """In float64, with a row for each receiver: (|w^r - w^s|^2, x counted from the row's frame, allowed)."""
    receive, send = inputs[0].double(), inputs[1].double()
    queries, keys = receive.shape[2], send.shape[2]
    send = send.repeat_interleave(receive.shape[1] // send.shape[1], 1)
    squared = torch.cdist(receive, send, compute_mode="donot_use_mm_for_euclid_dist").square()
    allowed = torch.ones(1, 1, queries, keys, dtype=torch.bool)
    i, j = torch.arange(queries)[:, None] + keys - queries, torch.arange(keys)
    if options.get("attn_mask") is not None:
        allowed = allowed & options["attn_mask"]
    if options.get("is_causal"):
        allowed = allowed & (j <= i)
    if not options.get("self_coupling", True):
        allowed = allowed & (j != i)
    if options.get("frame") != "nearest":
        return squared, squared, allowed
    base = squared.masked_fill(~allowed, torch.inf).amin(-1, keepdim=True)
    return squared, squared - torch.where(base.isinf(), 0.0, base), allowed


def with_room(inputs, options):
    """The same call with its couplings moved a little, so that no pair is within rounding of the locking
    edge: of some factors the one that leaves each coupling's own pairs farthest from it."""
    coupling, bandwidth = (x.double() for x in inputs[3:])
    batch, heads, queries = inputs[0].shape[:3]
    if batch == 0 or queries == 0 or inputs[1].shape[2] == 0:
        return inputs
    _, squared, allowed = squared_detuning(inputs, options)
    kernel = torch.exp(-2 * bandwidth[:, None, None] * squared).masked_fill(~allowed, 2.0)
    squared = squared.masked_fill(~allowed, 0.0)
    kappa = coupling if coupling.ndim == 3 else coupling[..., None].expand(batch, heads, 1)
    best, moved = torch.full_like(kappa, -1.0), kappa
    for factor in torch.linspace(0.9, 1.1, 9).tolist():
        tried = (factor * kappa).to(inputs[3].dtype).double()
        room = (kernel - squared / tried[..., None] ** 2).abs().amin(-1)
        if coupling.ndim < 3:
            room = room.amin(-1, keepdim=True)
        if coupling.ndim == 1:
            room = room.amin(0, keepdim=True).expand_as(kappa)
        moved, best = torch.where(room > best, tried, moved), torch.maximum(room, best)
    if coupling.ndim < 3:
        moved = moved[..., 0] if coupling.ndim == 2 else moved[0, :, 0]
    return [*inputs[:3], moved.to(inputs[3].dtype), inputs[4]]


def sizes(inputs, options):
    """The largest sum of absolute values among the sums that make up each gradient: what rounding is relative
    to, however much of it cancels. Of receive, send, value, coupling and bandwidth."""
    out, sync, weight = attention(*inputs, **options | {"dropout_p": 0.0, "return_weights": True})
    heads, power, edge = out.shape[1], options.get("power", 1), options.get("edge", 0.0)
    squared, framed, allowed = squared_detuning(inputs, options)
    value = inputs[2].repeat_interleave(heads // inputs[2].shape[1], 1)
    grad = cotangent(out).abs()
    total = (sync**power).sum(-1, keepdim=True)
    total = torch.where(total == 0, 1.0, total + options.get("eps", 1e-8))
    through = (grad @ value.abs().mT + (grad * out.abs()).sum(-1, keepdim=True)) / total
    root = torch.where(sync > 0, sync + edge, 1.0)
    slope = power * torch.where(sync > 0, sync, 1.0) ** (power - 1) / (2 * root)  # dW / dF
    through = torch.where(allowed & (sync > 0), through * slope, 0.0)
    alpha = inputs[4][:, None, None]
    kappa = inputs[3] if inputs[3].ndim == 3 else inputs[3][..., None]
    kappa = kappa.expand(out.shape[0], heads, 1 if inputs[3].ndim < 3 else out.shape[2])
    kernel = torch.exp(-2 * alpha * framed.clamp(min=0))
    to_frequency = through * (2 * alpha * kernel + kappa[..., None] ** -2)
    by_row = 2 * to_frequency * squared.sqrt()
    if options.get("frame") == "nearest":  # the nearest sender takes back what the row received
        base = squared.masked_fill(~allowed, torch.inf).amin(-1, keepdim=True)
        base = torch.where(base.isinf(), 0.0, base)
        by_row = by_row + 2 * to_frequency * base.sqrt()
    to_coupling = (2 * through * framed).sum(-1) / kappa**3
    if inputs[3].ndim < 3:
        to_coupling = to_coupling.sum(-1)
    if inputs[3].ndim < 2:
        to_coupling = to_coupling.sum(0)
    groups = heads // inputs[1].shape[1]
    return [
        by_row.sum(-1).max(),
        groups * max(by_row.sum(-2).max(), by_row.sum(-1).max()),
        (weight.mT @ grad).max() * (heads // inputs[2].shape[1]),
        to_coupling.max(),
        (2 * through * framed * kernel).sum((0, 2, 3)).max(),
    ]


@cache
def softmax_errors():
    """The relative errors of softmax attention in float32: of its output and of its gradients."""
    g = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 4, n, 32, generator=g) for n in (96, 160, 160)]
    results = []
    for dtype in (torch.float32, torch.float64):
        q, k, v = (x.to(dtype).requires_grad_() for x in inputs)
        out = torch.softmax(q @ k.mT / 32**0.5, -1) @ v
        results.append((out, torch.autograd.grad(out, (q, k, v), cotangent(out))))
    (out, gradients), (want, wanted) = results
    relative = [distance(a, b) / b.abs().max().item() for a, b in zip(gradients, wanted, strict=True)]
    return distance(out, want), max(relative)


def distance(got, want):
    """The largest difference; NaN and infinity are none that passes."""
    assert got.shape == want.shape and torch.isfinite(got).all()
    return (got.double() - want.double()).abs().max().item() if got.numel() else 0.0


def within_rounding(inputs, options, backend):
    """Output and gradients are at most four times as far from eager in float64 as eager in float32 is, or as
    softmax attention is relative to the size of the sums. (Twice; and twice again because what is compared
    are the largest of few errors.) The couplings are moved off the locking edge, where gradients jump."""
    inputs = with_room(inputs, options)
    device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"  # the draws differ
    want, wanted = evaluate(double(inputs), options, "eager", device=device)
    single, singles = evaluate(inputs, options, "eager", device=device)
    got, gradients = evaluate(inputs, options, backend, device=device)
    softmax, softmax_gradients = softmax_errors()
    # a fused backward reads the output again, in the dtype that it was rounded to
    softmax_gradients = max(softmax_gradients, torch.finfo(got.dtype).eps / 2)
    size = max(1.0, inputs[2].abs().max().item()) if want.numel() else 1.0
    assert got.dtype == single.dtype
    assert distance(got, want) <= 4 * max(distance(single, want), softmax * size)
    if want.numel() == 0:
        assert all(not x.any() for x in gradients)
        return
    names = ["receive", "send", "value", "coupling", "bandwidth"]
    scales = [x.item() / (1 - options.get("dropout_p", 0.0)) for x in sizes(double(inputs), options)]
    if inputs[1] is inputs[0]:
        names, scales = names[:1] + names[2:], [scales[0] + scales[1], *scales[2:]]
    for name, scale, a, b, c in zip(names, scales, gradients, singles, wanted, strict=True):
        assert a.dtype == b.dtype, name
        assert distance(a, c) <= 4 * max(distance(b, c), softmax_gradients * scale), name


def draw(batch, heads, queries, keys, m, d, *, density=0.5, same=False, structure="gaussian", options=None):
    """Inputs of which this share of all pairs locks in the absolute frame; with None a law of no density."""
    g = torch.Generator().manual_seed(hash((batch, heads, queries, keys, m, d)) % 2**31)
    tokens = max(queries, keys)
    w = torch.randn(batch, heads, tokens, m, generator=g)
    if structure == "clusters":  # consecutive tokens in clusters far apart
        w = 0.3 * w + 8 * torch.randn(tokens // 40 + 1, m, generator=g).repeat_interleave(40, 0)[:tokens]
    elif structure == "drift":  # along the sequence, as position puts it
        w = w + 0.1 * torch.arange(tokens, dtype=torch.float32)[:, None] * torch.eye(m)[0]
    receive = w[:, :, tokens - queries :]
    send = receive if same else (w + 0.3 * torch.randn(w.shape, generator=g))[:, :, tokens - keys :]
    if not same:
        receive = receive.contiguous()
    value = torch.randn(batch, heads, keys, d, generator=g)
    if density is None:
        return [receive, receive if same else send, value, torch.ones(heads), torch.ones(heads)]
    squared = torch.cdist(receive[:, :, ::7].double(), send.double()).square().transpose(0, 1).flatten(1)
    if density == 0:
        radius = 0.9 * squared[squared > 1e-9].amin().sqrt().expand(heads)
    else:
        radius = squared.quantile(density, 1).clamp(min=1e-6).sqrt() * (1.5 if density == 1 else 1)
    coupling, bandwidth = locking.coupling_from_radius(radius, torch.linspace(1, 50, heads).double())
    return [receive, receive if same else send, value, coupling.float(), bandwidth.float()]


def per_query(inputs):
    """A coupling for each receiver: then each can be moved off the locking edge."""
    receive, *others, coupling, bandwidth = inputs
    g = torch.Generator().manual_seed(1)
    spread = 1 + 0.1 * torch.rand(receive.shape[:3], generator=g)
    return [receive, *others, (coupling[:, None] * spread).float(), bandwidth]


@pytest.fixture(name="within_rounding")
def _within_rounding():
    return within_rounding


@pytest.fixture(name="evaluate")
def _evaluate():
    return evaluate


@pytest.fixture(name="with_room")
def _with_room():
    return with_room


@pytest.fixture(name="draw")
def _draw():
    return draw


@pytest.fixture(name="per_query")
def _per_query():
    return per_query
