"""Loss by position and what a step costs: tables, pictures, their part of the page, from made-up lines."""

import json
import runpy
from pathlib import Path

import pytest

pytest.importorskip("accelerate")

from syncattn.training.errors import UserError
from syncattn_lab.study import by_position, steps
from syncattn_lab.study.summary import as_groups
from syncattn_lab.study.verdicts import OPEN, verdicts

MADE = runpy.run_path(str(Path(__file__).with_name("lines.py")))
PUBLISH = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "publish_quality.py"))
line, write = MADE["line"], MADE["write"]


def made(variant="osn", losses=(2.0, 1.5, 1.25), **about):
    entry = line(variant=variant, **about)
    context = entry["options"]["context"]
    by = [[begin, loss] for begin, loss in zip((1, 64, 128), losses)]
    entry["result"]["lengths"] = {str(context): {"loss": 1.5, "density": None, "by_position": by}}
    return entry


def lines():
    given = (made(), made(seed=1, losses=(2.2, 1.7, 1.05)), made("rotary", losses=(2.0, 1.75, 1.75)))
    return [each | {"order": order} for order, each in enumerate(given)]


def cost(key, *seconds, partners=None):
    sizes = {"peak_bytes": 300 * 2**20, "before_bytes": 200 * 2**20}
    return {"key": key, "cpu_seconds": seconds, "partners": partners, **sizes}


def write_steps(folder, *entries):
    (folder / steps.STEPS_FILE).write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return steps.read_steps(folder / steps.STEPS_FILE)


def test_losses_by_position_are_means_over_the_seeds():
    (group,) = as_groups(lines())
    table = by_position.losses_by_position(group, "stdlib")
    assert table[0].startswith("| model; tokens | 1 to 63 | 64 to 127 | 128 to ")
    assert table[2].endswith("| 2.100 | 1.600 | 1.150 |")
    assert by_position.picture(group, "stdlib").startswith(b"\x89PNG")
    (plain,) = as_groups([line()])
    assert by_position.losses_by_position(plain, "stdlib") == []
    assert by_position.picture(plain, "stdlib") is None


def test_what_steps_cost(tmp_path):
    osn, _, rotary = lines()
    given = [cost(osn["key"], 1.0, 3.0, partners=[4.0, 8.5]), cost(rotary["key"], 8.0)]
    found = write_steps(tmp_path, *given, cost(osn["key"], 2.0, partners=[4.0, 8.5]))
    assert found[osn["key"]].median == 2 and found[osn["key"]].partners == [4.0, 8.5]
    (group,) = as_groups(lines())
    table = steps.costs(group, "stdlib", found)
    assert "| 2.000 | 1.000 to 3.000 | .25 | 300, 100 | 4.0, 8.5 |" in table[2]
    assert table[3].endswith("| 8.000 | 8.000 to 8.000 | 1.00 | 300, 100 | – |")
    assert steps.picture(group, "stdlib", found).startswith(b"\x89PNG")
    assert steps.costs(group, "stdlib", {}) == [] and steps.picture(group, "stdlib", {}) is None


def test_the_page_has_both(tmp_path):
    runs = write(lines(), tmp_path / "runs")
    write_steps(runs, cost(lines()[0]["key"], 1.0, partners=[4.0]), cost(lines()[2]["key"], 4.0))
    PUBLISH["publish"](runs, tmp_path / "out", name="length", title="Long windows")
    page = (tmp_path / "out" / "length.md").read_text()
    assert "Test loss by position in the window" in page and "A training step of the finished models" in page
    kept = {path.name for path in (tmp_path / "out" / "length").iterdir()}
    assert {"steps.jsonl", "comparison-stdlib-positions.png", "comparison-stdlib-steps.png"} <= kept
    PUBLISH["publish"](tmp_path / "out" / "length", tmp_path / "out", name="length", title="Long windows")
    assert (tmp_path / "out" / "length.md").read_text() == page


@pytest.mark.parametrize(
    "wrong", [{"cpu_seconds": []}, {"cpu_seconds": [0.0]}, {"peak_bytes": None}, {"key": 3}]
)
def test_a_line_that_is_none(tmp_path, wrong):
    assert steps.read_steps(tmp_path / steps.STEPS_FILE) == {}
    with pytest.raises(UserError, match=r"steps.jsonl, line 2: expected an object with key, cpu_seconds"):
        write_steps(tmp_path, cost("a", 1.0), cost("a", 1.0) | wrong)


def test_evaluated_at_its_own_length_alone_says_nothing_of_longer_texts():
    (found,) = [each for each in verdicts(as_groups(lines())) if "beyond the training length" in each.target]
    assert found.state == OPEN and found.measured == "no run was evaluated at other lengths"
