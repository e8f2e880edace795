"""Figure 4: weight matrices at initialisation, beside those of random softmax layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy.integrate import quad
from scipy.stats import chi2
from torch import Tensor, nn

from syncattn import locking, order_parameter
from syncattn.nn import SelectiveSynchronizationAttention
from syncattn.nn.published import published
from syncattn_lab.paper.matrices import statistics
from syncattn_lab.paper.matrices.figure import encode
from syncattn_lab.paper.section import Extent, Numbers

EMBED_DIM, HEADS = 512, 8
HEAD_DIM = EMBED_DIM // HEADS
DENSITIES = (0.05, 0.5)  # of the first and the last calibrated head, the trainable layer's default
SHARPNESS = 100.0  # c = 2 alpha kappa^2, likewise
ROW_STRIDE = 4  # every fourth row is enough for the divergence between heads
RAW = {"published_figure": (100.0, -5.0), "published_default": (1.0, 1.0)}  # raw K, raw alpha


class Matrices(NamedTuple):
    """One draw of one setting: weights (H, N, N), float64, and the allowed pairs (N, N) bool."""

    weight: Tensor
    allowed: Tensor


def measure(extent: Extent, tell: Callable[[str], None]) -> Numbers:
    """The statistics of every setting over several draws of weights and tokens; pictures of the first draw.

    One draw is x ~ N(0, 1) (1, N, 512) and freshly initialised layers on it.
    """
    tokens, shown, draws = extent.size((512, 128, 8), (256, 64, 3))
    found: dict[str, list[dict[str, list[float] | float | None]]] = {}
    pictures: dict[str, list[list[str]]] = {}
    for draw in range(draws):
        generator = torch.Generator().manual_seed(7919 * extent.seed + draw)
        for name, one in draw_settings(tokens, generator).items():
            found.setdefault(name, []).append(_statistics(one, generator))
            if draw == 0:
                relative = one.weight * one.allowed.sum(-1, keepdim=True)
                pictures[name] = [encode(head) for head in relative[:, :shown, :shown]]
        tell(f"matrices: draw {draw + 1} of {draws}")
    return {
        "tokens": tokens,
        "shown": shown,
        "draws": draws,
        "embed_dim": EMBED_DIM,
        "heads": HEADS,
        "densities": list(DENSITIES),
        "sharpness": SHARPNESS,
        "effective_share_law": effective_share_law(tokens),
        "settings": {
            name: _summary(several) | {"picture": pictures[name]} for name, several in found.items()
        },
    }


@torch.no_grad()
def draw_settings(tokens: int, generator: torch.Generator) -> dict[str, Matrices]:
    """Every setting's matrices on the same x ~ N(0, 1) (1, N, 512), all heads; keys as in figure.LABELS."""
    x = torch.randn(1, tokens, EMBED_DIM, generator=generator)
    everything = torch.ones(tokens, tokens, dtype=torch.bool)
    earlier = everything.tril(-1)
    with torch.random.fork_rng(devices=[]):  # layers draw from the global generator
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        layer = SelectiveSynchronizationAttention(EMBED_DIM, HEADS, **published(HEAD_DIM))
        trainable = SelectiveSynchronizationAttention(EMBED_DIM, HEADS)
        softmax = nn.MultiheadAttention(EMBED_DIM, HEADS, batch_first=True)
        query, key = nn.Linear(EMBED_DIM, EMBED_DIM), nn.Linear(EMBED_DIM, EMBED_DIM)

    found = {}
    for name, (raw_coupling, raw_bandwidth) in RAW.items():
        layer.raw_coupling.fill_(raw_coupling)
        layer.raw_bandwidth.fill_(raw_bandwidth)
        frequency, kappa = published_parts(layer, x)
        detuning = squared_detuning(frequency)
        found[name] = Matrices(weights(detuning, kappa, layer.bandwidth), everything)
    pairs = detuning[:, statistics.others(everything).tril()]
    ladder = locking.density_ladder(*DENSITIES, HEADS)
    for name, wanted in (("calibrated", ladder), ("calibrated_alike", ladder.log().mean().exp())):
        calibrated = locking.calibrate_from_detuning(pairs, wanted, SHARPNESS)
        found[name] = Matrices(weights(detuning, *calibrated), everything)
    _, weight = trainable(x, is_causal=True, need_weights=True, average_attn_weights=False)
    found["trainable"] = Matrices(weight[0].double(), earlier)
    _, weight = softmax(x, x, x, need_weights=True, average_attn_weights=False)
    found["softmax"] = Matrices(weight[0].double(), everything)
    q, k = (each(x)[0].unflatten(-1, (HEADS, HEAD_DIM)).transpose(0, 1).double() for each in (query, key))
    logits = q @ k.transpose(-2, -1) / math.sqrt(HEAD_DIM)
    found["softmax_linear"] = Matrices(logits.softmax(-1), everything)
    return found


def published_parts(layer: SelectiveSynchronizationAttention, x: Tensor) -> tuple[Tensor, Tensor]:
    """Frequencies (H, N, m) and effective coupling kappa = K r (H,) of a layer in the published form."""
    assert layer.phase_proj is not None
    phase = layer.phase_proj(x).unflatten(-1, (layer.num_heads, -1)).transpose(1, 2)
    frequency = layer.frequency.emit(x, torch.arange(x.shape[1])[None])
    return frequency[0], layer.coupling * order_parameter(phase)[0]


def squared_detuning(frequency: Tensor) -> Tensor:
    """D (H, N, N) in float64 of frequencies (H, N, m), from the differences: the diagonal is exactly 0."""
    w = frequency.double()
    return torch.cdist(w, w, compute_mode="donot_use_mm_for_euclid_dist").square()


def weights(detuning: Tensor, kappa: Tensor, bandwidth: Tensor) -> Tensor:
    """P (H, N, N), the rows of S divided by their sums, of D (H, N, N), kappa (H,) and alpha (H,)."""
    sync = locking.synchronization(detuning, kappa.double()[:, None, None], bandwidth.double()[:, None, None])
    return sync / sync.sum(-1, keepdim=True)


def effective_share_law(tokens: int) -> float:
    """N_eff / N to be expected in the published figure's setting, to leading order in 1 / N.

    (1 + (N - 1) E S)^2 / (N (1 + (N - 1) E S^2)), with D ~ (2/3) chi2 with 64 degrees of freedom (nn.Linear's
    default initialisation gives frequencies of variance 1/3) and r = exp(-1/6) (phases of variance 1/3).
    """
    raw_coupling, raw_bandwidth = RAW["published_figure"]
    kappa = math.log1p(math.exp(raw_coupling)) * math.exp(-1 / 6)
    alpha = math.log1p(math.exp(raw_bandwidth))

    def moment(power: int) -> float:
        def at(u: float) -> float:
            margin = math.exp(-2 * alpha * u * 2 / 3) - u * 2 / 3 / kappa**2
            return max(margin, 0.0) ** (power / 2) * float(chi2.pdf(u, HEAD_DIM))

        return quad(at, 0, 6 * HEAD_DIM, limit=200)[0]

    first, second = moment(1), moment(2)
    return (1 + (tokens - 1) * first) ** 2 / (tokens * (1 + (tokens - 1) * second))


def _statistics(one: Matrices, generator: torch.Generator) -> dict[str, list[float] | float | None]:
    """Every statistic of one draw: per head, and between the heads with what chance alone would give."""
    weight, allowed = one
    found: dict[str, list[float] | float | None] = {
        name: each(weight, allowed).tolist() for name, each in statistics.PER_HEAD.items()
    }
    rows, among = weight[:, ::ROW_STRIDE], statistics.others(allowed)[::ROW_STRIDE]
    found["divergence"] = statistics.head_divergence(rows, among)
    for name, chance in (("masks", statistics.random_masks), ("shuffled", statistics.shuffled_rows)):
        found[f"divergence_{name}"] = statistics.head_divergence(chance(rows, among, generator), among)
    return found


def _summary(several: list[dict]) -> Numbers:
    """Means over draws per head and over all, the spreads of N_eff / N, and divergence minus chance."""
    summary: Numbers = {"per_head": {}, "mean": {}}
    for name in statistics.PER_HEAD:
        values = torch.tensor([one[name] for one in several], dtype=torch.float64)  # (draws, H)
        summary["per_head"][name] = values.mean(0).tolist()
        summary["mean"][name] = float(values.mean())
        if name == "effective_share":
            summary["sd_heads"], summary["sd_draws"] = statistics.spreads(values)
    for name in ("divergence", "divergence_masks", "divergence_shuffled"):
        known = [one[name] for one in several if one[name] is not None]
        summary[name] = sum(known) / len(known) if known else None
    for name in ("masks", "shuffled"):
        differences = [
            one["divergence"] - one[f"divergence_{name}"] for one in several if one["divergence"] is not None
        ]
        if differences and None not in differences:
            mean, error = statistics.mean_and_error(torch.tensor(differences, dtype=torch.float64))
            summary[f"over_{name}"] = {"mean": mean, "error": error}
        else:
            summary[f"over_{name}"] = None
    return summary
