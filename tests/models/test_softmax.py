"""Softmax attention against the formula."""

import itertools
import math

import pytest
import torch

from syncattn.models import SoftmaxAttention
from syncattn.models.rotary import scaled_rates, sharpening
from syncattn.nn import Frequency, IncrementalState
from syncattn.nn.frequency import rotate


def formula(layer, x, causal):
    """softmax(q k^T / sqrt(d) + position) v, one head and one query at a time, float64."""
    batch, tokens, width = x.shape
    heads, d = layer.num_heads, layer.head_dim
    projected = layer.in_proj(x)
    q, k, v = (part.reshape(batch, tokens, heads, d) for part in projected.split(width, dim=-1))
    out = torch.zeros(batch, tokens, heads, d, dtype=x.dtype)
    for b in range(batch):
        for h in range(heads):
            for i in range(tokens):
                scores = []
                seen = range(i + 1) if causal else range(tokens)
                for j in seen:
                    at = j - 1 if layer.delayed[h] else j
                    if at < 0:
                        score = torch.zeros((), dtype=x.dtype)
                    elif layer.position == "rotary":
                        turned = turn(q[b, i, h], i, layer), turn(k[b, at, h], at, layer)
                        score = sharpening(layer.rotary_scaling) * (turned[0] @ turned[1]) / math.sqrt(d)
                    else:
                        score = q[b, i, h] @ k[b, at, h] / math.sqrt(d)
                    if layer.position == "alibi":
                        score = score - 2 ** (-8 * (h + 1) / heads) * abs(i - j)
                    scores.append(score)
                weights = torch.stack(scores).softmax(0)
                out[b, i, h] = sum(w * v[b, j, h] for w, j in zip(weights, seen))
    return layer.out_proj(out.flatten(2))


def turn(x, position, layer=None):
    """Coordinates (c, c + d/2) as a complex number, times exp(i position rate)."""
    a, b = x.chunk(2)
    rate = 10000.0 ** (-torch.arange(len(a), dtype=x.dtype) / len(a))
    if layer is not None and layer.rotary_scaling > 1:
        rate = scaled_rates(len(a), layer.rotary_scaling, layer.trained_length, x.device)
    z = torch.complex(a, b) * torch.exp(1j * position * rate)
    return torch.cat((z.real, z.imag))


POSITIONS = {
    "rotary": {},
    "alibi": {"position": "alibi"},
    "none": {"position": "none"},
    "yarn": {"rotary_scaling": 4.0, "trained_length": 16},
}


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("delay", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_the_formula(position, delay, causal):
    torch.manual_seed(0)
    options = POSITIONS[position]
    layer = SoftmaxAttention(12, 3, **options, delay=delay, dtype=torch.float64)
    x = torch.randn(2, 6, 12, dtype=torch.float64)
    expected = formula(layer, x, causal)
    # The angles and the penalty are float32, as in every implementation that trains.
    tight = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(layer(x, is_causal=causal)[0], expected, **tight)
    out, weights = layer(x, is_causal=causal, need_weights=True)
    torch.testing.assert_close(out, expected, **tight)
    assert weights.shape == (2, 6, 6)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 6, dtype=torch.float64))
    if causal and not delay:
        mask = torch.ones(6, 6, dtype=torch.bool).triu(1)
        torch.testing.assert_close(layer(x, attn_mask=mask)[0], expected, **tight)
    across = SoftmaxAttention(12, 3, batch_first=False, **options, delay=delay, dtype=torch.float64)
    across.load_state_dict(layer.state_dict())
    torch.testing.assert_close(
        across(x.transpose(0, 1), is_causal=causal)[0].transpose(0, 1), expected, **tight
    )


@torch.no_grad()
def test_convolution_norm_and_first_values_by_hand():
    """Values mixed with the first layer's, then the convolution, then queries and keys of one length."""
    torch.manual_seed(0)
    options = {"short_convolution": 4, "qk_norm": True, "value_residual": True}
    layer = SoftmaxAttention(12, 3, **options, dtype=torch.float64)
    layer.convolution.normal_()
    layer.gains.normal_()
    layer.value_mix.copy_(torch.tensor([0.3, 0.9]))
    x, first = torch.randn(2, 2, 6, 12, dtype=torch.float64)
    projected = layer.in_proj(x)
    assert torch.equal(
        layer.first_values(x),
        torch.nn.functional.linear(x, layer.in_proj.weight[24:], layer.in_proj.bias[24:]),
    )
    projected[..., 24:] = 0.3 * projected[..., 24:] + 0.9 * first
    mixed = projected.clone()
    for back, amount in enumerate(layer.convolution, 1):
        mixed[:, back:] += amount * projected[:, :-back]
    q, k, v = (part.reshape(2, 6, 3, 4) for part in mixed.split(12, -1))
    # As PyTorch's rms_norm: the smallest step above 1 is added to the mean square.
    eps = torch.finfo(torch.float64).eps
    q, k = (
        part / (part.square().mean(-1, keepdim=True) + eps).sqrt() * gain
        for part, gain in zip((q, k), layer.gains)
    )
    out = torch.zeros(2, 6, 3, 4, dtype=torch.float64)
    for b, i, h in itertools.product(range(2), range(6), range(3)):
        scores = [turn(q[b, i, h], i) @ turn(k[b, j, h], j) / 2 for j in range(i + 1)]
        out[b, i, h] = torch.stack(scores).softmax(0) @ v[b, : i + 1, h]
    found = layer(x, is_causal=True, first_value=first)[0]
    torch.testing.assert_close(found, layer.out_proj(out.flatten(2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("position", ["rotary", "alibi"])
@pytest.mark.parametrize(
    "given", [{"is_causal": True}, {}, {"is_causal": True, "key_padding_mask": 2}], ids=str
)
def test_the_gate_of_the_highest_score(position, given):
    """Several stretches of queries, with a mask of N x N and without; gradients as by autograd."""
    torch.manual_seed(0)
    x = torch.randn(2, tokens := 300, 8, dtype=torch.float64)
    real = torch.ones(2, tokens, dtype=torch.bool)
    if "key_padding_mask" in given:
        real[1, : given["key_padding_mask"]] = False
        given = given | {"key_padding_mask": ~real}
    plain = SoftmaxAttention(8, 2, position=position, dtype=torch.float64)
    plain.out_proj = torch.nn.Identity()
    layer = SoftmaxAttention(8, 2, position=position, score_gate=True, dtype=torch.float64)
    layer.in_proj, layer.out_proj = plain.in_proj, plain.out_proj
    heard, weights = plain(x, need_weights=True, average_attn_weights=False, **given)
    torch.testing.assert_close(layer(x, **given)[0][real], heard[real])  # it starts open
    gate = torch.tensor([[0.5, -1.0], [0.8, 0.3]], dtype=torch.float64)
    with torch.no_grad():
        layer.gate.copy_(gate)

    q, k, _ = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in layer.in_proj(x).split(8, -1))
    if position == "rotary":
        count = real.cumsum(-1)[..., None].double()
        q, k = rotate(q, count), rotate(k, count)
    highest = (q @ k.mT / 2).gather(-1, weights.argmax(-1, keepdim=True))
    opened = 2 * torch.sigmoid(gate[0, :, None, None] + gate[1, :, None, None] * highest)
    expected = (heard.unflatten(-1, (2, 4)) * opened.transpose(1, 2)).flatten(2)
    (wanted,) = torch.autograd.grad(expected[real].square().sum(), plain.in_proj.weight, retain_graph=True)
    for need_weights in (False, True):
        found = layer(x, need_weights=need_weights, **given)[0]
        torch.testing.assert_close(found[real], expected[real], rtol=1e-5, atol=1e-6)
        (gradient,) = torch.autograd.grad(found[real].square().sum(), plain.in_proj.weight, retain_graph=True)
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_convolution_of_width_two_is_a_shift_of_what_is_projected():
    torch.manual_seed(0)
    shifted = SoftmaxAttention(8, 2, token_shift=True, bias=False)
    convolved = SoftmaxAttention(8, 2, short_convolution=2, bias=False)
    convolved.load_state_dict(shifted.state_dict() | {"convolution": torch.full((1, 24), 0.5)}, strict=False)
    shifted.shift.fill_(0.5)
    x = torch.randn(2, 5, 8)
    padding = torch.tensor([[False] * 5, [True, True, False, False, False]])
    given = {"key_padding_mask": padding, "is_causal": True}
    torch.testing.assert_close(convolved(x, **given)[0][~padding], shifted(x, **given)[0][~padding])


@torch.no_grad()
def test_a_row_that_sees_nobody_is_zero():
    layer = SoftmaxAttention(8, 2, bias=False, position="alibi")
    x = torch.randn(1, 4, 8)
    out, weights = layer(x, key_padding_mask=torch.ones(1, 4, dtype=torch.bool), need_weights=True)
    assert not out.any() and not weights.any()
    assert not layer(x, key_padding_mask=torch.ones(1, 4, dtype=torch.bool), is_causal=True)[0].any()


def test_the_gradient_of_padding_is_zero_and_of_the_rest_finite():
    layer = SoftmaxAttention(8, 2, position="rotary", delay=0.5)
    x = torch.randn(1, 5, 8, requires_grad=True)
    padding = torch.tensor([[True, True, False, False, False]])
    layer(x, key_padding_mask=padding, is_causal=True)[0][:, 2:].sum().backward()
    assert x.grad.isfinite().all() and not x.grad[:, :2].any() and x.grad[:, 2:].any()


@pytest.mark.parametrize("delay", [0.0, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("heads", [1, 3, 8])
def test_the_delayed_heads_are_an_osns(heads, delay):
    ours = SoftmaxAttention(2 * heads, heads, delay=delay).delayed
    assert torch.equal(ours, Frequency(2 * heads, heads, 2, delay=delay).delayed)


def test_what_the_layer_refuses():
    layer, x = SoftmaxAttention(8, 2), torch.randn(2, 4, 8)
    with pytest.raises(ValueError, match="key and value must be None or query itself"):
        layer(x, x.clone())
    with pytest.raises(ValueError, match=r"query must have shape \(B, N, 8\), got \(2, 4, 4\)"):
        layer(x[..., :4])
    state = IncrementalState()
    layer(x, is_causal=True, state=state)
    with pytest.raises(ValueError, match="state must hold a batch of 1 sequences, got 2"):
        layer(x[:1], is_causal=True, state=state)
    with pytest.raises(ValueError, match="query must be a dense tensor"):
        layer(x.to_sparse())
    convolution = {"short_convolution": 4}
    for options in ({"delay": 0.5}, {"token_shift": True}, convolution):
        kind = "short convolution" if options is convolution else "token shift"
        with pytest.raises(ValueError, match=f"attn_mask must be None with a delay or a {kind}, got a mask"):
            SoftmaxAttention(8, 2, **options)(x, attn_mask=torch.zeros(4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"state must come with is_causal=True .* got is_causal=False"):
        layer(x, state=IncrementalState())
    with pytest.raises(ValueError, match="num_heads must divide embed_dim"):
        SoftmaxAttention(8, 3)
    with pytest.raises(ValueError, match="rotary_scaling must be 1 with position='none', got 2"):
        SoftmaxAttention(8, 2, position="none", rotary_scaling=2)
    with pytest.raises(ValueError, match="trained_length must be"):
        SoftmaxAttention(8, 2, trained_length=0)
    for position, reason in (("alibi", "numbers tokens"), ("none", "has none")):
        with pytest.raises(ValueError, match=f"left out with position='{position}', which {reason}"):
            SoftmaxAttention(8, 2, position=position)(x, positions=torch.arange(4.0)[None, :, None])


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("is_causal", [True, False])
def test_packed_texts_are_attended_to_one_by_one(position, is_causal, monkeypatch):
    """As under a mask of N x N, where ids cannot be read, with gradients; padding gives the bias alone."""
    torch.manual_seed(0)
    options = {**POSITIONS[position], "delay": 0.5, "token_shift": True}
    layer = SoftmaxAttention(12, 3, **options, dtype=torch.float64)
    ids = torch.tensor([[0, 0, 0, 1, 1, -1, 1, 2], [0, 0, 0, -1, 3, 3, 4, -1]])
    x = torch.randn(2, 8, 12, dtype=torch.float64, requires_grad=True)
    found = []
    for blind in (False, True):
        if blind:
            monkeypatch.setattr("syncattn.models.softmax.places_of_texts", lambda ids: None)
        out = layer(x, is_causal=is_causal, sequence_ids=ids)[0]
        weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        found.append((out, *torch.autograd.grad((out * weight).sum(), [x, *layer.parameters()])))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
    assert torch.equal(found[0][0][ids < 0], layer.out_proj.bias.expand(3, -1))


def test_packed_texts_need_no_square_of_memory():
    """The largest tensor that a row of 4,096 tokens makes is of its length."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            sizes = [x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
            self.elements = max(self.elements, *sizes, 0)
            return out

    layer, x = SoftmaxAttention(8, 2), torch.randn(1, 4096, 8)
    ids = (torch.arange(4096) // 64)[None]
    with Largest() as seen, torch.no_grad():
        layer(x, is_causal=True, sequence_ids=ids)
    assert seen.elements <= 4096 * 24
