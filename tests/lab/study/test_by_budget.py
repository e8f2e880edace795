"""Loss against bytes: which groups are one series, what the fits say, and the page."""

import runpy
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("transformers")

from syncattn_lab.study import by_budget
from syncattn_lab.study.steps import Step
from syncattn_lab.study.summary import as_groups

line = runpy.run_path(str(Path(__file__).with_name("lines.py")))["line"]
PUBLISH = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "publish_quality.py"))
SIZES = {"hidden_size": 64}


def law(tokens, floor, scale, exponent):
    return floor + scale * (tokens / 500_000) ** -exponent


def study(budgets=(500_000, 2_000_000, 8_000_000), sizes=SIZES):
    found = []
    for tokens in budgets:
        for variant, floor in (("osn", 1.0), ("rotary", 0.95)):
            loss = law(tokens, floor, 0.6 if variant == "osn" else 0.8, 0.5)
            run = line(
                f"g-{tokens}", "source", variant, loss=loss, test=loss, order=len(found), parameters=116_400
            )
            found.append(run | {"tokens": tokens, "settings": {"sizes": sizes}})
    return found


def test_groups_of_one_size_are_one_series():
    other = [
        run | {"group": "other", "key": "o/" + run["key"]} for run in study((1_000,), {"hidden_size": 96})
    ]
    (series,) = by_budget.series_of(as_groups([*study(), *other]))
    assert series.tokens == [500_000, 2_000_000, 8_000_000] and series.context == 256
    assert series.title == "source, 116,000 parameters, contexts of 256"
    assert series.leads() == pytest.approx([0.15, 0.05, 0.0], abs=1e-12)
    assert not by_budget.series_of(as_groups(study((1_000,))))


def test_a_series_has_one_transformer():
    """The one at most budgets, whoever is best at one of them."""
    best = line("g-2000000", "source", "alibi", loss=0.5, test=0.5, order=9, parameters=116_400)
    best |= {"tokens": 2_000_000, "settings": {"sizes": SIZES}}
    (series,) = by_budget.series_of(as_groups([*study(), best]))
    assert series.tokens == [500_000, 2_000_000, 8_000_000]
    assert {cell.variant for cell in series.other} == {"rotary"}


def test_a_power_law_is_found_again():
    tokens = [500_000 * 2**n for n in range(6)]
    losses = law(np.array(tokens, dtype=np.float64), 0.9, 0.7, 0.4)
    found = by_budget.fit_power(tokens, losses)
    assert (found.floor, found.scale) == pytest.approx((0.9, 0.7), abs=0.02)
    assert found.exponent == pytest.approx(0.4, rel=0.05)
    assert found.at(tokens[-1]) == pytest.approx(losses[-1], abs=0.002)
    # what falls ever faster has no floor of its own: it is held at 0
    falling = by_budget.fit_power(tokens, np.array([1.0, 0.9, 0.75, 0.55, 0.3, 0.05]))
    assert falling.floor == 0 and falling.scale > 0
    assert by_budget.fit_power(tokens[:2], losses[:2]) is None


def test_where_the_lead_goes():
    (series,) = by_budget.series_of(as_groups(study()))
    begin, slope, error = by_budget.fit_line(series)
    assert slope == pytest.approx(-0.0375) and begin > 0.1 and 0 < error < 0.01
    bounds = by_budget.fitted_leads(series, np.array([2_000_000.0, 128_000_000.0]), draws=40)
    assert (bounds[0] < bounds[1]).all() and (bounds[1] < bounds[2]).all()
    assert bounds[1, 1] < 0 < bounds[1, 0]
    (short,) = by_budget.series_of(as_groups(study((500_000, 2_000_000))))
    assert by_budget.fitted_leads(short, np.array([1e7])) is None
    assert "Fitted" not in "".join(by_budget.page(short, {}))


def test_the_page_shows_budgets_and_whose_seconds_they_are():
    lines = study()
    text, pictures = PUBLISH["page"](lines, None, {}, "scale", "Scale")
    assert "## More text" in text and "| 8,000,000 |" in text and "busy" not in text
    assert "three budgets for three numbers" in text and "read no ratio" in text
    assert "](scale/budgets-1.png)" in text and pictures["budgets-1.png"].startswith(b"\x89PNG")
    costs = {run["key"]: Step((0.1,), 1, 0, None) for run in lines}
    text, _ = PUBLISH["page"](lines, None, {}, "scale", "Scale", costs)
    assert "process CPU seconds, times the steps" in text and "| 98 |" in text
    text, pictures = PUBLISH["page"](study((2_000_000,)), None, {}, "scale", "Scale")
    assert "More text" not in text and "budgets-1.png" not in pictures
