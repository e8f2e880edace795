"""The cache of decoding: what it takes, what can be done with it, what it refuses."""

import copy

import pytest
import torch
from transformers import DynamicCache

from syncattn.models import DecoderCache, TransformerForCausalLM
from syncattn.nn.state import _TENSORS

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@torch.no_grad()
def logits(model, ids):
    return model(ids, use_cache=False).logits


@torch.no_grad()
def test_the_cache_takes_the_documented_bytes(model, ids):
    config, (batch, tokens) = model.config, ids.shape
    heads, head_dim = config.num_attention_heads, config.head_dim
    cache = model(ids, use_cache=True).past_key_values
    if isinstance(model, TransformerForCausalLM):
        freq_dim, sums = head_dim, 0
    else:
        freq_dim = config.freq_dim or min(16, head_dim)
        sums = 2 * config.phase_dim if config.order_parameter else 0
    numbers = batch * tokens * heads * (freq_dim + head_dim) + batch * heads * (freq_dim + sums)
    before = 1 if config.token_shift else (config.short_convolution or 1) - 1
    if config.short_convolution and isinstance(model, TransformerForCausalLM):
        before *= 3  # of queries, keys and values
    numbers += batch * config.hidden_size * before
    assert cache.nbytes == config.num_hidden_layers * (4 * numbers + 8 * batch)
    padded = model(ids, attention_mask=(torch.arange(tokens) > 2).expand(batch, -1), use_cache=True)
    assert padded.past_key_values.nbytes == cache.nbytes + config.num_hidden_layers * batch * tokens


@torch.no_grad()
def test_the_cache_can_be_copied_selected_repeated_and_reset(typical, ids):
    cache = DecoderCache(typical.config)
    assert (cache.batch_size, cache.is_initialized, cache.get_max_length()) == (-1, False, -1)
    typical(ids[:, :12], past_key_values=cache)
    assert (cache.batch_size, cache.is_initialized, cache.get_mask_sizes(2, 0)) == (3, True, (14, 0))
    expected = logits(typical, ids)[:, -1]
    for change, rows in (
        (lambda c: c.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
        (lambda c: c.batch_select_indices(torch.tensor([1])), [1]),
        (lambda c: c.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
    ):
        own = copy.deepcopy(cache)
        change(own)
        out = typical(ids[rows, 12:], past_key_values=own).logits[:, 0]
        torch.testing.assert_close(out, expected[rows], **TOLERANCE)
    cache.reset()
    assert cache.nbytes == 0
    torch.testing.assert_close(typical(ids, past_key_values=cache).logits, logits(typical, ids), **TOLERANCE)


@torch.no_grad()
def test_what_the_cache_refuses(typical, ids):
    cache = DecoderCache(typical.config)
    assert not cache.is_compileable and cache.is_croppable
    typical(ids, past_key_values=cache)
    for wrong, message in (
        (
            -2,
            r"must be -13, or from 0 to 0, got -2: .*not recorded\. Call the cache's activate_past_recording",
        ),
        (-14, r"must be from -13 to 0 \(-n removes the last n of 13 tokens\), got -14"),
        (3, r"must be from -13 to 0 .* got 3"),
    ):
        with pytest.raises(ValueError, match=f"tokens_to_remove {message}"):
            cache.crop(wrong)
    with pytest.raises(TypeError, match="tokens_to_remove must be an integer, got float"):
        cache.crop(-1.0)
    with pytest.raises(TypeError, match="DecoderCache has no update"):
        cache.update(ids, ids, 0)
    with pytest.raises(ValueError, match="cannot be offloaded"):
        cache.offload(0)
    with pytest.raises(ValueError, match="as many sequences as the input, 1, got 3"):
        typical(ids[:1], past_key_values=cache)
    with pytest.raises(
        TypeError, match=r"past_key_values must be a syncattn.models.DecoderCache, got DynamicCache"
    ):
        typical(ids, past_key_values=DynamicCache())
    three = copy.deepcopy(typical.config)
    three.num_hidden_layers = 3
    with pytest.raises(ValueError, match="as many layers as the model, 2, got 3"):
        typical(ids, past_key_values=DecoderCache(three))
    assert cache.get_seq_length() == 13


@torch.no_grad()
def test_a_call_that_fails_in_a_later_layer_leaves_the_whole_cache_as_it_was(typical, ids, monkeypatch):
    want = typical(ids).logits
    for past in (0, 4):
        cache = DecoderCache(typical.config)
        if past:
            typical(ids[:, :past], past_key_values=cache)
        held = copy.deepcopy(cache)
        for at in (typical.model.layers[-1].linear1, typical.model.norm):
            with monkeypatch.context() as patch:
                patch.setattr(at, "forward", lambda x: (_ for _ in ()).throw(RuntimeError("broken")))
                with pytest.raises(RuntimeError, match="broken"):
                    typical(ids[:, past:], past_key_values=cache)
        assert cache.get_seq_length() == past and cache.nbytes == held.nbytes
        for now, before in zip(cache.states, held.states, strict=True):
            for name in ("send", "value", *_TENSORS):
                held, tensor = getattr(now, name), getattr(before, name)
                assert held is None if tensor is None else torch.equal(held, tensor)
        got = typical(ids[:, past:], past_key_values=cache).logits
        torch.testing.assert_close(got, want[:, past:])


@torch.no_grad()
def test_a_cropped_cache_gives_what_it_gave_before(model, ids):
    cache, other = DecoderCache(model.config), (ids + 3) % 39 + 1
    model(ids[:, :6], past_key_values=cache)
    assert not cache.is_recording_past(0)
    cache.activate_past_recording()
    assert cache.is_recording_past(0)
    model(torch.cat((ids[:, 6:8], other[:, :2]), 1), past_key_values=cache)
    model(other[:, 2:3], past_key_values=cache)
    cache.crop(0)
    cache.crop(-3)
    assert cache.get_seq_length() == 8
    want = logits(model, ids)
    torch.testing.assert_close(model(ids[:, 8:], past_key_values=cache).logits, want[:, 8:], **TOLERANCE)
    with pytest.raises(ValueError, match=r"tokens_to_remove must be -13, or from -7 to 0, got -8"):
        cache.crop(-8)
    cache.crop(-7)
    torch.testing.assert_close(model(ids[:, 6:], past_key_values=cache).logits, want[:, 6:], **TOLERANCE)
    cache.crop(-13)
    assert cache.nbytes == cache.spare_nbytes == 0 and cache.is_recording_past(0)
    torch.testing.assert_close(model(ids, past_key_values=cache).logits, want, **TOLERANCE)
    cache.reset()
    assert cache.is_recording_past(0) and cache.get_seq_length() == 0


@torch.no_grad()
@pytest.mark.parametrize(
    "maker", ["osn", "osn own drift", "osn no position", "rotary token shift", "osn paper"]
)
def test_a_cache_of_another_model_is_refused(typical, ids, build_model, maker):
    """As far as it shows: by the kind of attention and its sizes."""
    other = build_model(maker)
    cache = other(ids[:, :4], use_cache=True).past_key_values
    held = copy.deepcopy(cache)
    if type(other.config) is type(typical.config) and other.config.to_dict() == typical.config.to_dict():
        return
    with pytest.raises(
        ValueError, match="past_key_values must be a cache of this model, which holds 4 heads"
    ):
        typical(ids[:, 4:], past_key_values=cache)
    assert cache.get_seq_length() == 4 and torch.equal(cache.states[1].value, held.states[1].value)
    torch.testing.assert_close(other(ids[:, 4:], past_key_values=cache).logits, logits(other, ids)[:, 4:])
