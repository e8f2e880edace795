"""Which run comes next, what is done once, and what several processes may do at the same time."""

import json
import threading
from dataclasses import replace

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("transformers")

from syncattn.training.errors import Interrupted, UserError
from syncattn_lab.study import queue
from syncattn_lab.study.lines import LINES_FILE, append_line, read_lines
from syncattn_lab.study.plan import make_plan
from syncattn_lab.study.queue import chosen_rate, open_runs, total_runs, work
from syncattn_lab.study.run import describe

PLAN = make_plan(
    {
        "tasks": ["stdlib"],
        "seeds": [0, 1, 2],
        "learning_rates": [0.01, 0.02],
        "training": {"steps": 3},
        "group": [{"name": "g", "kind": "comparison", "variant": [{"name": "a"}, {"name": "b"}]}],
    }
)
BEST = {"a": 0.02, "b": 0.01}


def line_of(run, loss=None, outcome="finished", accuracy=None):
    if loss is None:
        loss = 1.0 if run.options.learning_rate == BEST[run.variant] else 2.0
    result = {"validation_loss": loss, "test_loss": loss, "validation_accuracy": accuracy}
    return describe(run) | {"outcome": outcome, "result": result if outcome == "finished" else None}


@pytest.fixture
def performed(monkeypatch):
    done = []

    def perform(run, folder, data, console=None):
        done.append(run.key)
        return line_of(run)

    monkeypatch.setattr(queue, "perform", perform)
    monkeypatch.setattr(queue, "_WAIT_SECONDS", 0.01)
    return done


def test_the_rates_come_first_and_the_other_seeds_run_with_the_best(tmp_path, performed):
    work(PLAN, tmp_path, None)
    assert len(performed) == total_runs(PLAN) == 8
    assert performed[:2] == ["g/stdlib/a/lr0.01/seed0", "g/stdlib/a/lr0.02/seed0"]
    later = [key for key in performed if not key.endswith("seed0")]
    assert later == [f"g/stdlib/{v}/lr{BEST[v]}/seed{s}" for v in "ab" for s in (1, 2)]
    assert [line["key"] for line in read_lines(tmp_path / LINES_FILE)] == performed
    work(PLAN, tmp_path, None)
    assert len(performed) == 8  # nothing is done twice


def test_processes_share_the_runs(tmp_path, performed):
    threads = [threading.Thread(target=work, args=(PLAN, tmp_path, None)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(performed) == sorted(set(performed)) and len(performed) == 8


def test_an_interrupted_study_goes_on(tmp_path, performed, monkeypatch):
    perform = queue.perform

    def stop_at_third(run, *args):
        if len(performed) == 2:
            raise Interrupted("stopped")
        return perform(run, *args)

    monkeypatch.setattr(queue, "perform", stop_at_third)
    with pytest.raises(Interrupted):
        work(PLAN, tmp_path, None)
    assert len(read_lines(tmp_path / LINES_FILE)) == 2
    monkeypatch.setattr(queue, "perform", perform)
    work(PLAN, tmp_path, None)
    assert len(performed) == len(set(performed)) == 8


def test_the_choice_of_the_rate():
    first, second, *_ = PLAN.runs

    def choose(*lines):
        return chosen_rate([line_of(run, **line) for run, line in zip((first, second), lines, strict=True)])

    assert choose({"loss": 2.0}, {"loss": 1.0}) == 0.02
    assert choose({"loss": 2.0, "accuracy": 0.9}, {"loss": 1.0, "accuracy": 0.8}) == 0.01
    assert choose({"loss": 2.0, "accuracy": 0.0}, {"loss": 1.0, "accuracy": 0.0}) == 0.02
    assert choose({"loss": 1.0}, {"outcome": "diverged"}) == 0.01
    assert choose({"outcome": "diverged"}, {"outcome": "diverged"}) is None


def test_when_every_rate_diverges_the_other_seeds_are_left_out():
    lines = {
        run.key: line_of(run, outcome="diverged") for run in PLAN.runs if run.variant == "a" and run.first
    }
    assert {run.variant for run in open_runs(PLAN, lines)} == {"b"}


def test_a_run_with_other_settings_is_refused(tmp_path):
    run = PLAN.runs[0]
    append_line(tmp_path, line_of(replace(run, config={"delay": 0.25})))
    with pytest.raises(UserError, match=rf"{run.key} was done with other settings \(settings differ\)"):
        work(PLAN, tmp_path, None)


def test_damaged_lines_are_named(tmp_path):
    path = tmp_path / LINES_FILE
    assert read_lines(path) == []
    append_line(tmp_path, line_of(PLAN.runs[0]))
    with path.open("a") as file:
        file.write('{"format": 1, "ke')
    with pytest.raises(UserError, match=r"runs.jsonl, line 2: not JSON"):
        read_lines(path)
    path.write_text(json.dumps({"format": 7, "key": "x"}) + "\n")
    with pytest.raises(UserError, match=r"line 1: not a line of a study in format 1"):
        read_lines(path)
    with pytest.raises(ValueError, match="Out of range float"):
        append_line(tmp_path, {"key": "x", "loss": float("nan")})
