"""The gate of each head by its nearest sender."""

import pytest
import torch

from syncattn.models import OSNConfig, OSNForCausalLM
from syncattn.nn import IncrementalState, SelectiveSynchronizationAttention, preset

TIGHT = {"rtol": 1e-9, "atol": 1e-9}


def make(**options):
    torch.manual_seed(0)
    given = {"density_range": (0.3, 0.9), "dtype": torch.float64} | options
    return SelectiveSynchronizationAttention(12, 2, nearest_gate=True, **given).eval()


def test_it_starts_open_and_the_layer_as_it_is_without_one():
    layer = make()
    plain = SelectiveSynchronizationAttention(12, 2, density_range=(0.3, 0.9), dtype=torch.float64)
    assert layer.gate.tolist() == [[0, 0], [0, 0]]
    plain.load_state_dict({name: x for name, x in layer.state_dict().items() if name != "gate"})
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    torch.testing.assert_close(layer(x, is_causal=True)[0], plain(x, is_causal=True)[0], **TIGHT)


@torch.no_grad()
def test_it_is_a_sigmoid_of_the_nearest_senders_detuning():
    """Of each receiver, in each head, before the output projection."""
    layer = make(delay=0.0, bias=False)
    layer.out_proj.weight.copy_(torch.eye(12))
    x = torch.randn(1, 9, 12, dtype=torch.float64)
    open_out = layer(x, is_causal=True)[0]
    layer.gate.copy_(torch.tensor([[0.3, -0.2], [1.5, 0.4]]))
    call = layer.operator_call(x, is_causal=True)
    detuning = torch.cdist(call.receive, call.send).square() / layer.freq_dim
    before = torch.ones(9, 9, dtype=torch.bool).tril(-1)
    nearest = detuning.masked_fill(~before, torch.inf).amin(-1)[0]  # (H, N)
    factor = 2 * torch.sigmoid(layer.gate[0, :, None] - layer.gate[1, :, None] * nearest)
    expected = open_out[0].unflatten(-1, (2, 6)) * factor.T[..., None]
    torch.testing.assert_close(layer(x, is_causal=True)[0][0], expected.flatten(-2), **TIGHT)
    assert bool((layer(x, is_causal=True)[0][0, 0] == 0).all())  # the first token hears nobody


@torch.no_grad()
@pytest.mark.parametrize("steps", [(1,) * 9, (2, 1, 5, 1)])
def test_decoding_gives_the_same(steps):
    layer, x = make(token_shift=True), torch.randn(2, 9, 12, dtype=torch.float64)
    layer.gate.normal_()
    padding = torch.tensor([[False] * 9, [True] * 2 + [False] * 7])
    whole = layer(x, key_padding_mask=padding, is_causal=True)[0]
    state, found = IncrementalState(), []
    for part, mask in zip(x.split(steps, 1), padding.split(steps, 1), strict=True):
        found.append(layer(part, key_padding_mask=mask, is_causal=True, state=state)[0])
    torch.testing.assert_close(torch.cat(found, 1)[~padding], whole[~padding], **TIGHT)


def test_a_model_generates_from_what_its_heads_still_hold():
    """float32, token by token, past a block of what narrow heads forget; and both numbers are learned."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = OSNConfig(**sizes, window_range=(1.0, 500.0))
    model = OSNForCausalLM(config)
    ids = torch.randint(0, 30, (1, 1100))
    model(ids[:, :60], labels=ids[:, :60]).loss.backward()
    for layer in model.model.layers:
        assert bool((layer.self_attn.gate.grad != 0).all())
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.gate.normal_()
        expected = model(ids).logits[:, 1080:]
        cache = model(ids[:, :1080], use_cache=True).past_key_values
        found = [
            model(ids[:, n : n + 1], past_key_values=cache, use_cache=True).logits for n in range(1080, 1100)
        ]
    assert not cache.states[0].reads_all
    torch.testing.assert_close(torch.cat(found, 1), expected, rtol=1e-4, atol=1e-4)


def test_where_each_token_is_nearest_to_itself_it_tells_nothing():
    """So the preset of that kind says that it has none, whatever the models' default is."""
    x = torch.randn(1, 9, 12, dtype=torch.float64)
    layer = make(self_coupling=True, delay=0.0)
    layer(x)[0].square().sum().backward()
    assert layer.gate.grad[0].all() and not layer.gate.grad[1].any()
    assert preset("points", 2)["self_coupling"] and not preset("points", 2)["nearest_gate"]


def test_it_is_a_flag():
    with pytest.raises(TypeError, match="nearest_gate must be True or False"):
        SelectiveSynchronizationAttention(12, 2, nearest_gate=1)
