"""Models with equally many parameters."""

import pytest

from syncattn.models import (
    OSNConfig,
    OSNForCausalLM,
    TransformerConfig,
    TransformerForCausalLM,
    count_parameters,
    match_parameters,
)


@pytest.mark.parametrize("position", ["alibi", "rotary"])
@pytest.mark.parametrize(
    "config",
    [
        OSNConfig(),
        OSNConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4),
        OSNConfig(directed=True, detuning=True, hidden_size=96),
        OSNConfig.paper(hidden_size=128),
        OSNConfig(hidden_size=64, phase_dim=8, freq_dim=8, directed=True),  # more than softmax attention
    ],
)
def test_matched_parameters(config, position):
    before = config.to_dict()
    other = TransformerConfig.of_sizes(config, position=position, delay=0.5)
    osn, transformer = match_parameters(config, other)
    assert config.to_dict() == before
    assert match_parameters(other, config)[0].to_dict() == transformer.to_dict()
    assert (transformer.position, transformer.delay) == (position, 0.5)
    assert osn.attention_options() == config.attention_options()
    assert transformer.hidden_size == config.hidden_size and transformer.vocab_size == config.vocab_size
    counts = count_parameters(osn), count_parameters(transformer)
    assert abs(counts[0] - counts[1]) <= 0.01 * min(counts)
    assert min(osn.intermediate_size, transformer.intermediate_size) == config.intermediate_size
    for model, count in zip((OSNForCausalLM(osn), TransformerForCausalLM(transformer)), counts):
        assert count == sum(p.numel() for p in model.parameters())


def test_models_too_small_to_match():
    sizes = {"hidden_size": 4, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 2}
    tiny = OSNConfig(**sizes, directed=False)
    with pytest.raises(ValueError, match="too small to match parameters within 1 %"):
        match_parameters(tiny, TransformerConfig.of_sizes(tiny))


def test_large_models_have_widths_that_gpus_multiply_fast():
    large = OSNConfig(hidden_size=576, num_hidden_layers=8, num_attention_heads=9)
    osn, transformer = match_parameters(large, TransformerConfig.of_sizes(large))
    assert osn.intermediate_size % 8 == transformer.intermediate_size % 8 == 0
    assert abs(count_parameters(osn) / count_parameters(transformer) - 1) <= 0.005


def test_a_large_vocabulary_does_not_make_layers_of_other_widths():
    config = OSNConfig(vocab_size=256_000, hidden_size=64, num_hidden_layers=2, intermediate_size=100)
    vocabulary = config.vocab_size * config.hidden_size
    osn, transformer = match_parameters(config, TransformerConfig.of_sizes(config))
    blocks = [count_parameters(each) - vocabulary for each in (osn, transformer)]
    assert abs(blocks[0] / blocks[1] - 1) <= 0.01
