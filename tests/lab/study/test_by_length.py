"""Accuracy by length: which sizes a task's table, picture and verdicts have, from made-up lines."""

import runpy
from pathlib import Path

import pytest

pytest.importorskip("accelerate")

from syncattn_lab.study import by_length
from syncattn_lab.study.report import render
from syncattn_lab.study.summary import as_groups
from syncattn_lab.study.verdicts import MET, MISSED, OPEN

MADE = runpy.run_path(str(Path(__file__).with_name("lines.py")))
PUBLISH = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "publish_quality.py"))
line, write = MADE["line"], MADE["write"]


def made(variant="osn", seed=0, shares=(1.0, 0.99, 0.9), **about):
    """A line of a task that was learned up to 64 tokens and tested at 32, 64 and 4,096."""
    entry = line("longer", "copy", variant, seed=seed, kind="synthetic", task_kind="copy",
                task_options={"vocabulary": 32}, accuracy=1.0, **about)  # fmt: skip
    entry["config"]["max_position_embeddings"] = 64
    osn = entry["model"] == "osn"
    entry["result"]["tests"] = [
        {
            "setting": {"symbols": length // 2},
            "length": length,
            "windows": 8,
            "loss": 0.1,
            "accuracy": share,
            "exact": share / 2,
            "density": 0.1 if osn else None,
            "partners": length / 10 if osn else None,
        }
        for length, share in zip((32, 64, 4096), shares)
    ]
    return entry


def groups(*lines):
    return as_groups([each | {"order": order} for order, each in enumerate(lines)])


def test_a_table_has_means_whole_windows_and_what_locks():
    (group,) = groups(made(), made(seed=1, shares=(1.0, 0.97, 0.8)), made("rotary", shares=(1, 1, 0.1)))
    text = "\n".join(by_length.accuracies(group, "copy"))
    assert "| model; symbols (tokens) | 16 (32) | 32 (64) | 2,048 (4,096) |" in text
    assert "| OSN | 1.000 ± .000 (.50) | .980 ± .014 (.49) | .850 ± .071 (.4" in text
    assert "| 3.2 (.10) | 6.4 (.10) | 409.6 (.10) |" in text
    assert text.count("Transformer, rotary") == 1  # it has no partners
    assert by_length.picture(group, "copy").startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("ours", "theirs", "ahead", "extrapolates"),
    [
        ((1.0, 1.0, 1.0), (1.0, 1.0, 0.2), MET, MET),
        ((1.0, 1.0, 0.996), (1.0, 1.0, 0.2), MET, MET),
        ((1.0, 0.99, 0.9), (1.0, 1.0, 0.2), MISSED, MISSED),
    ],
)
def test_verdicts(ours, theirs, ahead, extrapolates):
    found = by_length.verdicts(groups(made(shares=ours), made("rotary", shares=theirs)))
    assert [each.state for each in found] == [ahead, extrapolates]
    assert "at 64 ×" in found[1].measured


def test_what_was_not_tested_is_left_out():
    assert by_length.verdicts(groups(made("rotary"))) == []
    assert [each.state for each in by_length.verdicts(groups(made()))] == [OPEN, MISSED]
    plain = groups(line(kind="synthetic", task_kind="copy", accuracy=0.5))
    assert by_length.verdicts(plain) == [] and by_length.picture(plain[0], "stdlib") is None
    assert by_length.accuracies(plain[0], "stdlib") == [] and by_length.chart(plain[0], "stdlib") is None


def test_a_study_of_such_tasks_has_a_page_of_its_own_name(tmp_path):
    lines = [each | {"order": i} for i, each in enumerate((made(), made("rotary", shares=(1, 1, 0.1))))]
    runs = write(lines, tmp_path / "runs")
    PUBLISH["publish"](runs, tmp_path / "docs", None, "tasks", "Tasks")
    text = (tmp_path / "docs" / "tasks.md").read_text()
    assert text.startswith("# Tasks\n") and "--name tasks" in text and "(quality/" not in text
    assert "### copy, by size" in text and "not measured" not in text
    assert (tmp_path / "docs" / "tasks" / "longer-copy-sizes.png").is_file()
    PUBLISH["publish"](tmp_path / "docs" / "tasks", tmp_path / "docs", None, "tasks", "Tasks")
    assert (tmp_path / "docs" / "tasks.md").read_text() == text
    assert "copy: test accuracy by length" in render(lines)
