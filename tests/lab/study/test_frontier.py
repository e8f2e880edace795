"""Loss against time against partners: what was timed, how soon a loss is reached, the page, the script."""

import json
import runpy
import sys
from pathlib import Path

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")

from syncattn.training.errors import UserError
from syncattn_lab.study import frontier, frontier_page
from syncattn_lab.study.lines import append_line
from syncattn_lab.study.plan import make_plan
from syncattn_lab.study.run import perform
from syncattn_lab.study.summary import as_groups
from syncattn_lab.study.verdicts import MET, MISSED, OPEN

BENCHMARKS = Path(__file__).parents[3] / "benchmarks" / "frontier"
line = runpy.run_path(str(Path(__file__).with_name("lines.py")))["line"]
PUBLISH = runpy.run_path(str(BENCHMARKS / "publish.py"))
MODELS = {"osn-8": ("osn", 8), "osn-16": ("osn", 16), "full": ("transformer", None), "window": ("peer", None)}
LAST = {"osn-8": 1.1, "osn-16": 1.0, "full": 1.2, "window": 1.3}


def falls(last, steps=100):
    """Validation losses at each tenth of a run: from last + .9 down by .1."""
    return [{"step": steps * n // 10, "validation_loss": last + 0.1 * (10 - n)} for n in range(1, 11)]


def study(contexts=(256, 4096)):
    found = []
    for context in contexts:
        for variant, (model, partners) in MODELS.items():
            options = {"context": context, "batch_size": 2, "steps": 100, "max_partners": partners}
            run = line(
                f"g-{context}", "source", variant, model=model, test=LAST[variant], order=len(found),
                options=options, history=falls(LAST[variant]), title=variant.title(),
            )  # fmt: skip
            if variant == "window":
                run["settings"] = {"sizes": {}, "config": {"window": 256}, "lengths": []}
            found.append(run | {"prediction": f"{variant} first."})
    return found


def cost(run, training, number=0):
    """A round's line: `training` seconds a step, a third of it forward."""
    tokens = run["options"]["context"] * run["options"]["batch_size"]
    times = {"forward": [[training / 3, 1.0]], "training": [[training, 2.0], [training, 4.0]]}
    about = {"key": run["key"], "round": number, "tokens": tokens, "partners": None}
    return {**about, **times, "generation": [[0.001, 0.002]]}


def write(folder, *entries):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / frontier.SECONDS_FILE
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return frontier.read_seconds(path)


def timed(folder, runs, **steps):
    return write(folder, *(cost(run, steps[run["variant"].replace("-", "_")]) for run in runs))


def test_rounds_of_a_model_are_one(tmp_path):
    run = study()[0]
    (found,) = write(tmp_path, cost(run, 1.024), cost(run, 2.048, 1), cost(run, 2.048, 2))
    assert found.rounds == {0, 1, 2} and found.key == run["key"]
    assert found.cost("training") == pytest.approx(2.048 / 512) and found.cost("generation") == 0.001
    assert found.clock["training"] == pytest.approx((2 / 512, 4 / 512) * 3)


@pytest.mark.parametrize(
    "wrong", [{"training": []}, {"forward": [[0.0, 1.0]]}, {"key": 3}, {"tokens": 0}, {"generation": [1.0]}]
)
def test_a_line_that_is_none(tmp_path, wrong):
    assert frontier.read_seconds(tmp_path / frontier.SECONDS_FILE) == []
    with pytest.raises(UserError, match=r"seconds.jsonl, line 2: expected an object with key, round"):
        write(tmp_path, cost(study()[0], 1.0), cost(study()[0], 1.0) | wrong)


def test_when_a_loss_is_reached(tmp_path):
    runs = study((256,))
    (panel,) = frontier.panels(as_groups(runs), timed(tmp_path, runs, osn_8=1, osn_16=1, full=2, window=1))
    osn, full = panel.judged, panel.transformer
    assert osn.partners == 16 and osn.label == "16" and full.label == "all"
    assert panel.window.label == "last 256"
    # 1.2 is at 8 tenths of the OSN's 100 steps, and 1.25 half a tenth before
    assert frontier.tokens_to(osn.cell, 1.2) == pytest.approx(80 * 512)
    assert frontier.tokens_to(osn.cell, 1.25) == pytest.approx(75 * 512)
    assert frontier.tokens_to(osn.cell, 3.0) == 10 * 512 and frontier.tokens_to(osn.cell, 0.9) is None
    assert osn.whole == pytest.approx(100) and full.whole == pytest.approx(200)
    assert full.until(1.2) == pytest.approx(200) and full.until(1.0) is None
    # 80 of 200 seconds at the end; at 1.9, the second tenth, 10 of 40
    assert frontier.catches_up(osn, full) == pytest.approx((0.4, 0.4))
    assert frontier.catches_up(full, osn) == (None, None)


def test_what_was_wanted(tmp_path):
    runs = study()
    slow = timed(tmp_path, runs, osn_8=1, osn_16=1, full=2, window=1)
    found = frontier.verdicts(frontier.panels(as_groups(runs), slow))
    assert [each.state for each in found] == [MET, MISSED]
    assert ".40 of its seconds (80 of 200)" in found[1].measured
    quick = timed(tmp_path, runs, osn_8=1, osn_16=1, full=3, window=1)
    assert frontier.verdicts(frontier.panels(as_groups(runs), quick))[1].state == MET
    assert {each.state for each in frontier.verdicts(frontier.panels(as_groups(runs), []))} == {OPEN}
    late = [run for run in runs if run["variant"] != "osn-16"]
    assert frontier.verdicts(frontier.panels(as_groups(late), quick))[0].state == OPEN


def test_who_is_chosen(tmp_path):
    runs = study((256,))
    found = timed(tmp_path, runs, osn_8=1, osn_16=1.5, full=1.5, window=0.75)
    text = frontier_page.advice(frontier.panels(as_groups(runs), found)[0])
    assert text.startswith("**256 tokens: the OSN, by loss and time.** With 16 partners the OSN ends .200")
    assert "whose last loss it has after .80 of that one's seconds" in text
    assert "the last 256 tokens takes .50 in training and ends .300 nats above the OSN" in text
    choice = frontier_page._choice
    assert choice(0.1, 0.5, 1.2, 2.0) == "the OSN, unless time counts in reading or generating"
    assert choice(-0.1, 0.5, 1.0, 1.0) == "the Transformer, unless time counts in training"
    assert choice(0.0, 0.5, 1.0, 2.0) == "alike; the OSN for training, the Transformer for generating"
    assert choice(0.01, 1.0, 1.0, 1.0) == "either"


def test_times_are_beside_fused_attention(tmp_path):
    """A Transformer's gate slows it: the best may have one, whose seconds are not what attention takes."""
    runs = study((256,))
    best = next(run for run in runs if run["variant"] == "full")
    best["settings"] = {"sizes": {}, "config": {"score_gate": True}, "lengths": []}
    plain = line(
        "g-256", "source", "plain", model="transformer", test=1.35, order=9, options=best["options"],
        history=falls(1.35), title="Plain",
    )  # fmt: skip
    found = timed(tmp_path, [*runs, plain], osn_8=1, osn_16=1.5, full=6, window=1.5, plain=3)
    (panel,) = frontier.panels(as_groups([*runs, plain]), found)
    assert (panel.transformer.cell.variant, panel.fused.cell.variant) == ("full", "plain")
    text = frontier_page.advice(panel)
    assert "of those of one without a gate" in text and "takes .50 of the time of one without a gate" in text
    assert any("as multiples of those of Plain" in row for row in frontier_page.costs(panel))


def test_the_page_from_what_it_copies(tmp_path):
    runs = study()
    folder = tmp_path / "runs"
    timed(folder, runs, osn_8=1, osn_16=1, full=2, window=1)
    for run in runs:
        append_line(folder, {name: value for name, value in run.items() if name != "format"})
    (folder / "remarks.toml").write_text('[all]\ntext = "Said of all."\n[g-256]\ntext = "Of one."\n')
    PUBLISH["publish"](folder, tmp_path / "out")
    page = (tmp_path / "out" / "frontier.md").read_text()
    assert "Said of all." in page and "*Remark.* Of one." in page and "- Full: full first." in page
    assert "**met**" in page and "| 200 (1.00) | not reached |" in page
    kept = {path.name for path in (tmp_path / "out" / "frontier").iterdir()}
    assert kept == {
        "runs.jsonl", "plan.json", "remarks.toml", "seconds.jsonl", "loss-by-cost.png", "loss-by-time.png"
    }  # fmt: skip
    PUBLISH["publish"](tmp_path / "out" / "frontier", tmp_path / "out")
    assert (tmp_path / "out" / "frontier.md").read_text() == page
    (tmp_path / "out" / "frontier" / "mine.txt").write_text("")
    with pytest.raises(UserError, match=r"holds mine\.txt"):
        PUBLISH["publish"](folder, tmp_path / "out")


def test_without_times_there_is_a_page(tmp_path):
    text, pictures = PUBLISH["page"](study((256,)), [], {}, ["other/source/osn/lr0.1/seed0"])
    assert not pictures and "its time was not measured" in text and "**Missing: 1 of the plan's 1**" in text


def test_finished_models_are_timed_once(tmp_path, monkeypatch, capsys):
    (tmp_path / "some.txt").write_text("what locks exchanges what it knows, and others stay.\n" * 60)
    plan = make_plan(
        {
            "model": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
            "training": {"context": 32, "batch_size": 2, "steps": 2, "optimizer": "muon"},
            "seeds": [0],
            "learning_rates": [0.01],
            "task": {"words": {"kind": "text", "text": ["some.txt"], "test": "some.txt"}},
            "tasks": ["words"],
            "group": [
                {
                    "name": "g",
                    "kind": "comparison",
                    "variant": [{"name": "osn"}, {"name": "full", "model": "transformer"}],
                }
            ],
        }
    )
    for run in plan.runs:
        append_line(tmp_path, perform(run, tmp_path / "runs" / run.key.replace("/", "--"), tmp_path))
    given = ["seconds.py", str(tmp_path), "--data", str(tmp_path), "--repeats", "1"]
    for rounds in ("1", "2"):
        monkeypatch.setattr(sys, "argv", [*given, "--rounds", rounds])
        runpy.run_path(str(BENCHMARKS / "seconds.py"), run_name="__main__")
    found = frontier.read_seconds(tmp_path / frontier.SECONDS_FILE)
    assert [each.key for each in found] == [run.key for run in plan.runs]
    assert all(each.rounds == {0, 1} and len(each.cpu["training"]) == 2 for each in found)
    assert len(found[0].partners) == 1 and found[1].partners is None
    assert capsys.readouterr().out.count("µs a token") == 12
    monkeypatch.setattr(sys, "argv", ["seconds.py", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match=r"error: .*has no runs"):
        runpy.run_path(str(BENCHMARKS / "seconds.py"), run_name="__main__")
