"""The command line, as a user meets it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("typer")
pytest.importorskip("accelerate")

from typer.testing import CliRunner

from syncattn.cli import app

runner = CliRunner()
TINY = ["--hidden-size", "16", "--layers", "1", "--heads", "2", "--context", "16", "--batch-size", "4"]
TINY += ["--steps", "4", "--threads", "1", "--device", "cpu", "--final-eval-tokens", "64"]


def run(*arguments):
    return runner.invoke(app, [str(argument) for argument in arguments])


def fails_with(result, message, code=1):
    """One clear line on stderr, no traceback."""
    assert result.exit_code == code, (result.output, result.exception)
    assert isinstance(result.exception, SystemExit)
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("syncattn: ") and message in line, line


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"the oscillator {i} locks to {i * 7 % 13}.\n" for i in range(300)))
    return path


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "run"
    result = run("train", text, "--out", out, *TINY)
    assert result.exit_code == 0, result.output
    return out, result


def test_train_says_what_it_did_and_generate_uses_it(trained):
    out, result = trained
    assert "one file" in result.stdout and "step 4/4" in result.stdout and "validation loss" in result.stdout
    assert not result.stderr and "\x1b" not in result.stdout
    sizes = ["generate", out, "--prompt", "the osc", "--max-new-tokens", "5"]
    first, second = run(*sizes), run(*sizes, "--greedy")
    assert first.exit_code == second.exit_code == 0
    assert first.stdout.startswith("the osc") and not first.stderr


def test_compare_ends_with_a_table_samples_and_a_report(text, tmp_path, monkeypatch):
    out = tmp_path / "out"
    arguments = [
        "compare",
        text,
        "--out",
        out,
        *TINY,
        "--seeds",
        "0,1",
        "--baseline",
        "rotary",
        "--lr",
        "0.01",
    ]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    for expected in ("OSN", "Transformer, rotary", "±", "density", f"report: {out}"):
        assert expected in result.stdout.replace("\n", " ") or expected in result.stdout
    assert (out / "report.html").stat().st_size > 50_000
    results = json.loads((out / "results.json").read_text())
    assert results["seeds"] == [0, 1] and len(results["models"]) == 2
    monkeypatch.setattr("syncattn.training.figures.both_pages", lambda draw: (b"", b""))  # they take seconds
    assert run(*arguments, "--quiet").exit_code == 0  # nothing is trained again, the report is written anew
    assert (out / "report.html").stat().st_size < 50_000


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--steps", "0"], "steps must be at least 1"),
        (["--lr", "-1"], "learning_rate must be a positive number"),
        (["--heads", "3"], "num_attention_heads must divide hidden_size"),
        (["--set", "nonsense=1"], "a field of OSNConfig"),
        (["--tokenizer", "gpt2"], "no tokenizer at gpt2"),
        (["--context", "100000"], "the text is shorter than the context needs"),
        (["--tokens", "0"], "tokens must be positive"),
        (["--precision", "int8"], "precision must be"),
        (["--weight-decay", "nan"], "weight_decay must be"),
        (["--weight-decay", "inf"], "weight_decay must be"),
        (["--lr", "nan"], "learning_rate must be"),
        (["--seed", "-1"], "seed must be from 0 to 4294967295"),
        (["--seed", "4294967296"], "seed must be from 0 to 4294967295"),
        (["--warmup", "4"], "warmup must be 0 or more and below the number of steps, 4"),
        (["--tokens", "128", "--warmup", "2"], "below the number of steps, 2"),
        (["--set", "id2label=1"], "a field of OSNConfig"),
    ],
)
def test_bad_options_leave_nothing_behind(extra, message, text, tmp_path):
    fails_with(run("train", text, "--out", tmp_path / "run", *TINY, *extra), message)
    assert not (tmp_path / "run").exists()


def test_bad_texts_are_told_in_one_line(tmp_path):
    (tmp_path / "empty").write_text("")
    (tmp_path / "binary").write_bytes(b"\x00\x01")
    (tmp_path / "latin").write_bytes(b"\xe9t\xe9")
    for name, message in (
        ("empty", "is empty"),
        ("binary", "binary, not text"),
        ("latin", "not UTF-8"),
        ("gone", "no file"),
    ):
        fails_with(run("train", tmp_path / name, "--out", tmp_path / "run"), message)
        fails_with(run("compare", tmp_path / name, "--out", tmp_path / "run"), message)
    fails_with(run("train", "--out", tmp_path / "run"), "no text given")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"short\n", b"x", b"\xef\xbb\xbf", b" \n\n", b"\n"])
@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_text_that_is_too_short_leaves_nothing_behind(command, content, tmp_path):
    (tmp_path / "short.txt").write_bytes(content)
    result = run(command, tmp_path / "short.txt", "--out", tmp_path / "out", *TINY)
    fails_with(result, f"has {len(content)} tokens")
    assert "each part needs at least 16" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_warm_up_longer_than_the_default_run_fits_a_budget():
    from syncattn.cli import _options

    options = _options(10_000_000, context=128, batch_size=16, warmup=2000)
    assert options.warmup == 2000 < options.steps


def test_bad_output_folders_are_told_in_one_line(trained, text, tmp_path):
    out, _ = trained
    fails_with(run("train", text), "--out is missing")
    fails_with(run("compare", text), "--out is missing")
    fails_with(run("train", text, "--out", out, *TINY), "is not empty")
    fails_with(run("compare", text, "--out", out, *TINY), "is not empty")
    fails_with(run("train", text, "--out", text, *TINY), "is a file")
    fails_with(run("train", text, "--out", text / "below", *TINY), "Not a directory")


def test_bad_comparisons_are_told_in_one_line(text, tmp_path):
    for extra, message in (
        (["--seeds", "a"], "--seeds must be numbers"),
        (["--lr-grid", "0.1,"], "--lr-grid must be numbers"),
        (["--lr-grid", "0.1", "--baseline-lr", "0.1"], "exclude each other"),
        (["--baseline", "learned"], "baselines must be among"),
        (["--baseline-delay", "3"], "delay must be"),
        (["--baseline-delay", "nan"], "delay must be"),
        (["--lr-grid", "0.01,-1"], "OSN: learning_rate must be a positive number, not -1"),
        (["--lr-grid", "0.01,nan"], "OSN: learning_rate must be a positive number, not nan"),
        (["--lr-grid", "0.01,0.01"], "--lr-grid must be different numbers"),
        (["--baseline-lr", "-1"], "Transformer, rotary: learning_rate must be"),
        (["--seeds", "0,-1"], "seed must be from 0"),
        (["--seeds", "0,0"], "--seeds must be different numbers"),
        (["--prompt", ""], "the prompt is empty"),
        ([text], "is given twice"),
    ):
        fails_with(run("compare", text, "--out", tmp_path / "out", *TINY, *extra), message)
    assert not (tmp_path / "out").exists()


def test_bad_resumptions_are_told_in_one_line(trained, text, tmp_path):
    out, _ = trained
    fails_with(run("train", "--resume", out), "is finished")
    fails_with(run("train", "--resume", tmp_path), "holds no checkpoint")
    fails_with(run("train", "--resume", tmp_path / "gone"), "no such folder")
    fails_with(run("train", text, "--resume", out), "leave out TEXT")


def test_bad_models_are_told_in_one_line(trained, tmp_path):
    out, _ = trained
    fails_with(run("generate", tmp_path / "gone", "--prompt", "x"), "no folder")
    fails_with(run("generate", tmp_path, "--prompt", "x"), "no config.json")
    fails_with(run("generate", out, "--prompt", ""), "the prompt is empty")
    fails_with(run("generate", out, "--prompt", "x", "--temperature", "0"), "temperature must be positive")
    fails_with(run("generate", out, "--prompt", "x", "--seed", "-1"), "seed must be from 0")
    fails_with(run("generate", out, "--prompt", "\udcff"), "the prompt is not UTF-8 text")
    weights = out / "model.safetensors"
    whole = weights.read_bytes()
    try:
        weights.write_bytes(whole[:-100])
        fails_with(run("generate", out, "--prompt", "x"), "truncated")
    finally:
        weights.write_bytes(whole)


def test_bugs_keep_their_traceback(text, tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("syncattn.training.data.load_corpus", broken)
    assert isinstance(run("train", text, "--out", tmp_path / "run").exception, ZeroDivisionError)


def test_a_missing_library_is_named(text, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "syncattn.training.train", None)

    def missing(*args, **kwargs):
        raise ModuleNotFoundError("No module named 'accelerate'", name="accelerate")

    monkeypatch.setattr("syncattn.training.data.load_corpus", missing)
    result = run("train", text, "--out", tmp_path / "run", *TINY)
    fails_with(result, "needs 'accelerate': install syncattn with its 'train' extra")


def test_doctor_shows_versions_machine_and_backends():
    result = run("doctor")
    assert result.exit_code == 0
    for expected in ("torch", "transformers", "processor", "threads", "eager", "tiled"):
        assert expected in result.stdout


def python(*arguments, **keywords):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **keywords.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, "-m", "syncattn", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **keywords,
    )


def test_help_does_not_wait_for_the_models():
    code = "import sys, syncattn.cli; print([m for m in ('transformers', 'matplotlib') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
    result = run("--help")
    assert result.exit_code == 0
    assert all(command in result.stdout for command in ("train", "compare", "generate", "doctor"))


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_ctrl_c_leaves_a_checkpoint_that_resume_goes_on_from(text, tmp_path):
    out = tmp_path / "run"
    many = [*TINY, "--steps", "100000", "--log-every", "5", "--eval-every", "5", "--save-every", "10"]
    process = python("train", text, "--out", out, *many)
    deadline = time.monotonic() + 60
    while not list(out.glob("checkpoints/checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    (line,) = errors.strip().splitlines()
    assert "stopped at step" in line and f"syncattn train --resume {out}" in line
    (checkpoint,) = out.glob("checkpoints/checkpoint-*")
    assert line.split("checkpoint of step ")[1].split()[0] == checkpoint.name.rpartition("-")[2]
    fails_with(run("generate", out, "--prompt", "the"), "is not finished")
