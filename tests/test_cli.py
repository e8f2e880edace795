"""The command line, as a user meets it."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

pytest.importorskip("typer")
pytest.importorskip("accelerate")

from typer.testing import CliRunner

from syncattn import __version__
from syncattn.__main__ import main
from syncattn.cli.app import app
from syncattn.cli.given import Budget, training_options
from syncattn.cli.options import Written
from syncattn.training.errors import UserError
from syncattn.training.options import TrainingOptions

runner = CliRunner()
BOM = b"\xef\xbb\xbf"
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
    assert f"explore: {out / 'explorer.html'}" in result.stdout.replace("\n", " ")
    (out / "report.html").write_text("old")
    assert run(*arguments, "--quiet").exit_code == 0  # nothing is trained again, the report is written anew
    assert (out / "report.html").stat().st_size > 50_000 and (out / "explorer.html").is_file()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--steps", "0"], "steps must be at least 1"),
        (["--lr", "-1"], "learning_rate must be a positive number"),
        (["--heads", "3"], "num_attention_heads must divide hidden_size"),
        (["--set", "nonsense=1"], "a field of OSNConfig"),
        (["--tokenizer", "gpt2"], "no tokenizer at gpt2"),
        (["--context", "100000"], "the text is shorter than the context needs"),
        (["--tokens", "100"], "--steps and --tokens exclude each other"),
        (["--encoding", "utf8x"], "encoding must be the name of a text encoding"),
        (["--validation", "nowhere"], "no file or folder named 'nowhere'"),
        (["--precision", "int8"], "precision must be"),
        (["--weight-decay", "nan"], "weight_decay must be"),
        (["--weight-decay", "inf"], "weight_decay must be"),
        (["--lr", "nan"], "learning_rate must be"),
        (["--seed", "-1"], "seed must be from 0 to 4294967295"),
        (["--seed", "4294967296"], "seed must be from 0 to 4294967295"),
        (["--warmup", "4"], "warmup must be 0 or more and below the number of steps, 4"),
        (["--set", "id2label=1"], "a field of OSNConfig"),
        (
            ["--paper", "--max-density", ".2", "--max-partners", "3"],
            "leave out --max-density, --max-partners",
        ),
        (["--set", "parametrisation=softplus", "--start-partners", "3"], "leave out --start-partners"),
        (["--no-calibrate", "--start-partners", "3"], "nothing is calibrated: leave out --start-partners"),
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
    both = run("train", tmp_path / "latin", tmp_path / "binary", "--out", tmp_path / "run")
    assert both.exit_code == 1 and "--encoding NAME" in both.stderr and "--skip-undecodable" in both.stderr
    assert [line[:2] for line in both.stderr.splitlines()] == ["sy", "  ", "  "]
    fails_with(run("train", "--out", tmp_path / "run"), "no text given")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"short\n", b"x", b"\xef\xbb\xbfy", b" \n\n", b"\n"])
@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_text_that_is_too_short_leaves_nothing_behind(command, content, tmp_path):
    (tmp_path / "short.txt").write_bytes(content)
    result = run(command, tmp_path / "short.txt", "--out", tmp_path / "out", *TINY)
    fails_with(result, f"has {len(content.removeprefix(BOM))} tokens")
    assert "each part needs at least 16" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_warm_up_longer_than_the_default_run_fits_a_budget():
    make = partial(TrainingOptions, context=128, batch_size=16, warmup=2000)
    options = training_options(make, Budget(10_000_000), Written())
    assert options.warmup == 2000 < options.steps
    for tokens, message in ((0, "tokens must be positive"), (4096, "of steps, 2")):
        with pytest.raises(UserError, match=message):
            training_options(make, Budget(tokens), Written())


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
        (["--lr-grid", "0.01,-1"], "OSN: learning_rate must be a positive number, got -1.0"),
        (["--lr-grid", "0.01,nan"], "OSN: learning_rate must be a positive number, got nan"),
        (["--lr-grid", "0.01,0.01"], "--lr-grid must be different numbers"),
        (
            ["--lr-grid", "0.01", "--lr", "0.1"],
            "--lr-grid says which learning rates are tried: leave out --lr",
        ),
        (["--paper", "--max-partners", "9"], "leave out --max-partners"),
        (["--baseline-lr", "-1"], "Transformer, rotary, delay, token shift, gate: learning_rate must be"),
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
    ignored = run("train", "--resume", out, "--steps", "9", "--lr", "1", "--no-calibrate", "--quiet")
    fails_with(ignored, "--resume goes on with a run as it was begun: leave out --steps, --lr, --calibrate")


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
    for expected in ("torch", "transformers", "processor", "waiting threads", "eager", "tiled"):
        assert expected in result.stdout


def test_doctor_and_version_need_pytorch_alone(monkeypatch, capsys):
    for name in list(sys.modules):
        if name.partition(".")[0] in ("typer", "click", "rich", "transformers", "tokenizers", "safetensors"):
            monkeypatch.setitem(sys.modules, name, None)
    for name in ("cli.app", "cli.doctor", "training.environment"):
        monkeypatch.delitem(sys.modules, f"syncattn.{name}", raising=False)
    for arguments, expected in ((["doctor"], "a causal layer on cpu uses"), (["--version"], __version__)):
        monkeypatch.setattr(sys, "argv", ["syncattn", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code is None
        out, errors = capsys.readouterr()
        assert expected in out and not errors
    monkeypatch.setattr(sys, "argv", ["syncattn", "train"])
    with pytest.raises(SystemExit, match=r"the command line needs 'typer': install .* 'train' extra"):
        main()


def test_version():
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"syncattn {__version__}\n")


def test_training_goes_on_from_a_model(trained, text, tmp_path):
    out, _ = trained
    more = TINY[6:]  # all but what the model decides
    result = run("train", text, "--init-from", out, "--out", tmp_path / "more", *more)
    assert result.exit_code == 0, result.output
    assert f"weights, shape and tokenizer of {out}; context 16" in result.stdout
    before, after = (json.loads((p / "training.json").read_text()) for p in (out, tmp_path / "more"))
    assert after["config"] == before["config"] and after["options"]["init_from"] == str(out)
    assert after["history"][0]["density"] == before["result"]["density"]  # its couplings are kept
    assert after["history"][1]["validation_loss"] < before["history"][1]["validation_loss"]
    cases = [
        (["--hidden-size", "16"], "--init-from takes the model as it is: leave out --hidden-size"),
        (["--set", "delay=0", "--paper", "--freq-dim", "2"], "leave out --set, --paper, --freq-dim"),
        (["--heads", "2", "--layers", "1", "--calibrate"], "leave out --heads, --layers, --calibrate"),
        (["--start-partners", "9"], "nothing is calibrated: leave out --start-partners"),
        (["--tokenizer", "byte"], "takes the tokenizer in"),
        (["--validation", text], "is given twice"),
    ]
    for extra, message in cases:
        fails_with(run("train", text, "--init-from", out, "--out", tmp_path / "bad", *more, *extra), message)
    fails_with(run("train", text, "--init-from", out, "--out", out, "--overwrite"), "are the same folder")
    fails_with(
        run("train", text, "--init-from", "no", "--out", "x"), "must be the folder of a model, got 'no'"
    )
    bare = tmp_path / "bare"  # as save_pretrained leaves a model alone
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((out / name).read_bytes())
    again = ["train", text, "--init-from", bare, "--out", tmp_path / "bad", *more]
    fails_with(run(*again), "no tokenizer in")
    fails_with(run(*again, "--tokenizer", "char"), "no tokenizer in")
    assert not (tmp_path / "bad").exists()
    result = run(*again, "--tokenizer", "byte", "--no-calibrate", "--quiet")
    assert result.exit_code == 0, result.output
    repeated = json.loads((tmp_path / "bad" / "training.json").read_text())
    assert repeated["result"]["test_loss"] == after["result"]["test_loss"]


def test_characters_that_a_tokenizer_does_not_know_are_named():
    from syncattn.cli.given import unknown_characters
    from syncattn.training.data import Corpus
    from syncattn.training.tokenizers import byte_tokenizer, char_tokenizer

    corpus = Corpus("cab", "é", "aü", ("x",))
    (note,) = unknown_characters(char_tokenizer("abc"), corpus)
    assert note == "2 characters are unknown to the tokenizer, and are all read as one: 'é' 'ü'"
    assert not unknown_characters(byte_tokenizer(), corpus)
    assert not unknown_characters(char_tokenizer("abcéü"), corpus)


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


def test_help_does_not_wait_for_pytorch():
    code = (
        "import sys, syncattn.__main__, syncattn.cli.app\n"
        "print([m for m in ('torch', 'numpy', 'transformers', 'matplotlib') if m in sys.modules])"
    )
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
    assert "stopped at step" in line and f"syncattn train --resume {shlex.quote(str(out))}" in line
    (checkpoint,) = out.glob("checkpoints/checkpoint-*")
    assert line.split("checkpoint of step ")[1].split()[0] == checkpoint.name.rpartition("-")[2]
    fails_with(run("generate", out, "--prompt", "the"), "is not finished")


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal and a POSIX signal")
def test_a_line_on_the_screen_and_ctrl_c_while_pytorch_is_loaded(text, tmp_path):
    """No traceback from within somebody's import, nothing written, the status of an interrupted command."""
    screen, stderr = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "syncattn", "train", text, "--out", tmp_path / "run"],
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    os.close(stderr)
    said = os.read(screen, 1000).decode()
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # the end of a pseudo-terminal, on Linux
        while found := os.read(screen, 1000):
            said += found.decode()
    os.close(screen)
    assert process.wait(timeout=60) == 130
    first, second = said.splitlines()
    assert first == "loading the text and PyTorch ..." and second.startswith("syncattn: stopped")
    assert not (tmp_path / "run").exists()
