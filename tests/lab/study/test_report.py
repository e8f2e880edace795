"""The study's page: the lines' numbers, whatever groups there are, and what a browser says to it."""

import json
import math
import re
import runpy
from pathlib import Path

import pytest

from syncattn.training.errors import UserError
from syncattn_lab.study import report as report_module
from syncattn_lab.study.records import read_runs
from syncattn_lab.study.report import _html, length_chart, loss_chart, render, write_report
from syncattn_lab.study.summary import as_groups

MADE = runpy.run_path(str(Path(__file__).with_name("lines.py")))
line, study = MADE["line"], MADE["study"]
PUBLISHED = Path(__file__).parents[3] / "docs" / "results" / "quality"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "report.html"
    write_report(study(), path)
    return path


def test_a_line_is_the_mean_of_the_seeds_and_its_band_reaches_to_both():
    lines = [line(seed=seed, loss=loss) for seed, loss in enumerate((1.4, 1.5, 1.45))]
    (group,) = as_groups(lines)
    (drawn,) = loss_chart(group, "stdlib").lines
    assert drawn.y[-1] == pytest.approx(1.45 + 0.01 + 1.6 * math.exp(-5))
    assert drawn.high[-1] - drawn.low[-1] == pytest.approx(0.1) and len(drawn.x) == 10
    assert drawn.x[-1] == 977 * 8 * 256


def test_lengths_are_ratios_to_the_training_length():
    (group,) = as_groups([line(lengths={"256": {"loss": 1.0}, "512": {"loss": 1.1}})])
    chart = length_chart(group, "stdlib")
    assert chart.lines[0].y == [1.0, pytest.approx(1.1)] and chart.log
    assert length_chart(as_groups([line()])[0], "stdlib") is None


def test_markdown_tables_keep_their_words():
    (first, sentence, second) = _html("first", ["| a | b |", "| --- | ---: |", "| x \\| y | **1.5** |", "",
        "Then <this>:", "", "| c |", "| --- |", "| – |"])  # fmt: skip
    assert "<caption>first</caption>" in first and ">x | y<" in first and ">1.5 ✓<" in first
    assert sentence == "<p>Then &lt;this&gt;:</p>" and "<caption>Then &lt;this&gt;</caption>" in second


def test_every_kind_of_group_and_one_that_diverged_has_a_page():
    page = render(
        [*study(), line("other", variant="rotary", diverged=True)], ["other/stdlib/rotary/lr0.1/seed0"]
    )
    for heading in ("Targets", "Comparison", "Ablation", "Density", "Stability", "Model size", "Data"):
        assert f"<h2>{heading}" in page
    assert "Missing: 1 of the plan's 1 runs." in page.replace("&#x27;", "'")


def test_text_from_outside_is_escaped():
    page = render([line(title="<script>alert(1)</script>")])
    assert "<script>alert" not in page


def test_lines_that_are_too_many_are_left_out_and_said(monkeypatch):
    lines = [line()]
    whole = render(lines)
    assert 'download="runs.jsonl"' in whole
    monkeypatch.setattr(report_module, "MOST_BYTES", len(whole.encode()) - 1)
    assert "runs.jsonl beside this page" in render(lines)


def test_a_malformed_plan_is_refused_and_leaves_no_page(tmp_path):
    with pytest.raises(UserError, match="expected GROUP/TASK"):
        write_report([line()], tmp_path / "page.html", ["nonsense"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 800, 1280])
def test_it_is_silent_asks_for_nothing_and_fits(width, scheme, browser, path):
    browser.check(path, width, scheme)


def test_the_published_study_in_the_browser(browser, tmp_path):
    lines = read_runs(PUBLISHED / "runs.jsonl")
    write_report(lines, tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 5e6
    browser.open(tmp_path / "page.html")
    browser.run("document.querySelector('.plot').focus()")
    browser.key("End")
    read = browser.run("document.querySelector('.read').textContent")
    (group, *_) = as_groups(lines)
    runs = group.cell("stdlib", "osn").runs
    ends = [[e["validation_loss"] for e in run["history"] if e.get("validation_loss")][-1] for run in runs]
    assert len(ends) == 3 and f"OSN {sum(ends) / 3:.3f}" in read
    # a name of the legend for each variant, and the numbers of the published table
    names = browser.run("[...document.querySelector('.legend').children].map((one) => one.textContent)")
    assert len(names) == len(group.of_task("stdlib")) and re.match(r"OSN\d", names[0])
    rows = browser.run("[...document.querySelectorAll('.sorts')[1].rows].map((row) => row.innerText)")
    published = (PUBLISHED.parent / "quality.md").read_text(encoding="utf-8")
    table = published.split("### stdlib\n\n", 1)[1].partition("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in row.strip("| ").split(" | ")] for row in table if "---" not in row]
    assert len(rows) == len(cells)
    assert [row.split("\t") for row in rows[1:]] == cells[1:]
    assert browser.console == []
    record = browser.run("atob(document.querySelector('a[download]').href.split('base64,')[1])")
    assert len([json.loads(text) for text in record.splitlines()]) == len(lines)
