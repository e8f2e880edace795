"""The short convolution in place of the token shift, and values mixed with the first layer's."""

import pytest
import torch

from syncattn import sequence_ids_of
from syncattn.nn import IncrementalState, SelectiveSynchronizationAttention

TIGHT = {"rtol": 1e-9, "atol": 1e-9}


def make(**options):
    torch.manual_seed(0)
    layer = SelectiveSynchronizationAttention(
        12, 2, short_convolution=4, density_range=(0.3, 0.9), dtype=torch.float64, **options
    )
    with torch.no_grad():
        layer.shift.normal_(std=0.3)
    return layer.eval()


@torch.no_grad()
def test_it_is_the_layer_without_one_on_convolved_tokens():
    """Frequencies and phases are of one convolution, values of another."""
    layer = make(delay=0.0)
    plain = SelectiveSynchronizationAttention(12, 2, delay=0.0, dtype=torch.float64)
    own = {name: tensor for name, tensor in layer.state_dict().items() if name != "shift"}
    plain.load_state_dict(own)
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    padded = torch.nn.functional.pad(x, (0, 0, 3, 0))
    mixed = [x + sum(a[k] * padded[:, 2 - k : 11 - k] for k in range(3)) for a in layer.shift]
    expected = plain(mixed[0], mixed[0], mixed[1], is_causal=True)[0]
    torch.testing.assert_close(layer(x, is_causal=True)[0], expected, **TIGHT)


@torch.no_grad()
@pytest.mark.parametrize("steps", [(9,), (1,) * 9, (2, 1, 5, 1)])
def test_decoding_goes_on_and_back(steps):
    layer, x = make(), torch.randn(2, 9, 12, dtype=torch.float64)
    padding = torch.tensor([[False] * 9, [True] * 2 + [False] * 7])
    whole = layer(x, key_padding_mask=padding, is_causal=True)[0]
    state, found = IncrementalState(steps=[]), []
    for part, mask in zip(x.split(steps, 1), padding.split(steps, 1), strict=True):
        found.append(layer(part, key_padding_mask=mask, is_causal=True, state=state)[0])
    assert state.last_input.shape == (2, layer.kept_before) == (2, 36)
    torch.testing.assert_close(torch.cat(found, 1)[~padding], whole[~padding], **TIGHT)
    state.crop_(6)
    again = layer(x[:, 6:], key_padding_mask=padding[:, 6:], is_causal=True, state=state)[0]
    torch.testing.assert_close(again, whole[:, 6:], **TIGHT)


@torch.no_grad()
def test_packed_texts_and_queries_at_the_end():
    layer, x = make(), torch.randn(1, 9, 12, dtype=torch.float64)
    packed = layer(x, is_causal=True, sequence_ids=sequence_ids_of(torch.tensor([0, 2, 9]), 9))[0]
    alone = [layer(part, is_causal=True)[0] for part in (x[:, :2], x[:, 2:])]
    torch.testing.assert_close(packed, torch.cat(alone, 1), **TIGHT)
    # delay and shift are of the keys themselves: queries that are their end see the tokens before them
    end = layer(x[:, 5:].clone(), x, is_causal=True)[0]
    others = make(self_coupling=True)
    others.load_state_dict(layer.state_dict())
    torch.testing.assert_close(end, others(x, is_causal=True)[0][:, 5:], **TIGHT)


@torch.no_grad()
def test_masks():
    layer, x = make(), torch.randn(1, 6, 12, dtype=torch.float64)
    future = torch.ones(6, 6, dtype=torch.bool).triu(1)
    torch.testing.assert_close(layer(x, attn_mask=future)[0], layer(x, is_causal=True)[0], **TIGHT)
    window = future | torch.ones(6, 6, dtype=torch.bool).tril(-3)
    with pytest.raises(ValueError, match=r"attn_mask must hide .* with a short_convolution, got one that"):
        layer(x, attn_mask=window)


@torch.no_grad()
def test_first_values():
    layer = make(value_residual=True)
    x, first = torch.randn(2, 2, 6, 12, dtype=torch.float64)
    own = layer(x, is_causal=True, first_value=torch.zeros_like(first))[0]
    layer.value_mix.copy_(torch.tensor([0.5, 0.7]))
    both = layer(x, is_causal=True, first_value=first)[0]
    layer.value_mix.copy_(torch.tensor([0.0, 0.7]))
    theirs = layer(x, is_causal=True, first_value=first)[0]
    torch.testing.assert_close(both - layer.out_proj.bias, own + theirs - 2 * layer.out_proj.bias, **TIGHT)
    # who locks does not depend on values: counting wants none
    assert layer.locked_density(x, is_causal=True).shape == (2,)
    call = layer.operator_call(x, is_causal=True, first_value=first)
    expected = layer.value_mix[1] * first.unflatten(-1, (2, 6)).transpose(1, 2)
    torch.testing.assert_close(call.value, expected, **TIGHT)
    with pytest.raises(ValueError, match="first_value must be given with value_residual=True, got none"):
        layer(x, is_causal=True)


def test_one_of_the_two():
    with pytest.raises(ValueError, match="token_shift must be False with it, got True"):
        SelectiveSynchronizationAttention(12, 2, token_shift=True, short_convolution=4)
    with pytest.raises(ValueError, match="short_convolution must be None or a width from 2 to 64"):
        SelectiveSynchronizationAttention(12, 2, short_convolution=1)


@pytest.mark.parametrize("tokens", [2, 7])
def test_whole_rows_are_mixed_as_any_others(tokens):
    """In two passes where only autograd looks on: values, gradients, and those of the gradients."""
    from syncattn.nn.tokens import mix_previous

    torch.manual_seed(tokens)
    x = torch.randn(2, tokens, 3, dtype=torch.float64, requires_grad=True)
    amount = torch.randn(3, dtype=torch.float64, requires_grad=True)

    def fast(x, amount):
        return mix_previous(x, amount, None, None)

    def general(x, amount):
        return mix_previous(x, amount, torch.zeros_like(x[:, 0]), None)

    assert type(fast(x, amount).grad_fn).__name__ == "_MixedPreviousBackward"
    assert type(general(x, amount).grad_fn).__name__ == "AddBackward0"
    torch.testing.assert_close(fast(x, amount), general(x, amount))
    assert torch.autograd.gradcheck(fast, (x, amount))
    assert torch.autograd.gradgradcheck(fast, (x, amount))
    torch.testing.assert_close(  # under a transform as well
        torch.func.grad(lambda x: fast(x, amount).sin().sum())(x),
        torch.autograd.grad(general(x, amount).sin().sum(), x)[0],
    )
    torch.testing.assert_close(  # and under one of the backward alone
        torch.autograd.functional.jacobian(lambda *inputs: fast(*inputs).sin(), (x, amount), vectorize=True),
        torch.autograd.functional.jacobian(lambda *inputs: general(*inputs).sin(), (x, amount)),
    )
    half = x.detach().bfloat16().requires_grad_()
    torch.testing.assert_close(
        torch.autograd.grad(fast(half, amount.bfloat16()).sum(), half)[0],
        torch.autograd.grad(general(half, amount.bfloat16()).sum(), half)[0],
    )
