"""Training on answers: it learns, repeats, is judged on fixed windows, and stops as training on text does."""

import math
import signal
from dataclasses import replace

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("transformers")

from syncattn.models import OSNConfig, OSNForCausalLM, TransformerConfig
from syncattn.training.errors import Diverged, Interrupted, UserError
from syncattn.training.loop import Loop
from syncattn.training.options import TrainingOptions
from syncattn_lab.study.answers import answer_scores, train_on_answers
from syncattn_lab.study.synthetic import make_task

TASK = make_task("recall", vocabulary=16, pairs=2, length=12)
SIZES = {"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
OPTIONS = TrainingOptions(
    context=12, batch_size=8, steps=20, learning_rate=0.01, log_every=5, device="cpu", threads=1
)
TIMES = ("tokens_per_second", "train_seconds", "wall_seconds")


def without_times(record):
    history = [{k: v for k, v in entry.items() if k not in TIMES} for entry in record["history"]]
    return history, {k: v for k, v in record["result"].items() if k not in TIMES}


def test_an_osn_learns_to_recall():
    options = replace(OPTIONS, steps=80, batch_size=16)
    config = OSNConfig(**SIZES | {"hidden_size": 32})
    record, model = train_on_answers(config, TASK, options, evaluate=64)
    result = record["result"]
    assert result["validation_accuracy"] > 0.9 and result["test_accuracy"] > 0.9
    assert result["validation_loss"] < 0.7 < math.log(8) and result["test_loss"] < 0.7
    assert record["parameters"] == sum(p.numel() for p in model.parameters())
    assert isinstance(model, OSNForCausalLM)
    assert len(result["density"]) == 2 and all(
        0 < share <= 1 for layer in result["density"] for share in layer
    )
    assert all(result[name] > 0 for name in TIMES)


def test_a_seed_repeats_and_history_has_every_log_and_evaluation():
    records = [train_on_answers(OSNConfig(**SIZES), TASK, OPTIONS, evaluate=16)[0] for _ in range(2)]
    assert without_times(records[0]) == without_times(records[1])
    other = train_on_answers(OSNConfig(**SIZES), TASK, replace(OPTIONS, seed=1), evaluate=16)[0]
    assert without_times(other) != without_times(records[0])
    history = {entry["step"]: entry for entry in records[0]["history"]}
    assert set(history) == {0, 5, 10, 15} | set(range(2, 21, 2))  # logs and evaluations
    assert {"loss", "grad_norm", "density", "validation_loss"} <= set(history[20])
    # The last evaluation of the run is of the same windows as the result's.
    assert history[20]["validation_loss"] == pytest.approx(records[0]["result"]["validation_loss"], rel=1e-5)


def test_a_transformer_trains_too():
    record, _ = train_on_answers(TransformerConfig(**SIZES), TASK, OPTIONS, evaluate=16)
    assert record["result"]["density"] == []
    assert 0 <= record["result"]["test_accuracy"] <= 1


def test_training_begins_from_a_calibrated_model():
    config = OSNConfig(**SIZES, density_range=(0.3, 0.3))
    record, _ = train_on_answers(config, TASK, OPTIONS, evaluate=8)
    start = record["history"][0]
    assert start["step"] == 0
    assert torch.tensor(start["density"]).mean() == pytest.approx(0.3, abs=0.12)


def test_scores_are_the_loss_of_the_model_and_the_share_of_right_answers():
    torch.manual_seed(0)
    model = OSNForCausalLM(OSNConfig(**SIZES))
    windows = TASK.windows("test", 10, 0)
    ids, labels = (torch.stack([windows[i][name] for i in range(10)]) for name in ("input_ids", "labels"))
    loss, accuracy, exact = answer_scores(model, windows, batch_size=4)
    assert model.training
    model.eval()
    with torch.no_grad():
        output = model(ids, labels=labels)
    assert loss == pytest.approx(output.loss.item(), rel=1e-5)
    right = [
        bool(output.logits[b, t - 1].argmax() == ids[b, t]) for b, t in (labels != -100).nonzero().tolist()
    ]
    assert accuracy == pytest.approx(sum(right) / len(right))
    assert exact == pytest.approx(sum(map(all, zip(right[::2], right[1::2]))) / 10)  # two answers a window


def test_all_models_are_judged_on_the_same_windows(monkeypatch):
    asked = []
    real = type(TASK).windows

    def windows(self, part, count, seed):
        asked.append((part, count, seed))
        return real(self, part, count, seed)

    monkeypatch.setattr(type(TASK), "windows", windows)
    options = replace(OPTIONS, seed=7, steps=2, eval_tokens=24)
    train_on_answers(OSNConfig(**SIZES), TASK, options, evaluate=16)
    assert asked == [("train", 16, 7), ("validation", 2, 0), ("validation", 16, 0), ("test", 16, 0)]


def test_ctrl_c_raises_interrupted_and_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    real = Loop.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step == 6:
            signal.raise_signal(signal.SIGINT)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Loop, "training_step", training_step)
    try:
        with pytest.raises(Interrupted, match="stopped at step 7 of 20"):
            train_on_answers(OSNConfig(**SIZES), TASK, OPTIONS, evaluate=8)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not list(tmp_path.iterdir())


def test_divergence_is_reported():
    options = replace(OPTIONS, learning_rate=1e8, max_grad_norm=1e8)
    with pytest.raises(Diverged, match="learning rate below 1e"):
        train_on_answers(OSNConfig(**SIZES), TASK, options, evaluate=8)


@pytest.mark.parametrize(
    ("sizes", "changes", "evaluate", "message"),
    [
        ({"vocab_size": 8}, {}, 8, "config.vocab_size must be at least the task's 16 tokens, got 8"),
        ({}, {"context": 16}, 8, "context must be the task's length, 12 tokens, got 16"),
        ({}, {}, 0, "evaluate must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(sizes, changes, evaluate, message):
    with pytest.raises(UserError, match=message):
        train_on_answers(OSNConfig(**SIZES | sizes), TASK, replace(OPTIONS, **changes), evaluate=evaluate)
