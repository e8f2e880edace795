"""The audit's page: from the published run, in a browser, and what it leaves out."""

import json
from pathlib import Path

import pytest

from syncattn.training.errors import UserError
from syncattn.training.files import read_json
from syncattn_lab.paper import report as report_module
from syncattn_lab.paper.judge import HOLDS, Check, Claim
from syncattn_lab.paper.report import render, verdict
from syncattn_lab.paper.sections import NAMES, section

PUBLISHED = Path(__file__).parents[3] / "docs" / "results" / "paper"


@pytest.fixture(scope="module")
def found():
    return {name: section(name).claims(read_json(PUBLISHED / f"{name}.json")["numbers"]) for name in NAMES}


@pytest.fixture(scope="module")
def path(found, tmp_path_factory):
    """Of the sections that have all there is: a picture, charts, a sentence."""
    path = tmp_path_factory.mktemp("paper") / "report.html"
    few = {name: found[name] for name in ("concept", "benchmark")}
    path.write_text(render(PUBLISHED, few, "A full run."), encoding="utf-8")
    return path


def test_every_picture_and_claim_is_there(found):
    page = render(PUBLISHED, found, "A full run.")
    assert page.count('<img src="data:image/png;base64,') == sum(len(section(n).drawings) for n in NAMES)
    claims = [claim for claims in found.values() for claim in claims]
    assert page.count('data-name="verdict"') == len(claims)
    assert len(page.encode()) < 5e6


def test_numbers_that_do_not_fit_are_named(found, monkeypatch):
    few = {name: found[name] for name in ("concept", "order")}
    page = render(PUBLISHED, few, "")
    assert 'download="claims.json"' in page and 'download="order.json"' in page
    assert "Too large for one page" not in page
    size = len(page.encode())
    monkeypatch.setattr(report_module, "MOST_BYTES", size)  # a part of which is kept free
    page = render(PUBLISHED, few, "")
    assert "Too large for one page" in page and len(page.encode()) < size


def test_a_verdict_that_is_not_borne_out_says_so():
    check = Check("it", 1.0, "below 0", False)
    claim = Claim("a", "Theorem <9>", "it <holds>", HOLDS, "It is.", (check,))
    assert verdict(claim) == "not shown (holds was expected)"


def test_numbers_that_are_damaged_are_refused(found, tmp_path):
    (tmp_path / "concept.json").write_text("{")
    with pytest.raises(UserError, match=r"concept\.json"):
        render(tmp_path, {"concept": found["concept"]}, "")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 800, 1280])
def test_it_is_silent_asks_for_nothing_and_fits(width, scheme, browser, path):
    browser.check(path, width, scheme)


def test_the_browser_shows_the_run_s_numbers(browser, path):
    browser.open(path)
    numbers = read_json(PUBLISHED / "concept.json")["numbers"]
    row = numbers["sync"][-1]
    strongest = max(row) / sum(row)
    said = browser.run("document.querySelector('.said').textContent")
    assert f"listens to {sum(s > 0 for s in row)} of {len(row)}: 7 “.” {strongest:.3f}" in said
    browser.run("document.querySelector('.plot').focus()")
    browser.key("End")
    last = read_json(PUBLISHED / "benchmark.json")["numbers"]["rows"][-1]
    read = browser.run("document.querySelector('.read').textContent")
    assert (
        read.startswith(f"At {last['tokens']} tokens of a sequence") and "Transformer, fused softmax" in read
    )
    record = browser.run(
        "atob(document.querySelector('a[download=\"claims.json\"]').href.split('base64,')[1])"
    )
    assert len(json.loads(record)["claims"]) == sum(1 for _ in read_json(PUBLISHED / "claims.json")["claims"])
    verdicts = browser.run(
        "b = document.querySelectorAll('.sorts th button')[3]; b.click(); "
        "[...document.querySelector('.sorts').tBodies[0].rows].map((row) => row.cells[3].textContent)"
    )
    assert verdicts == sorted(verdicts) and verdicts[0] == "does not hold"
    assert browser.console == []
