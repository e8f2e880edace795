"""Which backend takes a call, and why not the others."""

import pytest
import torch

import syncattn
from syncattn.backends import select

attention = syncattn.selective_synchronization_attention
explain = syncattn.backends.explain


def problem():
    w = torch.randn(1, 2, 5, 3)
    return w, w, torch.randn(1, 2, 5, 4), torch.ones(2), torch.ones(2)


def test_the_first_that_can_takes_the_call_and_the_rest_say_why_not():
    names = list(select.BACKENDS)
    assert names[-1] == "eager" and "tiled" in names  # in order of preference, the definition last
    chosen = explain(*problem())
    assert chosen.backend == "tiled"
    assert chosen.reasons == {"eager": "tiled is preferred"}
    assert str(chosen) == "tiled: takes this call\neager: tiled is preferred"


def test_asked_for_by_name():
    chosen = explain(*problem(), backend="eager")
    assert chosen.backend == "eager"
    assert chosen.reasons == {"tiled": "not asked for (backend='eager')"}


def test_refusals():
    chosen = explain(*problem(), return_weights=True)
    assert chosen.backend == "eager"
    assert "return_weights" in chosen.reasons["tiled"]
    for function in (explain, attention):
        with pytest.raises(ValueError, match=r"backend='tiled' cannot take this call: .*return_weights"):
            function(*problem(), return_weights=True, backend="tiled")


def test_a_backend_that_is_not_available_says_so(monkeypatch):
    monkeypatch.setattr(select.BACKENDS["tiled"], "unavailable", lambda: "it has gone fishing")
    assert syncattn.backends.availability() == {"tiled": "it has gone fishing", "eager": None}
    chosen = explain(*problem())
    assert chosen.backend == "eager" and chosen.reasons == {"tiled": "it has gone fishing"}
    with pytest.raises(ValueError, match="cannot take this call: it has gone fishing"):
        attention(*problem(), backend="tiled")


def test_availability():
    assert syncattn.backends.availability() == {"tiled": None, "eager": None}


def test_explain_computes_nothing():
    """It answers for tensors that hold nothing, and for sizes that no memory holds."""
    w = torch.empty(8, 64, 2**20, 16, device="meta")
    value = torch.empty(8, 64, 2**20, 64, device="meta")
    strength = torch.empty(64, device="meta")
    assert explain(w, w, value, strength, strength).backend == "tiled"
    out = attention(w[:1, :, :64], w[:1, :, :64], value[:1, :, :64], strength, strength)
    assert out.device.type == "meta" and out.shape == (1, 64, 64, 64)
