"""A past that forgets what no head can reach gives, to the last bit, what one gives that keeps everything."""

import copy
import math
import pickle
import warnings

import pytest
import torch
from torch import nn

from syncattn.nn import IncrementalState
from syncattn.nn.groups import BLOCK, in_groups, starts_of
from syncattn.nn.windows import head_windows

LENGTH, SMALL = 150, 8
KINDS = [
    "default",
    "own drift",
    "directed",
    "absolute",
    "token shift",
    "top k",
    "mix of forms",
    "convolution",
    "bounded",
]
CUTS = ([70] + [1] * 30 + [49, 1], [33, 50, 5, 1, 1, 40, 20], [LENGTH - 1, 1])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    for room in ("groups", "state"):
        monkeypatch.setattr(f"syncattn.nn.{room}.BLOCK", SMALL)


@pytest.fixture
def case(build, tokens):
    """A layer of a kind, its windows, narrow beside the tokens, and as many tokens as its LayerNorm makes."""

    def make(kind, batch=2, length=LENGTH):
        options = {} if kind == "absolute" else {"density_range": (0.05, 0.3)}
        if kind == "convolution":
            kind, options["short_convolution"] = "default", 3
        warnings.filterwarnings("ignore", message="the wanted densities")
        layer = build(kind, window_range=(0.3, 6.0), **options)
        norm = nn.LayerNorm(24).double()
        windows = head_windows(layer, norm)
        assert windows.min() < LENGTH / 3
        return layer, windows, norm(tokens(batch, length)).detach()

    return make


@torch.no_grad()
def decode(layer, x, cuts, windows=None, evict=True, padding=None, state=None):
    """The outputs, and the state."""
    if state is None:
        state = IncrementalState(windows=None if windows is None else in_groups(windows, evict))
    outs, at = [], state.length
    for n in cuts:
        mask = None if padding is None else padding[:, at : at + n]
        outs.append(layer(x[:, at : at + n], key_padding_mask=mask, is_causal=True, state=state)[0])
        at += n
    return torch.cat(outs, 1), state


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cuts", CUTS, ids=["prompt", "chunks", "all but one"])
def test_forgetting_changes_no_bit(case, kind, cuts):
    layer, windows, x = case(kind)
    plain, whole = decode(layer, x, cuts)
    kept, keeping = decode(layer, x, cuts, windows, evict=False)
    out, state = decode(layer, x, cuts, windows)
    assert torch.equal(out, kept)
    torch.testing.assert_close(out, plain, rtol=0, atol=1e-10)
    assert state.forgets and not keeping.forgets and state.length == LENGTH
    assert len(state.groups) > 1 or kind in ("own drift", "absolute")
    assert keeping.nbytes == whole.nbytes > state.nbytes
    for group, reach in zip(state.groups, state.windows.reach, strict=True):
        assert group.held <= min(LENGTH, reach + 2 * SMALL)


PADDING = {
    "left": lambda i: [i < 0, i < 60],
    "right": lambda i: [i < 0, i > 40],
    "holes": lambda i: [(i > 30) & (i < 120), i % 3 == 0],
    "nobody": lambda i: [i > 30, i > -1],
}


@pytest.mark.parametrize("name", PADDING)
def test_padding_is_no_distance(case, name):
    """Positions number real tokens: however much padding is between, those before it stay within reach."""
    layer, windows, x = case("token shift")
    padding = torch.stack(PADDING[name](torch.arange(LENGTH)))
    for cuts in CUTS[:2]:
        plain, _ = decode(layer, x, cuts, padding=padding)
        kept, _ = decode(layer, x, cuts, windows, evict=False, padding=padding)
        out, state = decode(layer, x, cuts, windows, padding=padding)
        assert torch.equal(out, kept) and state.mask.shape == (2, LENGTH)
        torch.testing.assert_close(out[~padding], plain[~padding], rtol=0, atol=1e-10)
        real = (~padding).sum(1).tolist()
        for group, reach in zip(state.groups, state.windows.reach, strict=True):
            needed = [row.nonzero()[max(0, n - int(reach))] for row, n in zip(~padding, real) if n]
            assert all(group.first <= int(at) for at in needed)


@torch.no_grad()
def test_what_starts_are_promised():
    """By brute force: of what lies before a start, nothing is within the window of any later token."""
    torch.manual_seed(0)
    for _ in range(100):
        tokens = SMALL * int(torch.randint(1, 12, ()))
        windows = in_groups(torch.rand(3).double() * 60 + 1, True)
        real = torch.rand(2, tokens) < torch.rand(2, 1)
        for mask in (None, real):
            seen = torch.ones(1, tokens, dtype=torch.bool) if mask is None else mask
            place = seen.cumsum(1) - 1
            for start, reach in zip(starts_of(windows, mask, tokens), windows.reach, strict=True):
                assert start % SMALL == 0 and 0 <= start <= tokens
                apart = torch.where(seen, place[:, -1:] + 1 - place, math.inf)
                assert (apart[:, :start] > reach).all()
                block = apart[:, start : start + SMALL]
                assert start == tokens or block.min() <= reach + 1


@torch.no_grad()
def test_what_a_windowed_head_holds_does_not_grow(case):
    layer, windows, x = case("default", length=600)
    _, state = decode(layer, x, [300] + [1] * 100, windows)
    sizes = []
    for at in range(400, 600):
        layer(x[:, at : at + 1], is_causal=True, state=state)
        sizes.append((state.nbytes, state.nbytes + state.spare_nbytes))
    held = [group.held for group in state.groups]
    assert (
        max(sizes)[0] - min(sizes)[0] < 2 * 4 * 2 * SMALL * 8 * 24 and max(held) < windows.max() + 2 * SMALL
    )
    assert max(size for _, size in sizes) <= max(size for _, size in sizes[:100])


@pytest.mark.parametrize("kind", ["token shift", "convolution"])
def test_the_way_back_keeps_what_it_needs(case, kind):
    layer, windows, x = case(kind)
    other = x.flip(1)
    plain, _ = decode(layer, x, [LENGTH])
    states = [IncrementalState(windows=in_groups(windows, evict)) for evict in (True, False)]
    for state in states:
        decode(layer, x, [60] + [1] * 20, state=state)
        state.steps = []
        decode(layer, x[:, :90], [10], state=state)
        decode(layer, torch.cat((x[:, :90], other[:, 90:]), 1), [1] * 30 + [9], state=state)
    forgot = [group.first for group in states[0].groups]
    assert any(forgot) and all(f <= s for f, s in zip(forgot, states[0].starts))
    assert states[0].nbytes < states[1].nbytes
    for length in (100, 90, 87):
        for state in states:
            state.crop_(length)
            assert state.length == length
    first, second = (decode(layer, x, [1, 2] + [1] * 60, state=state)[0] for state in states)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, plain[:, 87:], rtol=0, atol=1e-10)
    state = states[0]
    held = [group.send.clone() for group in state.groups]
    for length in (79, 40, 1):
        with pytest.raises(ValueError, match=f"one that the state can go back to, got {length}"):
            state.crop_(length)
    assert all(torch.equal(group.send, x) for group, x in zip(state.groups, held, strict=True))
    state.crop_(0)
    assert state.length == 0 and state.windows is not None
    torch.testing.assert_close(decode(layer, x, [80, 70], state=state)[0], plain, rtol=0, atol=1e-10)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies_beams_and_batches_go_on(case, copied):
    layer, windows, x = case("mix of forms", batch=3)
    plain, _ = decode(layer, x, [LENGTH])
    _, state = decode(layer, x, [80, 1, 1], windows)
    other = copied(state)
    decode(layer, x.flip(0), [30, 1], state=state)
    torch.testing.assert_close(
        decode(layer, x, [1] * 10 + [58], state=other)[0], plain[:, 82:], rtol=0, atol=1e-10
    )
    for change, index in (
        (lambda s: s.select_(torch.tensor([2, 0])), [2, 0]),
        (lambda s: s.repeat_(2), [0, 0, 1, 1, 2, 2]),
    ):
        outs = []
        for evict in (True, False):
            _, state = decode(layer, x, [80, 1, 1], windows, evict)
            with torch.no_grad():
                change(state)
            outs.append(decode(layer, x[index], [1] * 10 + [58], state=state)[0])
        assert torch.equal(*outs)
        torch.testing.assert_close(outs[0], plain[index, 82:], rtol=0, atol=1e-10)


@torch.no_grad()
def test_weights_are_as_wide_as_the_text(case):
    layer, windows, x = case("mix of forms")
    _, whole = layer(x, is_causal=True, need_weights=True, average_attn_weights=False)
    _, state = decode(layer, x, [LENGTH - 3], windows)
    assert state.forgets and len(state.groups) > 1
    _, weights = layer(x[:, -3:], is_causal=True, state=state, need_weights=True, average_attn_weights=False)
    torch.testing.assert_close(weights, whole[:, :, -3:], rtol=0, atol=1e-10)


def test_gradients_go_through_what_is_left(case):
    layer, windows, x = case("default")
    plain, kept = decode(layer, x, [LENGTH - 2])[1], decode(layer, x, [LENGTH - 2], windows)[1]
    assert kept.forgets
    found = []
    for state in (plain, kept):
        for _ in range(2):
            at = state.length
            out, _ = layer(x[:, at : at + 1], is_causal=True, state=state)
        found.append(
            [out, *torch.autograd.grad(out.square().sum(), list(layer.parameters()), allow_unused=True)]
        )
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, rtol=0, atol=1e-9)


@torch.no_grad()
def test_positions_after_forgetting(case):
    """Windows are those of tokens one apart: a gap could bring back what was given up."""
    layer, windows, x = case("default")
    plain, _ = decode(layer, x, [LENGTH])
    gap = torch.arange(100, 120)[None, :, None] + 30
    outs = []
    for evict in (True, False):
        _, state = decode(layer, x, [100], windows, evict)
        assert state.forgets == evict and any(state.starts)
        numbered = torch.arange(100, 120)[None, :, None].expand(2, -1, -1)
        outs.append(layer(x[:, 100:120], is_causal=True, state=state, positions=numbered)[0])
        if not evict:
            continue
        before = state.nbytes
        with pytest.raises(ValueError, match=r"positions must be left out, or number the tokens on by 1"):
            layer(x[:, 120:140], is_causal=True, state=state, positions=gap + 20)
        assert state.nbytes == before and state.length == 120
    torch.testing.assert_close(outs[0], plain[:, 100:120], rtol=0, atol=1e-10)
    torch.testing.assert_close(outs[1], plain[:, 100:120], rtol=0, atol=1e-10)
    _, keeping = decode(layer, x, [100], windows, evict=False)
    _, whole = decode(layer, x, [100])
    a, b = (layer(x[:, 100:120], is_causal=True, state=s, positions=gap)[0] for s in (keeping, whole))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    placed = IncrementalState(windows=in_groups(windows, True))
    layer(x[:, :120], is_causal=True, state=placed, positions=torch.arange(120)[None, :, None] * 2)
    layer(x[:, 120:], is_causal=True, state=placed)
    assert not placed.forgets and placed.groups[0].held == LENGTH


def test_heads_of_like_window_stand_together():
    windows = in_groups(torch.tensor([3.0, 100.0, 5.0, 900.0, math.inf, 90.0]).double(), True)
    assert [h if isinstance(h, slice) else h.tolist() for h in windows.heads] == [
        *([0, 2], [1, 5], slice(3, 4), slice(4, 5))
    ]
    assert windows.reach == (5.0, 100.0, 900.0, math.inf)
    assert windows.back.tolist() == [0, 2, 1, 4, 5, 3]
    assert in_groups(torch.full((3,), math.inf).double(), True) is None
    assert in_groups(torch.tensor([3.0, 4.0]).double(), True).heads == (None,)
    assert in_groups(torch.tensor([3.0, 400.0]).double(), True).back is None


def test_the_block_is_eight_of_the_kernels_tiles():
    assert BLOCK == 512
