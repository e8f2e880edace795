"""The blocks' structure against counts by hand, what carries over, the claims and the picture."""

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from syncattn.drawing import style
from syncattn.nn import OSNBlock
from syncattn_lab.paper.architecture import measure, replacement
from syncattn_lab.paper.architecture.claims import SECTION
from syncattn_lab.paper.architecture.figure import parts

STEPS = ["norm1", "self_attn", "add", "norm2", "linear1", "linear2", "add"]


@pytest.fixture(scope="module")
def numbers(measured):
    return measured(SECTION)


def test_parameters_by_hand(numbers):
    d, h, f, m = 512, 8, 2048, 16
    linear = d * d + d
    around = 4 * d + (d * f + f) + (f * d + d)
    counts = {name: block["parameters"] for name, block in numbers["blocks"].items()}
    assert counts["transformer"] == 4 * linear + around
    assert counts["published"] == 4 * linear + around + h + 1
    # frequencies without bias, slope and direction; one phase a head; values and output; K and alpha
    assert counts["trainable"] == h * m * d + h + h * m + (h * d + h) + 2 * linear + 2 * h + around


def test_steps_add_up(numbers):
    for block in numbers["blocks"].values():
        assert [step["name"] for step in block["steps"]] == STEPS
        assert sum(step["parameters"] for step in block["steps"]) == block["parameters"]
        projections, rule, output = parts(block["attention"])
        inside = sum(count for _, count in projections) + rule + output
        assert inside == next(s["parameters"] for s in block["steps"] if s["name"] == "self_attn")


@pytest.mark.parametrize("make", [nn.TransformerEncoderLayer, OSNBlock])
def test_trace_follows_the_module(make):
    """With the norms after the sums the trace says so: it is read, not assumed."""
    block = make(measure.WIDTH, 8, 64, batch_first=True, norm_first=False)
    names = [step["name"] for step in measure.trace(block)]
    assert names == ["self_attn", "add", "norm1", "linear1", "linear2", "add", "norm2"]
    assert not block._forward_hooks and not block.norm1._forward_hooks


def test_moved_weights_are_those_of_the_layer():
    """An OSN layer's own output is reproduced by the way in which the weights are moved."""
    torch.manual_seed(0)
    model = replacement._Copier(replacement._transformer(batch_first=True, norm_first=True)).eval()
    with torch.no_grad():
        found = replacement._moved(model, torch.randint(replacement.SYMBOLS, (4, replacement.TOKENS)))
    assert found["settings"] == 30
    assert 0 <= found["best"] < 0.3  # an untrained one knows nothing either
    assert 0.1 < found["difference"] < 10


def test_published_start_by_hand(numbers):
    """No pair of different tokens can lock: rho^2 = .415 and the least of many D is far above it."""
    start = numbers["initialisation"]
    assert start["pairs"] == 8 * 256 * 255
    torch.manual_seed(0)
    frequency = nn.Linear(512, 512)(torch.randn(256, 512)).unflatten(-1, (8, 64)).transpose(0, 1)
    distance = torch.cdist(frequency, frequency)
    nearest = (distance + 1e9 * torch.eye(256)).min() ** 2
    assert nearest > 10 > 0.415


def test_claims_are_shown(numbers):
    found = {claim.name: claim for claim in SECTION.claims(numbers)}
    assert set(found) == {"parameter-parity", "drop-in-replacement", "trains-as-published"}
    assert all(claim.shown for claim in found.values())


@pytest.mark.parametrize(
    "claim, path, wrong",
    [
        ("parameter-parity", ("blocks", "published", "parameters"), 3_152_394),
        ("parameter-parity", ("blocks", "trainable", "steps", 0, "name"), "norm9"),
        ("drop-in-replacement", ("interface", "right"), 47),
        ("drop-in-replacement", ("interface", "without_gradient"), 1),
        ("drop-in-replacement", ("interface", "shared"), 7),
        ("drop-in-replacement", ("interface", "bias_refused"), 0),
        ("drop-in-replacement", ("transfer", "before"), 0.5),
        ("drop-in-replacement", ("transfer", "best"), 0.9),
        ("drop-in-replacement", ("anew", "trainable", 0), 0.8),
        ("drop-in-replacement", ("anew", "published", 0), 0.9),
        ("drop-in-replacement", ("transfer", "difference"), 0.1),
        ("drop-in-replacement", ("leak", "global"), 0.0),
        ("drop-in-replacement", ("leak", "running"), 1e-9),
        ("trains-as-published", ("initialisation", "published", "locked"), 1),
        ("trains-as-published", ("initialisation", "published", "frequency_gradients"), 1),
        ("trains-as-published", ("initialisation", "published", "from_linear"), 0.1),
        ("trains-as-published", ("initialisation", "trainable", "gradient_ratio"), 0.0),
    ],
)
def test_claims_can_fail(numbers, claim, path, wrong, shown_with):
    assert not shown_with(SECTION, numbers, path, wrong)[claim]


def test_drawing(numbers):
    with style():
        figure = SECTION.drawings[0].draw(numbers)
        figure.canvas.draw()
    assert isinstance(figure, Figure)
    written = " ".join(text.get_text() for text in figure.axes[0].texts)
    for block in numbers["blocks"].values():
        assert f"{block['parameters']:,}" in written
