"""The sieve in front of D (kernel/sieve.h): it keeps no pair back that can lock, wherever frequencies lie."""

import pytest
import torch

from syncattn import locking, selective_synchronization_attention
from syncattn.backends.cpu import library

pytestmark = pytest.mark.skipif(isinstance(library.load(), str), reason="there is no CPU kernel")
INSTANCES = [name for name in library.instances() if name != "plain"]  # which has none


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


FORMS = {
    "symmetric": {},
    "causal": {"is_causal": True},
    "nearest": {"frame": "nearest", "self_coupling": False},
}


@pytest.mark.parametrize("instance", INSTANCES)
@pytest.mark.parametrize("freq_dim", [1, 8, 16, 129])
@pytest.mark.parametrize("place", ["near", "far", "outlier", "drifting", "alike"])
@pytest.mark.parametrize("form", FORMS)
def test_the_sieve_keeps_no_locked_pair_back(
    form, place, freq_dim, instance, within_rounding, per_query, monkeypatch
):
    monkeypatch.setenv("SYNCATTN_CPU_INSTANCE", instance)
    receive = frequencies(place, freq_dim)
    send = receive if form == "symmetric" else receive.roll(1, dims=2)
    coupling, bandwidth = (
        x.float().expand(2) for x in locking.calibrate(torch.tensor(0.02), freq_dim, 100.0)
    )
    value = torch.randn(1, 2, send.shape[2], 16, generator=torch.Generator().manual_seed(7))
    inputs = per_query([receive, send, value, coupling, bandwidth])
    within_rounding(inputs, FORMS[form] | {"power": 2}, "cpu")


@pytest.mark.parametrize("instance", INSTANCES)
@pytest.mark.parametrize("side", [0, 1])
def test_what_is_not_a_number_shows(side, instance, fresh_compiler, monkeypatch):
    """In compiled calls, whose values nobody checks."""
    monkeypatch.setenv("SYNCATTN_CPU_INSTANCE", instance)
    coupling, bandwidth = (x.float().expand(2) for x in locking.calibrate(torch.tensor(0.02), 8, 100.0))
    value = torch.randn(1, 2, 300, 16, generator=torch.Generator().manual_seed(1))
    both = [frequencies("near", 8), frequencies("near", 8)]
    both[side][0, 1, 250, 3] = torch.nan

    def call(*tensors):
        return selective_synchronization_attention(*tensors, power=2, backend="cpu")

    compiled = torch.compile(call, fullgraph=True, backend="eager")
    bad = compiled(*both, value, coupling, bandwidth).isnan().any(-1)
    assert not bad[0, 0].any()
    assert bad[0, 1].nonzero().flatten().tolist() == ([250] if side == 0 else list(range(300)))
