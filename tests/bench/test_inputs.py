"""The inputs are what their case says."""

from dataclasses import replace

import pytest
import torch

from syncattn import selective_synchronization_attention
from syncattn.bench.checking import errors, truth, verdict
from syncattn.bench.contenders import make, needed_bytes
from syncattn.bench.inputs import Case, count_locked, make_inputs, segment_classes
from syncattn.bench.plan import BACKWARD, FORWARD
from syncattn.bench.published import published_attention

CASE = Case("case", tokens=512, freq_dim=4, head_dim=8, heads=4, density=0.2)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"directed": True},
        {"density": 0.95},
        {"density": 0.01, "freq_dim": 8},
        {"structure": "clustered", "density": 0.05},
        {"directed": True, "frame": "nearest"},
        {"self_coupling": False, "frame": "nearest", "density": 0.05},
        {"dtype": "bf16"},
        {
            "structure": "layer",
            "frame": "nearest",
            "is_causal": True,
            "self_coupling": False,
            "density": 0.08,
        },
    ],
    ids=str,
)
def test_density_is_the_wanted_one(changes):
    case = replace(CASE, **changes)
    counted = count_locked(case, make_inputs(case), 256, seed=0)
    assert counted["rows"] == 256
    assert counted["density"] == pytest.approx(case.density, rel=0.15)
    low, high = counted["per_head"]
    assert low <= counted["density"] <= high


def test_the_count_is_that_of_the_operator():
    case = replace(CASE, tokens=64, is_causal=True)
    inputs = make_inputs(case)
    _, sync, _ = selective_synchronization_attention(
        *(x.double() for x in inputs[:1]),
        *(x.double() for x in inputs[1:]),
        **case.options(),
        return_weights=True,
    )
    counted = count_locked(case, inputs, 64, seed=0)
    assert counted["of_all_pairs"] == pytest.approx(float((sync > 0).double().mean()), abs=1e-12)
    assert counted["density"] == pytest.approx(float((sync > 0).sum()) / (4 * 64 * 65 / 2), abs=1e-12)


def test_drift_sees_its_window_and_no_further():
    case = replace(CASE, structure="drift", window=16, is_causal=True, density=None)
    inputs = make_inputs(case)
    assert count_locked(case, inputs, 512, seed=0)["farthest"] in (14, 15, 16)
    alone = inputs.receive.clone()
    alone[..., :-1] = 0  # equal contents: exactly the window locks
    assert count_locked(case, inputs._replace(receive=alone, send=alone), 512, seed=0)["farthest"] == 16


def test_the_layers_form_is_a_ladder_of_drifting_heads():
    case = replace(CASE, structure="layer", frame="nearest", is_causal=True, self_coupling=False, density=0.1)
    inputs = make_inputs(case)
    low, high = count_locked(case, inputs, 512, seed=0)["per_head"]
    assert 0.01 < low < 0.05 and 0.2 < high < 0.3
    torch.testing.assert_close(inputs.send[:, ::2], inputs.receive[:, ::2], rtol=0, atol=0)
    torch.testing.assert_close(inputs.send[:, 1::2, 1:], inputs.receive[:, 1::2, :-1], rtol=0, atol=0)
    way = inputs.receive[:, :, 256:].mean(2) - inputs.receive[:, :, :256].mean(
        2
    )  # within the narrowest first
    assert (way.norm(dim=-1).diff() < 0).all()


def test_the_published_formulation_is_the_definition_of_power_1():
    case = replace(CASE, tokens=64, power=1)
    w, _, v, kappa, alpha = (x.double() for x in make_inputs(case))
    right = selective_synchronization_attention(w, w, v, kappa, alpha, backend="eager")
    found = published_attention(w.transpose(1, 2), v.transpose(1, 2), kappa, alpha).transpose(1, 2)
    assert (found - right).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["tiled", "eager", "published"])
@pytest.mark.parametrize("passes", [FORWARD, BACKWARD])
@pytest.mark.parametrize("power", [1, 2])
def test_what_is_right_passes_the_check(name, passes, power):
    case = replace(CASE, tokens=128, power=power)
    inputs = make_inputs(case)
    made = make(name, case, inputs, (passes,))
    if name == "published" and power == 2:
        assert "power 1" in made
        return
    found = errors(made, truth(case, inputs, 16, 0, True), passes)
    assert verdict(found, "fp32") is None
    assert set(found) == {"out"} | (set(made.leaves) if passes == BACKWARD else set())


@pytest.mark.parametrize(
    "changes",
    [
        {"structure": "drift", "window": 16, "is_causal": True},
        {"structure": "drift", "window": 16, "is_causal": True, "self_coupling": False, "frame": "nearest"},
        {"directed": True, "frame": "nearest"},
        {"queries": 1},
        {"queries": 1, "structure": "drift", "window": 16, "is_causal": True},
        {"dtype": "bf16"},
    ],
    ids=str,
)
def test_the_check_takes_every_case(changes):
    case = replace(CASE, tokens=128, **changes)
    inputs = make_inputs(case)
    made = make("tiled", case, inputs, (BACKWARD,))
    assert verdict(errors(made, truth(case, inputs, 16, 0, True), BACKWARD), case.dtype) is None


def test_the_check_sees_what_is_wrong():
    case = replace(CASE, tokens=128)
    inputs = make_inputs(case)
    made, right = make("tiled", case, inputs, (BACKWARD,)), truth(case, inputs, 16, 0, True)
    one_head = torch.ones(4, 1, 1).index_fill(0, torch.tensor([2]), 1.01)
    assert "out is off" in verdict(
        errors(made._replace(forward=lambda: made.forward() * one_head), right, FORWARD), "fp32"
    )
    not_a_number = made._replace(forward=lambda: made.forward() * float("nan"))
    assert "off by inf" in verdict(errors(not_a_number, right, FORWARD), "fp32")

    def no_gradient_through_frequencies():
        frozen = {n: x.detach() if n == "receive" else x for n, x in made.leaves.items()}
        out = selective_synchronization_attention(
            frozen["receive"], frozen["receive"], *list(frozen.values())[1:], **case.options()
        )
        return out + 0 * made.leaves["receive"].sum()

    wrong = verdict(errors(made._replace(forward=no_gradient_through_frequencies), right, BACKWARD), "fp32")
    assert wrong.startswith("gradient of receive is off") and ";" not in wrong


def test_the_published_formulation_needs_its_memory(monkeypatch):
    case = replace(CASE, power=1)
    assert needed_bytes(1, 4, 512, True) > needed_bytes(1, 4, 512, False) > 4 * 4 * 512**2
    monkeypatch.setattr("syncattn.bench.contenders.free_bytes", lambda like: 10**6)
    assert "holds N x N matrices" in make("published", case, make_inputs(case), (FORWARD,))


@pytest.mark.parametrize("share", [0.25, 0.05])
def test_whole_segments_lock_or_do_not(share):
    case = replace(CASE, tokens=2560, heads=2, freq_dim=8, structure="segments", tiles=share, density=None)
    inputs = make_inputs(case)
    counted = count_locked(case, inputs, 256, seed=0)
    assert counted["tiles"] == pytest.approx(share, rel=0.3)
    assert counted["density"] == pytest.approx(0.9 * counted["tiles"], rel=0.1)
    classes = segment_classes(case)
    apart = classes[:, None] != classes[None]
    _, sync, _ = selective_synchronization_attention(*inputs, **case.options(), return_weights=True)
    assert not sync[:, :, apart].any()
