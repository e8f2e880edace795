"""YaRN against the paper's ramp and against transformers' own."""

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from syncattn.models import TransformerConfig, TransformerForCausalLM
from syncattn.models.rotary import scaled_rates, sharpening


@pytest.mark.parametrize("pairs", [4, 8, 64])
@pytest.mark.parametrize("factor", [1.5, 16.0])
@pytest.mark.parametrize("length", [256, 1024, 100_000])
def test_rates_and_temperature_are_those_of_transformers(pairs, factor, length):
    config = LlamaConfig(
        hidden_size=2 * pairs,
        num_attention_heads=1,
        max_position_embeddings=length,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10_000.0,
            "factor": factor,
            "original_max_position_embeddings": length,
        },
    )
    rates, scale = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    torch.testing.assert_close(scaled_rates(pairs, factor, length, torch.device("cpu")), rates)
    assert sharpening(factor) == pytest.approx(scale**2)  # theirs is on queries and on keys


def test_fast_pairs_keep_their_rates_and_slow_ones_are_stretched():
    rates = scaled_rates(16, 8.0, 1024, torch.device("cpu"))
    plain = 10_000.0 ** (-torch.arange(16) / 16)
    turns = 1024 * plain / (2 * math.pi)
    torch.testing.assert_close(rates[turns > 64], plain[turns > 64])
    torch.testing.assert_close(rates[turns < 0.5], plain[turns < 0.5] / 8)
    assert (rates <= plain).all() and (rates >= plain / 8).all() and (rates.diff() < 0).all()


@torch.no_grad()
def test_a_trained_model_is_loaded_with_a_factor(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = TransformerForCausalLM(TransformerConfig(**sizes, max_position_embeddings=64)).eval()
    model.save_pretrained(tmp_path)
    ids = torch.arange(100)[None]
    plain = TransformerForCausalLM.from_pretrained(tmp_path)
    assert plain.config.rotary_scaling == 1 and torch.equal(plain(ids).logits, model(ids).logits)
    scaled = TransformerForCausalLM.from_pretrained(tmp_path, rotary_scaling=4.0)
    layer = scaled.model.layers[0].self_attn
    assert (layer.rotary_scaling, layer.trained_length) == (4.0, 64)
    assert not torch.allclose(scaled(ids).logits, plain(ids).logits, atol=1e-5)
    scaled.save_pretrained(tmp_path / "scaled")
    again = TransformerForCausalLM.from_pretrained(tmp_path / "scaled")
    assert torch.equal(again(ids).logits, scaled(ids).logits)
