"""The command for a machine with a GPU, as far as it can be tried without one: at toy sizes."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it ends its processes as Linux does")


@pytest.fixture(scope="module")
def gpu_session():
    spec = importlib.util.spec_from_file_location("gpu_session", ROOT / "benchmarks" / "gpu_session.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_session"] = module
    spec.loader.exec_module(module)
    return module


def test_a_dry_run_leaves_its_records(gpu_session, tmp_path, capsys):
    pytest.importorskip("triton", minversion="3.7", reason="its interpreter does not know numpy 2.4")
    before = list(sys.path)
    out = tmp_path / "out"
    try:
        assert gpu_session.main(out, 9, ["gpu-anchors", "training"], dry=True) == 0
    finally:
        sys.path[:] = before
    assert sorted(path.name for path in out.iterdir()) == [
        "gpu-anchors.json",
        "log.txt",
        "summary.json",
        "summary.md",
        "training.json",
    ]
    entries = json.loads((out / "gpu-anchors.json").read_text())["entries"]
    assert [entry["suite"] for entry in entries] == 16 * ["gpu-anchors"] + 8 * ["gpu-flex"]
    flexed = [
        e["contenders"]["ssa-flex"] for e in entries if e["passes"] == "forward" and "anchors" in e["suite"]
    ]
    assert all(result["status"] == "measured" and result["errors"]["out"] < 0.02 for result in flexed)
    assert all(entry["contenders"]["triton"]["status"] == "measured" for entry in entries)
    models = json.loads((out / "training.json").read_text())["models"]
    assert [model["title"] for model in models[2:]] == ["OSN", "Transformer, rotary"]
    assert all(model["tokens_per_second"] > 0 and model["test_loss"] > 0 for model in models)
    assert models[2]["options"]["backend"] == "triton"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["state"] == "complete" and [s["name"] for s in summary["steps"]] == [
        "training",
        "gpu-anchors",
    ]
    page = (out / "summary.md").read_text()
    assert "nothing failed so far" in page and "dry run" in page and "| OSN |" in page


def test_every_step_ends_and_the_summary_begins_with_what_failed(gpu_session, tmp_path):
    python = [sys.executable, "-c"]
    printed = "[gw3] [ 50%] FAILED t.py::test_a[x y]\\nt.py::test_b PASSED [100%]\\nFAILED t.py::test_c"
    steps = [
        gpu_session.Step("check", {"gpu tests": [*python, f"print('{printed}'); exit(1)"]}, 30),
        gpu_session.Step("missing", {"nothing": ["no-such-program"]}, 30),
        gpu_session.Step("slow", {"sleeps": [*python, "import time; time.sleep(60)"]}, 0.5),
        gpu_session.Step("bench", {"writes": [*python, "print(1)"]}, 30, "record.json"),
    ]
    wrong = {"triton": {"status": "wrong", "reason": "out is off"}}
    case = {"tokens": 8, "head_dim": 64}
    entry = {"suite": "x", "name": "dense", "case": case, "passes": "forward", "contenders": wrong}
    (tmp_path / "record.json").write_text(
        json.dumps({"preferred": "triton", "entries": [entry], "memory": []})
    )
    session = {"begun": "now", "dry_run": False, "minutes": 1, "seconds": 1.0, "state": "running"}
    session["steps"] = [gpu_session.run_step(s, s.seconds, tmp_path, dict(os.environ)) for s in steps]
    statuses = [part["status"] for step in session["steps"] for part in step["commands"].values()]
    assert statuses == ["failed", "failed", "out of time", "passed"]
    tests = session["steps"][0]["commands"]["gpu tests"]["tests"]
    assert tests == {"passed": 1, "skipped": 0, "failed": ["t.py::test_a[x y]"]}
    assert session["steps"][2]["seconds"] < 20
    out = tmp_path / "out"
    out.mkdir()
    gpu_session.write_results(out, tmp_path, session, steps)
    first = (out / "summary.md").read_text().splitlines()[2:7]
    assert first[0] == "- **TESTS FAILED** (gpu tests): t.py::test_a[x y]"
    assert first[-1].startswith("- **WRONG RESULT** (bench): dense, d 64, N 8, forward: triton: out is off")
    assert (out / "bench.json").is_file() and "===== slow, sleeps" in (out / "log.txt").read_text()


def test_no_more_files_than_come_back_and_a_plan_that_fits(gpu_session, tmp_path):
    plan = gpu_session.steps(tmp_path, 9, dry=False)
    records = [step for step in plan if step.record]
    assert len(records) + 3 <= 8
    needed = sum(step.seconds for step in plan if step.name not in ("tests", "gpu-anchors"))
    assert needed <= 9 * 60
    assert gpu_session.main(tmp_path / "out", 9, ["nonsense"], dry=True) == 2
