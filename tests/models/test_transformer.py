"""The softmax Transformer: an OSN's sibling with options of its own."""

import pytest

from syncattn.models import OSNConfig, OSNForCausalLM, TransformerConfig, TransformerForCausalLM


def test_only_the_attention_differs():
    """Both models have the same modules with the same sizes, but for what is in self_attn."""

    def outside(model):
        return {n: p.shape for n, p in model.named_parameters() if ".self_attn." not in n}

    sizes = {"hidden_size": 32, "num_hidden_layers": 2}
    osn, transformer = (
        OSNForCausalLM(OSNConfig(**sizes)),
        TransformerForCausalLM(TransformerConfig(**sizes)),
    )
    assert outside(osn) == outside(transformer)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"position": "drift"}, "position must be one of 'rotary', 'alibi', got 'drift'"),
        ({"delay": 2}, "delay must be a fraction of the heads"),
        ({"hidden_size": 24, "num_attention_heads": 8}, "even head_dim .* got 3"),
        ({"freq_dim": 8}, "no field 'freq_dim': it is one of OSNConfig, got 8"),
        ({"density_range": [0.1, 0.5]}, "no field 'density_range': it is one of OSNConfig"),
    ],
)
def test_its_own_options(fields, message):
    with pytest.raises((TypeError, ValueError), match=message):
        TransformerConfig(**fields)
    stored = TransformerConfig().to_dict()
    assert stored["position"] == "rotary" and not {"freq_dim", "frame", "attention_top_k"} & stored.keys()
