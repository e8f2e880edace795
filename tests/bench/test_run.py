"""Whole runs at toy sizes: what they leave behind, and how they end."""

import json
import types

import pytest
import torch
from typer.testing import CliRunner

from syncattn.backends import select
from syncattn.backends.backend import Backend
from syncattn.backends.eager import BACKEND as EAGER
from syncattn.backends.tiled.operator import BACKEND as TILED
from syncattn.bench import memory, operators, targets
from syncattn.bench.contenders import backend_names
from syncattn.bench.inputs import Case
from syncattn.bench.plan import BACKWARD, FORWARD, SUITES
from syncattn.bench.session import Session
from syncattn.bench.timing import Clock, interleave, ratios, spread
from syncattn.cli.app import app


def record(folder):
    return json.loads((folder / "bench.json").read_text())


def test_all_suites(bench):
    status, out = bench(*SUITES)
    assert status == 0
    found = record(out)
    assert found["status"] == "complete" and found["format"] == 1
    assert {entry["suite"] for entry in found["entries"]} == set(SUITES) - {"gpu-memory"}
    for name in ("date", "command", "machine", "versions", "backends", "plan", "method", "seconds"):
        assert found[name], name
    assert {"torch", "syncattn", "python"} <= found["versions"].keys()
    assert {"processor", "cores", "flags"} <= found["machine"].keys()
    for entry in found["entries"]:
        assert {"suite", "name", "threads", "passes", "case", "counted", "reference"} <= entry.keys()
        for name, result in entry["contenders"].items():
            if name in ("flash", "flex") and not torch.cuda.is_available():
                assert result == {"status": "left out", "reason": "it is timed on GPUs only"}
                continue
            if name == "adasplash" or (name == "ssa-flex" and entry["passes"] == BACKWARD):
                assert result["status"] == "left out" or torch.cuda.is_available()
                continue
            if name.endswith("+graph") and not torch.cuda.is_available():
                assert result == {"status": "left out", "reason": "graphs are timed on GPUs only, forward"}
                continue
            if entry["name"].endswith("compiled") and not torch.cuda.is_available():
                assert result == {"status": "left out", "reason": "compiled steps are timed on GPUs only"}
                continue
            assert result["status"] == "measured", (entry["name"], name, result)
            assert len(result["seconds"]) == 2 and result["time"]["median"] > 0
            assert "ratio" in result
            if entry["suite"] == "counting":
                assert name != "count" or result["errors"] == {"pairs": 0}
            elif "decode" not in entry["suite"] and name != "sdpa":
                assert result["errors"]["out"] < 1e-2
    assert {each["suite"] for each in found["memory"]} == {"tokens", "scaling", "gpu-memory"}
    assert {"bench.json", "bench.md", "density.png", "tokens.png", "memory.png"} == {
        path.name for path in out.iterdir()
    }
    page = (out / "bench.md").read_text()
    for text in ("dense, symmetric", "training step", "published, ms", "growth"):
        assert text in page


def test_targets_come_from_outside(bench, monkeypatch):
    def judge(found):
        return {"rows": [["as fast", "1 thread", "<= 1", str(len(found["entries"])), "yes"]], "bounds": {}}

    def entries(group):
        assert group == "syncattn.targets"
        return [types.SimpleNamespace(name=name, load=lambda: judge) for name in "ab"]

    monkeypatch.setattr(targets, "entry_points", entries)
    _, out = bench("table", densities=(0.2,))
    found = record(out)
    row = ["as fast", "1 thread", "<= 1", str(len(found["entries"])), "yes"]
    assert found["targets"] == {"rows": [row, row], "bounds": {}}
    page = (out / "bench.md").read_text()
    assert page.count("| " + " | ".join(row) + " |") == 2 and "## Targets" in page
    monkeypatch.setattr(targets, "entry_points", lambda group: [])
    assert targets.judged(found) == {"rows": [], "bounds": {}}


@pytest.mark.parametrize("suite", ["variants", "scaling"])
def test_a_suite_alone_ends_well(suite, bench):
    status, out = bench(suite)
    assert status == 0 and record(out)["status"] == "complete"


def prefer(monkeypatch, name, run):
    """Put a backend before all others; only tiled and eager stay."""
    backends = {name: Backend(run), "tiled": TILED, "eager": EAGER}
    monkeypatch.setattr(select, "BACKENDS", backends)


def only_backward_wrong(call):
    return TILED.run(call._replace(bandwidth=call.bandwidth.detach() + 0 * call.bandwidth))


def crashes(call):
    if call.value.shape[-1] > 1:
        raise RuntimeError("illegal instruction")
    return TILED.run(call)


@pytest.mark.parametrize(
    ("how", "said", "right"),
    [
        (lambda call: 1.1 * TILED.run(call), "out is off by", ()),
        (only_backward_wrong, "gradient of bandwidth is off", (FORWARD,)),
        (crashes, "it failed: illegal instruction", ()),
    ],
    ids=["output", "gradient", "crash"],
)
def test_a_wrong_backend_gets_no_number_and_exit_status_1(how, said, right, bench, monkeypatch):
    prefer(monkeypatch, "wrong", how)
    status, out = bench("table", densities=(0.2,))
    assert status == 1
    for entry in record(out)["entries"]:
        others = {n: r["status"] for n, r in entry["contenders"].items() if n != "wrong"}
        assert others == {"sdpa": "measured", "tiled": "measured"}
        result = entry["contenders"]["wrong"]
        if entry["passes"] in right:
            assert result["status"] == "measured"
        else:
            assert result["status"] == "wrong" and said in result["reason"]
            assert not {"seconds", "time", "ratio"} & result.keys()
    assert "WRONG" in (out / "bench.md").read_text() and said in (out / "bench.md").read_text()


def test_generation_is_beside_the_transformer_and_llama(bench):
    status, out = bench("generation")
    (entry,) = record(out)["entries"]
    assert status == 0 and list(entry["contenders"]) == ["osn", "sdpa", "llama"]
    assert entry["case"]["batch"] == 2 and entry["case"]["tokens"] == 32
    assert entry["cache"]["osn"]["nbytes"] > 0 and entry["cache"]["sdpa"]["nbytes"] > 0
    assert "## Generation: bytes of the cache" in (out / "bench.md").read_text()
    assert all(result["errors"]["out"] < 1e-3 for result in entry["contenders"].values())


@pytest.mark.parametrize("suite", ["block", "train", "prefill", "decode"])
def test_a_wrong_backend_is_seen_in_models(suite, bench, monkeypatch):
    prefer(monkeypatch, "wrong", lambda call: 1.5 * TILED.run(call))
    status, out = bench(suite, decode_keys=())
    assert status == 1
    entries = record(out)["entries"]
    assert entries and all(entry["contenders"]["osn"]["status"] == "wrong" for entry in entries)
    assert all(entry["contenders"]["sdpa"]["status"] == "measured" for entry in entries)


def test_interrupting_leaves_what_is_done(bench, monkeypatch):
    whole = operators.run_case

    def until_the_third(session, **arguments):
        if len(session.record["entries"]) >= 2:
            raise KeyboardInterrupt
        whole(session, **arguments)

    monkeypatch.setattr(operators, "run_case", until_the_third)
    status, out = bench("table")
    found = record(out)
    assert status == 130 and found["status"] == "interrupted" and len(found["entries"]) == 2
    assert "interrupted" in (out / "bench.md").read_text()


def test_what_is_too_slow_is_left_out_with_its_reason(bench):
    status, out = bench("tokens", budget=1e-5, memory_sweep=())
    assert status == 0
    for entry in record(out)["entries"]:
        if entry["case"]["tokens"] == 64:
            result = entry["contenders"]["sdpa"]
            assert result["status"] == "left out" and "--budget" in result["reason"]


def test_too_slow_looks_ahead(plan, tmp_path):
    session = Session(plan, tmp_path)
    session.seen["key"] = (100, 2.0)
    assert session.too_slow("key", 150) is None
    assert "about 8 s" in session.too_slow("key", 200)
    assert session.too_slow("key", 300, heavy=True) is None
    assert session.too_slow("another", 10**9) is None


def test_rounds_are_interleaved_in_rotating_order():
    calls = []
    runners = {name: lambda name=name: calls.append(name) for name in "abc"}

    class OneSecond(Clock):
        def seconds(self, run, repeats=1):
            run()
            return 1.0

    found = interleave(runners, OneSecond("cpu"), rounds=4, budget=2.5, few=frozenset("c"))
    assert "".join(calls) == "abc" + "abc" + "bca" + "ab" + ""
    assert found == {"a": [1, 1, 1, None], "b": [1, 1, 1, None], "c": [1, 1, None, None]}
    assert ratios([2.0, 3.0, None], [1.0, 2.0, 4.0]) == [2.0, 1.5]
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == {"median": 3.0, "quartiles": [2.0, 4.0], "count": 5}
    assert interleave({}, Clock("cpu"), 3, 1.0) == {}


@pytest.mark.skipif(memory.unavailable("cpu") is not None, reason="no /proc/self/clear_refs")
def test_memory_of_a_fresh_process():
    case = Case("case", tokens=768, heads=4, density=0.2, power=1).as_dict()
    found = memory.peak_bytes(case, "published", BACKWARD, "cpu", 60.0)
    matrix = 4 * 4 * 768**2
    assert 5 * matrix < found < 30 * matrix


def test_our_backends_are_found_without_the_definition():
    names = backend_names("cpu")
    assert "tiled" in names and "eager" not in names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "SUITE must be among"),
        (["--threads", "two"], "--threads must be numbers"),
        (["--threads", "0"], "--threads must be 1 or more"),
        (["--rounds", "1"], "--rounds must be at least 2, got 1"),
        (["--budget", "0"], "--budget must be a positive number of seconds"),
        (["--tokens", "3"], "--tokens must be at least 16"),
        (["--device", "tpu"], "--device must be 'cpu' or 'cuda', got 'tpu'"),
        (["--seed", "-1"], "--seed must be"),
    ],
)
def test_bad_options_are_named(arguments, message, tmp_path):
    result = CliRunner().invoke(app, ["bench", "--out", str(tmp_path / "out"), *arguments])
    assert result.exit_code == 1 and not (tmp_path / "out").exists()
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("syncattn: ") and message in line


def test_an_occupied_folder_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    result = CliRunner().invoke(app, ["bench", "table", "--out", str(tmp_path)])
    assert result.exit_code == 1 and "is not empty" in result.stderr and "--resume" not in result.stderr


def test_what_is_wrong_can_be_timed_all_the_same(bench, monkeypatch):
    prefer(monkeypatch, "wrong", lambda call: 1.5 * TILED.run(call))
    status, out = bench("gpu-64", time_wrong=True)
    assert status == 1
    found = record(out)
    assert all(entry["contenders"]["wrong"]["status"] == "wrong" for entry in found["entries"])
    assert all(entry["contenders"]["wrong"]["time"]["median"] > 0 for entry in found["entries"])
    assert "WRONG" in (out / "bench.md").read_text()


def test_a_first_call_on_a_gpu_says_nothing_about_the_next():
    calls = []

    class Queue(Clock):
        def seconds(self, run, repeats=1):
            calls.append(repeats)
            return 1e-3

    found = interleave({"a": lambda: calls.append("alone")}, Queue("cuda"), 2, 1.0, warm={"a": 5.0})
    assert calls == ["alone", 1, 1, 20, 20] and found == {"a": [1e-3, 1e-3]}
