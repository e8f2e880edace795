"""The order parameter at initialisation: its value, what it responds to, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from syncattn import order_parameter
from syncattn.backends import eager
from syncattn.bench.published import published_attention
from syncattn.nn import SelectiveSynchronizationAttention
from syncattn.nn.published import published
from syncattn_lab.paper.operations import count
from syncattn_lab.paper.peak import peak_bytes
from syncattn_lab.paper.section import Extent, Numbers

WIDTH, HEADS, TOKENS = 512, 8, 256
CAUSAL_TOKENS = 512
PHASES = WIDTH // HEADS
# softplus of these: the published defaults, and what the published figure of S was made with
SETTINGS = {"default": (1.0, 1.0), "figure": (100.0, -5.0)}


def coherence(variance: float) -> float:
    """R = |E exp(i t)| = exp(-v / 2) of a Gaussian phase of variance v."""
    return math.exp(-0.5 * variance)


def expected(coherence: float, tokens: float) -> float:
    """E r = R + (1 - R^4) / (4 R n) to first order in 1 / n: n Gaussian phases whose E exp(i t) has length R.

    The sum's component along its mean averages to R; the one across, of variance (1 - R^4) / (2 n), lengthens
    it by half its square over R.
    """
    return coherence + (1 - coherence**4) / (4 * coherence * tokens)


def root_mean_square(coherence: float, tokens: float) -> float:
    """sqrt(E r^2) = sqrt(R^2 + (1 - R^2) / n), exact for every n."""
    return math.sqrt(coherence**2 + (1 - coherence**2) / tokens)


def measure(extent: Extent, tell: Callable[[str], None]) -> Numbers:
    """r at the published initialisation over random inputs, running over positions, over alike tokens."""
    generator = torch.Generator().manual_seed(extent.seed)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(extent.seed)
        layer = SelectiveSynchronizationAttention(WIDTH, HEADS, **published(PHASES))
        projection = layer.phase_proj
        assert projection is not None
        tell("order: distribution over random inputs")
        inputs = extent.size(100, 40)
        value = distribution(projection, inputs, generator)
        value |= {"fresh_networks": fresh_networks(extent.size(100, 10), generator)}
        tell("order: running form")
        running = running_form(projection, extent.size(100, 20), generator)
        tell("order: alike tokens")
        alike = alikeness(layer, extent.size(256, 96), generator)
    counted = {
        "sizes": (sizes := extent.size([512, 1024, 2048, 4096], [128, 256, 512])),
        "global": [operations_of_r(n, is_causal=False) for n in sizes],
        "causal": [operations_of_r(n, is_causal=True) for n in sizes],
        "pairs_sizes": (pairs := [64, 128, 256]),
        "pairs": [operations_of_pairs(n) for n in pairs],
    }
    tell("order: peak memory, in a new process")
    used = memory(extent.size([2048, 4096, 8192, 16384], [1024, 2048, 4096]), extent.seed)
    return {
        "width": WIDTH,
        "heads": HEADS,
        "tokens": TOKENS,
        "phases": PHASES,
        "value": value,
        "running": running,
        "alike": alike,
        "counted": counted,
        "memory": used,
    }


def phases_of(projection: nn.Module, x: Tensor) -> Tensor:
    """Phases (B, H, N, p) of inputs (B, N, E), as the layer makes them."""
    return projection(x).unflatten(-1, (HEADS, PHASES)).transpose(1, 2)


def distribution(projection: nn.Linear, inputs: int, generator: torch.Generator) -> dict[str, Any]:
    """r (inputs, H) of one network on inputs ~ N(0, 1), what its weights predict, and four readings of sd."""
    rows = [
        order_parameter(phases_of(projection, torch.randn(1, TOKENS, WIDTH, generator=generator)))[0]
        for _ in range(inputs)
    ]
    r = torch.stack(rows).double()
    variance = projection.weight.double().square().sum(1)  # of each phase, (H p,); the bias does not matter
    predicted = [expected(coherence(v), TOKENS) for v in variance.tolist()]
    return {
        "inputs": inputs,
        "r": [[round(one, 6) for one in row] for row in r.tolist()],
        "mean": float(r.mean()),
        "standard_error": float(r.mean(1).std() / math.sqrt(inputs)),
        "phase_variance": float(variance.mean()),
        "predicted_from_weights": sum(predicted) / len(predicted),
        "limit": coherence(1 / 3),
        "predicted": expected(coherence(1 / 3), TOKENS),
        "sd": {
            "all heads and inputs": float(r.std()),
            "inputs, one head": float(r.std(0).mean()),
            "inputs, mean over heads": float(r.mean(1).std()),
            "heads, mean over inputs": float(r.mean(0).std()),
        },
    }


def fresh_networks(networks: int, generator: torch.Generator) -> dict[str, Any]:
    """The same with a network of its own for every input."""
    rows = []
    for _ in range(networks):
        x = torch.randn(1, TOKENS, WIDTH, generator=generator)
        rows.append(order_parameter(phases_of(nn.Linear(WIDTH, WIDTH), x))[0])
    r = torch.stack(rows).double()
    return {
        "networks": networks,
        "mean": float(r.mean()),
        "sd of heads": float(r.std()),
        "sd of means over heads": float(r.mean(1).std()),
    }


def running_form(projection: nn.Module, inputs: int, generator: torch.Generator) -> dict[str, Any]:
    """Causal r by position: mean and standard deviation over inputs and heads at positions 1 to 512."""
    total = torch.zeros(CAUSAL_TOKENS, dtype=torch.float64)
    squares = torch.zeros_like(total)
    for _ in range(inputs):
        x = torch.randn(1, CAUSAL_TOKENS, WIDTH, generator=generator)
        r = order_parameter(phases_of(projection, x), is_causal=True)[0].double()  # (H, N)
        total += r.mean(0)
        squares += r.square().mean(0)
    mean = total / inputs
    spread = (squares / inputs - mean.square()).clamp(min=0).sqrt()
    level = coherence(1 / 3)
    gaps = [abs(float(mean[n - 1]) - expected(level, n)) for n in range(2, CAUSAL_TOKENS + 1)]
    above_limit = [n for n in range(1, CAUSAL_TOKENS + 1) if float(mean[n - 1]) > level + 0.01]
    return {
        "inputs": inputs,
        "mean": [round(one, 6) for one in mean.tolist()],
        "sd": [round(one, 6) for one in spread.tolist()],
        "largest_gap": max(gaps),
        "largest_gap_root_mean_square": max(
            abs(float(mean[n - 1]) - root_mean_square(level, n)) for n in range(2, CAUSAL_TOKENS + 1)
        ),
        "last_above_limit": max(above_limit),
    }


def alikeness(
    layer: SelectiveSynchronizationAttention, tokens: int, generator: torch.Generator
) -> dict[str, Any]:
    """r and the density of locking pairs when the tokens' mutual correlation q goes from 0 to 1.

    x_i = sqrt(q) shared + sqrt(1 - q) own_i, so that the phases' variance about their mean is (1 - q) / 3.
    The density is the share of the pairs i != j of all heads that lock, in the two published SETTINGS.
    """
    assert layer.phase_proj is not None
    shared = torch.randn(1, 1, WIDTH, generator=generator)
    own = torch.randn(1, tokens, WIDTH, generator=generator)
    rows: dict[str, Any] = {"tokens": tokens, "correlation": [], "r": [], "theory": []}
    rows |= {f"density_{name}": [] for name in SETTINGS}
    rows |= {f"r_{name}": [] for name in SETTINGS}
    for q in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 1.0):
        x = math.sqrt(q) * shared + math.sqrt(1 - q) * own
        rows["correlation"].append(q)
        for name, (coupling, bandwidth) in SETTINGS.items():
            layer.raw_coupling.fill_(coupling)
            layer.raw_bandwidth.fill_(bandwidth)
            call = layer.operator_call(x)._replace(return_weights=True)
            _, sync, _ = eager.run(call)
            locked = int((sync > 0).sum()) - HEADS * tokens  # a token always locks to itself
            rows[f"density_{name}"].append(locked / (HEADS * tokens * (tokens - 1)))
            # what scaled K in this very call
            rows[f"r_{name}"].append(float((call.coupling[:, :, 0] / layer.coupling).mean()))
        rows["r"].append(float(order_parameter(phases_of(layer.phase_proj, x)).mean()))
        rows["theory"].append(expected(coherence((1 - q) / 3), tokens))
    return rows


def operations_of_r(tokens: int, is_causal: bool) -> int:
    """Operations that computing r of one sequence takes."""
    return count(partial(order_parameter, is_causal=is_causal), (1, HEADS, tokens, PHASES)).total


def operations_of_pairs(tokens: int) -> int:
    """The same for the published arithmetic of S, which makes every pair."""
    frequency = (1, tokens, HEADS, PHASES)
    return count(published_attention, frequency, frequency, (HEADS,), (HEADS,)).total


def make(tokens: int, is_causal: bool, seed: int) -> tuple[Callable[[], Tensor], int]:
    """(one call of the order parameter of one sequence, bytes of its phases), for `peak_bytes`."""
    phase = torch.randn(1, HEADS, tokens, PHASES, generator=torch.Generator().manual_seed(seed))
    return partial(order_parameter, phase, is_causal=is_causal), phase.nbytes


def memory(sizes: list[int], seed: int) -> dict[str, Any]:
    """Peak bytes of r and of the running r by tokens, phases included, or why they were not measured."""
    cases = [{"tokens": n, "is_causal": c, "seed": seed} for c in (False, True) for n in sizes]
    found = peak_bytes("syncattn_lab.paper.order.measure:make", cases)
    if isinstance(found, str):
        return {"no_memory": found}
    return {"sizes": sizes, "global": found[: len(sizes)], "causal": found[len(sizes) :]}
