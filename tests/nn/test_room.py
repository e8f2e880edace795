"""Tokens are written into memory with room for more, and nothing that anybody holds is changed by it."""

import copy
import pickle

import pytest
import torch

from syncattn.nn import IncrementalState

LENGTH = 13


def step(layer, x, state, at, tokens=1):
    with torch.no_grad():
        return layer(x[:, at : at + tokens], is_causal=True, state=state)[0]


def begun(layer, x, tokens):
    """A state of the first so many tokens, the last of which stands in a room."""
    state = IncrementalState()
    step(layer, x, state, 0, tokens - 1)
    step(layer, x, state, tokens - 1)
    assert state.room is not None
    return state


def goes_on(layer, x, state):
    """Whether what follows is what the whole sequence gives."""
    at = state.length
    want, _ = layer(x, is_causal=True)
    outs = [step(layer, x, state, i) for i in range(at, x.shape[1])]
    torch.testing.assert_close(torch.cat(outs, 1), want[:, at:], rtol=0, atol=1e-10)


def test_tokens_are_written_where_they_stay(build, tokens):
    layer, x = build(), tokens(2, 200)
    state = begun(layer, x, 5)
    capacity, places = state.room.send.shape[2], []
    assert state.spare_nbytes == state.room.nbytes - state.send.nbytes - state.value.nbytes > 0
    for at in range(5, 200):
        step(layer, x, state, at)
        places.append(state.send.data_ptr())
    assert len(set(places)) == 1 + (capacity < 200) + (2 * capacity < 200)
    assert state.length == state.room.filled == state.checked == 200
    want, _ = layer(x, is_causal=True)
    again = begun(layer, x, 150)
    torch.testing.assert_close(step(layer, x, again, 150, 50), want[:, 150:], rtol=0, atol=1e-10)


def test_where_gradients_are_recorded_everything_is_concatenated(build, tokens):
    layer, x = build(), tokens(2, LENGTH)
    want, _ = layer(x, is_causal=True)
    state = begun(layer, x, 5)
    held = state.send
    out, _ = layer(x[:, 5:7], is_causal=True, state=state)  # with gradients
    assert state.room is None and state.spare_nbytes == 0
    assert state.send.data_ptr() != held.data_ptr()
    goes_on(layer, x, state)  # without: nothing that the backward needs may change
    (grad,) = torch.autograd.grad(out.square().sum(), layer.value_proj.weight)
    other = begun(layer, x, 5)
    out, _ = layer(x[:, 5:7], is_causal=True, state=other)
    (expected,) = torch.autograd.grad(out.square().sum(), layer.value_proj.weight)
    assert torch.equal(grad, expected)
    torch.testing.assert_close(out, want[:, 5:7], rtol=0, atol=1e-10)


def test_frozen_weights_are_no_reason_to_overwrite(build, tokens):
    """The coupling alone is trained: the operator keeps the senders, which need no gradient themselves."""
    layer, x = build(), tokens(2, LENGTH)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name == "raw_coupling")
    state = begun(layer, x, 5)
    out, _ = layer(x[:, 5:7], is_causal=True, state=state)
    goes_on(layer, x, state)
    assert torch.isfinite(torch.autograd.grad(out.sum(), layer.raw_coupling)[0]).all()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copy_and_what_it_was_copied_from_go_their_own_ways(build, tokens, copied):
    layer, x, y = build("token shift"), tokens(2, LENGTH), tokens(2, LENGTH, seed=2)
    y[:, :6] = x[:, :6]
    for first, second in ((0, 1), (1, 0)):
        state = begun(layer, x, 6)
        both = [state, copied(state)]
        texts = [x, y]
        goes_on(layer, texts[first], both[first])
        goes_on(layer, texts[second], both[second])


def test_a_state_extended_twice(build, tokens):
    layer, x = build(), tokens(2, LENGTH)
    state = begun(layer, x, 6)
    send, value = torch.randn_like(state.send[:, :, :1]), torch.randn_like(state.value[:, :, :1])
    with torch.no_grad():
        first = state.extended(send, value, None, last_emitted=None)
        second = state.extended(send + 1, value + 1, None, last_emitted=None)
        third = first.extended(send, value, None, last_emitted=None)
    for after, more in ((first, 0), (second, 1), (third, 0)):
        assert torch.equal(after.send[:, :, 6:7], send + more)
        assert torch.equal(after.value[:, :, 6:7], value + more)
    assert third.room is first.room and second.room is not first.room
    goes_on(layer, x, state)
    assert torch.equal(third.send[:, :, 6:], send.expand(-1, -1, 2, -1))


def test_after_going_back_the_room_is_used_again(build, tokens):
    layer, x, y = build("token shift"), tokens(2, LENGTH), tokens(2, LENGTH, seed=2)
    state = begun(layer, x, 6)
    mark, room = state.mark(), state.room
    kept = copy.copy(state)
    step(layer, y, state, 6, 3)
    state.rewind_(mark)
    goes_on(layer, x, state)
    assert state.room is room
    goes_on(layer, x, kept)


def test_chosen_sequences_go_on_in_a_room_of_their_own(build, tokens):
    layer, x = build("token shift"), tokens(3, LENGTH)
    state = begun(layer, x, 6)
    index, was = torch.tensor([2, 0, 0, 1]), state.room
    with torch.no_grad():
        state.select_(index)
    assert state.room is not was and state.checked == 6
    goes_on(layer, x[index], state)
    state = begun(layer, x, 6)
    state.repeat_(2)
    goes_on(layer, x.repeat_interleave(2, 0), state)


def test_inference_mode_and_no_grad_in_turn(build, tokens):
    layer, x = build(), tokens(2, LENGTH)
    want = layer(x, is_causal=True)[0].detach()
    state, outs = IncrementalState(), []
    for at in range(LENGTH):
        with torch.inference_mode() if at // 3 % 2 else torch.no_grad():
            outs.append(layer(x[:, at : at + 1], is_causal=True, state=state)[0].clone())
    torch.testing.assert_close(torch.cat([o.clone() for o in outs], 1), want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e20])
def test_bad_tokens_are_named_however_much_is_cached(build, tokens, bad):
    layer, x = build(), tokens(2, LENGTH)
    state = begun(layer, x, 6)
    step(layer, x, state, 6)
    assert state.checked == 7
    wrong = x.clone()
    wrong[1, 7] = bad
    held = copy.deepcopy(state)
    with pytest.raises(ValueError, match="must hold finite frequencies"):
        step(layer, wrong, state, 7)
    assert state.length == 7 and torch.equal(state.send, held.send) and torch.equal(state.value, held.value)
    goes_on(layer, x, state)


def test_what_was_never_looked_at_is_looked_at(build, tokens):
    """A past that came from elsewhere may hold anything."""
    layer, x = build(), tokens(2, LENGTH)
    state = IncrementalState()
    step(layer, x, state, 0, 6)
    state.send[1, 0, 3, 1] = torch.nan
    with pytest.raises(ValueError, match=r"send must hold finite frequencies.* at index \(1, 0, 3, 1\)"):
        step(layer, x, state, 6)
