"""The sieve in front of D (kernel/sieve.h): no pair that can lock is kept back, wherever the frequencies lie."""

import pytest
import torch

from syncattn import locking, selective_synchronization_attention
from syncattn.backends.cpu import library

pytestmark = pytest.mark.skipif(isinstance(library.load(), str), reason="there is no CPU kernel")
INSTANCES = library.instances()


def differs(receive, send, coupling, bandwidth, **options):
    """The largest relative error of the result and of each gradient of the kernel's, in float64's terms."""
    generator = torch.Generator().manual_seed(7)
    value = torch.randn(*send.shape[:3], 16, generator=generator)
    found = []
    for backend, dtype in (("cpu", torch.float32), ("eager", torch.float64)):
        inputs = [x.to(dtype).requires_grad_() for x in (receive, send, value, coupling, bandwidth)]
        if send is receive:
            inputs[1] = inputs[0]
        out = selective_synchronization_attention(*inputs, power=2, backend=backend, **options)
        out.backward(torch.cos(torch.arange(out.numel())).view_as(out).to(dtype))
        found.append([out.detach(), *(x.grad for x in inputs[:3])])
    return max(float((a - b).norm() / b.norm().clamp(min=1e-9)) for a, b in zip(*found, strict=True))


def frequencies(place, freq_dim, tokens=300):
    generator = torch.Generator().manual_seed(freq_dim)
    x = torch.randn(1, 2, tokens, freq_dim, generator=generator)
    if place == "far":  # where float32 has few digits left: D is exact, and so must the sieve be
        x = (x * 64).round() / 64 + 4096
    if place == "outlier":  # one token makes its group's steps coarse
        x[:, :, 17] *= 1e4
    if place == "drifting":
        x[..., 0] += torch.arange(tokens) * 0.5
    if place == "alike":  # there is no step to count in
        x = x[:, :, :1].expand_as(x).contiguous()
    return x


@pytest.mark.parametrize("instance", INSTANCES)
@pytest.mark.parametrize("freq_dim", [1, 3, 8, 16, 40, 130])
@pytest.mark.parametrize("place", ["near", "far", "outlier", "drifting", "alike"])
def test_the_sieve_keeps_no_locked_pair_back(place, freq_dim, instance, monkeypatch):
    monkeypatch.setenv("SYNCATTN_CPU_INSTANCE", instance)
    receive = frequencies(place, freq_dim)
    coupling, bandwidth = (x.float().expand(2) for x in locking.calibrate(torch.tensor(0.02), freq_dim, 100.0))
    send = receive.roll(1, dims=2)
    assert differs(receive, receive, coupling, bandwidth) < 2e-4
    assert differs(receive, send, coupling, bandwidth, is_causal=True) < 2e-4
    assert differs(receive, send, coupling, bandwidth, frame="nearest", self_coupling=False) < 2e-4


@pytest.mark.parametrize("instance", INSTANCES)
def test_nan_and_infinity_show(instance, monkeypatch):
    monkeypatch.setenv("SYNCATTN_CPU_INSTANCE", instance)
    coupling, bandwidth = (x.float().expand(2) for x in locking.calibrate(torch.tensor(0.02), 8, 100.0))
    value = torch.randn(1, 2, 300, 16, generator=torch.Generator().manual_seed(1))
    send = frequencies("near", 8)
    for strange in (float("nan"), float("inf")):
        receive = send.clone()
        receive[0, 1, 250, 3] = strange
        out = selective_synchronization_attention(receive, send, value, coupling, bandwidth, backend="cpu")
        assert out.isfinite().all() == (strange == float("inf"))  # what is infinitely far locks to nothing
        other = selective_synchronization_attention(send, receive, value, coupling, bandwidth, backend="cpu")
        assert other[0, 0].isfinite().all()
        assert other[0, 1].isfinite().all() == (strange == float("inf"))
