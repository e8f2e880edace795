"""Several texts in one row of a layer: each comes out as if it stood alone, gradients too."""

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import syncattn
from syncattn.nn import IncrementalState, OSNBlock, SelectiveSynchronizationAttention
from syncattn.nn.packing import places_of_texts

E, H = 24, 4
KINDS = {
    "default": {},
    "token shift, all delayed": {"token_shift": True, "delay": 1.0, "phase_dim": 2},
    "helix, turned values": {"position": "helix", "helix_scales": [2.0, 8.0], "value_rotation": 100.0},
    "rotary, directed": {"position": "rotary", "directed": True, "detuning": True, "token_shift": True},
    "own drift, absolute": {"position": "own_drift", "frame": "absolute", "freq_bias": True},
    "no position, top k": {"position": "none", "order_parameter": False, "top_k": 2, "self_coupling": True},
}


def make(kind):
    torch.manual_seed(0)
    layer = SelectiveSynchronizationAttention(E, H, density_range=(0.3, 0.8), **KINDS[kind])
    if layer.shift is not None:
        nn.init.normal_(layer.shift)
    return layer


def spread(lengths, before=0, after=0):
    """Ids (1, N) of texts of these lengths, with padding before the second and after the last."""
    parts = [torch.full((n,), i) for i, n in enumerate(lengths)]
    padding = [torch.full((n,), -1) for n in (before, after)]
    return torch.cat((parts[0], padding[0], *parts[1:], padding[1])).long()[None]


def gradients(layer, outs, weights):
    layer.zero_grad()
    sum((out * weight).sum() for out, weight in zip(outs, weights, strict=True)).backward()
    return [p.grad.clone() for p in layer.parameters() if p.grad is not None]


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=3, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    backend=st.sampled_from(["eager", "tiled", None]),
)
def test_each_text_as_if_alone(kind, is_causal, lengths, padding, backend):
    layer, ids = make(kind), spread(lengths, *padding)
    x = torch.randn(2, ids.shape[1], E, generator=torch.Generator().manual_seed(1))
    x[:, ids[0] < 0] = 1e4  # nobody sees padding
    weight = torch.linspace(-1, 1, E)
    texts = [ids[0] == i for i in range(len(lengths))]
    with syncattn.use_backend(backend) if backend else nullcontext():
        packed, _ = layer(x, is_causal=is_causal, sequence_ids=ids)
    found = [packed[:, at] for at in texts]
    alone = [layer(x[:, at], is_causal=is_causal)[0] for at in texts]
    for a, b in zip(found, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    pairs = [gradients(layer, outs, [weight] * len(outs)) for outs in (found, alone)]
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * max(1.0, float(b.abs().max())))


def test_a_text_far_along_the_row_is_exact():
    """What a text sums up is no difference of large rounded numbers."""
    layer = make("helix, turned values")
    x = torch.randn(1, 3000, E, generator=torch.Generator().manual_seed(1))
    ids = torch.zeros(1, 3000, dtype=torch.int64)
    ids[:, -7:] = 1
    with torch.no_grad():
        found, _ = layer(x, is_causal=True, sequence_ids=ids)
        torch.testing.assert_close(found[:, -7:], layer(x[:, -7:], is_causal=True)[0], rtol=1e-5, atol=1e-5)


def test_given_positions_padding_masks_and_rows_of_their_own():
    layer = make("helix, turned values")
    x = torch.randn(2, 9, E, generator=torch.Generator().manual_seed(1))
    places = torch.tensor([[0.0, 2, 3, 50, 51.5, 54, 60, 61, 70]])[..., None]
    ids = torch.tensor([[0, 0, 0, 5, 5, 5, 5, 5, 5], [1, 1, 1, 1, 1, 2, 2, -1, -1]])
    hidden = torch.zeros(2, 9, dtype=torch.bool)
    hidden[0, 4] = True
    with torch.no_grad():
        found, _ = layer(x, key_padding_mask=hidden, positions=places, sequence_ids=ids)
        for row, at in ((0, [0, 1, 2]), (0, [3, 5, 6, 7, 8]), (1, [0, 1, 2, 3, 4]), (1, [5, 6])):
            alone, _ = layer(x[row : row + 1, at], positions=places[:, at])
            torch.testing.assert_close(found[row : row + 1, at], alone, rtol=1e-4, atol=1e-5)


def test_weights_blocks_and_single_rows():
    layer, ids = make("default"), spread((4, 6))
    x = torch.randn(10, E)
    with torch.no_grad():
        out, weights = layer(x, need_weights=True, sequence_ids=ids[0])
        assert (weights[ids[0, :, None] != ids[0]] == 0).all()
        torch.testing.assert_close(out, layer(x, sequence_ids=ids)[0])
        torch.manual_seed(0)
        block = OSNBlock(E, H, 32, dropout=0.0, batch_first=True)
        packed = block(x[None], is_causal=True, sequence_ids=ids)
        torch.testing.assert_close(packed[:, 4:], block(x[None, 4:], is_causal=True), rtol=1e-4, atol=1e-5)


def test_counted_pairs_are_within_texts():
    layer, ids = make("default"), spread((4, 6), after=2)
    x = torch.randn(1, 12, E)
    counted = layer.count_locked(x, is_causal=True, sequence_ids=ids)
    alone = [layer.count_locked(x[:, ids[0] == i], is_causal=True) for i in (0, 1)]
    assert all(torch.equal(a, b + c) for a, b, c in zip(counted, *alone, strict=True))


X = torch.zeros(2, 6, E)
IDS = torch.tensor([[0, 0, 0, 1, 1, 1]])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sequence_ids": [0]}, TypeError, "sequence_ids must be a tensor"),
        ({"sequence_ids": IDS.float()}, ValueError, "sequence_ids must hold integers"),
        ({"sequence_ids": IDS[0]}, ValueError, r"\(B or 1, N\) = \(2, 6\), got \(6,\)"),
        ({"sequence_ids": IDS.flip(1)}, ValueError, "must not fall.*got 0 after 1 in row 0, column 3"),
        ({"sequence_ids": IDS, "key": X + 1}, ValueError, "self-attention without an attn_mask.*got a key"),
        (
            {"sequence_ids": IDS, "attn_mask": torch.zeros(6, 6, dtype=torch.bool)},
            ValueError,
            "sequence_ids are for self-attention without an attn_mask.*got an attn_mask",
        ),
        (
            {"sequence_ids": IDS, "state": IncrementalState(), "is_causal": True},
            ValueError,
            "sequence_ids must be left out with a state",
        ),
    ],
)
def test_refused(options, error, message):
    with pytest.raises(error, match=message):
        make("default")(X, **options)


def test_compiled():
    layer, ids = make("token shift, all delayed"), spread((4, 6), after=2)
    x = torch.randn(1, 12, E)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    found, expected = (f(x, is_causal=True, sequence_ids=ids)[0] for f in (compiled, layer))
    torch.testing.assert_close(found[:, :10], expected[:, :10], rtol=1e-4, atol=1e-5)


def test_places_of_texts():
    """Of one length side by side, through all rows; padding within a text and between texts is left out."""
    ids = torch.tensor([[-1, 3, 3, -1, 3, 5], [0, 0, 7, 7, 7, -1]])
    assert [x.tolist() for x in places_of_texts(ids)] == [[[1, 2, 4], [8, 9, 10]], [[5]], [[6, 7]]]
    assert places_of_texts(torch.full((2, 3), -1)) == []
    assert places_of_texts(ids[:, :0]) == [] and places_of_texts(ids[:0]) == []
