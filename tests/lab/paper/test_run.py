"""Running the sections: what is written, what is kept, what is refused, what the ledger says."""

import json

import pytest
import torch
from matplotlib.figure import Figure
from typer.testing import CliRunner

from syncattn.cli.app import app
from syncattn.training.errors import UserError
from syncattn_lab.paper import command, ledger, sections
from syncattn_lab.paper import run as running
from syncattn_lab.paper.judge import (
    FAILS,
    HOLDS,
    HOLDS_IF,
    Check,
    Claim,
    above,
    below,
    between,
    exactly,
    timing,
)
from syncattn_lab.paper.section import Drawing, Extent, Section


def draw(numbers):
    figure = Figure(figsize=(2, 1))
    figure.text(0.5, 0.5, f"{numbers['value']}")
    return figure


def make(name, value=0.25, verdict=HOLDS, measured=None):
    """A section that measures one number."""

    def measure(extent, tell):
        if measured is not None:
            measured.append(name)
        tell(f"{name} at work")
        return {"value": value, "size": extent.size(10, 2), "seed": extent.seed}

    def claims(numbers):
        check = below("the value", numbers["value"], 0.5)
        return [Claim(f"{name}-claim", "Theorem 9", f"{name} is small", verdict, "It is.", (check,))]

    return Section(
        name,
        f"The section {name}",
        measure,
        claims,
        (Drawing(f"figure-{name}", "A number", draw),),
        (lambda numbers: f"| {numbers['value']} |\n") if name == "one" else None,
    )


@pytest.fixture
def two(monkeypatch):
    """Two sections in place of the real ones, and the list of those measured."""
    measured = []
    made = {name: make(name, measured=measured) for name in ("one", "two")}
    replace(monkeypatch, made)
    return measured


def replace(monkeypatch, made):
    for module in (running, sections):
        monkeypatch.setattr(module, "NAMES", tuple(made))
        monkeypatch.setattr(module, "section", made.__getitem__)


def test_every_section_is_there_and_has_the_documented_parts():
    pictures = set()
    for name in sections.NAMES:
        one = sections.section(name)
        assert one.name == name and one.title
        for drawing in one.drawings:
            assert drawing.name not in pictures
            pictures.add(drawing.name)


def test_files_of_a_section(two, tmp_path):
    found = running.run(Extent(quick=True, seed=3), tmp_path, ("one",))
    assert list(found) == ["one"]
    expected = {"one.json", "one.md", "figure-one.png", "figure-one.svg", "figure-one.pdf"}
    assert {path.name for path in tmp_path.iterdir()} == expected | {
        "paper.json",
        "claims.json",
        "claims.md",
        "report.html",
    }
    data = json.loads((tmp_path / "one.json").read_text())
    assert data["numbers"] == {"value": 0.25, "size": 2, "seed": 3}
    record = json.loads((tmp_path / "paper.json").read_text())
    assert record["plan"] == {"quick": True, "seed": 3}
    assert record["machine"]["processor"] and record["versions"]["torch"]
    (claim,) = json.loads((tmp_path / "claims.json").read_text())["claims"]
    assert claim["section"] == "one" and claim["shown"] and claim["checks"][0]["measured"] == 0.25


def test_a_later_run_keeps_what_is_there_and_judges_all(two, tmp_path):
    running.run(Extent(), tmp_path, ("two",))
    found = running.run(Extent(), tmp_path, running.NAMES)
    assert two == ["two", "one"]
    assert list(found) == ["one", "two"]  # in the ledger's order, not in the order measured
    text = (tmp_path / "claims.md").read_text()
    assert text.index("## one-claim") < text.index("## two-claim")


def test_another_plan_is_refused(two, tmp_path):
    running.run(Extent(), tmp_path, ("two",))
    with pytest.raises(UserError, match="another extent"):
        running.run(Extent(seed=1), tmp_path, ("two",))


def test_an_interrupted_section_leaves_nothing_of_itself(monkeypatch, tmp_path):
    def interrupted(numbers):
        raise KeyboardInterrupt

    one, two = make("one"), make("two")
    two = two._replace(drawings=(Drawing("figure-two", "Never", interrupted),))
    replace(monkeypatch, {"one": one, "two": two})
    with pytest.raises(KeyboardInterrupt):
        running.run(Extent(), tmp_path, running.NAMES)
    names = {path.name for path in tmp_path.iterdir()}
    pictures = {"figure-one.png", "figure-one.svg", "figure-one.pdf"}
    written = {"paper.json", "one.json", "one.md", "claims.json", "claims.md", "report.html"}
    assert names == written | pictures
    assert "one-claim" in (tmp_path / "claims.md").read_text()


def test_the_same_numbers_give_the_same_files(two, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        running.run(Extent(), tmp_path / name, ("one",))
    for kind in ("png", "svg", "pdf"):
        a, b = (tmp_path / name / f"figure-one.{kind}" for name in ("a", "b"))
        assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1: 2}, {"a": [object()]}])
def test_numbers_that_json_cannot_hold_are_refused_by_name(monkeypatch, tmp_path, value):
    one = make("one")._replace(measure=lambda extent, tell: {"value": value})
    replace(monkeypatch, {"one": one})
    with pytest.raises(TypeError, match=r"one\.value"):
        running.run(Extent(), tmp_path, running.NAMES)
    assert not (tmp_path / "one.json").exists()


def test_the_ledger_counts_verdicts_and_marks_what_is_not_shown():
    good, bad = below("good", 0.1, 0.5), below("bad", 0.9, 0.5)
    found = {
        "one": [Claim("a", "Theorem 1", "A is so", HOLDS, "Yes.", (good,))],
        "two": [
            Claim("b", "Theorem 2", "B is so", HOLDS_IF, "If C.", (good,)),
            Claim("c", "Theorem 2", "C is so", FAILS, "No.", (good, bad)),
        ],
    }
    text = ledger.ledger(found, "About.")
    assert "3 claims: 1 hold, 1 hold under a condition, 0 do not hold, 1 not shown." in text
    assert "| [B is so](#b) | Theorem 2 | **holds under a condition** |" in text
    assert "| [C is so](#c) | Theorem 2 | not shown (does not hold was expected) |" in text
    assert "| bad | 0.9 | below 0.5 **not met** |" in text
    assert text.count("`syncattn paper --section two --out DIR`") == 2


def test_bars_do_not_break_the_tables_of_the_ledger():
    check = below("|x - y|", 0.1, 0.5)
    text = ledger.ledger({"one": [Claim("a", "Theorem 1", "|A| is so", HOLDS, "Yes.", (check,))]}, "About.")
    assert r"| \|x - y\| | 0.1 | below 0.5 |" in text and r"[\|A\| is so](#a)" in text


def test_times_are_told_with_their_spread_and_decide_nothing(monkeypatch, tmp_path):
    def slow(numbers):
        told = timing("the time", {"median": 9e9, "quartiles": [2.5, 1e10]})
        return [claim._replace(times=(told,)) for claim in make("one").claims(numbers)]

    replace(monkeypatch, {"one": make("one")._replace(claims=slow)})
    (claim,) = running.run(Extent(), tmp_path, ("one",))["one"]
    assert claim.shown
    told = "| the time | 9,000,000,000 (2.5 to 10,000,000,000) | a time: decides nothing |"
    assert told in (tmp_path / "claims.md").read_text()
    (claim,) = json.loads((tmp_path / "claims.json").read_text())["claims"]
    assert claim["times"] == [{"what": "the time", "median": 9e9, "low": 2.5, "high": 1e10}]


@pytest.mark.parametrize(
    ("check", "met"),
    [
        (below("x", 1.0, 2.0), True),
        (below("x", 2.0, 2.0), False),
        (below("x", float("nan"), 2.0), False),
        (above("x", 3.0, 2.0), True),
        (above("x", 2.0, 2.0), False),
        (above("x", float("nan"), 2.0), False),
        (between("x", 1.0, 1.0, 2.0), True),
        (between("x", 2.1, 1.0, 2.0), False),
        (between("x", float("nan"), 1.0, 2.0), False),
        (exactly("x", 0.0, 0.0), True),
        (exactly("x", 1e-300, 0.0), False),
    ],
)
def test_checks(check, met):
    assert check.met is met


def test_a_claim_without_checks_is_not_shown():
    assert not Claim("a", "Theorem 1", "A is so", HOLDS, "Yes.", ()).shown
    assert Claim("a", "Theorem 1", "A is so", HOLDS, "Yes.", (Check("x", 1.0, "1", True),)).shown


@pytest.mark.parametrize(
    ("value", "text"),
    [(3, "3"), (1234567, "1,234,567"), (0.12345, "0.1235"), (1.5e-12, "1.5e-12"), (0.0, "0")],
)
def test_numbers_in_the_ledger(value, text):
    assert ledger.number(value) == text


def test_command(two, tmp_path):
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["paper", "--out", str(out), "--quick"])
    assert result.exit_code == 0, result.output
    assert "one is small" in result.output and "holds" in result.output
    again = CliRunner().invoke(app, ["paper", "--out", str(out), "--quick"])
    assert again.exit_code == 1 and "not empty" in again.stderr
    resumed = CliRunner().invoke(app, ["paper", "--out", str(out), "--quick", "--resume"])
    assert resumed.exit_code == 0 and two == ["one", "two"]
    other = CliRunner().invoke(app, ["paper", "--out", str(out), "--resume"])
    assert other.exit_code == 1 and "another extent" in other.stderr
    (out / "mine.txt").write_text("kept")
    replaced = CliRunner().invoke(app, ["paper", "--out", str(out), "--overwrite", "--section", "two"])
    assert replaced.exit_code == 0 and two == ["one", "two", "two"]
    assert (out / "mine.txt").read_text() == "kept" and not (out / "figure-one.png").exists()


def test_command_says_what_was_not_met(monkeypatch, tmp_path):
    replace(monkeypatch, {"one": make("one", value=0.75)})
    result = CliRunner().invoke(app, ["paper", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "not met: one, one-claim: the value is 0.75, wanted below 0.5" in result.output


def test_command_after_ctrl_c(monkeypatch, tmp_path):
    def measure(extent, tell):
        raise KeyboardInterrupt

    replace(monkeypatch, {"one": make("one"), "two": make("two")._replace(measure=measure)})
    result = CliRunner().invoke(app, ["paper", "--out", str(tmp_path)])
    assert result.exit_code == 130 and "--resume" in result.output
    assert (tmp_path / "one.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--section", "three"], "--section must be one of one, two, got 'three'"),
        (["--resume", "--overwrite"], "give one of them"),
    ],
)
def test_command_refuses(two, tmp_path, arguments, message):
    result = CliRunner().invoke(app, ["paper", "--out", str(tmp_path / "out"), *arguments])
    assert result.exit_code == 1 and message in result.stderr


def test_removing_an_earlier_run_counts_its_numbers_as_gone_first(two, tmp_path):
    running.run(Extent(), tmp_path, running.NAMES)
    command.remove_earlier(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_section_is_measured_with_its_threads(monkeypatch, tmp_path):
    seen = []

    def measure(extent, tell):
        seen.append(torch.get_num_threads())
        return {"value": 0.1}

    one, two = (make(name)._replace(measure=measure) for name in ("one", "two"))
    replace(monkeypatch, {"one": one, "two": two._replace(threads=None)})
    with running.torch_threads(2):
        running.run(Extent(), tmp_path, ("one", "two"))
        assert torch.get_num_threads() == 2
    assert seen == [1, 2]


def test_a_picture_that_is_gone_is_drawn_again(two, tmp_path):
    running.run(Extent(), tmp_path, ("one",))
    numbers = (tmp_path / "one.json").read_bytes()
    (tmp_path / "figure-one.svg").unlink()
    running.run(Extent(), tmp_path, ("one",))
    assert two == ["one"] and (tmp_path / "figure-one.svg").is_file()
    assert (tmp_path / "one.json").read_bytes() == numbers


def test_other_versions_are_refused(two, tmp_path):
    running.run(Extent(), tmp_path, ("one",))
    record = json.loads((tmp_path / "paper.json").read_text())
    record["versions"]["torch"] = "1.0"
    (tmp_path / "paper.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"torch 1\.0"):
        running.run(Extent(), tmp_path, ("two",))
