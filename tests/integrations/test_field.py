"""The mean of a text's values in the place of what a head cuts off."""

import copy

import pytest
import torch
from transformers import AutoModel, BertConfig, BertModel, LlamaConfig, LlamaModel

import syncattn
from syncattn.integrations.conversion import convert
from syncattn.integrations.field import add_field
from syncattn.integrations.transformers import register

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.2,
    "attn_implementation": "ssa",
}


def encoder(seed=0):
    torch.manual_seed(seed)
    register()
    return BertModel(BertConfig(**SIZES)).eval()


def batches(count=6, padded=True):
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(count):
        mask = torch.ones(4, 20, dtype=torch.int64)
        if padded:
            mask[1, 11:] = 0
        found.append({"input_ids": torch.randint(50, (4, 20), generator=generator), "attention_mask": mask})
    return found


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_field_is_weights_that_all_share(masked, kv_heads):
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(2, kv_heads, 7, 5, generator=generator)
    weight = torch.rand(2, 4, 6, 7, generator=generator)
    mask = torch.ones(2, 1, 6, 7, dtype=torch.bool)
    if masked:
        mask[1, :, :, 4:] = False
    weight = weight * mask / (weight * mask).sum(-1, keepdim=True)
    each = value.repeat_interleave(4 // kv_heads, 1)
    share = torch.tensor([0.0, 0.3, 0.7, 1.0])
    out, mixed = add_field(weight @ each, weight, value, mask if masked else None, share)
    assert torch.allclose(mixed.sum(-1), torch.ones(()))
    assert torch.allclose(out, mixed @ each, atol=1e-6)
    assert torch.equal(mixed[:, 0], weight[:, 0]) and not (mixed * ~mask).any()


def test_nothing_of_padding_comes_in():
    value = torch.randn(1, 1, 4, 3)
    value[:, :, 3] = torch.nan
    mask = torch.tensor([True, True, True, False])[None, None, None]
    out, _ = add_field(torch.zeros(1, 1, 4, 3), None, value, mask, torch.tensor([0.5]))
    assert torch.allclose(out, 0.5 * value[:, :, :3].mean(2, keepdim=True))


def test_a_text_without_tokens_stays_zero():
    mask = torch.zeros(1, 1, 1, 4, dtype=torch.bool)
    out, weight = add_field(
        torch.zeros(1, 1, 4, 3), torch.zeros(1, 1, 4, 4), torch.randn(1, 1, 4, 3), mask, torch.tensor([0.5])
    )
    assert not out.any() and not weight.any()


def test_conversion_with_a_field_is_nearer_at_the_same_density():
    model, data = encoder(), batches()
    plain = convert(copy.deepcopy(model), data, density=0.3)
    done = convert(model, data, density=0.3, field=True)
    assert done.mean_density <= 0.3 and done.field == model.config.ssa_field and plain.field is None
    assert 1 - done.cosine < 0.8 * (1 - plain.cosine)
    assert all(0 <= share <= 1 for row in done.field for share in row) and "share of the field" in str(done)


@torch.no_grad()
def test_it_is_saved_and_loaded(tmp_path):
    model, data = encoder(), batches()
    convert(model, data, density=0.3, field=True, refit=True)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, attn_implementation="ssa")
    assert again.config.ssa_field == model.config.ssa_field
    expected = model(**data[0], output_attentions=True)
    given = again(**data[0], output_attentions=True)
    assert torch.equal(given[0], expected[0])
    for weight in given.attentions:
        assert torch.allclose(weight.sum(-1), torch.ones(()), atol=1e-5)


def test_gradients_reach_all_values():
    model = encoder()
    model.config.ssa_coupling, model.config.ssa_field = 1.0, 0.5
    model(**batches(1)[0])[0].sum().backward()
    assert all(x.grad is not None for x in model.encoder.parameters())


def test_a_failed_conversion_leaves_none():
    model, data = encoder(), batches()
    with pytest.raises(ValueError, match="density must be at least"):
        convert(model, data, density=0.0001, field=True)
    assert not hasattr(model.config, "ssa_field") and not hasattr(model.config, "ssa_coupling")
    model.config.ssa_field = 0.5
    with pytest.raises(ValueError, match="converted already: its configuration has ssa_field"):
        convert(model, data, density=0.5)


@pytest.mark.parametrize("setting", [1.5, -0.1, "x", [0.5], [[0.5] * 3] * 2])
def test_a_setting_that_does_not_fit(setting):
    model = encoder()
    model.config.ssa_field = setting
    with pytest.raises((TypeError, ValueError), match="ssa_field must"):
        model(**batches(1)[0])


def test_causal_models_are_refused():
    register()
    model = LlamaModel(LlamaConfig(**SIZES)).eval()
    model.config.ssa_field = 0.5
    for data in batches(1) + batches(1, padded=False):
        with pytest.raises(ValueError, match="ssa_field needs texts whose tokens may all attend to the same"):
            model(**data)
    model.config.ssa_field = None
    with pytest.raises(ValueError, match="ssa_field needs texts"):
        convert(model, batches(), density=0.5, field=True)
    assert getattr(model.config, "ssa_coupling", None) is None


def test_one_batch_cannot_be_held_out():
    with pytest.raises(ValueError, match="at least 2 batches with field=True"):
        convert(encoder(), batches(1), density=0.5, field=True)


def test_the_explorer_says_that_it_shows_no_field():
    model = encoder()
    inputs = {"input_ids": torch.arange(12)[None], "attention_mask": torch.ones(1, 12, dtype=torch.int64)}
    assert "ssa_field" not in syncattn.explore(model, inputs).html
    model.config.ssa_field = 0.5
    assert "config.ssa_field" in syncattn.explore(model, inputs).html
