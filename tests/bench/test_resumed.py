"""benchmarks/tasks/resumed.py: what the scripts of one folder share."""

import json
import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "tasks" / "resumed.py"


@pytest.fixture(scope="module")
def resumed():
    return runpy.run_path(str(SCRIPT), run_name="resumed")


@pytest.mark.parametrize(("best", "rate"), [(max, 0.02), (min, 0.01)])
def test_other_seeds_run_at_the_first_ones_best_rate(resumed, tmp_path, best, rate):
    made = []

    def run(cell, rate, seed):
        made.append((cell, rate, seed))
        return {"key": f"{cell}/lr{rate:g}/seed{seed}", "validation": rate, "test": 0.0, "seconds": 0.0}

    lines = resumed["read"](tmp_path / "runs")
    resumed["go_on"](tmp_path / "runs", lines, ["a/b"], (0.01, 0.02), [10, 2, 0], run, best)
    assert made == [("a/b", 0.01, 0), ("a/b", 0.02, 0), ("a/b", rate, 2), ("a/b", rate, 10)]
    kept = resumed["read"](tmp_path / "runs")
    assert kept == lines == [json.loads(line) for line in (tmp_path / "runs/runs.jsonl").open()]
    resumed["go_on"](tmp_path / "runs", kept, ["a/b"], (0.01, 0.02), [0, 2, 10], run, best)
    assert len(made) == 4
    chosen = resumed["chosen"](kept, "a/b", best)
    assert [line["key"].rsplit("/", 1)[1] for line in chosen] == ["seed0", "seed2", "seed10"]
    assert resumed["chosen"](kept, "a", best) == []


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--steps", "1"], "--steps must be at least 2, got 1"),
        (["--seeds", "1", "2"], "--seeds must have 0, whose runs choose the rate, got [1, 2]"),
        (["--steps", "9"], "--steps must be 7, as "),
    ],
)
def test_bad_command_lines(resumed, tmp_path, monkeypatch, capsys, given, told):
    (tmp_path / "runs.jsonl").write_text('{"key": "osn/lr0.01/seed0", "steps": 7}\n{"key": "time/osn/50"}\n')
    monkeypatch.setattr("sys.argv", ["x", "--out", str(tmp_path), *given])
    with pytest.raises(SystemExit):
        resumed["begin"](resumed["parser"]("text", 5), fewest=2)
    assert told in capsys.readouterr().err
