"""No output depends on a token that its query may not see: not through the token before a sender either."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import syncattn
from syncattn.nn import OSNBlock, SelectiveSynchronizationAttention, locked_density, sight

E, H = 24, 4
# Masks by what receiver i may see of sender j, i counted from the senders' end.
MASKS = {
    "nothing": lambda i, j, g: torch.zeros_like(i + j).bool(),
    "future": lambda i, j, g: j > i,
    "other texts": lambda i, j, g: (i // 3 != j // 3) | (j > i),
    "one token": lambda i, j, g: (j == 3).expand(i.shape[0], -1),
    "the nearest": lambda i, j, g: j > i - 2,
    "even distances": lambda i, j, g: (i - j) % 2 == 0,
    "other texts, by head": lambda i, j, g: torch.stack(
        [((i // n != j // n) | (j > i)).expand(2, -1, -1) for n in (3, 3, 2, 6)], 1
    ),
    "outside of a window": lambda i, j, g: (j > i) | (j < i - 1),
    "both sides of a window": lambda i, j, g: (j - i).abs() > 1,
    "random": lambda i, j, g: torch.rand((i + j).shape, generator=g) > 0.7,
    "random by head": lambda i, j, g: torch.rand((2, H, *(i + j).shape), generator=g) > 0.4,
    "random by text": lambda i, j, g: torch.rand((2, 1, *(i + j).shape), generator=g) > 0.7,
    "keys": lambda i, j, g: torch.rand((2, 1, 1, j.shape[-1]), generator=g) > 0.7,
}


def draw_mask(name, queries, keys, seed):
    """A boolean mask, True = may not attend, that the layer takes."""
    g = torch.Generator().manual_seed(seed)
    i = torch.arange(keys - queries, keys)[:, None]
    return MASKS[name](i, torch.arange(keys), g)


def seen_by(hidden, padding, is_causal, batch, queries, keys):
    """(B, H, N, M): which senders a receiver may see."""
    seen = ~hidden.expand(batch, H, queries, keys)
    if is_causal:
        seen = seen & torch.ones(queries, keys).tril(keys - queries).bool()
    return seen if padding is None else seen & ~padding[:, None, None]


def by_definition(layer, query, key, value, hidden, padding, is_causal, itself):
    """(out, weights) pair by pair: each receiver makes the senders, of what it may see only."""
    batch, queries, keys = len(query), query.shape[1], key.shape[1]
    seen = seen_by(hidden, padding, is_causal, batch, queries, keys)
    real = torch.ones(batch, keys, dtype=torch.bool) if padding is None else ~padding
    shift = torch.zeros(2, E).double() if layer.shift is None else layer.shift
    heads = torch.zeros(batch, queries, H, E // H).double()
    weights = torch.zeros(batch, H, queries, keys).double()

    def emit(x, at, h, by):
        return by(x[None, None], torch.tensor([[at]]))[0, h, 0]

    for b in range(batch):
        places = real[b].cumsum(0) - 1
        before = [max((j for j in range(t) if real[b, j]), default=None) for t in range(keys)]
        for h, i in torch.cartesian_prod(torch.arange(H), torch.arange(queries)).tolist():
            sees = seen[b, h, i].tolist()

            def mixed(x, amount, t, sees=sees, b=b, before=before):
                p = before[t]
                return x[b, t] + (amount * x[b, p] if p is not None and sees[p] else 0)

            t = keys - queries + i  # the receiver's place among the senders
            at = places[t] if itself or is_causal else i
            x = mixed(key, shift[0], t) if (itself or is_causal) and layer.shift is not None else query[b, i]
            receive = emit(x, at, h, layer.frequency.receive)
            send, told, phases, columns = [], [], [], []
            for j in range(keys):
                if not sees[j]:
                    continue
                x, p = mixed(key, shift[0], j), before[j]
                if layer.phase_proj is not None:
                    phases.append(layer.phase_proj(x).view(H, -1)[h])
                if itself and j == i and not layer.self_coupling:
                    continue
                if not layer.frequency.delayed[h]:
                    send.append(emit(x, places[j], h, layer.frequency.emit))
                elif p is not None and sees[p]:
                    send.append(emit(mixed(key, shift[0], p), places[p], h, layer.frequency.emit))
                else:
                    send.append(emit(torch.zeros(E).double(), places[j] - 1, h, layer.frequency.emit))
                told.append(layer.value_proj(mixed(value, shift[1], j)).view(H, -1)[h])
                columns.append(j)
            if not columns:
                continue
            r = syncattn.order_parameter(torch.stack(phases)[None, None])[0, 0] if phases else 1.0
            heads[b, i, h], _, row = (
                x[0, 0, 0]
                for x in syncattn.selective_synchronization_attention(
                    receive[None, None, None],
                    torch.stack(send)[None, None],
                    torch.stack(told)[None, None],
                    (layer.coupling[h] * r)[None],
                    layer.bandwidth[h][None],
                    top_k=layer.top_k,
                    frame=layer.frame,
                    power=layer.power,
                    edge=layer.edge,
                    eps=layer.eps,
                    return_weights=True,
                )
            )
            weights[b, h, i, columns] = row
            if layer.gate is not None:
                nearest = (receive - torch.stack(send)).square().sum(-1).min() / layer.freq_dim
                heads[b, i, h] *= 2 * torch.sigmoid(layer.gate[0, h] - layer.gate[1, h] * nearest)
    return layer.out_proj(heads.flatten(-2)), weights


@settings(max_examples=8)
@example("one token", 0, 6, 2, "end", False, True)  # what all who see a sender agree on
@example("other texts", 1, 6, 0, "itself", True, True)
@example("the nearest", 0, 6, 0, "itself causal", False, True)  # on which only receivers do not
@example("even distances", 1, 6, 0, "itself", False, True)
@example("other texts, by head", 0, 6, 0, "itself", False, True)  # on which only heads do not
@given(
    mask=st.sampled_from(list(MASKS)),
    seed=st.integers(0, 2**31),
    keys=st.integers(1, 6),
    fewer=st.integers(0, 2),
    how=st.sampled_from(["itself", "itself", "itself causal", "end", "cross"]),
    padded=st.booleans(),
    looks=st.booleans(),
)
def test_the_layer_is_its_definition(layer, mask, seed, keys, fewer, how, padded, looks):
    """Whether it may look at the mask (`looks`) or not."""
    itself, is_causal = how.startswith("itself"), how in ("itself causal", "end")
    queries = keys if itself else max(keys - fewer, 1)
    hidden = draw_mask(mask, queries, keys, seed)
    g = torch.Generator().manual_seed(seed)
    x, other, value = torch.randn(3, 2, keys, E, generator=g, dtype=torch.float64)
    padding = torch.rand(2, keys, generator=g) > 0.7 if padded else None
    query, key = (x, x) if itself else (x[:, keys - queries :].clone(), x if is_causal else other)
    options = {"attn_mask": hidden, "key_padding_mask": padding, "is_causal": is_causal}
    if how == "cross" and layer.shift is not None:
        with pytest.raises(ValueError, match="attn_mask does not go with a token shift in cross-attention"):
            layer(query, key, value, **options)
        return
    if hidden.ndim == 4 and hidden.shape[1] == H:
        options["attn_mask"] = hidden.flatten(0, 1)
    elif seed % 2:
        options["attn_mask"] = torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        if not looks:
            patch.setattr(sight, "is_plain", lambda tensor: False)
        out, _ = layer(query, key, value, **options)
        same, weights = layer(query, key, value, **options, need_weights=True, average_attn_weights=False)
        want, want_weights = by_definition(layer, query, key, value, hidden, padding, is_causal, itself)
    tolerance = 1e-4 if layer.frequency.position == "rotary" else 1e-9  # angles are float32
    rows = torch.ones(2, queries, dtype=torch.bool)
    if padding is not None and (itself or is_causal):
        rows = ~padding[:, keys - queries :]  # what padding hears means nothing
    torch.testing.assert_close(out[rows], want[rows], rtol=0, atol=tolerance)
    torch.testing.assert_close(same[rows], want[rows], rtol=0, atol=tolerance)
    at = rows[:, None, :, None].expand_as(weights)
    torch.testing.assert_close(weights[at], want_weights[at], rtol=0, atol=tolerance)


LENGTH = 7


@pytest.mark.parametrize(
    ("mask", "dtype"),
    [
        ("other texts", torch.float64),
        ("outside of a window", torch.float32),
        ("random", torch.float32),
        ("random by head", torch.float64),
    ],
)
def test_what_is_hidden_changes_nothing(layer, tokens, mask, dtype):
    """Whatever stands there, however large; and no gradient comes back from there, to the last bit."""
    layer, hidden = layer.to(dtype), draw_mask(mask, LENGTH, LENGTH, 5)
    x = tokens(2, LENGTH, dtype=dtype).requires_grad_()
    masked = hidden.expand(2, H, -1, -1).flatten(0, 1)
    out, _ = layer(x, attn_mask=masked)
    eager, weights = layer(x, attn_mask=masked, need_weights=True)
    assert weights.shape == (2, LENGTH, LENGTH) and not weights[hidden.expand(2, H, -1, -1).all(1)].any()
    blind = hidden.expand(2, H, -1, -1).all(1) & ~torch.eye(LENGTH, dtype=torch.bool)  # a query knows itself
    for j in range(LENGTH):
        with torch.no_grad():
            other = x.clone()
            other[:, j] = 50 * torch.randn(2, E, generator=torch.Generator().manual_seed(j))
            for need_weights, want in ((False, out), (True, eager)):
                got, _ = layer(other, attn_mask=masked, need_weights=need_weights)
                difference = (got - want).abs().amax(-1)[blind[:, :, j]]
                assert (difference < (1e-9 if dtype == torch.float64 else 2e-5)).all()
    for i in range(LENGTH):
        told = out[:, i].square().sum() + eager[:, i].square().sum()
        (gradient,) = torch.autograd.grad(told, x, retain_graph=True)
        assert gradient.isfinite().all() and not gradient[blind[:, i]].any()


def test_packed_texts_are_as_if_alone(layer, tokens):
    """Texts one after the other, kept apart by a mask: as each gives alone, with padding among them, too."""
    lengths = (1, 4, 2, 5)
    x, text = tokens(2, sum(lengths)), torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))
    tolerance = 1e-4 if layer.frequency.position == "rotary" else 1e-9
    apart = text[:, None] != text
    spread = torch.full((2, 2 * len(text), E), 9.0, dtype=x.dtype)
    spread[:, ::2] = x
    padding = torch.arange(2 * len(text)) % 2 == 1
    for causal in (False, True):
        out, _ = layer(x, attn_mask=apart, is_causal=causal)
        sparse, _ = layer(
            spread,
            attn_mask=apart.repeat_interleave(2, 0).repeat_interleave(2, 1),
            key_padding_mask=padding.expand(2, -1),
            is_causal=causal,
        )
        for n in range(4):
            alone, _ = layer(x[:, text == n], is_causal=causal)
            torch.testing.assert_close(out[:, text == n], alone, rtol=0, atol=tolerance)
            torch.testing.assert_close(sparse[:, ::2][:, text == n], alone, rtol=0, atol=tolerance)


def test_packed_texts_in_an_encoder(tokens):
    torch.manual_seed(0)
    block = OSNBlock(E, H, 48, batch_first=True, norm_first=True, density_range=(0.3, 0.8), token_shift=True)
    nn.init.normal_(block.self_attn.shift)
    encoder = nn.TransformerEncoder(block, 3, enable_nested_tensor=False).double().eval()
    x, text = tokens(1, 12), torch.arange(12) // 5
    future = nn.Transformer.generate_square_subsequent_mask(12, dtype=torch.float64)
    out = encoder(x, mask=future.masked_fill(text[:, None] != text, -torch.inf))
    for n in range(3):
        own = future[text == n][:, text == n]
        torch.testing.assert_close(out[:, text == n], encoder(x[:, text == n], mask=own), rtol=0, atol=1e-9)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_hidden_value_that_is_no_number_does_not_spread(layer, tokens, bad):
    """0 * NaN is NaN. The frequencies are finite here: keys that are not are refused."""
    x, value = tokens(2, LENGTH), tokens(2, LENGTH, seed=2)
    poisoned = value.clone()
    poisoned[:, 3] = bad
    masked = torch.zeros(LENGTH, LENGTH, dtype=torch.bool)
    masked[:, 3] = True
    for options in (
        {"attn_mask": masked},
        {"attn_mask": masked | torch.ones(LENGTH, LENGTH).tril(-3).bool()},
        {"attn_mask": masked, "is_causal": True},
        {"key_padding_mask": masked[0].expand(2, -1)},
    ):
        for need_weights in (False, True):
            want, got = (layer(x, x, v, **options, need_weights=need_weights)[0] for v in (value, poisoned))
            rows = torch.arange(LENGTH) != 3
            assert torch.equal(got[:, rows], want[:, rows]) and got[:, rows].isfinite().all()


def test_who_looks_back_only_where_it_may(layer, tokens):
    """Where all who see a sender agree about the one before, it stands there once; else in all its forms."""
    x = tokens(2, LENGTH)
    forms = 1 + layer.frequency.has_delay + (layer.shift is not None)
    for mask, want in (("nothing", 1), ("future", 1), ("other texts", 1), ("outside of a window", forms)):
        call = layer.operator_call(x, attn_mask=draw_mask(mask, LENGTH, LENGTH, 0))
        assert call.send.shape[2] == want * LENGTH, mask


def test_densities_count_pairs_not_forms(build, tokens):
    x, window = tokens(2, 20), torch.ones(20, 20).tril(-8).bool() | torch.ones(20, 20).triu(1).bool()
    for kind in ("default", "token shift"):
        layer = build(kind)
        _, weights = layer(x, attn_mask=window, need_weights=True, average_attn_weights=False)
        allowed = ~window & ~torch.eye(20, dtype=torch.bool)
        share = (weights > 0).sum((0, 2, 3)) / (2 * allowed.sum())
        torch.testing.assert_close(layer.locked_density(x, attn_mask=window), share)
        torch.testing.assert_close(locked_density(layer, x, attn_mask=window)[""], share)
        layer.calibrate_(x, attn_mask=window, density_range=(0.9, 0.9))
        assert layer.locked_density(x, attn_mask=window).mean() > 0.8


def test_training_with_a_window_drops_weights():
    torch.manual_seed(0)
    layer = SelectiveSynchronizationAttention(E, H, dropout=0.5, token_shift=True, top_k=2)
    x = torch.randn(2, LENGTH, E)
    window = draw_mask("outside of a window", LENGTH, LENGTH, 0)
    assert not torch.equal(layer(x, attn_mask=window)[0], layer(x, attn_mask=window)[0])
    layer(x, attn_mask=window)[0].square().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
