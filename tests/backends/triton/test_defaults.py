"""torch's default dtype and default device change no result of the kernels, forward or backward."""

import pytest
import torch

import syncattn

CALLS = {
    "layer": {"frame": "nearest", "power": 2, "is_causal": True, "self_coupling": False},
    "sorted": {"power": 2, "edge": 0.1, "dropout_p": 0.3},  # in the order of a k-d tree
}


@pytest.mark.parametrize("call", CALLS)
def test_every_call(call, draw, device, kernels, monkeypatch, same_under_all_defaults):
    monkeypatch.setattr(kernels, "FEWEST_SORTED", 1)

    inputs = [x.to(device) for x in draw(1, 1, 40, 40, 3, 4)]
    cotangent = torch.randn(1, 1, 40, 4, generator=torch.Generator().manual_seed(7)).to(device)

    def compute():
        leaves = [x.detach().requires_grad_() for x in inputs]
        torch.manual_seed(0)
        out = syncattn.selective_synchronization_attention(*leaves, backend="triton", **CALLS[call])
        return [out.detach(), *torch.autograd.grad(out, leaves, cotangent)]

    results = same_under_all_defaults(compute, ("bfloat16", "meta"))
    assert all(x.isfinite().all() and x.any() for x in results)
