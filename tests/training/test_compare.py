"""Comparisons: matched, resumable run by run, reported in full."""

import json
import signal
from dataclasses import replace

import pytest
import torch

import syncattn.training.compare as compare_module
from syncattn.models import OSNConfig
from syncattn.training import once
from syncattn.training.compare import compare, mean_and_spread, prompt_from, sentence_from
from syncattn.training.contenders import contenders
from syncattn.training.data import Corpus
from syncattn.training.errors import Interrupted, UserError
from syncattn.training.loop import Loop
from syncattn.training.options import Sampling, TrainingOptions
from syncattn.training.report import render, table_rows


@pytest.fixture(scope="module")
def finished(tmp_path_factory, corpus, tokenizer):
    """Both baselines, two seeds, and two learning rates."""
    config = OSNConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    options = TrainingOptions(
        context=16, batch_size=4, steps=4, eval_tokens=64, final_eval_tokens=128, device="cpu", threads=1
    )
    out = tmp_path_factory.mktemp("compare") / "out"
    entrants = contenders(config, ("alibi", "rotary"), (0.01, 0.001))
    results = compare(entrants, corpus, tokenizer, out, options, seeds=(0, 1), sampling=Sampling(8))
    return entrants, options, out, results


def again(finished, corpus, tokenizer, out=None, options=None, **keywords):
    entrants, old, folder, _ = finished
    keywords = {"seeds": (0, 1), "sampling": Sampling(8)} | keywords
    return compare(entrants, corpus, tokenizer, out or folder, options or old, **keywords)


def test_entrants_have_equally_many_parameters(finished):
    _, _, _, results = finished
    counts = [model["parameters"] for model in results["models"]]
    assert max(counts) / min(counts) < 1.01
    assert [model["name"] for model in results["models"]] == ["osn", "alibi", "rotary"]


def test_the_osn_can_be_explored(finished):
    _, _, out, results = finished
    assert results["explorer"] == "explorer.html"
    page = (out / "explorer.html").read_text()
    assert "The OSN of this comparison reads validation text" in page and len(page) < 5e6


def test_an_osn_that_cannot_be_shown_costs_no_results(finished, corpus, tokenizer, monkeypatch, copied):
    def refuse(*args, **kwargs):
        raise UserError("the model cannot be shown")

    out = copied(finished[2])
    monkeypatch.setattr(compare_module, "explore_text", refuse)
    results = again(finished, corpus, tokenizer, out=out)
    assert results["explorer"] is None and (out / "results.json").is_file()
    assert "explorer.html" not in render(results)


def test_all_see_the_same_data_and_budget(finished):
    _, _, _, results = finished
    runs = [run for model in results["models"] for run in model["runs"]]
    ignored = ("learning_rate", "seed")
    settings = [{k: v for k, v in run["options"].items() if k not in ignored} for run in runs]
    assert all(each == settings[0] for each in settings)
    assert len({run["data"]["sha256"] for run in runs}) == 1
    assert [run["options"]["seed"] for run in results["models"][0]["runs"]] == [0, 1]


def test_each_keeps_its_best_learning_rate(finished):
    _, _, out, results = finished
    assert len(list((out / "runs").iterdir())) == 3 * (2 + 1)
    for model in results["models"]:
        tried = results["learning_rate_grid"][model["name"]]
        best = min(tried, key=lambda entry: entry["validation_loss"])
        assert [entry["learning_rate"] for entry in tried] == [0.01, 0.001]
        assert model["learning_rate"] == best["learning_rate"]
        assert all(run["options"]["learning_rate"] == best["learning_rate"] for run in model["runs"])


def test_results_hold_every_number(finished):
    _, _, out, results = finished
    assert json.loads((out / "results.json").read_text()) == results
    for model in results["models"]:
        losses = [run["result"]["validation_loss"] for run in model["runs"]]
        assert (model["validation_loss"], model["validation_spread"]) == mean_and_spread(losses)
        size = len(results["labels"])
        assert [len(layer) for layer in model["weights"]] == [2, 2]
        for layer in model["weights"]:
            for head in layer:
                assert len(head) == size and all(len(row) == size for row in head)
                assert all(sum(row) == pytest.approx(1, abs=1e-2) or sum(row) == 0 for row in head)
                assert all(w == 0 for i, row in enumerate(head) for w in row[i + 1 :])
        assert model["sample"]
    assert 0 < results["models"][0]["density"] < 1 and results["models"][1]["density"] is None


def test_finished_runs_are_not_repeated(finished, corpus, tokenizer, monkeypatch):
    monkeypatch.setattr(once, "train", lambda *args, **kwargs: pytest.fail("trained again"))
    results = again(finished, corpus, tokenizer)
    assert [m["validation_loss"] for m in results["models"]] == [
        m["validation_loss"] for m in finished[3]["models"]
    ]


@pytest.mark.parametrize("value", [float("nan"), "low", None])
def test_a_damaged_record_is_refused(value, finished, corpus, tokenizer, copied, monkeypatch):
    monkeypatch.setattr(once, "train", lambda *args, **kwargs: pytest.fail("trained again"))
    out = copied(finished[2])
    path = out / "runs" / "osn-lr0.01-seed0" / "training.json"
    record = json.loads(path.read_text())
    record["result"]["test_loss"] = value
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"osn-lr0.01-seed0.training.json"):
        again(finished, corpus, tokenizer, out=out)


def test_runs_with_other_settings_are_refused(finished, corpus, tokenizer):
    _, options, out, _ = finished
    before = sorted(out.rglob("*"))
    with pytest.raises(UserError, match=r"other settings \(steps differ\).*--overwrite"):
        again(finished, corpus, tokenizer, options=replace(options, steps=5))
    with pytest.raises(UserError, match=r"other settings \(text differ\)"):
        again(finished, replace(corpus, train=corpus.train + "more"), tokenizer)
    assert sorted(out.rglob("*")) == before


def test_a_folder_of_other_origin_is_refused(finished, corpus, tokenizer, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        again(finished, corpus, tokenizer, out=tmp_path)


def test_an_interrupted_comparison_goes_on(finished, corpus, tokenizer, tmp_path, monkeypatch):
    entrants, options, _, _ = finished
    steps = []
    real = Loop.training_step

    def training_step(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == 6:  # in the second run
            signal.raise_signal(signal.SIGINT)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Loop, "training_step", training_step)
    one_rate = [replace(entrant, learning_rates=(0.01,)) for entrant in entrants[:2]]
    with pytest.raises(
        Interrupted, match=r"alibi-lr0.01-seed0: stopped at step 2; start the same command again"
    ):
        compare(one_rate, corpus, tokenizer, tmp_path / "out", options, sampling=Sampling(8))
    assert not (tmp_path / "out" / "results.json").exists()
    resumed = compare(one_rate, corpus, tokenizer, tmp_path / "out", options, sampling=Sampling(8))
    assert len(steps) == 8  # nothing was done twice
    whole = compare(one_rate, corpus, tokenizer, tmp_path / "whole", options, sampling=Sampling(8))
    for a, b in zip(resumed["models"], whole["models"], strict=True):
        assert a["validation_loss"] == b["validation_loss"] and a["sample"] == b["sample"]


def test_a_learning_rate_that_diverges_loses(finished, corpus, tokenizer, tmp_path):
    entrants, options, _, _ = finished
    both = [replace(entrant, learning_rates=(1e30, 0.01)) for entrant in entrants[:2]]
    results = compare(both, corpus, tokenizer, tmp_path / "out", options, sampling=Sampling(8))
    assert [model["learning_rate"] for model in results["models"]] == [0.01, 0.01]
    assert results["learning_rate_grid"]["osn"][0] == {"learning_rate": 1e30, "validation_loss": None}
    assert "diverged" in render(results)
    only = [replace(entrants[0], learning_rates=(1e30,))]
    with pytest.raises(UserError, match="OSN diverged with learning rate 1e"):
        compare(only, corpus, tokenizer, tmp_path / "out", options)


def test_bad_arguments_are_refused(config, finished, corpus, tokenizer, tmp_path):
    for baselines in ((), ("learned",)):
        with pytest.raises(UserError, match="baselines must be among"):
            contenders(config, baselines, (0.01,))
    with pytest.raises(UserError, match="no learning rate"):
        contenders(config, ("alibi",), ())
    with pytest.raises(UserError, match="delay must be"):
        contenders(config, ("alibi",), (0.01,), baseline_delay=2.0)
    with pytest.raises(UserError, match="no seed"):
        again(finished, corpus, tokenizer, out=tmp_path / "out", seeds=())


def test_everything_is_checked_before_anything_is_trained(finished, corpus, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(once, "train", lambda *args, **kwargs: pytest.fail("trained"))
    entrants, options, _, _ = finished
    baseline = replace(entrants[2], learning_rates=(-1.0,))
    cases = [
        (
            "Transformer, rotary, delay, token shift, gate: learning_rate must be",
            {"entrants": [entrants[0], baseline]},
        ),
        ("OSN: seed must be from 0", {"seeds": (0, -1)}),
        ("the prompt is empty", {"prompt": ""}),
        ("shorter than the context", {"corpus": Corpus("abc", "", "", ("x",))}),
        ("sees no CUDA device", {"options": replace(options, device="cuda")}),
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for message, changed in cases:
        arguments = {"entrants": entrants, "corpus": corpus, "options": options} | changed
        with pytest.raises(UserError, match=message):
            compare(tokenizer=tokenizer, out=tmp_path / "out", **arguments)
        assert not (tmp_path / "out").exists()


def test_near_learning_rates_have_runs_of_their_own(finished):
    keys = {compare_module._key(finished[0][0], rate, 0) for rate in (0.01, 0.0100000001)}
    assert keys == {"osn-lr0.01-seed0", "osn-lr0.0100000001-seed0"}


def test_one_seed_has_no_spread(finished):
    assert mean_and_spread([2.0]) == (2.0, None)
    _, _, _, results = finished
    models = [{**model, "validation_spread": None, "test_spread": None} for model in results["models"]]
    assert not any("±" in cell for row in table_rows(models) for cell in row)
    assert all("±" in row[3] for row in table_rows(results["models"])[1:])


def test_sentences_and_prompts_come_from_the_text():
    text = (
        "short\n" * 50 + "x = 1 + 2 + 3 + 4 + 5 + 6 + 7 + 8\n" + "The phase of each oscillator drifts.\n" * 3
    )
    assert sentence_from(text) == "The phase of each oscillator drifts."
    assert sentence_from("x" * 500) == "x" * 40
    assert prompt_from("one line\n") == "one line\n"
    assert prompt_from(text) in text and prompt_from("x" * 500) == "x" * 120
