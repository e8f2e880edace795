"""torch's default dtype and default device change no result of a backend, forward or backward."""

import pytest
import torch

import syncattn
from syncattn.backends.cpu import library

MASK = torch.rand(1, 1, 1, 40, generator=torch.Generator().manual_seed(0)) > 0.3
LAYER = {"frame": "nearest", "power": 2, "is_causal": True, "self_coupling": False}
CALLS = {
    "layer": LAYER,
    "dropout": {"power": 2, "edge": 0.1, "dropout_p": 0.3},
    "masked": {"attn_mask": MASK, "frame": "nearest"},
}


def computation(inputs, options, backend):
    cotangent = torch.randn(inputs[2].shape, generator=torch.Generator().manual_seed(7)).to(inputs[2].dtype)

    def compute():
        leaves = [x.detach().requires_grad_() for x in (inputs[0], *inputs[2:])]
        torch.manual_seed(0)
        call = (leaves[0], *leaves)
        out = syncattn.selective_synchronization_attention(*call, backend=backend, **options)
        return [out.detach(), *torch.autograd.grad(out, leaves, cotangent)]

    return compute


@pytest.fixture
def calls(draw, same_under_all_defaults):
    def check(backend, options, dtype=torch.float32, tokens=40):
        if (reason := syncattn.backends.availability()[backend]) is not None:
            pytest.skip(reason)
        receive, _, value, *coupled = draw(1, 2, tokens, tokens, 3, 4, density=0.05, same=True)
        inputs = [receive.to(dtype), None, value.to(dtype), *coupled]
        results = same_under_all_defaults(computation(inputs, options, backend))
        assert all(x.isfinite().all() and x.any() for x in results)

    return check


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", ["cpu", "tiled", "eager"])
def test_every_backend(backend, call, dtype, calls):
    calls(backend, CALLS[call], dtype)


@pytest.mark.parametrize("backend", ["tiled", "eager"])
def test_top_k(backend, calls):
    calls(backend, {"top_k": 5})


@pytest.mark.parametrize("options", [{"power": 2}, {"power": 2, "frame": "nearest"}], ids=str)
def test_tokens_in_the_order_of_the_cpu_kernel(options, calls, monkeypatch):
    order, ordered = library.order, []
    monkeypatch.setattr(library, "order", lambda *call: ordered.append(order(*call)) or ordered[-1])
    calls("cpu", options, tokens=1100)
    assert len(ordered) == 5 and all(ordered)
