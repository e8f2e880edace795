"""The command for a machine with a GPU, as far as it can be tried without one: at toy sizes."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it ends its processes as Linux does")


def _script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(ROOT / "benchmarks"))  # as where a script is run
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return module


@pytest.fixture(scope="module")
def gpu_session():
    return _script("gpu_session")


@pytest.fixture(scope="module")
def gpu_scale():
    return _script("gpu_scale")


STEPS = ["gpu-generation", "steps", "gpu-anchors", "training", "scale"]


def test_a_dry_run_leaves_its_records(gpu_session, tmp_path, capsys):
    pytest.importorskip("triton", minversion="3.7", reason="its interpreter does not know numpy 2.4")
    before = list(sys.path)
    out = tmp_path / "out"
    try:
        assert gpu_session.main(out, 90, STEPS, dry=True) == 0  # limits for a busy machine
    finally:
        sys.path[:] = before
    assert sorted(path.name for path in out.iterdir()) == [
        "gpu-anchors.json",
        "gpu-generation.json",
        "log.txt",
        "scale.json",
        "steps.json",
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
    titles = [model["title"] for model in models[2:]]
    assert titles == ["OSN", "Transformer, rotary, delay, token shift, gate"]
    assert all(model["tokens_per_second"] > 0 and model["test_loss"] > 0 for model in models)
    assert models[2]["options"]["backend"] == "triton"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["state"] == "complete" and [s["name"] for s in summary["steps"]] == STEPS
    page = (out / "summary.md").read_text()
    assert "nothing failed so far" in page and "dry run" in page and "| OSN |" in page
    timed = json.loads((out / "steps.json").read_text())["lengths"]
    assert [[model["name"] for model in length["models"]] for length in timed] == [["osn", "rotary"]] * 6
    assert [length["form"].split(":")[0] for length in timed] == [
        *("default", "default", "preset text", "preset recall", "symmetric", "symmetric, no gate")
    ]
    assert all(length["ratios"][0] > 0 for length in timed) and "| 32 | symmetric, no gate | OSN |" in page
    assert "short convolution" in timed[3]["models"][1]["title"] and "| layer | 24 | backward |" in page
    entries = json.loads((out / "gpu-generation.json").read_text())["entries"]
    assert [entry["name"] for entry in entries] == [
        f"2 x 24 cached, {way}" for way in ("growing", "fixed", "fixed, CUDA graph", "fixed, compiled")
    ]
    assert all(entry["backend"] == "triton" for entry in entries)
    for entry in entries[:2]:
        assert {name: result["status"] for name, result in entry["contenders"].items()} == {
            "osn": "measured",
            "sdpa": "measured",
        }
        assert entry["contenders"]["osn"]["errors"]["out"] < 1e-5
        assert all(held["nbytes"] > 0 for held in entry["cache"].values())
    assert "| 2 x 24 cached, fixed | Transformer | " in page and "left out: graphs are timed on GPUs" in page
    scale = json.loads((out / "scale.json").read_text())
    assert scale["state"] == "complete" and [run["status"] for run in scale["runs"]] == ["finished"] * 2
    osn, transformer = scale["runs"]
    assert osn["options"]["backend"] == "tiled" and 0 < osn["density"] < 1
    assert transformer["config"]["token_shift"] and transformer["config"]["delay"] == 0.5
    assert osn["tokens"] == transformer["tokens"]
    assert abs(osn["parameters"] / transformer["parameters"] - 1) < 0.01
    assert osn["text_sha256"] == transformer["text_sha256"] == scale["text"]["sha256"]
    assert "| toy | OSN | " in page


def test_the_source_text_is_split_by_file_and_nothing_held_out_is_trained_on(gpu_scale, tmp_path):
    def lines(name, count=20):
        return "".join(f"the line {i} of {name}, which is long enough\n" for i in range(count))

    for number in range(200):
        (tmp_path / f"m{number}.py").write_text(lines(number))
        # nearly the same again, as packages copy from each other
        (tmp_path / f"n{number}.py").write_text(lines(number, 19) + f"import m{number}\n")
    (tmp_path / "equal.py").write_text(lines(0))
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9\n")
    (tmp_path / "other.txt").write_text(lines("other"))
    text, told = gpu_scale.source_text([tmp_path])
    trained, *held = (
        {line for line in text[name].split(b"\n") if len(line) > 30} for name in gpu_scale.PARTS
    )
    assert not trained & (held[0] | held[1])
    assert not any(b"other" in part for part in text.values())
    kept, (unreadable, equal, shared) = sum(told["files"].values()), told["left_out"].values()
    assert (unreadable, equal, kept + shared) == (1, 1, 400) and shared > 10
    assert all(told["files"].values())
    assert gpu_scale.source_text([tmp_path])[1] == told


def test_the_runs_of_the_study_at_scale_and_their_means(gpu_scale):
    jobs = gpu_scale.jobs_of(["1M"], ["osn", "transformer"], [0, 1], [0.006, 0.003], dry=False)
    assert [(job.model, job.rate, job.seed) for job in jobs] == [
        (model, rate, seed)
        for rate, seed in ((0.006, 0), (0.006, 1), (0.003, 0))
        for model in ("osn", "transformer")
    ]
    names = ("validation_bits_per_byte", "test_bits_per_byte", "tokens_per_second", "density")
    done = {"status": "finished", "parameters": 9, "tokens": 5, **dict.fromkeys(names)}
    runs = [job._asdict() | done | {"test_bits_per_byte": 1.0 + job.seed} for job in jobs]
    runs[-1]["status"] = "failed"
    means = gpu_scale.summaries(runs)
    assert [(m["model"], m["rate"], m["seeds"]) for m in means] == [
        ("osn", 0.006, 2),
        ("transformer", 0.006, 2),
        ("osn", 0.003, 1),
    ]
    assert [m["test_bits_per_byte"] for m in means] == [1.5, 1.5, 1.0]
    assert means[0]["test_bits_per_byte_spread"] == pytest.approx(0.5**0.5)
    assert means[2]["test_bits_per_byte_spread"] is None
    # speeds that rise as less compiles: the slowest stretch after the first log counts
    spent = {10: 5.0, 20: 6.0, 30: 9.0, 40: 10.0}
    log = [{"step": n, "loss": 1.0, "tokens_per_second": n * 64 / t} for n, t in spent.items()]
    assert gpu_scale.slowest_step(log, 64) == pytest.approx(0.3)


@pytest.mark.parametrize("size", ["1M", "5M"])
def test_both_models_at_scale_have_the_parameters_that_the_name_says(gpu_scale, size):
    from syncattn.models import count_parameters

    counts = [count_parameters(gpu_scale.config_of(m, gpu_scale.SIZES[size])) for m in gpu_scale.MODELS]
    assert max(counts) / min(counts) - 1 < 0.01
    assert abs(counts[0] / (float(size[0]) * 1e6) - 1) < 0.05


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


def test_a_step_that_is_killed_in_the_middle_leaves_its_record(gpu_session, tmp_path, monkeypatch):
    """While it runs, too, so that the end of everything leaves it; whole, and then as much as it came to."""
    monkeypatch.setattr(gpu_session, "RENEWED", 0.05)
    monkeypatch.setattr(gpu_session, "GRACE", 0.2)
    work, out = tmp_path / "work", tmp_path / "out"
    (work / "one").mkdir(parents=True)
    out.mkdir()
    script = """
import json, os, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
for n in range(1000):
    with open("draft", "w") as f:
        json.dump({"entries": [], "memory": [], "preferred": None, "n": n}, f)
    os.replace("draft", "record.json")
    time.sleep(0.01)
"""
    command = [sys.executable, "-c", f"import os; os.chdir({str(work / 'one')!r})\n{script}"]
    step = gpu_session.Step("one", {"writes": command}, 1.5, "one/record.json")
    seen = []

    def renew():
        gpu_session.keep_record(step, work, out)
        if (out / "one.json").is_file():
            seen.append(json.loads((out / "one.json").read_text())["n"])

    done = gpu_session.run_step(step, step.seconds, work, dict(os.environ), renew)
    assert done["commands"]["writes"]["status"] == "out of time" and len(set(seen)) > 1
    session = {"begun": "now", "dry_run": False, "minutes": 1, "seconds": 2.0, "state": "running"}
    gpu_session.write_results(out, work, session | {"steps": [done]}, [step])
    assert json.loads((out / "one.json").read_text())["n"] >= seen[-1]
    assert "- **OUT OF TIME**: one, writes" in (out / "summary.md").read_text()
    assert sorted(path.name for path in out.iterdir()) == [
        "log.txt",
        "one.json",
        "summary.json",
        "summary.md",
    ]


def test_no_more_files_than_come_back_and_a_plan_that_fits(gpu_session, tmp_path):
    plan = gpu_session.steps(tmp_path, tmp_path / "out", 9, dry=False)
    asked = [step for step in plan if step.asked]
    assert [step.name for step in asked] == ["training", "tune", "scale"]
    assert max(step.seconds for step in plan if step.name != "tests") < 180
    plan = [step for step in plan if not step.asked]
    records = [step for step in plan if step.record]
    assert len(records) + 3 <= 8
    # what no session has reached fits nine minutes if it all takes as long as it may; the rest another nine
    first = [step.name for step in plan].index("gpu-anchors")
    assert sum(step.seconds for step in plan[:first]) <= 9 * 60
    assert [step.name for step in plan[first:]] == ["gpu-anchors", "gpu-widths", "tests"]
    assert gpu_session.main(tmp_path / "out", 9, ["nonsense"], dry=True) == 2
