"""OSNBlock in the place of nn.TransformerEncoderLayer."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from syncattn.nn import IncrementalState, OSNBlock, SelectiveSynchronizationAttention

E, H = 24, 4
LENGTH = 10


def block(**options):
    torch.manual_seed(0)
    return OSNBlock(E, H, 48, **{"density_range": (0.3, 0.8)} | options)


def test_constructor_and_forward_are_those_of_the_encoder_layer():
    ours, theirs = (inspect.signature(c).parameters for c in (OSNBlock, nn.TransformerEncoderLayer))
    positional = [(n, p.default) for n, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == [(n, p.default) for n, p in theirs.items()]
    ours, theirs = (inspect.signature(c.forward).parameters for c in (OSNBlock, nn.TransformerEncoderLayer))
    positional = [(n, p.default) for n, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == [(n, p.default) for n, p in theirs.items()]
    theirs = {n for n, _ in nn.TransformerEncoderLayer(E, H, 48).named_parameters() if "self_attn" not in n}
    assert {n for n, _ in block().named_parameters() if "self_attn" not in n} == theirs


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_around_the_attention_it_computes_what_the_encoder_layer_computes(batch_first, norm_first):
    """With the same attention in both, and every other weight copied."""
    options = {
        "batch_first": batch_first,
        "norm_first": norm_first,
        "activation": F.gelu,
        "layer_norm_eps": 1e-3,
    }
    ours = block(**options).double().eval()
    theirs = nn.TransformerEncoderLayer(E, H, 48, **options).double()  # in training mode: no fast path
    theirs.load_state_dict({k: v for k, v in ours.state_dict().items() if "self_attn" not in k}, strict=False)
    theirs.dropout.p = theirs.dropout1.p = theirs.dropout2.p = 0.0
    theirs.self_attn = ours.self_attn
    x = torch.randn(LENGTH, 3, E, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_in_an_encoder(training, batch_first, norm_first):
    """nn.TransformerEncoder equals calling its blocks in turn, for every combination of its masks."""
    encoder = nn.TransformerEncoder(
        block(batch_first=batch_first, norm_first=norm_first),
        3,
        norm=nn.LayerNorm(E),
        enable_nested_tensor=False,
    ).train(training)
    x = torch.randn(3, LENGTH, E)
    x = x if batch_first else x.transpose(0, 1)
    padding = torch.arange(LENGTH) >= torch.tensor([[10], [7], [4]])
    mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
    band = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(3)
    for options in (
        {},
        {"mask": mask},
        {"mask": mask, "is_causal": True},
        {"mask": mask.isinf(), "src_key_padding_mask": padding},
        {"mask": band},
        {"src_key_padding_mask": padding},
    ):
        torch.manual_seed(1)
        out = encoder(x, **options)
        torch.manual_seed(1)
        want = x
        for layer in encoder.layers:
            want = layer(
                want,
                src_mask=options.get("mask"),
                src_key_padding_mask=options.get("src_key_padding_mask"),
                is_causal=options.get("is_causal", False),
            )
        want = encoder.norm(want)
        assert out.shape == x.shape and torch.isfinite(out).all()
        torch.testing.assert_close(out, want)
        out.square().sum().backward()
        encoder.zero_grad()


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_an_encoder_with_its_defaults():
    """enable_nested_tensor is True by default; the encoder must see that this is not its own layer."""
    encoder = nn.TransformerEncoder(block(batch_first=True), 2).eval()
    x = torch.randn(3, LENGTH, E)
    padding = torch.arange(LENGTH) >= torch.tensor([[10], [7], [4]])
    with torch.no_grad():
        out = encoder(x, src_key_padding_mask=padding)
        want = encoder.layers[1](
            encoder.layers[0](x, src_key_padding_mask=padding), src_key_padding_mask=padding
        )
    torch.testing.assert_close(out, want)


def test_the_copies_of_an_encoder_learn_apart():
    encoder = nn.TransformerEncoder(block(batch_first=True, dropout=0.0), 2, enable_nested_tensor=False)
    x = torch.randn(3, LENGTH, E)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    encoder(x).square().mean().backward()
    optimizer.step()
    first, second = (layer.self_attn.frequency.receive_proj.weight for layer in encoder.layers)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("norm_first", [False, True])
def test_weights_and_state(norm_first):
    layer = block(batch_first=True, norm_first=norm_first).double().eval()
    x = torch.randn(2, LENGTH, E, dtype=torch.float64)
    want, weights = layer(x, is_causal=True, need_weights=True)
    assert weights.shape == (2, H, LENGTH, LENGTH) and not weights.triu(1).any()
    torch.testing.assert_close(layer(x, is_causal=True), want)
    state = IncrementalState()
    with torch.no_grad():
        out = [layer(x[:, t : t + 1], is_causal=True, state=state) for t in range(LENGTH)]
    torch.testing.assert_close(torch.cat(out, 1), want, rtol=0, atol=1e-10)


def test_arguments_reach_the_attention():
    layer = block(dropout=0.3, freq_dim=3, position="none", delay=0.0, power=1, top_k=5, bias=False)
    attention = layer.self_attn
    assert isinstance(attention, SelectiveSynchronizationAttention)
    assert (attention.dropout, attention.freq_dim, attention.power, attention.top_k) == (0.3, 3, 1, 5)
    assert not attention.batch_first and attention.out_proj.bias is None and layer.linear1.bias is None
    assert layer.norm1.bias is None and layer.norm2.bias is None
    assert block(attn_dropout=0.0, dropout=0.3).self_attn.dropout == 0.0
    assert (
        block(activation="gelu").activation is F.gelu
        and block(activation=torch.tanh).activation is torch.tanh
    )
    with pytest.raises(
        ValueError, match=r"activation must be a function or one of .*'gelu'.* got 'softplus'"
    ):
        block(activation="softplus")
    with pytest.raises(TypeError, match="frequency_dim"):
        block(frequency_dim=3)


def test_a_subclass_may_bring_its_own_attention():
    class Mean(nn.Module):
        def forward(self, query, **_):
            return query.mean(1, keepdim=True).expand_as(query), None

    class MeanBlock(OSNBlock):
        def make_attention(self, embed_dim, num_heads, **arguments):
            assert arguments["batch_first"] and arguments["freq_dim"] == 2
            return Mean()

    assert MeanBlock(E, H, batch_first=True, freq_dim=2)(torch.randn(2, 5, E)).shape == (2, 5, E)
