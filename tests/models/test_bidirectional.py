"""Models with is_causal=False: every token sees all of its text, and nothing of what is padding."""

import copy

import pytest
import torch
from transformers import AutoModel

from syncattn.models import (
    DecoderCache,
    OSNConfig,
    OSNForCausalLM,
    OSNModel,
    TransformerConfig,
    TransformerForCausalLM,
    count_parameters,
)
from syncattn.nn import SelectiveSynchronizationAttention, calibrate, locked_density

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@torch.no_grad()
def hidden(model, ids=None, **kwargs):
    return model(ids, **kwargs).last_hidden_state


def test_the_models_of_these_tests_lock_some_pairs_and_not_others(encoder, ids):
    if any(isinstance(module, SelectiveSynchronizationAttention) for module in encoder.modules()):
        for name, density in locked_density(encoder, ids).items():
            assert density.min() > 0.02 and density.mean() < 0.95, (name, density)


def test_every_token_sees_all_of_its_text(encoder, ids):
    before = hidden(encoder, ids)
    for at in (0, 6, 12):
        changed = ids.clone()
        changed[:, at] = (changed[:, at] + 7) % 39 + 1
        moved = (hidden(encoder, changed) - before).abs().amax((0, 2))
        far = 12 if at < 6 else 0
        assert moved[at] > 1e-3 and moved[far] > 1e-6, at


@pytest.mark.parametrize("side", ["left", "right", "both", "holes"])
def test_padding_changes_nothing_for_real_tokens(encoder, ids, side):
    """On either side, or between: what a text gives is what it gives alone, whatever the padding holds."""
    mask = torch.ones_like(ids)
    for row, length in enumerate([13, 9, 1]):
        missing = 13 - length
        if side == "holes":
            mask[row, torch.randperm(13, generator=torch.Generator().manual_seed(row))[:missing]] = 0
        else:
            start = {"left": missing, "right": 0, "both": missing // 2}[side]
            mask[row] = (torch.arange(13) >= start) & (torch.arange(13) < start + length)
    padded = hidden(encoder, ids, attention_mask=mask)
    other = hidden(encoder, torch.where(mask.bool(), ids, 40 - ids), attention_mask=mask)
    assert padded.isfinite().all()
    for row in range(3):
        real = mask[row].bool()
        alone = hidden(encoder, ids[row : row + 1, real])[0]
        torch.testing.assert_close(padded[row, real], alone, **TOLERANCE)
        torch.testing.assert_close(other[row, real], alone, **TOLERANCE)


def test_gradients_of_real_tokens_do_not_reach_padding(typical_encoder, ids, mask):
    embedded = typical_encoder.get_input_embeddings()(ids).detach().requires_grad_()
    out = typical_encoder(inputs_embeds=embedded, attention_mask=mask).last_hidden_state
    out[mask.bool()].square().sum().backward()
    assert (embedded.grad[mask == 0] == 0).all() and (embedded.grad[mask == 1] != 0).any()


@torch.no_grad()
def test_weights_and_hidden_states(encoder, ids, mask):
    out = encoder(ids, mask, output_attentions=True, output_hidden_states=True)
    assert len(out.attentions) == 2 and len(out.hidden_states) == 3 and out.past_key_values is None
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)
    for weights in out.attentions:
        assert weights.shape == (3, 4, 13, 13)
        assert (weights.masked_fill(mask[:, None, None].bool(), 0) == 0).all()
        rows = weights.sum(-1)
        assert (((rows - 1).abs() < 1e-5) | (rows == 0)).all()
    assert any((weights.triu(1) > 0).any() for weights in out.attentions)


def test_a_text_of_one_token_and_no_text(encoder):
    assert hidden(encoder, torch.tensor([[5]])).isfinite().all()
    assert hidden(encoder, torch.zeros(0, 4, dtype=torch.int64)).shape == (0, 4, 32)
    nothing = hidden(encoder, torch.tensor([[5, 6]]), attention_mask=torch.tensor([[0, 0]]))
    assert nothing.isfinite().all()


def test_positions_that_say_what_the_layers_count_change_nothing(typical_encoder, ids, mask):
    expected = hidden(typical_encoder, ids, attention_mask=mask)
    found = hidden(typical_encoder, ids, attention_mask=mask, position_ids=torch.arange(13)[None])
    assert torch.equal(found, expected)


def test_a_cache_is_refused_by_name(typical_encoder, ids):
    typical_encoder(ids, use_cache=False)
    for name, value, got in (
        ("use_cache", True, "True"),
        ("past_key_values", DecoderCache(typical_encoder.config), "DecoderCache"),
    ):
        with pytest.raises(ValueError, match=f"{name} must be left out with is_causal=False, got {got}"):
            typical_encoder(ids, **{name: value})
    with pytest.raises(ValueError, match="is_causal must be False or left out, got True"):
        typical_encoder(ids, is_causal=True)
    assert not typical_encoder.can_generate()


@pytest.mark.parametrize("model", [OSNForCausalLM, TransformerForCausalLM])
def test_a_model_that_generates_must_be_causal(model, ids):
    config = model.config_class(hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    causal = model(config)
    config.is_causal = False
    message = f"is_causal must be True for {model.__name__}, got False"
    with pytest.raises(ValueError, match=message):
        model(config)
    with pytest.raises(ValueError, match=message):
        causal.generate(ids, max_new_tokens=2)


@pytest.mark.parametrize("config", [OSNConfig, TransformerConfig])
def test_the_field_of_the_configuration(config, tmp_path):
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    assert config().is_causal
    made = config(is_causal=False, **small)
    AutoModel.from_config(made).save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.config.is_causal is False
    assert AutoModel.from_pretrained(tmp_path, is_causal=True).config.is_causal is True
    assert TransformerConfig.of_sizes(made).is_causal is False
    assert count_parameters(made) == count_parameters(config(**small)) and made.is_causal is False
    with pytest.raises(TypeError, match="is_causal must be True or False, got 'no'"):
        config(is_causal="no")
    with pytest.raises(ValueError, match=r"is_decoder .* is_causal=False is what makes"):
        config(is_decoder=False)


def test_a_causal_model_becomes_an_encoder_with_all_of_its_weights(ids, build_model, tmp_path):
    causal = build_model("osn")
    causal.save_pretrained(tmp_path)
    encoder, report = OSNModel.from_pretrained(tmp_path, is_causal=False, output_loading_info=True)
    assert not any(report.values()) and not encoder.config.is_causal
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, causal.model.state_dict()[name]), name
    assert not torch.allclose(hidden(encoder, ids), hidden(causal.model, ids, use_cache=False), atol=1e-3)


def test_calibration_counts_the_pairs_of_both_directions(ids, mask):
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 40}
    torch.manual_seed(0)
    model = OSNModel(OSNConfig(**sizes, is_causal=False, density_range=(0.2, 0.6)))
    texts = torch.randint(1, 40, (2, 64))
    calibrate(model, texts, torch.ones_like(texts))
    for density in locked_density(model, texts).values():
        torch.testing.assert_close(density, torch.tensor([0.2, 0.2884, 0.416, 0.6]), atol=0.02, rtol=0)


def test_training_of_an_encoder_with_checkpointed_activations(typical_encoder, ids, mask):
    gradients = []
    for checkpointed in (False, True):
        model = copy.deepcopy(typical_encoder).train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        model(ids, mask).last_hidden_state[mask.bool()].square().mean().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)
