"""A short training against the original: what it reaches, what it leaves behind, and what it refuses."""

import copy

import pytest
import torch
from transformers import AutoModel, BertConfig, BertModel
from transformers.utils import logging

from syncattn.integrations import distillation
from syncattn.integrations.conversion import convert, mean_pooled
from syncattn.integrations.distillation import distil
from syncattn.integrations.transformers import register

logging.set_verbosity_error()
SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
OPTIONS = {"density": 0.4, "steps": 8, "progress": False}


def encoder(**sizes):
    torch.manual_seed(0)
    return BertModel(BertConfig(**{**SIZES, **sizes})).eval()


def batches(count=9, length=16):
    torch.manual_seed(1)
    return [{"input_ids": torch.randint(3, 40, (4, length))} for _ in range(count)]


@pytest.fixture
def sparse():
    """A model that was converted to half of the pairs, made once."""
    register()
    model = encoder()
    model.set_attn_implementation("ssa")
    model.config.ssa_coupling = [[4.0, 4.0], [4.0, 4.0]]
    return model


def state(model):
    config = model.config
    weights = {name: x.clone() for name, x in model.state_dict().items()}
    return config._attn_implementation, config.ssa_coupling, weights


def same(one, other):
    return one[:2] == other[:2] and all(torch.equal(x, other[2][name]) for name, x in one[2].items())


@torch.no_grad()
def cosine(model, original, data):
    rows = [[mean_pooled(each(**batch), batch) for batch in data] for each in (model, original)]
    return torch.cosine_similarity(*map(torch.cat, rows), dim=-1).mean().item()


def test_it_recovers_what_the_zeros_took(tmp_path, capfd):
    model, original, data = encoder(), encoder(), batches()
    only = copy.deepcopy(model)
    convert(only, data, density=0.3)
    done = distil(model, original, data, density=0.3, steps=60, learning_rate=3e-3)
    assert done.mean_density <= 0.3
    held = data[7:8]
    assert done.cosine == pytest.approx(cosine(model, original, held), abs=1e-5)
    assert 1 - done.cosine < 0.8 * (1 - cosine(only, original, held))
    assert torch.equal(model.embeddings.word_embeddings.weight, original.embeddings.word_embeddings.weight)
    assert "distilling   0%  step 0" in capfd.readouterr().err
    assert all(x.requires_grad and x.grad is None for x in model.parameters()) and not model.training
    assert original.config._attn_implementation != "ssa"
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, attn_implementation="ssa")
    assert cosine(again, model, held) == pytest.approx(1, abs=1e-6)


def test_a_folder_as_the_original_and_a_budget_in_seconds(sparse, tmp_path):
    encoder().save_pretrained(tmp_path)
    done = distil(sparse, tmp_path, batches(), density=0.4, seconds=0.5, progress=False)
    assert done.mean_density <= 0.4


def test_what_is_interrupted_is_as_it_was_and_goes_on(sparse, tmp_path, monkeypatch):
    data, original = batches(), encoder()
    whole = copy.deepcopy(sparse)
    distil(whole, original, data, **OPTIONS)
    learn, before = distillation._Run._learn, state(sparse)

    def stopped(run, share):
        if run.step == 5:
            raise KeyboardInterrupt
        return learn(run, share)

    monkeypatch.setattr(distillation._Run, "_learn", stopped)
    with pytest.raises(KeyboardInterrupt):
        distil(sparse, original, data, **OPTIONS, folder=tmp_path, save_seconds=0)
    assert same(before, state(sparse))
    assert [path.name for path in tmp_path.iterdir()] == ["distillation.safetensors"]
    with pytest.raises(ValueError, match=r"of a distillation with density 0.4, got 0.5: go on as it began"):
        distil(sparse, original, data, density=0.5, steps=8, folder=tmp_path)
    steps = []
    monkeypatch.setattr(
        distillation._Run, "_learn", lambda run, x: (steps.append(run.step), learn(run, x))[1]
    )
    distil(sparse, original, data, **OPTIONS, folder=tmp_path)
    assert steps == [5, 6, 7] and not list(tmp_path.iterdir())
    for name, x in whole.state_dict().items():  # as if it had not been stopped
        # a key's bias has no slope but rounding's, which AdamW makes steps of
        torch.testing.assert_close(sparse.state_dict()[name], x, atol=1e-4 + ("key.bias" in name), rtol=1e-4)
    assert whole.config.ssa_coupling == sparse.config.ssa_coupling


def test_a_damaged_file_is_refused(sparse, tmp_path):
    (tmp_path / "distillation.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(ValueError, match="is damaged or no distillation's"):
        distil(sparse, encoder(), batches(), **OPTIONS, folder=tmp_path)


def test_a_training_that_diverges_changes_nothing(sparse):
    before = state(sparse)
    with pytest.raises(
        RuntimeError, match=r"the training diverged at step .*: use a lower learning_rate than"
    ):
        distil(sparse, encoder(), batches(), density=0.4, steps=8, learning_rate=1e30, progress=False)
    assert same(before, state(sparse))


def test_a_model_that_was_not_converted_is_not_either_afterwards():
    model, data = encoder(), batches()
    before = model.config.to_dict(), {name: x.clone() for name, x in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="the training diverged"):
        distil(model, encoder(), data, density=0.4, steps=4, learning_rate=1e30, progress=False)
    assert model.config.to_dict() == before[0] and model.config._attn_implementation != "ssa"
    assert all(torch.equal(x, before[1][name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"steps": None}, ValueError, "exactly one of seconds and steps must be given, got None and None"),
        ({"density": 2.0}, ValueError, "density must be between 0 and 1, got 2.0"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate must be positive and finite, got 0.0"),
        ({"seed": -1}, ValueError, "seed must be an integer, at least 0, got -1"),
        ({"model": torch.nn.Linear(2, 2)}, TypeError, "model must be a model of transformers, got Linear"),
        ({"model": lambda: encoder().bfloat16()}, ValueError, "model must be float32 to be trained, got"),
        (
            {"data": lambda: batches(1)},
            ValueError,
            "data must hold at least 2 batches, one is held out, got 1",
        ),
        ({"original": 5}, TypeError, "original must be a model, a name or a folder, got int"),
        (
            {"original": lambda: encoder(intermediate_size=20)},
            ValueError,
            "of the model's architecture, they",
        ),
        ({"original": "model"}, ValueError, "original must be another model than model"),
        ({"folder": __file__}, OSError, "folder must be one that can be written to, got"),
        ({"data": lambda: batches(3, 2)}, ValueError, "density must be at least 0.5, that of the shortest"),
    ],
)
def test_wrong_arguments(sparse, change, kind, message):
    given = {"model": sparse, "original": encoder(), "data": batches, **OPTIONS, **change}
    given = {
        name: x() if callable(x) and not isinstance(x, torch.nn.Module) else x for name, x in given.items()
    }
    if given["original"] == "model":
        given["original"] = given["model"]
    before = state(sparse)
    with pytest.raises(kind, match=message):
        distil(given.pop("model"), given.pop("original"), given.pop("data"), **given)
    assert same(before, state(sparse))


def test_an_original_in_training_is_compared_with_as_in_evaluation(sparse):
    data, found = batches(4), []
    for training in (False, True):
        model, original = copy.deepcopy(sparse), encoder().train(training)
        distil(model, original, data, **OPTIONS | {"steps": 2})
        assert original.training is training and original.encoder.training is training
        found.append(state(model))
    assert same(*found)  # there was no dropout


@pytest.mark.parametrize("other", ["original", "data"])
def test_another_original_or_other_data_do_not_go_on(sparse, tmp_path, monkeypatch, other):
    learn = distillation._Run._learn

    def interrupted(run, share):
        if run.step == 2:
            raise KeyboardInterrupt
        return learn(run, share)

    call = {"original": encoder(), "data": batches(4)}
    options = OPTIONS | {"folder": tmp_path, "save_seconds": 0}
    monkeypatch.setattr(distillation._Run, "_learn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        distil(sparse, **call, **options)
    monkeypatch.undo()
    before, file = state(sparse), (tmp_path / distillation.FILE).read_bytes()
    if other == "data":
        changed = call | {"data": [{"input_ids": x["input_ids"].flip(1)} for x in call["data"]]}
    else:
        changed = call | {"original": copy.deepcopy(call["original"])}
        changed["original"].encoder.layer[0].output.dense.bias.data += 0.1
    with pytest.raises(ValueError, match=f"is of a distillation with {other} '[0-9a-f]+', got '"):
        distil(sparse, **changed, **options)
    assert same(before, state(sparse)) and (tmp_path / distillation.FILE).read_bytes() == file
    distil(sparse, **call, **options)
    assert list(tmp_path.iterdir()) == []
