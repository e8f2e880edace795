"""Incremental decoding gives what the full forward gives; its state can be selected from and repeated."""

import copy

import pytest
import torch

from syncattn.models.softmax import SoftmaxAttention
from syncattn.nn import IncrementalState
from syncattn.nn.state import _TENSORS

pytestmark = pytest.mark.usefixtures("no_gradients")
LENGTH = 13
CUTS = {
    "token by token": [1] * LENGTH,
    "prompt, then tokens": [6] + [1] * (LENGTH - 6),
    "chunks": [3, 1, 5, 4],
    "at once": [LENGTH],
}


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


def decode(layer, x, cuts, padding=None):
    state, outs, at = IncrementalState(), [], 0
    for n in cuts:
        mask = None if padding is None else padding[:, at : at + n]
        outs.append(layer(x[:, at : at + n], key_padding_mask=mask, is_causal=True, state=state)[0])
        at += n
        assert state.length == at
    return torch.cat(outs, 1), state


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("cuts", CUTS)
def test_equals_the_full_forward(layer, tokens, cuts, dtype):
    layer, x = layer.to(dtype), tokens(3, LENGTH, dtype=dtype)
    want, _ = layer(x, is_causal=True)
    out, _ = decode(layer, x, CUTS[cuts])
    assert (out - want).abs().max() < (1e-10 if dtype == torch.float64 else 1e-5)


PADDING = {  # "." is padding
    "left": ["....#########", "#############", "............#"],
    "right": ["#########....", "#############", "#............"],
    "late": ["######..#..##", ".............", "..#.#.#.#.#.#"],
}


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("name", PADDING)
def test_with_padding_equals_the_full_forward(layer, tokens, name, cuts):
    padding = torch.tensor([[c == "." for c in row] for row in PADDING[name]])
    x = tokens(3, LENGTH)
    want, _ = layer(x, key_padding_mask=padding, is_causal=True)
    out, _ = decode(layer, x, CUTS[cuts], padding)
    torch.testing.assert_close(out[~padding], want[~padding], rtol=0, atol=1e-10)


def test_padding_in_the_prompt_only(layer, tokens):
    """A left-padded prompt, then tokens for which no mask is given any more; or first one that has none."""
    padding = torch.tensor([[True] * 3 + [False] * 10, [False] * 13])
    x = tokens(2, LENGTH)
    want, _ = layer(x, key_padding_mask=padding, is_causal=True)
    state = IncrementalState()
    first, _ = layer(x[:, :6], key_padding_mask=padding[:, :6], is_causal=True, state=state)
    second, _ = layer(x[:, 6:], is_causal=True, state=state)
    out = torch.cat((first, second), 1)
    torch.testing.assert_close(out[~padding], want[~padding], rtol=0, atol=1e-10)

    padding = padding.flip(1)
    want, _ = layer(x, key_padding_mask=padding, is_causal=True)
    state = IncrementalState()
    first, _ = layer(x[:, :6], is_causal=True, state=state)
    second, _ = layer(x[:, 6:], key_padding_mask=padding[:, 6:], is_causal=True, state=state)
    out = torch.cat((first, second), 1)
    torch.testing.assert_close(out[~padding], want[~padding], rtol=0, atol=1e-10)


def test_select_and_repeat(layer, tokens):
    x = tokens(3, LENGTH)
    padding = torch.zeros(3, LENGTH, dtype=torch.bool)
    padding[1, :2] = True
    for mask in (None, padding):
        state = IncrementalState()
        prefix = None if mask is None else mask[:, :8]
        layer(x[:, :8], key_padding_mask=prefix, is_causal=True, state=state)

        index = torch.tensor([2, 0, 1, 1])
        chosen = copy.deepcopy(state)
        chosen.select_(index)
        out, _ = layer(x[index, 8:], is_causal=True, state=chosen)
        full, _ = layer(x[index], key_padding_mask=None if mask is None else mask[index], is_causal=True)
        torch.testing.assert_close(out, full[:, 8:], rtol=0, atol=1e-10)

        state.repeat_(2)
        twice = x.repeat_interleave(2, 0)
        out, _ = layer(twice[:, 8:], is_causal=True, state=state)
        mask2 = None if mask is None else mask.repeat_interleave(2, 0)
        full, _ = layer(twice, key_padding_mask=mask2, is_causal=True)
        torch.testing.assert_close(out, full[:, 8:], rtol=0, atol=1e-10)


def test_what_it_holds(build, tokens):
    """freq_dim + head_dim numbers per token and head; per head the prefix sums and the last frequency; the
    last hidden state."""
    layer = build(dtype=torch.float32, freq_dim=4, phase_dim=3, token_shift=True)
    state = IncrementalState()
    assert state.length == 0 and state.nbytes == 0
    layer(tokens(2, 7, dtype=torch.float32), is_causal=True, state=state)
    batch, heads, held, m, d, p = 2, 4, 7, 4, 6, 3
    numbers = batch * heads * (held * (m + d) + 2 * p + m)
    assert state.nbytes == 4 * (numbers + batch * heads * d) + 8 * batch
    assert state.count.tolist() == [[7], [7]]


def test_a_state_takes_one_batch_size(build, tokens):
    layer, state = build(), IncrementalState()
    layer(tokens(3, 4), is_causal=True, state=state)
    before = copy.deepcopy(state)
    for batch in (1, 2):
        with pytest.raises(ValueError, match=f"state holds a batch of 3 sequences, got {batch}"):
            layer(tokens(batch, 1), is_causal=True, state=state)
    for name, tensor in tensors_of(before).items():  # nothing was half-written
        assert tensor is None or torch.equal(tensor, getattr(state, name)), name
    # one held sequence must not be broadcast to several, either
    state = IncrementalState()
    layer(tokens(1, 4), is_causal=True, state=state)
    with pytest.raises(ValueError, match="state holds a batch of 1 sequences, got 2"):
        layer(tokens(2, 1), is_causal=True, state=state)
    assert state.phase_sum.shape[0] == 1


def test_an_empty_call_changes_nothing(layer, tokens):
    x = tokens(2, 5)
    want, _ = layer(x, is_causal=True)
    state = IncrementalState()
    assert layer(x[:, :0], is_causal=True, state=state)[0].shape == (2, 0, 24)
    first, _ = layer(x[:, :3], is_causal=True, state=state)
    layer(x[:, :0], is_causal=True, state=state)
    second, _ = layer(x[:, 3:], is_causal=True, state=state)
    torch.testing.assert_close(torch.cat((first, second), 1), want, rtol=0, atol=1e-10)


def tensors_of(state):
    """What a state holds, by name; the memory that its tensors stand in is no part of that."""
    return {name: getattr(state, name) for name in ("send", "value", *_TENSORS)}


def broken(*_, **__):
    raise RuntimeError("broken")


FAILURES = {  # what is put in a part's place, and what the layer raises then
    "refused": (
        lambda layer: (layer.raw_coupling, "data", layer.raw_coupling * torch.nan),
        "coupling must be",
    ),
    "operator": (
        lambda layer: ("syncattn.nn.attention.selective_synchronization_attention", broken),
        "broken",
    ),
    "after it": (lambda layer: (layer.out_proj, "forward", broken), "broken"),
}


@pytest.mark.parametrize("kind", ["default", "token shift", "softmax"])
def test_a_call_that_fails_leaves_the_past_as_it_was(build, tokens, monkeypatch, kind):
    x, ways = tokens(2, LENGTH), list(FAILURES)
    if kind == "softmax":
        layer = SoftmaxAttention(24, 4, delay=0.5, token_shift=True).double().eval()
        ways = ["after it"]
    else:
        layer = build(kind)
    want, _ = layer(x, is_causal=True)
    for past in (0, 7):
        state = IncrementalState()
        layer(x[:, :past], is_causal=True, state=state)
        held = {name: (tensor, copy.deepcopy(tensor)) for name, tensor in tensors_of(state).items()}
        for way in ways:
            replacement, message = FAILURES[way]
            with monkeypatch.context() as patch, pytest.raises((ValueError, RuntimeError), match=message):
                patch.setattr(*replacement(layer))
                layer(x[:, past:], is_causal=True, state=state)
            assert tensors_of(state).keys() == held.keys()
            for name, (tensor, values) in held.items():
                assert getattr(state, name) is tensor, name
                assert tensor is None or torch.equal(tensor, values), name
        out, _ = layer(x[:, past:], is_causal=True, state=state)
        torch.testing.assert_close(out, want[:, past:], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["default", "token shift"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_state_goes_back_to_a_mark(build, tokens, kind, padded):
    layer, x = build(kind), tokens(2, LENGTH)
    padding = torch.tensor([[padded] * 2 + [False] * (LENGTH - 2), [False] * LENGTH])
    for past in (0, 5):
        state = IncrementalState()
        if past:
            layer(
                x[:, :past],
                key_padding_mask=padding[:, :past] if padded else None,
                is_causal=True,
                state=state,
            )
        held = {name: None if x is None else x.clone() for name, x in tensors_of(state).items()}
        mark = state.mark()
        for n in (past, past + 2):
            layer(x[:, n : n + 2], key_padding_mask=torch.rand(2, 2) < 0.5, is_causal=True, state=state)
        state.rewind_(mark)
        for name, before in held.items():
            now = getattr(state, name)
            assert now is None if before is None else torch.equal(now, before), name


def recorded(layer, x, padding, cuts):
    """A state of these tokens that recorded how to forget them, after the first call's."""
    state, at = IncrementalState(), 0
    for n in cuts:
        masked = None if padding is None else padding[:, at : at + n]
        layer(x[:, at : at + n], key_padding_mask=masked, is_causal=True, state=state)
        at += n
        if state.steps is None:
            state.steps = []
    return state


@pytest.mark.parametrize("name", [None, *PADDING])
def test_a_cropped_state_is_what_it_was_before(layer, tokens, name):
    padding = None if name is None else torch.tensor([[c == "." for c in row] for row in PADDING[name]])
    cuts, x, y = [4, 3, 1, 1, 4], tokens(3, LENGTH), tokens(3, LENGTH, seed=2)
    for length in range(4, LENGTH + 1):
        state = recorded(layer, torch.cat((x[:, :length], y[:, length:]), 1), padding, cuts)
        state.crop_(length)
        assert state.length == length
        want = recorded(layer, x[:, :length], None if padding is None else padding[:, :length], [length])
        for field, held in tensors_of(want).items():
            now = getattr(state, field)
            if field == "mask" and now is None and held is not None:  # a mask of no padding, left out here
                assert held.all()
            elif field == "last_emitted" and held is not None:
                torch.testing.assert_close(now.expand_as(held), held, rtol=0, atol=1e-10)
            else:
                assert (now is None) == (held is None), field
                assert now is None or torch.allclose(now.double(), held.double(), rtol=0, atol=1e-10), field
        rest = None if padding is None else padding[:, length:]
        out, _ = layer(x[:, length:], key_padding_mask=rest, is_causal=True, state=state)
        full, _ = layer(x, key_padding_mask=padding, is_causal=True)
        same = slice(None) if padding is None else ~padding[:, length:]
        torch.testing.assert_close(out[same], full[:, length:][same], rtol=0, atol=1e-10)


def test_softmax_crops_as_well(tokens):
    torch.manual_seed(0)
    layer = SoftmaxAttention(24, 4, delay=0.5, token_shift=True).double().eval()
    torch.nn.init.normal_(layer.shift)
    x, y = tokens(2, LENGTH), tokens(2, LENGTH, seed=2)
    full, _ = layer(x, is_causal=True)
    for length in range(4, LENGTH):
        state = recorded(layer, torch.cat((x[:, :length], y[:, length:]), 1), None, [4, 3, 2, 4])
        state.crop_(length)
        out, _ = layer(x[:, length:], is_causal=True, state=state)
        torch.testing.assert_close(out, full[:, length:], rtol=0, atol=1e-10)


def test_cropping_again_and_again(build, tokens):
    layer, x, y = build("token shift"), tokens(2, LENGTH), tokens(2, LENGTH, seed=2)
    full, _ = layer(x, is_causal=True)
    state = recorded(layer, x[:, :5], None, [3, 2])
    for length in (5, 7, 8, 11):
        out, _ = layer(x[:, state.length : length], is_causal=True, state=state)
        torch.testing.assert_close(out, full[:, length - out.shape[1] : length], rtol=0, atol=1e-10)
        layer(y[:, :2], is_causal=True, state=state)
        layer(y[:, 2:3], is_causal=True, state=state)
        state.crop_(length + 1)
        state.crop_(length)
    state.crop_(4)
    state.crop_(3)
    out, _ = layer(x[:, 3:], is_causal=True, state=state)
    torch.testing.assert_close(out, full[:, 3:], rtol=0, atol=1e-10)


def test_a_crop_that_cannot_be_leaves_the_state(build, tokens):
    layer, x = build("token shift"), tokens(2, LENGTH)
    state = recorded(layer, x, None, [6, 7])
    held = {name: (tensor, copy.deepcopy(tensor)) for name, tensor in tensors_of(state).items()}
    for wrong in (-1, 5, 14):
        with pytest.raises(
            ValueError, match=f"length must be one that the state can go back to, got {wrong}"
        ):
            state.crop_(wrong)
    for name, (tensor, values) in held.items():
        assert getattr(state, name) is tensor and (tensor is None or torch.equal(tensor, values)), name
    state.crop_(0)
    assert state.length == 0 and all(tensor is None for tensor in tensors_of(state).values())
    state.select_(torch.tensor([0]))


def test_no_more_is_recorded_than_may_be_taken_back(build, tokens, monkeypatch):
    monkeypatch.setattr("syncattn.nn.state._RECORDED", 3)
    layer, x = build(), tokens(2, LENGTH)
    state = recorded(layer, x, None, [4, 1, 1, 1, 1, 1, 4])
    assert [step.mark.length for step in state.steps] == [9]
    state = recorded(layer, x[:, :9], None, [4, 1, 1, 1, 1, 1])
    assert [step.mark.length for step in state.steps] == [6, 7, 8]
    assert [length for length in range(11) if state.reaches(length)] == [0, 6, 7, 8, 9]
    state.repeat_(2)
    assert state.steps == []
