"""One run: what it leaves, that it repeats, and what it refuses."""

import copy
import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

from syncattn.backends.select import BACKENDS
from syncattn.models import OSNConfig, OSNForCausalLM, TransformerConfig
from syncattn.nn import SelectiveSynchronizationAttention
from syncattn.training.errors import Diverged, UserError
from syncattn.training.logs import has_tensorboard
from syncattn.training.loop import Loop, has_diverged
from syncattn.training.record import Record
from syncattn.training.tokenizers import encode
from syncattn.training.train import train
from syncattn.training.windows import EvaluationWindows


def test_a_run_leaves_a_model_that_the_auto_classes_load(finished, corpus):
    record, out = finished
    names = {path.name for path in out.iterdir()} - {"logs", "generation_config.json"}
    assert names == {
        "README.md",
        "config.json",
        "model.safetensors",
        "syncattn_models.py",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
    }
    model = AutoModelForCausalLM.from_pretrained(out, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True)
    assert model.config.use_cache and len(tokenizer) == model.config.vocab_size
    tokens = encode(tokenizer, corpus.validation)
    windows = EvaluationWindows(tokens, 16, 512)
    losses = []
    for i in range(len(windows)):
        batch = {name: value[None] for name, value in windows[i].items()}
        with torch.no_grad():
            losses.append(model.eval()(**batch).loss.item())
    assert sum(losses) / len(losses) == pytest.approx(record.result.validation_loss, abs=1e-5)
    assert record.result.validation_tokens == windows.predicted


def test_the_record_has_every_number(finished):
    record, out = finished
    assert json.loads((out / "training.json").read_text()) == record.to_json()
    assert Record.from_json(record.to_json(), out / "training.json") == record
    history = {entry["step"]: entry for entry in record.history}
    assert [step for step, entry in history.items() if "loss" in entry] == [4, 8, 12]
    assert [step for step, entry in history.items() if "validation_loss" in entry] == [6, 12]
    assert [step for step, entry in history.items() if "density" in entry] == [0, 4, 8, 12]
    assert torch.tensor(history[12]["density"]).shape == (2, 2)
    assert all(history[12][name] > 0 for name in ("grad_norm", "tokens_per_second"))
    assert history[12]["loss"] < history[4]["loss"] < math.log(256) + 1
    assert record.data["characters"]["train"] > 0 and len(record.data["sha256"]) == 64
    assert record.versions["torch"] == torch.__version__ and record.machine["cores"] >= 1
    assert record.options["steps"] == 12 and record.model_type == "osn"


def test_the_same_seed_gives_the_same_losses_and_another_does_not(
    finished, config, corpus, tokenizer, options, tmp_path, without_times
):
    record, _ = finished
    again = train(config, corpus, tokenizer, tmp_path / "again", options)
    assert without_times(again) == without_times(record)
    other = train(config, corpus, tokenizer, tmp_path / "other", replace(options, seed=1))
    assert without_times(other) != without_times(record)


@pytest.mark.skipif(not has_tensorboard(), reason="needs tensorboard")
def test_tensorboard_reads_the_logs(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record, out = finished
    accumulator = EventAccumulator(str(out / "logs")).Reload()
    events = accumulator.Scalars("train/loss")
    losses = {entry["step"]: entry["loss"] for entry in record.history if "loss" in entry}
    assert {event.step: event.value for event in events} == pytest.approx(losses)
    assert {"eval/loss", "train/grad_norm", "train/density/layer_1"} <= set(accumulator.Tags()["scalars"])


def test_an_output_folder_in_use_is_refused(finished, config, corpus, tokenizer, options, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished[1], out)
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="is not empty"):
        train(config, corpus, tokenizer, out, replace(options, seed=1))
    assert (out / "model.safetensors").read_bytes() == before
    train(config, corpus, tokenizer, out, replace(options, seed=1), overwrite=True)
    assert (out / "model.safetensors").read_bytes() != before


def test_training_starts_calibrated_unless_told_otherwise(config, corpus, tokenizer, options, tmp_path):
    config = copy.deepcopy(config)
    config.density_range = (0.25, 0.5)
    options = replace(options, steps=1)
    start = train(config, corpus, tokenizer, tmp_path / "a", options).history[0]
    assert start["step"] == 0
    for layer in start["density"]:
        assert layer == pytest.approx([0.25, 0.5], abs=0.12)  # calibrated on training text, measured on other
    other = train(config, corpus, tokenizer, tmp_path / "b", replace(options, calibrate=False)).history[0]
    assert other["density"] != start["density"]


def test_the_published_form_keeps_its_start(corpus, tokenizer, options, tmp_path):
    config = OSNConfig.paper(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    record = train(config, corpus, tokenizer, tmp_path / "run", replace(options, steps=2))
    assert math.isfinite(record.result.validation_loss)


@pytest.mark.parametrize(
    ("batch_size", "steps", "windows", "gain"), [(4, [0, 10, 20], 2, 0.2), (1, [0, 20], 1, 0.4)]
)
def test_how_often_the_limits_are_looked_at(
    batch_size, steps, windows, gain, config, corpus, tokenizer, options, tmp_path, monkeypatch
):
    looks = []

    def look(model, limit, *, max_partners, gain, input_ids, **kwargs):
        looks.append((limit, max_partners, gain, len(input_ids)))

    monkeypatch.setattr("syncattn.training.loop.limit_density_", look)
    chosen = replace(options, batch_size=batch_size, steps=25, warmup=0, max_density=None, max_partners=3.0)
    record = train(config, corpus, tokenizer, tmp_path, chosen)
    assert looks == [(None, 3.0, gain, windows)] * len(steps)
    partners = torch.tensor(record.result.partners)
    torch.testing.assert_close(partners, torch.tensor(record.history[-1]["partners"]))
    ratio = partners / torch.tensor(record.result.density)  # how many senders there are, for every head
    torch.testing.assert_close(ratio, ratio[:1, :1].expand_as(ratio))


def test_a_limit_on_the_density_holds(config, corpus, tokenizer, options, tmp_path):
    long = replace(options, steps=160, coupling_lr=1.0, learning_rate=1e-4)
    free = train(config, corpus, tokenizer, tmp_path / "free", replace(long, max_density=None))
    held = train(config, corpus, tokenizer, tmp_path / "held", replace(long, max_density=0.25))

    def layers(record):
        return [sum(heads) / len(heads) for heads in record.result.density]

    assert max(layers(held)) < 0.85 * min(layers(free))


def test_couplings_and_bandwidths_can_have_a_learning_rate_of_their_own(
    config, corpus, tokenizer, options, tmp_path
):
    def moved(name, **changed):
        chosen = replace(options, max_density=None, steps=3, warmup=0, **changed)
        train(config, corpus, tokenizer, tmp_path / name, chosen)
        train(config, corpus, tokenizer, tmp_path / f"{name}-start", replace(chosen, learning_rate=1e-12))
        ends = [load_file(tmp_path / f / "model.safetensors") for f in (name, f"{name}-start")]
        own = "model.layers.0.self_attn.raw_coupling"
        other = "model.layers.0.self_attn.value_proj.weight"
        return [float((ends[0][key] - ends[1][key]).abs().max()) for key in (own, other)]

    plain, fast = moved("plain", coupling_lr=1.0), moved("fast", coupling_lr=5.0)
    assert 3 < fast[0] / plain[0] < 7  # Adam's first steps are as long as the rate
    assert 0.5 < fast[1] / plain[1] < 2


def test_a_softmax_transformer_trains_without_densities(corpus, tokenizer, options, tmp_path):
    config = TransformerConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, position="alibi")
    record = train(config, corpus, tokenizer, tmp_path / "run", replace(options, steps=4))
    assert record.result.density == [] and record.model_type == "syncattn_transformer"
    assert not any("density" in entry for entry in record.history)


def test_only_weights_of_layers_decay(config, corpus, tokenizer, options, tmp_path, monkeypatch):
    seen = {}
    real = Loop.create_optimizer

    def create_optimizer(self, model=None):
        optimizer = real(self, model)
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for group in optimizer.param_groups:
            seen.setdefault(group["weight_decay"], set()).update(names[id(p)] for p in group["params"])
        return optimizer

    monkeypatch.setattr(Loop, "create_optimizer", create_optimizer)
    config = copy.deepcopy(config)
    config.detuning = True
    train(config, corpus, tokenizer, tmp_path / "run", replace(options, steps=1))
    assert set(seen) == {0.0, 0.1}
    assert all(name.endswith(".weight") and "norm" not in name for name in seen[0.1])
    ends = {name.rpartition(".")[2] for name in seen[0.0]}
    assert {"bias", "weight", "raw_bandwidth", "raw_coupling", "log_slope", "direction", "detuning"} <= ends
    assert all("norm" in name for name in seen[0.0] if name.endswith(".weight"))


def test_a_loss_that_is_no_number_ends_the_run(config, corpus, tokenizer, options, tmp_path, monkeypatch):
    real = Trainer.training_step
    monkeypatch.setattr(Trainer, "training_step", lambda self, *args: real(self, *args) * float("nan"))
    with pytest.raises(Diverged, match=r"diverged at step 4: the loss is nan; .*below 0.01"):
        train(config, corpus, tokenizer, tmp_path / "run", options)


def test_frequencies_that_overflow_end_the_run(config, corpus, tokenizer, options, tmp_path):
    with pytest.raises(Diverged, match="diverged at step"):
        train(config, corpus, tokenizer, tmp_path / "run", replace(options, learning_rate=1e25))


def test_only_values_out_of_proportion_are_divergence(config):
    model = OSNForCausalLM(config)
    assert not has_diverged(model)
    for value in (math.nan, math.inf, 1e9):
        broken = copy.deepcopy(model)
        with torch.no_grad():
            next(broken.parameters())[0] = value
        assert has_diverged(broken)
    layer = next(m for m in model.modules() if isinstance(m, SelectiveSynchronizationAttention))
    with torch.no_grad():
        layer.raw_coupling.fill_(500.0)  # its exponential overflows
    assert has_diverged(model)


def test_another_error_while_training_is_no_divergence(
    config, corpus, tokenizer, options, tmp_path, monkeypatch
):
    def broken(self, *args, **kwargs):
        raise ValueError("a bug that speaks of finite numbers")

    monkeypatch.setattr(Loop, "training_step", broken)
    with pytest.raises(ValueError, match="a bug") as caught:
        train(config, corpus, tokenizer, tmp_path / "run", options)
    assert not isinstance(caught.value, UserError)


def test_a_start_that_fails_leaves_nothing_behind(config, corpus, tokenizer, options, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="sees no CUDA device"):
        train(config, corpus, tokenizer, tmp_path / "run", replace(options, device="cuda"))
    monkeypatch.setattr("syncattn.training.fit.calibrate", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(config, corpus, tokenizer, tmp_path / "run", options)
    assert not (tmp_path / "run").exists()


def test_mixed_precision_runs(config, corpus, tokenizer, options, tmp_path):
    record = train(config, corpus, tokenizer, tmp_path / "run", replace(options, steps=4, precision="bf16"))
    assert 2 < record.result.validation_loss < 7
    saved = load_file(tmp_path / "run" / "model.safetensors").values()
    assert {tensor.dtype for tensor in saved if tensor.is_floating_point()} == {torch.float32}


def test_a_vocabulary_that_does_not_fit_is_refused(config, corpus, tokenizer, options, tmp_path):
    config = copy.deepcopy(config)
    config.vocab_size = 100
    with pytest.raises(UserError, match="vocab_size must be at least the tokenizer's 256 tokens, got 100"):
        train(config, corpus, tokenizer, tmp_path / "run", options)
    assert not (tmp_path / "run").exists()


def test_a_text_shorter_than_the_context_leaves_nothing_behind(config, corpus, tokenizer, options, tmp_path):
    with pytest.raises(UserError, match="shorter than the context"):
        train(config, corpus, tokenizer, tmp_path / "run", replace(options, context=4096))
    assert not (tmp_path / "run").exists()


def test_the_callers_config_is_left_alone(config, corpus, tokenizer, options, tmp_path):
    before = config.to_dict()
    train(config, corpus, tokenizer, tmp_path / "run", replace(options, steps=1))
    assert config.to_dict() == before and config.use_cache


def test_a_backend_by_name_takes_all_calls_and_is_recorded(
    config, corpus, tokenizer, options, tmp_path, monkeypatch
):
    named = replace(options, backend="tiled")
    assert train(config, corpus, tokenizer, tmp_path / "run", named).options["backend"] == "tiled"
    monkeypatch.setitem(BACKENDS, "tiled", BACKENDS["tiled"]._replace(refuses=lambda call: "not today"))
    with pytest.raises(UserError, match="backend='tiled' cannot take this call: not today"):
        train(config, corpus, tokenizer, tmp_path / "refused", named)
    with pytest.raises(UserError, match="backend must be one of"):
        train(config, corpus, tokenizer, tmp_path / "none", replace(options, backend="cpp"))
    assert not (tmp_path / "refused").exists() and not (tmp_path / "none").exists()
