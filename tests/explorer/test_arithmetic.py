"""The page's arithmetic, in a JavaScript engine, against the library's."""

import math

import pytest
import torch

import syncattn
from syncattn import locking
from syncattn.backends import eager
from syncattn.backends.call import prepare
from syncattn.explorer.gather import Heard
from syncattn.explorer.payload import layer_payload

ONE_HEAD = """
const layer = data.layer, count = data.count;
result = layer.heads.map((head) => {
  const receive = A.numbers(head.receive), send = head.send ? A.numbers(head.send) : receive;
  let kappa = A.numbers(head.kappa);
  if (kappa.length !== count) kappa = new Float64Array(count).fill(kappa[0]);
  const allowed = A.allowedPairs(count, layer.causal, layer.selfCoupling, head.mask);
  const options = { ...layer, bandwidth: head.bandwidth };
  const detuning = A.squaredDetuning(receive, send, layer.freqDim);
  const found = A.synchronize(detuning, allowed, kappa, options, data.factors);
  return { ...found, summary: A.summary(found), byDistance: A.byDistance(found, count) };
});
"""
CASES = [
    {},
    {"power": 2.0},
    {"frame": "nearest"},
    {"frame": "nearest", "power": 2.0, "is_causal": True, "self_coupling": False},
    {"edge": 0.01, "power": 2.0},
    {"edge": 0.05, "is_causal": True},
    {"power": 3.5, "frame": "nearest", "eps": 0.5},
    {"top_k": 4, "is_causal": True},
    {"top_k": 3, "frame": "nearest", "self_coupling": False},
    {"mask": True, "power": 2.0},
    {"mask": True, "frame": "nearest", "is_causal": True, "self_coupling": False},
    {"directed": True, "frame": "nearest", "power": 2.0},
    {"dtype": torch.float64, "directed": True},
]


def heard_of(case, tokens, freq_dim):
    case = dict(case)
    dtype = case.pop("dtype", torch.float32)
    receive = torch.randn(1, 2, tokens, freq_dim, dtype=dtype)
    send = torch.randn(1, 2, tokens, freq_dim, dtype=dtype) if case.pop("directed", False) else receive
    mask = (torch.rand(1, 2, tokens, tokens) > 0.3) if case.pop("mask", False) else None
    kappa = 1 + 2 * torch.rand(1, 2, tokens, dtype=dtype)
    call = prepare(
        receive, send, receive, kappa, 0.05 + 0.1 * torch.rand(2, dtype=dtype), attn_mask=mask, **case
    )
    return Heard("layer", call, kappa.amax((0, 2)), None)


@pytest.mark.parametrize("factors", [(1.0, 1.0), (0.4, 1.0), (2.5, 0.3), (1.0, 6.0)])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_synchronization_is_the_library_s(case, factors, javascript):
    tokens, freq_dim = 13, 5
    heard = heard_of(case, tokens, freq_dim)
    sent = {"layer": layer_payload(heard), "count": tokens}
    found = javascript(ONE_HEAD, {**sent, "factors": {"coupling": factors[0], "bandwidth": factors[1]}})
    double = heard.call._replace(
        receive=heard.call.receive.double(),
        send=heard.call.send.double(),
        value=heard.call.value.double(),
        coupling=heard.call.coupling.double() * factors[0],
        bandwidth=heard.call.bandwidth.double() * factors[1],
        return_weights=True,
    )
    _, sync, weight = eager.run(double)
    allowed = eager.allowed_pairs(double).expand_as(sync)
    for h, head in enumerate(found):
        page = {
            name: torch.tensor(head[name], dtype=torch.float64).view(tokens, tokens)
            for name in ("sync", "weight")
        }
        # S = sqrt(F): a rounding of F, 1e-16, is up to 1e-8 of it
        torch.testing.assert_close(page["sync"], sync[0, h], rtol=0, atol=1e-8)
        torch.testing.assert_close(page["weight"], weight[0, h], rtol=0, atol=1e-8)
        assert torch.equal(page["sync"] > 0, sync[0, h] > 0)  # the same exact zeros
        locked, pairs = int((sync[0, h] > 0).sum()), int(allowed[0, h].sum())
        assert head["summary"] == {
            "density": pytest.approx(locked / pairs),
            "partners": pytest.approx(locked / tokens),
        }


def test_what_a_layer_computed_is_what_its_page_computes(layer, inputs, javascript, numbers_in):
    """Through the hooks, the packing and the page, with delay, token shift and order parameter."""
    layer.double()
    inputs = {**inputs, "query": inputs["query"].double()}
    page = syncattn.explore(layer, inputs)
    (sent,) = numbers_in(page)["layers"]
    assert [head["send"] is None for head in sent["heads"]] == [
        True,
        False,
        True,
    ]  # one head of three is delayed
    found = javascript(ONE_HEAD, {"layer": sent, "count": 14, "factors": {"coupling": 1, "bandwidth": 1}})
    _, weight = layer(**inputs, need_weights=True, average_attn_weights=False)
    page_weight = torch.tensor([head["weight"] for head in found], dtype=torch.float64).view(3, 14, 14)
    torch.testing.assert_close(page_weight, weight[0].detach(), rtol=0, atol=1e-9)


def test_float32_layers_are_met_up_to_their_own_rounding(layer, inputs, javascript, numbers_in):
    (sent,) = numbers_in(syncattn.explore(layer, inputs))["layers"]
    found = javascript(ONE_HEAD, {"layer": sent, "count": 14, "factors": {"coupling": 1, "bandwidth": 1}})
    _, weight = layer(**inputs, need_weights=True, average_attn_weights=False)
    page_weight = torch.tensor([head["weight"] for head in found]).view(3, 14, 14)
    torch.testing.assert_close(page_weight, weight[0].detach(), rtol=0, atol=1e-5)


def test_zeros_come_with_a_weaker_coupling_and_go_with_a_stronger(javascript):
    heard = heard_of({"is_causal": True}, 13, 5)
    sent = {"layer": layer_payload(heard), "count": 13}
    densities = [
        javascript(ONE_HEAD, {**sent, "factors": {"coupling": k, "bandwidth": 1}})[0]["summary"]["density"]
        for k in (0.2, 1.0, 50.0)
    ]
    assert densities[0] <= densities[1] <= densities[2] and densities[0] < densities[2]


def test_radius_and_lambert_w(javascript):
    kappa = [1e-8, 0.01, 0.7, 3.0, 40.0, 1e4, 1e12]
    alpha = [1e-6, 0.02, 0.5, 7.0]
    pairs = [(k, a) for k in kappa for a in alpha]
    found = javascript("result = data.map(([k, a]) => A.lockingRadius(k, a));", pairs)
    k, a = torch.tensor(pairs, dtype=torch.float64).T
    torch.testing.assert_close(
        torch.tensor(found, dtype=torch.float64), locking.locking_radius(k, a), rtol=1e-9, atol=0
    )


def test_order_parameter(javascript):
    phase = 3 * torch.randn(9, 2)
    seen = [True] * 6 + [False] * 3
    found = javascript(
        "result = A.orderParameter(data.phase, 2, data.seen);",
        {"phase": phase.flatten().tolist(), "seen": seen},
    )
    r = syncattn.order_parameter(phase[None, None, :6].double())
    assert found["r"] == pytest.approx(float(r), abs=1e-12)


def test_pairs_settle_where_the_closed_form_says_and_others_turn(javascript):
    pytest.importorskip("scipy")
    from syncattn.kuramoto import simulate_vector

    kappa, alpha, detuning = 1.5, 0.1, [0.0, 0.2, 0.8, 4.0]
    script = """
    result = data.detuning.map((d) => {
      let psi = 0;
      for (let n = 0; n < 2000; n++) psi = A.pairStep(psi, d, data.kappa, data.alpha, 0.05);
      return [psi, A.restAngle(d, data.kappa, data.alpha)];
    });"""
    found = javascript(script, {"detuning": detuning, "kappa": kappa, "alpha": alpha})
    for (psi, rest), d in zip(found, detuning):
        pull = kappa * math.exp(-alpha * d)
        force = torch.tensor([math.sqrt(d), 0.0], dtype=torch.float64)
        wanted = simulate_vector(torch.zeros(2, dtype=torch.float64), force, pull, duration=100.0, step=0.05)
        if math.sqrt(d) < pull:
            assert psi == pytest.approx(rest, abs=1e-6) == pytest.approx(float(wanted[0]), abs=1e-6)
            sync = float(locking.synchronization(torch.tensor(d).double(), kappa, alpha))
            assert math.cos(rest) == pytest.approx(sync / math.exp(-alpha * d), abs=1e-6)
        else:
            assert psi > 20  # turns and turns
