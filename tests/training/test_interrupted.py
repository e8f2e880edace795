"""A run that is stopped, by Ctrl-C, a kill or a full disk: it goes on as if nothing had been, or says how."""

import shlex
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from syncattn.models import TransformerConfig
from syncattn.training.checkpoints import find_checkpoint
from syncattn.training.data import load_corpus
from syncattn.training.errors import Interrupted, UserError
from syncattn.training.logs import EventFile, has_tensorboard
from syncattn.training.loop import Loop
from syncattn.training.train import resume, train

try:
    import resource
except ImportError:  # Windows
    resource = None


@pytest.fixture
def interrupt_at(stop_at):
    """Ctrl-C in the middle of a step."""

    def interrupt_at(patch, step, times=1):
        stop_at(patch, step, lambda: [signal.raise_signal(signal.SIGINT) for _ in range(times)])

    return interrupt_at


@pytest.mark.parametrize("step", [3, 6, 10])
def test_resumed_is_as_if_never_interrupted(
    step, finished, config, corpus, tokenizer, options, tmp_path, monkeypatch, interrupt_at, without_times
):
    record, out = finished
    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        with pytest.raises(Interrupted, match=f"stopped at step {step}; .*syncattn train --resume"):
            train(config, corpus, tokenizer, stopped, options)
    assert find_checkpoint(stopped).name == f"checkpoint-{step}"
    assert not (stopped / "training.json").exists() and not (stopped / "model.safetensors").exists()
    start = find_checkpoint(stopped) if step == 6 else stopped  # the run's folder or the checkpoint's own
    resumed = resume(start)
    assert without_times(resumed) == without_times(record)
    for name, tensor in load_file(out / "model.safetensors").items():
        assert torch.equal(tensor, load_file(stopped / "model.safetensors")[name]), name
    assert not (stopped / "checkpoints").exists()


def test_ctrl_c_twice_stops_at_once(config, corpus, tokenizer, options, tmp_path, monkeypatch, interrupt_at):
    interrupt_at(monkeypatch, 7, times=2)
    with pytest.raises(Interrupted, match="checkpoint of step 5"):
        train(config, corpus, tokenizer, tmp_path / "run", options)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("kind", ["osn", "syncattn_transformer", "from another model"])
def test_a_run_that_was_killed_before_its_first_checkpoint_goes_on_from_its_start(
    kind, config, corpus, tokenizer, options, tmp_path, finished, stop_at, without_times
):
    if kind == "syncattn_transformer":
        config = TransformerConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    init_from = str(finished[1]) if kind == "from another model" else None
    options = replace(options, steps=6, init_from=init_from)
    whole, left = tmp_path / "whole", tmp_path / "left"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 3, lambda: shutil.copytree(whole, left))  # as a kill leaves it
        record = train(config, corpus, tokenizer, whole, options)
    torn = left / "checkpoints" / ".partial-x"
    torn.mkdir()
    assert {path.name for path in left.iterdir()} - {"logs"} == {"checkpoints", "run.json", ".lock"}
    assert find_checkpoint(left).name == "start"
    with pytest.raises(UserError, match="is not empty"):
        train(config, corpus, tokenizer, left, options)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 1, lambda: torn.exists() and pytest.fail("a torn save is still there"))
        resumed = resume(left)
    assert without_times(resumed) == without_times(record) and resumed.config == record.config
    if has_tensorboard():
        assert len(list((left / "logs").iterdir())) == 1
    for name, tensor in load_file(whole / "model.safetensors").items():
        assert torch.equal(tensor, load_file(left / "model.safetensors")[name]), name


@pytest.mark.parametrize(
    ("moment", "message", "left"),
    [
        ("syncattn.training.train.encode_corpus", "^stopped; there is nothing to go on from", None),
        (
            "syncattn.training.fit.Loop",
            "^stopped; .*begin again with `syncattn train --resume",
            "start",
        ),
        ("syncattn.training.loop.Loop.create_optimizer", "^stopped at step 0; .*begin again with", "start"),
        (
            "syncattn.training.fit._measured",
            "^stopped at step 12; the checkpoint of step 1[02]",
            "checkpoint-1",
        ),
    ],
)
def test_ctrl_c_at_any_other_time_says_how_to_go_on(
    moment, message, left, config, corpus, tokenizer, options, tmp_path, monkeypatch
):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    out = tmp_path / "it's a run"
    monkeypatch.setattr(moment, interrupt)
    with pytest.raises(Interrupted, match=message) as caught:
        train(config, corpus, tokenizer, out, options)
    assert out.exists() == (left is not None)
    if left is not None:
        assert f"--resume {shlex.quote(str(out))}`" in str(caught.value)
        assert find_checkpoint(out).name.startswith(left) and not (out / ".lock").exists()


def test_ctrl_c_while_a_run_is_taken_up(unfinished, copied, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("syncattn.training.train.reload_corpus", interrupt)
    with pytest.raises(Interrupted, match=r"^stopped; the checkpoint of step 3 .*--resume"):
        resume(copied(unfinished))


def test_resume_refuses_what_is_no_unfinished_run(finished, tmp_path):
    _, out = finished
    (tmp_path / "empty").mkdir()
    cases = {
        "no such folder": tmp_path / "missing",
        "it holds no checkpoint": tmp_path / "empty",
        "is finished": out,
    }
    for message, folder in cases.items():
        with pytest.raises(UserError, match=message):
            resume(folder)


def test_resume_refuses_another_text(
    config, tokenizer, options, tmp_path, monkeypatch, text_file, interrupt_at
):
    text = tmp_path / "text.txt"
    text.write_bytes(text_file.read_bytes())
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        with pytest.raises(Interrupted):
            train(config, load_corpus([text]), tokenizer, tmp_path / "run", options)
    text.write_text(text.read_text().replace("phase", "phrase"))
    with pytest.raises(UserError, match=r"the text in .* has changed"):
        resume(tmp_path / "run")


@pytest.mark.skipif(resource is None, reason="files have no limit here")
def test_a_disk_that_fills_up_leaves_the_last_whole_checkpoint(
    config, corpus, tokenizer, options, tmp_path, monkeypatch, stop_at
):
    out = tmp_path / "run"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with monkeypatch.context() as patch:
            # No file can have more than 10 kB from step 8 on: the weights of step 10 do not fit.
            stop_at(patch, 8, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard)))
            with pytest.raises(
                UserError, match=r"cannot write a checkpoint to .*; the checkpoint of step 5"
            ) as caught:
                train(config, corpus, tokenizer, out, options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value) and "syncattn train --resume" in str(caught.value)
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["checkpoint-5", "start"]
    assert resume(out).history[-1]["step"] == 12


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.skipif(not has_tensorboard(), reason="needs tensorboard")
def test_logs_that_cannot_be_written_end_the_run_in_one_line(
    config, corpus, tokenizer, options, tmp_path, monkeypatch, capfd, stop_at
):
    out = tmp_path / "run"

    def fill():
        for log in (out / "logs").iterdir():
            log.unlink()
            log.symlink_to("/dev/full")
        (callback,) = (c for c in loops[0].callback_handler.callbacks if isinstance(c, EventFile))
        callback.file = log.open("wb", buffering=0)

    loops = []
    real = Loop.__init__
    monkeypatch.setattr(Loop, "__init__", lambda self, *args: (loops.append(self), real(self, *args))[1])
    stop_at(monkeypatch, 7, fill)
    with pytest.raises(
        UserError, match=r"cannot write the logs to .*: No space left on device; .* step 5 .*--resume"
    ):
        train(config, corpus, tokenizer, out, options)
    assert capfd.readouterr() == ("", "")
