"""Gradients against finite differences in float64, away from the kinks at the locking edge."""

import pytest
import torch

import syncattn
from syncattn import locking

attention = syncattn.selective_synchronization_attention
# Not cpu: a finite difference in float32 is mostly rounding. test_agreement holds its gradients to eager's.
BACKENDS = ["tiled", "eager"]
BATCH, HEADS, TOKENS, M, D = 1, 2, 5, 2, 1

CASES = [
    {},
    {"power": 2},
    {"power": 3, "edge": 0.05},
    {"power": 0.5, "edge": 0.1},
    {"frame": "nearest"},
    {"frame": "nearest", "power": 2, "is_causal": True, "self_coupling": False},
    {"power": 1, "edge": 0.2, "mask": True},
    {"power": 2, "top_k": 3},
    {"frame": "nearest", "power": 2, "top_k": 2, "is_causal": True, "mask": True},
    {"power": 2, "dropout_p": 0.4},
    {"eps": 0.5, "dropout_p": 0.2, "frame": "nearest"},
]
FORMS = ["directed", "symmetric", "cross", "grouped"]


def draw(form, options, seed):
    g = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=g, dtype=torch.float64)

    keys = TOKENS + 2 if form == "cross" else TOKENS
    heads = 1 if form == "grouped" else HEADS
    receive = normal(BATCH, HEADS, TOKENS, M)
    send = receive if form == "symmetric" else normal(BATCH, heads, keys, M)
    radius = 2.2 + torch.rand(HEADS, generator=g, dtype=torch.float64)
    coupling, bandwidth = locking.coupling_from_radius(radius, 4.0)
    coupling = coupling[None, :, None] * (1 + 0.2 * normal(BATCH, HEADS, TOKENS).abs())
    mask = torch.rand(BATCH, 1, TOKENS, keys, generator=g) > 0.3 if options.get("mask") else None
    return [receive, send, normal(BATCH, heads, keys, D), coupling, bandwidth], mask


def room(inputs, mask, options):
    """How far the nearest kink is: a pair at the edge of locking, two senders equally near."""
    receive, send, _, coupling, bandwidth = inputs
    squared = (receive[..., :, None, :] - send[..., None, :, :]).square().sum(-1)
    i = torch.arange(TOKENS)[:, None] + send.shape[2] - TOKENS
    j = torch.arange(send.shape[2])
    allowed = torch.ones_like(squared, dtype=torch.bool) if mask is None else mask.expand_as(squared)
    if options.get("is_causal"):
        allowed = allowed & (j <= i)
    if not options.get("self_coupling", True):
        allowed = allowed & (j != i)
    ordered = squared.masked_fill(~allowed, torch.inf).sort(-1).values
    if receive is send:
        ordered = ordered[..., 1:]  # the token itself stays nearest, at exactly 0
    gaps = ordered.diff(dim=-1)
    if options.get("frame") == "nearest":
        nearest = squared.masked_fill(~allowed, torch.inf).amin(-1, keepdim=True)
        squared = squared - nearest.masked_fill(nearest.isinf(), 0.0)
    margin = locking.locking_margin(squared, coupling[..., None], bandwidth[:, None, None])
    edge = torch.where(allowed, margin, 1.0).abs().min()
    return min(edge.item(), gaps[gaps.isfinite()].min().item())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", CASES, ids=str)
def test_gradients(options, form, backend):
    for seed in range(200):
        inputs, mask = draw(form, options, seed)
        if room(inputs, mask, options) > 1e-3:
            break
    else:
        raise AssertionError("no inputs away from the kinks")
    keywords = {k: v for k, v in options.items() if k != "mask"} | {"attn_mask": mask, "backend": backend}

    def call(receive, *others):
        torch.manual_seed(0)  # the same dropout every time
        send, *others = (receive, *others) if form == "symmetric" else others
        return attention(receive, send, *others, **keywords)

    leaves = [inputs[0], *inputs[2:]] if form == "symmetric" else inputs
    leaves = [x.clone().requires_grad_() for x in leaves]
    out = call(*leaves)
    assert (out != 0).any()
    assert torch.autograd.gradcheck(call, leaves, eps=1e-7, atol=2e-5, rtol=2e-4, fast_mode=False)


def test_gradients_of_the_weights():
    """S and P can be differentiated too."""
    for seed in range(200):
        inputs, mask = draw("cross", {}, seed)
        if room(inputs, mask, {}) > 1e-3:
            break
    leaves = [x.clone().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(
        lambda *x: attention(*x, power=2, return_weights=True), leaves, eps=1e-7, atol=2e-5, rtol=2e-4
    )
