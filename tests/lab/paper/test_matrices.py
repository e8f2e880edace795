"""Figure 4: the statistics against matrices worked by hand and by numpy, the settings against the layer."""

import copy

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from syncattn.drawing import png, style
from syncattn.nn import SelectiveSynchronizationAttention
from syncattn.nn.published import published
from syncattn_lab.paper.matrices import figure, measure, statistics
from syncattn_lab.paper.matrices.claims import SECTION


@pytest.fixture(scope="module")
def numbers(measured):
    return measured(SECTION)


def everything(tokens):
    return torch.ones(tokens, tokens, dtype=torch.bool)


def random_weights(heads, tokens, seed=0):
    """Sparse rows, one of them isolated, one of nothing."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.rand(heads, tokens, tokens, generator=g, dtype=torch.float64)
    weight = weight * (torch.rand(weight.shape, generator=g) < 0.5)
    weight[0, 1] = torch.eye(tokens)[1]
    weight = weight / weight.sum(-1, keepdim=True).clamp(min=1e-12)
    weight[0, 2] = 0
    return weight


def test_statistics_of_matrices_known_by_heart():
    n = 10
    identity, uniform = torch.eye(n)[None].double(), torch.full((1, n, n), 1 / n, dtype=torch.float64)
    wanted = {
        "density": (0, 1),
        "off_diagonal_mass": (0, 1 - 1 / n),
        "isolated_rows": (1, 0),
        "effective_share": (1 / n, 1),
        "effective_of_locked": (1, 1),
        "total_variation": (1 - 1 / n, 0),
        "variation_among_others": (0, 0),
    }
    assert set(wanted) == set(statistics.PER_HEAD)
    for name, values in wanted.items():
        for weight, value in zip((identity, uniform), values):
            got = statistics.PER_HEAD[name](weight, everything(n))
            assert got.item() == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("causal", [False, True])
def test_statistics_by_loops(causal):
    """Row by row in numpy, as the formulas read."""
    n = 9
    allowed = everything(n).tril(-1) if causal else everything(n)
    weight = random_weights(2, n) * allowed
    weight = weight / weight.sum(-1, keepdim=True).masked_fill(weight.sum(-1, keepdim=True) == 0, 1)
    p, may = weight.numpy(), allowed.numpy()
    for h in range(2):
        found = {name: [] for name in statistics.PER_HEAD}
        for i in range(n):
            count, others = may[i].sum(), [j for j in range(n) if may[i, j] and j != i]
            row = p[h, i]
            found["density"] += [float(row[j] > 0) for j in others]
            if (row > 0).any():
                found["effective_share"].append(1 / (row**2).sum() / count)
                found["effective_of_locked"].append(1 / (row**2).sum() / (row > 0).sum())
            if count:
                found["total_variation"].append(
                    sum(abs(row[j] - 1 / count) for j in np.flatnonzero(may[i])) / 2
                )
            if others:
                mass = row[others].sum()
                found["off_diagonal_mass"].append(mass)
                found["isolated_rows"].append(float(mass == 0))
                distance = np.abs(row[others] / mass - 1 / len(others)).sum() / 2 if mass else 0.0
                found["variation_among_others"].append(distance)
        for name, values in found.items():
            got = statistics.PER_HEAD[name](weight, allowed)[h]
            assert float(got) == pytest.approx(np.mean(values), abs=1e-12), name


def test_divergence_of_two_heads_is_scipys():
    n = 12
    weight = random_weights(2, n)
    wanted = []
    for i in range(n):
        a, b = (np.delete(weight[h, i].numpy(), i) for h in range(2))
        if a.sum() and b.sum():
            wanted.append(jensenshannon(a, b, base=2) ** 2)
    got = statistics.head_divergence(weight, statistics.others(everything(n)))
    assert len(wanted) == n - 2 and got == pytest.approx(np.mean(wanted), abs=1e-12)


def test_divergence_at_its_ends():
    n = 8
    among = statistics.others(everything(n))
    same = random_weights(1, n)[:, 3:].expand(4, -1, -1)
    assert statistics.head_divergence(same, among[3:]) == pytest.approx(0, abs=1e-12)
    apart = torch.stack([torch.eye(n).roll(k, 1) for k in (1, 2, 3)]).double()
    assert statistics.head_divergence(apart, among) == pytest.approx(1)
    assert statistics.head_divergence(torch.eye(n)[None].expand(3, -1, -1).double(), among) is None


@pytest.mark.parametrize("causal", [False, True])
def test_what_chance_keeps(causal):
    n = 40
    g = torch.Generator().manual_seed(1)
    among = everything(n).tril(-1) if causal else statistics.others(everything(n))
    weight = random_weights(3, n) * among
    shuffled = statistics.shuffled_rows(weight, among, g)
    assert (shuffled[:, ~among] == 0).all() and not torch.equal(shuffled, weight)
    assert torch.equal(shuffled.sort(-1).values, weight.sort(-1).values)
    masks = statistics.random_masks(weight, among, g)
    wanted, got = (((w > 0) & among).sum((1, 2)) / among.sum() for w in (weight, masks))
    assert (masks[:, ~among] == 0).all() and (wanted - got).abs().max() < 4 * (0.25 / among.sum()) ** 0.5
    row = masks[0, n - 1]
    assert row[row > 0].unique().numel() == 1 and row.sum() == pytest.approx(1)


def test_spreads():
    values = torch.tensor([[1.0, 3.0], [1.0, 3.0], [1.0, 3.0]]).double()
    assert statistics.spreads(values) == (pytest.approx(2**0.5), 0)
    mean, error = statistics.mean_and_error(torch.tensor([1.0, 2.0, 3.0]))
    assert mean == 2 and error == pytest.approx(3**-0.5)


def test_weights_are_those_of_the_published_layer():
    torch.manual_seed(0)
    layer = SelectiveSynchronizationAttention(64, 4, **published(16))
    x = torch.randn(1, 20, 64)
    with torch.no_grad():
        layer.raw_coupling.fill_(12.0)
        layer.raw_bandwidth.fill_(-4.0)
        _, wanted = layer(x, need_weights=True, average_attn_weights=False)
        frequency, kappa = measure.published_parts(layer, x)
        got = measure.weights(measure.squared_detuning(frequency), kappa, layer.bandwidth)
    off = wanted[0] * (1 - torch.eye(20))
    assert 0.05 < (off > 0).double().mean() < 0.95  # neither empty nor full
    assert (got - wanted[0]).abs().max() < 1e-4 and (got - wanted[0]).abs().median() < 1e-7


def test_pictures_keep_zeros_and_the_scale():
    values = torch.tensor([[0.0, 1e-9, 1.0, 1e9], [0.5, 2.0, 0.0, 7.7]], dtype=torch.float64)
    back = figure.decode(figure.encode(values))
    assert torch.equal(back == 0, values == 0)
    inside = (values > figure.LOW) & (values < figure.HIGH)
    assert (back / values)[inside].log().abs().max() < 0.06
    assert back[0, 1] == figure.LOW and back[0, 3] == pytest.approx(figure.HIGH)


def test_law_of_the_effective_share():
    """By drawing D and nothing else."""
    g = np.random.default_rng(0)
    detuning = g.chisquare(64, 200_000) * 2 / 3
    kappa, alpha = np.log1p(np.exp(100)) * np.exp(-1 / 6), np.log1p(np.exp(-5))
    sync = np.sqrt(np.maximum(np.exp(-2 * alpha * detuning) - detuning / kappa**2, 0))
    n = 512
    wanted = (1 + (n - 1) * sync.mean()) ** 2 / (n * (1 + (n - 1) * (sync**2).mean()))
    assert measure.effective_share_law(n) == pytest.approx(wanted, abs=1e-4)


def test_claims_are_shown(numbers):
    claims = SECTION.claims(numbers)
    assert [claim.name for claim in claims] == [
        "non-uniform-at-initialisation",
        "head-diverse-at-initialisation",
        "stronger-inductive-bias",
    ]
    for claim in claims:
        assert claim.shown, [check for check in claim.checks if not check.met]


@pytest.mark.parametrize(
    ("claim", "setting", "path", "value"),
    [
        (0, "published_figure", ("mean", "total_variation"), 0.2),
        (0, "published_figure", ("mean", "effective_share"), 0.9),
        (0, "published_default", ("mean", "off_diagonal_mass"), 1e-9),
        (0, "published_default", ("mean", "isolated_rows"), 0.99),
        (0, "calibrated", ("mean", "off_diagonal_mass"), 0.4),
        (0, "calibrated", ("mean", "isolated_rows"), 0.2),
        (0, "calibrated", ("per_head", "variation_among_others"), [0.1] * 8),
        (1, "published_figure", ("sd_heads",), 1.0),
        (1, "published_figure", ("divergence",), 0.01),
        (1, "calibrated_alike", ("sd_heads",), 1.0),
        (1, "calibrated_alike", ("divergence",), 0.1),
        (1, "calibrated", ("over_shuffled", "mean"), 0.0),
        (1, "calibrated_alike", ("over_shuffled", "mean"), 0.01),
        (2, "published_figure", ("mean", "total_variation"), 0.1),
        (2, "published_default", ("mean", "total_variation"), 0.2),
        (2, "published_default", ("mean", "isolated_rows"), 0.99),
        (2, "softmax", ("mean", "effective_share"), 0.9),
        (2, "softmax_linear", ("mean", "effective_share"), 0.8),
        (2, "calibrated", ("per_head", "total_variation"), [0.2] * 8),
    ],
)
def test_checks_are_alive(numbers, claim, setting, path, value):
    false = copy.deepcopy(numbers)
    at = false["settings"][setting]
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    assert not SECTION.claims(false)[claim].shown


def test_pictures_and_table(numbers):
    for drawing in SECTION.drawings:
        with style():
            assert png(drawing.draw(numbers)).startswith(b"\x89PNG")
    lines = [line for line in SECTION.table(numbers).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(figure.LABELS)
    assert len({line.count("|") for line in lines}) == 1
