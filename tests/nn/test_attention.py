"""The layer is called like nn.MultiheadAttention, and says what is wrong when it is called wrongly."""

import pytest
import torch
from torch import nn

from syncattn.nn import IncrementalState, SelectiveSynchronizationAttention, locked_density

B, N, M, E, H = 3, 7, 10, 24, 4


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("cross", [False, True])
def test_shapes_are_those_of_multihead_attention(cross, need_weights, average, batch_first):
    theirs = nn.MultiheadAttention(E, H, batch_first=batch_first)
    ours = SelectiveSynchronizationAttention(E, H, batch_first=batch_first)
    options = {"need_weights": need_weights, "average_attn_weights": average}
    for batched in (True, False):
        query, other = torch.randn(B, N, E), torch.randn(B, M, E)
        if not batched:
            query, other = query[0], other[0]
        elif not batch_first:
            query, other = query.transpose(0, 1), other.transpose(0, 1)
        key = other if cross else query
        want, want_weights = theirs(query, key, key, **options)
        out, weights = ours(query, key, key, **options)
        assert out.shape == want.shape
        assert (weights is None) == (want_weights is None)
        assert weights is None or weights.shape == want_weights.shape
        # the arguments in the order of nn.MultiheadAttention.forward
        assert torch.equal(ours(query, key, key, None, need_weights, None, average, False)[0], out)


def test_batch_second_and_unbatched_are_the_same_computation(build, tokens):
    x = tokens(B, N)
    first, second = build(batch_first=True), build(batch_first=False)
    want, weights = first(x, need_weights=True, is_causal=True)
    out, same = second(x.transpose(0, 1), need_weights=True, is_causal=True)
    torch.testing.assert_close(out.transpose(0, 1), want)
    torch.testing.assert_close(same, weights)
    for layer in (first, second):
        out, same = layer(x[1], need_weights=True, is_causal=True)
        torch.testing.assert_close(out, want[1])
        torch.testing.assert_close(same, weights[1])
    real = torch.tensor([False] * 5 + [True] * 2)
    torch.testing.assert_close(
        first(x[1], key_padding_mask=real)[0], first(x[1:2], key_padding_mask=real[None])[0][0]
    )


def told(layer, x):
    """What values are made of."""
    if layer.shift is None:
        return x
    return x + layer.shift[1] * torch.nn.functional.pad(x, (0, 0, 1, 0))[:, :-1]


def test_weights(layer, tokens):
    """Rows sum to 1 where something locks; they mix the values; asking for them changes nothing."""
    layer.gate = None  # which they do not hold
    x = tokens(B, N)
    out, weights = layer(x, need_weights=True, average_attn_weights=False)
    torch.testing.assert_close(layer(x)[0], out, rtol=0, atol=1e-9)
    torch.testing.assert_close(layer(x, need_weights=True)[1], weights.mean(1))
    total = weights.sum(-1)
    assert ((total - 1).abs() < 1e-4)[total > 0].all() and (total <= 1).all()
    values = layer.value_proj(told(layer, x)).unflatten(-1, (H, -1)).transpose(1, 2)
    mixed = layer.out_proj((weights @ values).transpose(1, 2).flatten(-2))
    torch.testing.assert_close(mixed, out, rtol=0, atol=1e-9)
    if not layer.self_coupling:
        assert not weights.diagonal(dim1=-2, dim2=-1).any()


def test_masks_say_where_not_to_attend(layer, tokens):
    x, other = tokens(B, N), tokens(B, M, seed=2)
    layer.shift = None  # masks say nothing of the queries that it would mix
    g = torch.Generator().manual_seed(3)
    blocked = torch.rand(N, M, generator=g) > 0.6
    blocked[:, 0] = False
    additive = torch.zeros(N, M).masked_fill(blocked, -torch.inf)
    out, weights = layer(x, other, attn_mask=blocked, need_weights=True, average_attn_weights=False)
    assert not weights[..., blocked].any() and weights.any()
    every = blocked.expand(B, H, N, M)
    for mask in (additive, every.flatten(0, 1), additive.expand(B * H, N, M), every, blocked[None, None]):
        torch.testing.assert_close(layer(x, other, attn_mask=mask)[0], out, rtol=0, atol=1e-9)

    per_head = torch.rand(B, H, N, M, generator=g) > 0.6  # sequence b, head h is entry b H + h
    _, weights = layer(
        x, other, attn_mask=per_head.flatten(0, 1), need_weights=True, average_attn_weights=False
    )
    assert not weights[per_head].any() and weights.any()

    padding = torch.rand(B, M, generator=g) > 0.6
    _, weights = layer(x, other, key_padding_mask=padding, need_weights=True)
    assert not weights.transpose(1, 2)[padding].any() and weights.any()
    out, _ = layer(x, other, key_padding_mask=padding, attn_mask=blocked)
    as_float = torch.zeros(B, M).masked_fill(padding, -torch.inf)
    torch.testing.assert_close(layer(x, other, key_padding_mask=as_float, attn_mask=additive)[0], out)


def test_causal_by_flag_and_by_mask_are_the_same(layer, tokens):
    x = tokens(B, N)
    want, _ = layer(x, is_causal=True)
    mask = nn.Transformer.generate_square_subsequent_mask(N)
    for options in ({"attn_mask": mask}, {"attn_mask": mask, "is_causal": True}, {"attn_mask": mask.isinf()}):
        torch.testing.assert_close(layer(x, **options)[0], want, rtol=0, atol=1e-9)


def test_causal_cross_attention_is_the_end_of_the_sequence(build, tokens):
    """Fewer queries than keys sit at the end, in mask, position and order parameter."""
    x = tokens(B, M)
    for kind in ("default", "absolute", "published", "rotary, all delayed", "token shift"):
        layer = build(kind, self_coupling=True)  # in cross-attention no token is "itself"
        want, _ = layer(x, is_causal=True)
        for n in (1, 3, M - 1):
            for extra in ({}, {"attn_mask": torch.zeros(n, M, dtype=torch.bool)}):
                out, _ = layer(x[:, M - n :], x, is_causal=True, **extra)
                torch.testing.assert_close(out, want[:, M - n :], rtol=0, atol=1e-9)


def test_value_may_differ_from_key(layer, tokens):
    layer.gate = None  # which the weights do not hold
    x, key, value = tokens(B, N), tokens(B, M, seed=2), tokens(B, M, seed=3)
    _, weights = layer(x, key, need_weights=True, average_attn_weights=False)
    out, same = layer(x, key, value, need_weights=True, average_attn_weights=False)
    assert torch.equal(weights, same)
    values = layer.value_proj(told(layer, value)).unflatten(-1, (H, -1)).transpose(1, 2)
    mixed = layer.out_proj((weights @ values).transpose(1, 2).flatten(-2))
    torch.testing.assert_close(mixed, out, rtol=0, atol=1e-9)


def test_dropout_acts_in_training_only(build, tokens):
    layer, x = build(dropout=0.5), tokens(B, N)
    assert torch.equal(layer(x)[0], layer(x)[0])
    layer.train()
    torch.manual_seed(0)
    first = layer(x)[0]
    assert not torch.equal(first, layer(x)[0])
    torch.manual_seed(0)
    torch.testing.assert_close(layer(x, need_weights=True)[0], first)  # the other backend drops the same


@pytest.mark.parametrize("causal", [False, True])
def test_nothing_and_one(layer, tokens, causal):
    """Empty batches and sequences, a lone token, all keys masked: the right shape and finite numbers."""
    for batch, length in ((0, 5), (2, 0), (2, 1)):
        out, _ = layer(tokens(batch, length), is_causal=causal)
        assert out.shape == (batch, length, E) and torch.isfinite(out).all()
    x = tokens(2, 5)
    assert layer(x[:, :0], x, is_causal=causal)[0].shape == (2, 0, E)
    if not causal:
        nobody, _ = layer(x, x[:, :0])
        torch.testing.assert_close(nobody, layer.out_proj.bias.expand(2, 5, E))
    for options in (
        {"key_padding_mask": torch.ones(2, 5, dtype=torch.bool)},
        {"attn_mask": torch.ones(5, 5, dtype=torch.bool)},
    ):
        x.requires_grad_()
        out, _ = layer(x, is_causal=causal, **options)
        torch.testing.assert_close(out, layer.out_proj.bias.expand(2, 5, E))
        (gradient,) = torch.autograd.grad(out.sum(), x)
        assert not gradient.any()


BAD_CALLS = [
    (lambda f, x: f(x[..., :3]), r"query must have shape \(B, N, 24\) or \(N, 24\), got \(2, 5, 3\)"),
    (lambda f, x: f(x[None]), r"query must have shape .* got \(1, 2, 5, 24\)"),
    (lambda f, x: f(x, x[0]), r"key must have shape .* got \(5, 24\)"),
    (
        lambda f, x: f(x, x[:, :3], x),
        r"key and value must have the same tokens, got \(2, 3, 24\) and \(2, 5, 24\)",
    ),
    (lambda f, x: f(x, x[:1]), r"batch"),
    (
        lambda f, x: f(x, x[:, :3], is_causal=True),
        r"is_causal=True needs as many keys as queries or more, got 3 keys and 5 queries",
    ),
    (
        lambda f, x: f(x, x[:, :3], attn_mask=torch.zeros(5, 3, dtype=torch.bool), is_causal=True),
        r"is_causal=True needs as many keys as queries or more",
    ),
    (
        lambda f, x: f(x, key_padding_mask=torch.zeros(2, 4, dtype=torch.bool)),
        r"key_padding_mask must have shape \(B, M\) = \(2, 5\), got \(2, 4\)",
    ),
    (
        lambda f, x: f(x, key_padding_mask=torch.zeros(2, 5).long()),
        r"key_padding_mask must be boolean .* torch\.int64",
    ),
    (
        lambda f, x: f(x, key_padding_mask=torch.ones(2, 5)),
        r"key_padding_mask is additive: .* got values such as 1",
    ),
    (
        lambda f, x: f(x, attn_mask=torch.zeros(5, 4).bool()),
        r"attn_mask must have shape \(N, M\) = \(5, 5\).* got \(5, 4\)",
    ),
    (
        lambda f, x: f(x, attn_mask=torch.zeros(2, 5, 5).bool()),
        r"attn_mask must have shape .* got \(2, 5, 5\)",
    ),
    (lambda f, x: f(x, attn_mask=torch.zeros(5, 5).long()), r"attn_mask must be boolean .* torch\.int64"),
    (
        lambda f, x: f(x, attn_mask=torch.full((5, 5), -1e9)),
        r"attn_mask is additive: .* got values such as -1e\+09",
    ),
    (lambda f, x: f(x * torch.nan), r"must hold finite frequencies, .* got nan"),
    (lambda f, x: f(x, state=IncrementalState()), r"state .* needs is_causal=True"),
    (
        lambda f, x: f(x, x.clone(), is_causal=True, state=IncrementalState()),
        r"state .* neither key nor attn_mask",
    ),
    (
        lambda f, x: f(x, attn_mask=torch.zeros(5, 5).bool(), is_causal=True, state=IncrementalState()),
        r"state .* neither key nor attn_mask",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD_CALLS, ids=[m for _, m in BAD_CALLS])
def test_bad_calls(call, message):
    layer = SelectiveSynchronizationAttention(E, H)
    with pytest.raises(ValueError, match=message):
        call(layer, torch.randn(2, 5, E))


BAD_OPTIONS = [
    ({"num_heads": 5}, r"num_heads must divide embed_dim, got embed_dim=24, num_heads=5"),
    ({"num_heads": 0}, r"num_heads must divide embed_dim"),
    ({"embed_dim": 0}, r"num_heads must divide embed_dim"),
    ({"freq_dim": 0}, r"freq_dim must be at least 1, got 0"),
    ({"phase_dim": -1}, r"phase_dim must be at least 1, got -1"),
    ({"position": "alibi"}, r"position must be one of .*'drift'.* got 'alibi'"),
    ({"position": "own_drift", "freq_dim": 1}, r"position='own_drift' needs freq_dim of at least 2, got 1"),
    ({"position": "rotary", "freq_dim": 5}, r"position='rotary' needs an even freq_dim, got 5"),
    ({"window_range": (0.0, 4.0)}, r"window_range must be two numbers, 0 < low <= high, got \(0\.0, 4\.0\)"),
    ({"window_range": (9.0, 4.0)}, r"window_range must be two numbers, 0 < low <= high"),
    ({"delay": 1.5}, r"delay must be a fraction of the heads, in \[0, 1\], got 1\.5"),
    ({"frame": "far"}, r"frame must be one of .* got 'far'"),
    ({"parametrisation": "exp"}, r"parametrisation must be one of 'log', 'softplus', got 'exp'"),
    ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1\.0"),
    ({"sharpness": 0.0}, r"sharpness must be positive and finite, got 0\.0"),
    ({"density_range": (0.5, 0.1)}, r"density_range must be two numbers, 0 < low <= high <= 1, got"),
    ({"power": 0}, r"power must be positive and finite, got 0"),
    ({"edge": -1.0}, r"edge must be at least 0 and finite, got -1\.0"),
    ({"top_k": 0}, r"top_k must be at least 1, got 0"),
    ({"power": -1, "density_range": None}, r"power must be positive and finite, got -1"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=str)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        SelectiveSynchronizationAttention(**{"embed_dim": E, "num_heads": H} | options)


def test_views_of_one_memory_are_one_sequence():
    """Reentrant checkpointing detaches each argument by itself: that must not make it cross-attention."""
    layer = SelectiveSynchronizationAttention(32, 4)
    x = torch.randn(2, 7, 32, requires_grad=True)
    (want,) = torch.autograd.grad(layer(x, x, x)[0].square().sum(), x)
    leaf = x.detach().clone().requires_grad_()
    out, _ = torch.utils.checkpoint.checkpoint(layer, leaf, leaf, leaf, use_reentrant=True)
    out.square().sum().backward()
    assert torch.allclose(leaf.grad, want, atol=1e-4)
    assert torch.allclose(layer(x, x.detach(), x.detach())[0], layer(x)[0], atol=1e-6)


def test_a_large_eps_is_a_weight_for_nobody(build, tokens):
    x = tokens(2, 20)
    plain, quiet = build(), build(eps=1.0)
    _, weights = plain(x, is_causal=True, need_weights=True, average_attn_weights=False)
    _, quieter = quiet(x, is_causal=True, need_weights=True, average_attn_weights=False)
    share = quieter.sum(-1, keepdim=True)  # sum S / (sum S + 1)
    torch.testing.assert_close(quieter, weights * share)
    share = share[..., 0][weights.sum(-1) > 0]
    assert (share < 1).all() and (share >= 0.5 - 1e-6).all()  # the nearest has S = 1


def test_a_token_shift_mixes_with_the_real_token_before(build, tokens):
    layer = build("token shift")
    x = tokens(2, 9)
    left, middle = torch.full_like(x[:, :3], 7.0), torch.full_like(x[:, :2], -9.0)
    padded = torch.cat((left, x[:, :4], middle, x[:, 4:]), 1)
    real = torch.tensor([0, 0, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1], dtype=torch.bool)
    want, _ = layer(x, is_causal=True)
    out, _ = layer(padded, key_padding_mask=(~real).expand(2, -1), is_causal=True)
    torch.testing.assert_close(out[:, real], want)
    before = x.clone()
    before[:, 3] += 1.0
    moved, _ = layer(before, is_causal=True)
    torch.testing.assert_close(moved[:, :3], want[:, :3])
    assert not torch.allclose(moved[:, 4], want[:, 4])


@pytest.mark.parametrize("causal", [False, True])
def test_self_attention_by_word(layer, tokens, causal):
    """Two equal sums are cross-attention, unless the caller knows better; and the other way round."""
    x, place, value = tokens(2, N), tokens(2, N, seed=2), tokens(2, N, seed=3)
    padding = torch.arange(N) >= torch.tensor([[N], [4]])
    options = {"key_padding_mask": padding, "is_causal": causal, "need_weights": True}
    y = x + place
    want = layer(y, y, value, **options)
    for query, key, value_given in ((y, y, value), (y, x + place, value), (y, None, value)):
        got = layer(query, key, value_given, **options, self_attention=True)
        assert all(map(torch.equal, got, want))
    assert torch.equal(layer(y, y.clone(), None, self_attention=True)[0], layer(y)[0])
    other = layer(y, x + place, value, **options)
    got = layer(y, y, value, **options, self_attention=False)
    torch.testing.assert_close(got, other)
    if not layer.self_coupling:
        assert not torch.allclose(other[1], want[1])
    for count in (layer.locked_density, lambda *a, **k: locked_density(layer, *a, **k)[""]):
        masks = {"key_padding_mask": padding, "is_causal": causal}
        density = count(y, y, value, **masks)
        assert torch.equal(count(y, x + place, value, **masks, self_attention=True), density)


def test_self_attention_of_something_else_is_refused(build, tokens):
    layer, x = build(), tokens(2, 5)
    with pytest.raises(
        ValueError, match=r"key and value of query's shape, got query \(2, 5, 24\) and key \(2, 4,"
    ):
        layer(x, x[:, :4], self_attention=True)
    for other in (x + 0.25, x.float()):
        message = rf"key to be query, or equal to it .*, got {other.dtype} that differs by up to"
        with pytest.raises(ValueError, match=message):
            layer(x, other, self_attention=True)
    with pytest.raises(ValueError, match="state is for causal self-attention"):
        layer(x, is_causal=True, state=IncrementalState(), self_attention=False)


def test_decoding_with_copies(build, tokens):
    """What copies its arguments, as some wrappers do, can say what they are."""
    layer, x, state = build("token shift"), tokens(2, 6), IncrementalState()
    options = {"is_causal": True, "state": state, "self_attention": True}
    out = [layer(y, y.clone(), y.clone(), **options)[0] for y in x.split([4, 2], 1)]
    torch.testing.assert_close(torch.cat(out, 1), layer(x, is_causal=True)[0])
