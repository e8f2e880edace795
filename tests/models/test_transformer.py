"""The softmax Transformer: an OSN's sibling with options of its own."""

import pytest
import torch

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
        ({"position": "drift"}, "position must be one of 'rotary', 'alibi', 'none', got 'drift'"),
        ({"short_convolution": 1}, "short_convolution must be None or a width from 2 to 64 tokens, got 1"),
        ({"short_convolution": 65}, "width from 2 to 64 tokens, got 65"),
        ({"short_convolution": 2.5}, "short_convolution must be"),
        ({"short_convolution": 4, "token_shift": True}, "token_shift must be False with it, got True"),
        ({"qk_norm": 1}, "qk_norm must be"),
        ({"value_residual": "yes"}, "value_residual must be"),
        ({"score_gate": 1}, "score_gate must be"),
        ({"zero_outputs": None}, "zero_outputs must be"),
        ({"logit_softcap": 0.0}, "logit_softcap must be positive and finite, or None, got 0.0"),
        ({"logit_softcap": float("inf")}, "logit_softcap must be positive and finite"),
        ({"delay": 2}, "delay must be a fraction of the heads"),
        ({"rotary_scaling": 0.5}, "rotary_scaling must be at least 1 and finite, got 0.5"),
        ({"rotary_scaling": 2, "position": "alibi"}, "rotary_scaling must be 1 with position='alibi', got 2"),
        (
            {"rope_scaling": {"factor": 4.0}},
            "rope_scaling must be left out, .* rotary_scaling is YaRN's factor",
        ),
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


KINDS = {"osn": (OSNConfig, OSNForCausalLM), "transformer": (TransformerConfig, TransformerForCausalLM)}
SIZES = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}


@pytest.fixture(params=list(KINDS))
def make(request):
    """A model of either kind with the given options."""

    def made(**options):
        config, model = KINDS[request.param]
        torch.manual_seed(0)
        return model(config(**SIZES, **options))

    return made


@torch.no_grad()
def test_zero_outputs_start_every_block_as_the_identity(make):
    model = make(zero_outputs=True).eval()
    states = model(torch.arange(8)[None], output_hidden_states=True).hidden_states
    assert torch.equal(states[0], states[2]) and not torch.equal(states[0], make()(torch.arange(8)[None])[0])
    assert all(not layer.linear2.weight.any() for layer in model.model.layers)


def test_zero_outputs_train(make):
    """Nothing but what ends in the stream gets a gradient at first; the embedding does."""
    model = make(zero_outputs=True)
    ids = torch.arange(12)[None]
    model(ids, labels=ids).loss.backward()
    assert model.model.layers[0].linear2.weight.grad.any() and model.lm_head.weight.grad.any()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    model.zero_grad()
    model(ids, labels=ids).loss.backward()
    assert model.model.layers[0].linear1.weight.grad.any()


@torch.no_grad()
def test_the_soft_cap(make):
    model, plain = make(logit_softcap=0.5).eval(), make().eval()
    ids = torch.arange(8)[None]
    wide = plain(ids, labels=ids)
    found = model(ids, labels=ids)
    torch.testing.assert_close(found.logits, 0.5 * (wide.logits / 0.5).tanh())
    assert found.logits.abs().max() < 0.5 and found.loss != wide.loss


def test_later_layers_read_first_values(make):
    """As much of them as their own share says; the first layer mixes its values with themselves."""
    model, plain = make(value_residual=True).eval(), make().eval()
    ids = torch.arange(8)[None]
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.value_mix.copy_(torch.tensor([1.0, 0.0]))
        torch.testing.assert_close(model(ids).logits, plain(ids).logits)
        model.model.layers[2].self_attn.value_mix[1] = 0.7
        assert not torch.allclose(model(ids).logits, plain(ids).logits, atol=1e-4)
    model(ids, labels=ids).loss.backward()
    assert all(layer.self_attn.value_mix.grad.any() for layer in model.model.layers)
    layer = model.model.layers[1].self_attn
    with pytest.raises(ValueError, match="first_value must be given with value_residual=True, got none"):
        layer(torch.zeros(1, 4, 16), is_causal=True)
    with pytest.raises(ValueError, match=r"first_value must have shape \(B, M, E\) = \(1, 4, 16\), got"):
        layer(torch.zeros(1, 4, 16), is_causal=True, first_value=torch.zeros(1, 3, 16))
    with pytest.raises(ValueError, match="first_value must be left out with value_residual=False, got"):
        plain.model.layers[1].self_attn(torch.zeros(1, 4, 16), first_value=torch.zeros(1, 4, 16))


MODERN = {
    "short_convolution": 4,
    "token_shift": False,
    "value_residual": True,
    "zero_outputs": True,
    "logit_softcap": 15.0,
    "gated": False,
    "hidden_act": "relu2",
}


def test_checkpointed_activations_have_the_same_gradients(make):
    found = []
    for checkpointed in (False, True):
        model = make(**MODERN | {"zero_outputs": False}).train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        ids = torch.arange(12)[None]
        model(ids, labels=ids).loss.backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_all_options_round_trip(make, tmp_path):
    model = make(**MODERN).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert all(getattr(loaded.config, name) == value for name, value in MODERN.items())
    ids = torch.arange(12)[None]
    assert torch.equal(loaded(ids).logits, model(ids).logits)
