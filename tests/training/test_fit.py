"""A run of one model on windows alone: no folder, and nothing changed but the model's weights."""

import signal
from dataclasses import replace

import pytest
import torch
from transformers import TrainerCallback

from syncattn.models import OSNForCausalLM
from syncattn.training.errors import Interrupted, UserError
from syncattn.training.fit import fit, parameter_count, starting_partners
from syncattn.training.record import Record
from syncattn.training.tokenizers import encode
from syncattn.training.train import windows_of
from syncattn.training.windows import EvaluationWindows, RandomWindows, Windows


@pytest.fixture
def windows(corpus, tokenizer, options):
    return windows_of({name: encode(tokenizer, getattr(corpus, name)) for name in PARTS}, options)


PARTS = ("train", "validation", "test")


@pytest.fixture
def model(config, options):
    torch.manual_seed(options.seed)
    return OSNForCausalLM(config)


def test_it_is_the_run_of_train_and_writes_nothing(model, windows, options, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    caches = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            caches.append(model.config.use_cache)

    fitted = fit(model, windows, options, callbacks=[Look()])
    record, _ = finished
    wanted = {"validation": record.result.validation_loss, "test": record.result.test_loss}
    assert fitted.losses == wanted and fitted.density == record.result.density
    times = {"tokens_per_second"}
    for one, other in zip(fitted.history, record.history, strict=True):
        assert {k: v for k, v in one.items() if k not in times} == {
            k: v for k, v in other.items() if k not in times
        }
    assert fitted.parameters == record.parameters == parameter_count(model)
    assert caches == [True] * options.steps  # what a checkpoint saves is what the model was given
    assert not list(tmp_path.iterdir())


def test_heads_start_from_partners_where_those_are_fewer(model, options):
    long, short = (replace(options, context=context, start_partners=16.0) for context in (8192, 64))
    assert starting_partners(model, long) == (8.0, 80.0)
    assert starting_partners(model, short) is None  # densities of the first heads are lower than that
    assert starting_partners(model, replace(long, start_partners=None)) is None
    # of packed windows their texts' lengths count
    texts = torch.arange(8192)[None]
    assert starting_partners(model, long, texts * 0) == (8.0, 80.0)
    assert starting_partners(model, long, texts // 20) is None
    assert starting_partners(model, long, texts.where(texts < 20, -1)) is None


def test_windows_of_ones_own(model, options):
    tokens = torch.arange(400) % 7
    own = Windows(RandomWindows(tokens, 16, 16, 0), EvaluationWindows(tokens, 16), tokens[None, :16])
    fitted = fit(model, own, replace(options, steps=4))
    assert fitted.losses == {} and fitted.history[-1]["step"] == 4


def test_windows_in_which_nothing_can_be_calibrated(model, options):
    tokens = torch.arange(400) % 7
    own = Windows(RandomWindows(tokens, 2, 16, 0), EvaluationWindows(tokens, 2), tokens[None, :2])
    short = replace(options, steps=2, context=2)
    with pytest.raises(UserError, match="calibrate must be False with such a first batch: squared_detuning"):
        fit(model, own, short)
    assert fit(model, own, replace(short, calibrate=False)).history


def test_a_stop_says_at_which_step(model, windows, options, stop_at, monkeypatch):
    stop_at(monkeypatch, 3, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Interrupted, match=r"^stopped at step 3 of 12$") as caught:
        fit(model, windows, options)
    assert caught.value.step == 3


def test_a_backend_and_a_device_are_not_ignored(model, windows, options, monkeypatch):
    with pytest.raises(UserError, match="backend must be one of"):
        fit(model, windows, replace(options, backend="cpp"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="sees no CUDA device"):
        fit(model, windows, replace(options, device="cuda"))


@pytest.mark.parametrize(
    "change",
    [{"format": 2}, {"more": 1}, {"result": 1}, {"history": None}, {"parameters": True}, {"device": ...}],
)
def test_a_record_that_is_none_is_refused(change, finished):
    record, out = finished
    fields = {k: v for k, v in (record.to_json() | change).items() if v is not ...}
    with pytest.raises(UserError, match=r"training\.json is no record that syncattn wrote"):
        Record.from_json(fields, out / "training.json")
