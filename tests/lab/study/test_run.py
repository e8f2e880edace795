"""One run: what its line says, what is measured besides, and the command that does many."""

import json
import math
import signal
import time

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("transformers")

from typer.testing import CliRunner

from syncattn.cli.app import app
from syncattn.models import OSNConfig, OSNForCausalLM, TransformerConfig, TransformerForCausalLM
from syncattn.training.errors import UserError
from syncattn.training.loop import Loop
from syncattn_lab.study.command import without
from syncattn_lab.study.lines import read_lines
from syncattn_lab.study.plan import make_plan
from syncattn_lab.study.run import dead_heads, loss_at, perform, portable, text_of

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    words = ["oscillators", "that", "lock", "exchange", "what", "they", "know", "and", "others", "stay"]
    for name, shift in (("some.txt", 0), ("other.txt", 3), ("third.txt", 5)):
        lines = [
            " ".join(words[(i * 7 + j * (shift + 1)) % len(words)] for j in range(8)) for i in range(200)
        ]
        (path / name).write_text("\n".join(lines))
    return path


def plan(**variant):
    return {
        "model": SIZES,
        "training": {"context": 32, "batch_size": 4, "steps": 8, "final_eval_tokens": 512},
        "seeds": [0],
        "learning_rates": [0.01],
        "task": {"words": {"kind": "text", "text": ["some.txt"], "test": "other.txt"}},
        "tasks": ["words"],
        "group": [
            {
                "name": "g",
                "kind": "comparison",
                "lengths": [32, 64],
                "variant": [{"name": "osn", **variant}],
            }
        ],
    }


def test_a_line_says_it_all(tmp_path, folder):
    run = make_plan(plan(training={"max_density": 0.2})).runs[0]
    line = perform(run, tmp_path / "run", folder)
    json.dumps(line, allow_nan=False)
    assert line["outcome"] == "finished" and line["key"] == run.key
    assert line["options"]["max_density"] == 0.2 and line["tokens"] == 8 * 4 * 32
    result = line["result"]
    assert 0 < result["validation_loss"] < 7 and result["test_accuracy"] is None
    assert len(result["density"]) == 2 and len(result["density"][0]) == 2
    assert result["dead_heads"] in range(5) and result["max_grad_norm"] > 0
    assert set(result["lengths"]) == {"32", "64"} and 0 < result["lengths"]["64"]["density"] < 1
    # at the training length, the evaluation by lengths agrees with the final one up to the tokens it takes
    assert math.isclose(result["lengths"]["32"]["loss"], result["test_loss"], rel_tol=0.02)


def test_a_transformer_has_no_density(tmp_path, folder):
    given = plan(model="transformer", config={"delay": 0.5})
    line = perform(make_plan(given).runs[0], tmp_path / "run", folder)
    result = line["result"]
    assert result["density"] == [] and result["dead_heads"] is None
    assert result["lengths"]["32"]["density"] is None


def test_a_diverged_run_has_a_line_too(tmp_path, folder):
    given = plan()
    given["learning_rates"] = [1e6]
    line = perform(make_plan(given).runs[0], tmp_path / "run", folder)
    assert line["outcome"] == "diverged" and line["result"] is None and "diverged" in line["message"]


def test_the_test_text_is_not_trained_on(folder):
    corpus = text_of("words", ("some.txt",), "other.txt", folder)
    text = (folder / "some.txt").read_text()
    assert corpus.train + corpus.validation == text and len(corpus.validation) < 0.12 * len(text)
    assert corpus.test == (folder / "other.txt").read_text()
    whole = text_of("words", ("some.txt",), "other.txt", folder, "third.txt")
    assert whole.train == text and whole.validation == (folder / "third.txt").read_text()
    assert whole.sources == ("some.txt", "third.txt", "other.txt")
    with pytest.raises(UserError, match="needs one for test"):
        text_of("words", ("some.txt",), None, folder, "third.txt")


def test_lines_do_not_name_this_machines_folders(tmp_path, folder):
    given = "syncattn study plan.toml --data '/home/a b/data' --out=/tmp/x --workers 2"
    assert portable(given) == "syncattn study plan.toml --data DIR --out=OUT --workers 2"
    assert portable("syncattn study plan.toml --data d") == "syncattn study plan.toml --data DIR"
    assert portable("syncattn study my--data x") == "syncattn study my--data x"
    assert text_of("words", ("some.txt",), "other.txt", folder).sources == ("some.txt", "other.txt")
    alone = text_of("words", ("some.txt",), None, folder)
    assert alone.sources == ("some.txt",) and str(folder) not in " ".join(alone.notes)
    line = perform(make_plan(plan()).runs[0], tmp_path / "run", folder)
    assert str(folder) not in json.dumps(line)


def test_dead_heads_are_those_that_hear_one_token_only():
    torch.manual_seed(0)
    model = OSNForCausalLM(OSNConfig(**SIZES)).eval()
    ids = torch.randint(0, 256, (2, 24))
    assert dead_heads(model, ids) == 0
    with torch.no_grad():
        model.model.layers[1].self_attn.raw_coupling[0] = -20.0
    assert dead_heads(model, ids) == 1
    assert dead_heads(TransformerForCausalLM(TransformerConfig(**SIZES)), ids) is None


def test_losses_by_length_see_the_same_text():
    torch.manual_seed(0)
    model = OSNForCausalLM(OSNConfig(**SIZES)).eval()
    tokens = torch.randint(0, 256, (400,))
    short = loss_at(model, tokens, 32, 400)
    ids = tokens[:32][None]
    with torch.no_grad():
        first = float(model(input_ids=ids, labels=ids).loss)
    assert loss_at(model, tokens, 32, 32)["loss"] == pytest.approx(first, rel=1e-6)
    assert 0 < short["density"] < 1
    long = loss_at(model, tokens, 100, 400)
    (first, near), (second, far) = long["by_position"]  # tokens 1 to 63 and 64 to 99
    assert (first, second) == (1, 64) and short["by_position"] == [[1, pytest.approx(short["loss"])]]
    assert (63 * near + 36 * far) / 99 == pytest.approx(long["loss"], rel=1e-6)
    with pytest.raises(UserError, match="400 tokens, fewer than one window of 500"):
        loss_at(model, tokens, 500, 1000)


TOML = """
seeds = [0]
learning_rates = [0.01]
tasks = ["words"]
[model]
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
[training]
context = 32
batch_size = 4
steps = 4
final_eval_tokens = 256
[task.words]
kind = "text"
text = ["some.txt"]
test = "other.txt"
[[group]]
name = "g"
kind = "comparison"
[[group.variant]]
name = "osn"
[[group.variant]]
name = "transformer"
model = "transformer"
"""


def test_the_command(tmp_path, folder):
    (tmp_path / "plan.toml").write_text(TOML)
    arguments = ["study", str(tmp_path / "plan.toml"), "--out", str(tmp_path / "out"), "--data", str(folder)]
    result = CliRunner().invoke(app, [*arguments, "--quiet"])
    assert result.exit_code == 0, result.output
    assert "g/words/osn/lr0.01/seed0: validation" in result.output
    assert len(read_lines(tmp_path / "out" / "runs.jsonl")) == 2
    assert len(json.loads((tmp_path / "out" / "plan.json").read_text())) == 2
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0 and "validation" not in again.output
    page = tmp_path / "out" / "report.html"
    assert f"report: {page}" in again.output.replace("\n", "") and "plan is complete" in page.read_text()


def test_the_end_of_the_time_stops_it_and_it_goes_on(tmp_path, folder, monkeypatch):
    """As if Ctrl-C had come in the middle of a step, but that the command has done what it was told."""
    predicted = TOML.replace('name = "osn"', 'name = "osn"\nprediction = "The better of the two."')
    (tmp_path / "plan.toml").write_text(predicted)
    arguments = ["study", str(tmp_path / "plan.toml"), "--out", str(tmp_path / "out"), "--data", str(folder)]
    real = Loop.training_step

    def wait_in_step_two(self, *args, **kwargs):
        if self.state.global_step == 1:
            signal.setitimer(signal.ITIMER_REAL, 1e-4)
            time.sleep(0.05)
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "training_step", wait_in_step_two)
        result = CliRunner().invoke(app, [*arguments, "--seconds", "1e6", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "the time is up" in result.output and not (tmp_path / "out" / "runs.jsonl").exists()
    (run,) = (tmp_path / "out" / "runs").iterdir()
    assert (run / "checkpoints" / "checkpoint-2").is_dir()
    again = CliRunner().invoke(app, [*arguments, "--quiet", "--backend", "tiled"])
    assert again.exit_code == 0, again.output
    assert read_lines(tmp_path / "out" / "runs.jsonl")[0]["prediction"] == "The better of the two."


def test_what_the_workers_are_told():
    given = ["study", "p.toml", "--workers", "3", "--seconds=9", "--out", "o", "--device=cpu"]
    kept = ["study", "p.toml", "--out", "o", "--device=cpu"]
    assert without(given, "--workers", "--seconds") == kept
    assert without(["study", "--workers=2", "--seconds", "5"], "--workers", "--seconds") == ["study"]


def test_where_and_how_long(tmp_path, folder):
    """Device and backend are no settings of a run: its line may come from anywhere."""
    (tmp_path / "plan.toml").write_text(TOML.replace('name = "osn"', 'name = "osn"\nprediction = "Even."'))
    arguments = ["study", str(tmp_path / "plan.toml"), "--out", str(tmp_path / "out"), "--data", str(folder)]
    result = CliRunner().invoke(app, [*arguments, "--quiet", "--device", "cpu", "--backend", "tiled"])
    assert result.exit_code == 0, result.output
    first, second = read_lines(tmp_path / "out" / "runs.jsonl")
    assert first["prediction"] == "Even." and "prediction" not in second
    assert first["options"]["backend"] == "tiled" and second["options"]["backend"] is None
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0 and "validation" not in again.output
    for given, reason in (
        (("--seconds", "0"), "--seconds must be positive and below 1e8, got 0.0"),
        (("--device", "tpu"), "device must be 'auto', 'cpu' or 'cuda', got 'tpu'"),
    ):
        result = CliRunner().invoke(app, [*arguments, *given])
        assert result.exit_code == 1 and reason in result.output


def test_what_the_command_refuses(tmp_path, folder):
    def complaint(text=TOML, out="out", data=folder, *more):
        (tmp_path / "plan.toml").write_text(text)
        given = [
            "study",
            str(tmp_path / "plan.toml"),
            "--out",
            str(tmp_path / out),
            "--data",
            str(data),
            *more,
        ]
        result = CliRunner().invoke(app, given)
        assert result.exit_code == 1 and not (tmp_path / "out").exists()
        return result.output

    assert "cannot read" in complaint(data=tmp_path / "none")
    assert "--group must be one of g" in complaint(TOML, "out", folder, "--group", "h")
    assert "hidden_sizes" in complaint(TOML.replace("hidden_size", "hidden_sizes"))
    assert "num_attention_heads" in complaint(
        TOML.replace("num_attention_heads = 2", "num_attention_heads = 3")
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    assert "is not empty and has no study" in complaint(out="full")


@torch.no_grad()
def test_long_windows_are_read_in_pieces_with_the_same_result(monkeypatch):
    torch.manual_seed(0)
    models = (
        OSNForCausalLM(OSNConfig(**SIZES, initializer_range=0.2)),
        TransformerForCausalLM(TransformerConfig(**SIZES, position="alibi", initializer_range=0.2)),
    )
    tokens = torch.randint(0, 256, (300,))
    for model in models:
        whole = loss_at(model.eval(), tokens, 100, 300)
        with monkeypatch.context() as patch:
            patch.setattr("syncattn_lab.study.run.PIECE", 32)
            assert loss_at(model, tokens, 100, 300)["by_position"] == [
                [begin, pytest.approx(loss, rel=1e-5)] for begin, loss in whole["by_position"]
            ]
