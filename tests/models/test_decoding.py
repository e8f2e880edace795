"""Cached decoding, padding and causality: what a token gives does not depend on how it came to the model."""

import copy

import pytest
import torch
from transformers import DynamicCache

from syncattn.models import OSNCache, TransformerBaseline
from syncattn.nn import locked_density

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@torch.no_grad()
def logits(model, ids, **kwargs):
    return model(ids, use_cache=False, **kwargs).logits


def test_the_models_of_these_tests_lock_some_pairs_and_not_others(osn, ids):
    for name, density in locked_density(osn, ids, use_cache=False).items():
        assert density.min() > 0.02 and density.mean() < 0.95, (name, density)


@pytest.mark.parametrize("chunks", [[1] * 13, [13], [7, 1, 1, 4], [1, 12]])
@torch.no_grad()
def test_cached_decoding_equals_the_full_forward(model, ids, chunks):
    cache = OSNCache(model.config)
    parts = [model(part, past_key_values=cache).logits for part in ids.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), logits(model, ids), **TOLERANCE)
    assert cache.get_seq_length() == 13


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_padded_batch_gives_what_each_sequence_gives_alone(model, ids, side):
    mask = torch.ones_like(ids)
    lengths = [13, 9, 1]
    for row, length in enumerate(lengths):
        padding = slice(0, 13 - length) if side == "left" else slice(length, 13)
        mask[row, padding] = 0
    padded = logits(model, ids, attention_mask=mask)
    assert padded.isfinite().all()
    for row, length in enumerate(lengths):
        real = mask[row].bool()
        alone = logits(model, ids[row : row + 1, real])
        torch.testing.assert_close(padded[row, real], alone[0], **TOLERANCE)
        assert alone.shape[1] == length


@torch.no_grad()
def test_a_padded_batch_decodes_as_each_sequence_alone(model, ids):
    """Chunks of which some are padding altogether for some sequence."""
    mask = torch.ones_like(ids)
    mask[1, :6] = 0
    mask[2, :12] = 0
    cache = OSNCache(model.config)
    parts = []
    for start, stop in [(0, 4), (4, 5), (5, 9), (9, 13)]:
        out = model(ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache)
        parts.append(out.logits)
    together = torch.cat(parts, 1)
    for row in range(3):
        real = mask[row].bool()
        torch.testing.assert_close(
            together[row, real], logits(model, ids[row : row + 1, real])[0], **TOLERANCE
        )


@torch.no_grad()
def test_what_padding_holds_changes_nothing(model, ids):
    mask = torch.ones_like(ids)
    mask[:, :5] = 0
    other = torch.where(mask.bool(), ids, 39 - ids)
    a, b = (logits(model, x, attention_mask=mask)[:, 5:] for x in (ids, other))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@torch.no_grad()
def test_no_future_token_changes_an_earlier_output(model, ids):
    before = logits(model, ids)
    for at in (1, 6, 12):
        changed = ids.clone()
        changed[:, at:] = (changed[:, at:] + 7) % 39 + 1
        after = logits(model, changed)
        torch.testing.assert_close(after[:, :at], before[:, :at], rtol=0, atol=1e-6)
        assert not torch.allclose(after[:, at:], before[:, at:], atol=1e-3)


@torch.no_grad()
def test_attention_weights(model, ids):
    out = model(ids, output_attentions=True, output_hidden_states=True, use_cache=False)
    assert len(out.attentions) == 2 and len(out.hidden_states) == 3
    for weights in out.attentions:
        assert weights.shape == (3, 4, 13, 13)
        assert (weights.triu(1) == 0).all()
        rows = weights.sum(-1)
        assert (((rows - 1).abs() < 1e-5) | (rows == 0)).all()
    torch.testing.assert_close(out.logits, logits(model, ids), **TOLERANCE)
    torch.testing.assert_close(model.lm_head(out.hidden_states[-1]), out.logits)

    cache = OSNCache(model.config)
    model(ids[:, :9], past_key_values=cache)
    last = model(ids[:, 9:], past_key_values=cache, output_attentions=True)
    for whole, part in zip(out.attentions, last.attentions):
        torch.testing.assert_close(part, whole[:, :, 9:], **TOLERANCE)


@torch.no_grad()
def test_the_cache_takes_the_documented_bytes(model, ids):
    config, (batch, tokens) = model.config, ids.shape
    heads, head_dim = config.num_attention_heads, config.head_dim
    cache = model(ids, use_cache=True).past_key_values
    if isinstance(model, TransformerBaseline):
        freq_dim, sums = head_dim, 0
    else:
        freq_dim = config.freq_dim or min(16, head_dim)
        sums = 2 * config.phase_dim if config.order_parameter else 0
    numbers = batch * tokens * heads * (freq_dim + head_dim) + batch * heads * (freq_dim + sums)
    numbers += batch * config.hidden_size * config.token_shift
    assert cache.nbytes == config.num_hidden_layers * (4 * numbers + 8 * batch)
    padded = model(ids, attention_mask=(torch.arange(tokens) > 2).expand(batch, -1), use_cache=True)
    assert padded.past_key_values.nbytes == cache.nbytes + config.num_hidden_layers * batch * tokens


@torch.no_grad()
def test_the_cache_can_be_copied_selected_repeated_and_reset(typical, ids):
    cache = OSNCache(typical.config)
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
    cache = OSNCache(typical.config)
    assert not cache.is_compileable and not cache.is_croppable
    typical(ids, past_key_values=cache)
    with pytest.raises(ValueError, match=r"cannot be cropped \(asked to remove 2 tokens\)"):
        cache.crop(-2)
    with pytest.raises(TypeError, match="OSNCache has no update"):
        cache.update(ids, ids, 0)
    with pytest.raises(ValueError, match="cannot be offloaded"):
        cache.offload(0)
    with pytest.raises(ValueError, match="past_key_values holds 3 sequences, the input has 1"):
        typical(ids[:1], past_key_values=cache)
    with pytest.raises(
        TypeError, match=r"past_key_values must be a syncattn.models.OSNCache, got DynamicCache"
    ):
        typical(ids, past_key_values=DynamicCache())
    three = copy.deepcopy(typical.config)
    three.num_hidden_layers = 3
    with pytest.raises(ValueError, match="as many layers as the model, 2, got 3"):
        typical(ids, past_key_values=OSNCache(three))
    assert cache.get_seq_length() == 13


@torch.no_grad()
def test_bad_input(typical, ids):
    for arguments, message in (
        ({}, "exactly one of input_ids and inputs_embeds"),
        ({"input_ids": ids, "inputs_embeds": torch.zeros(3, 13, 32)}, "exactly one of"),
        ({"input_ids": ids[:, :0]}, "at least one token"),
        ({"input_ids": ids[0]}, r"integer token ids \(B, N\), got torch.int64 \(13,\)"),
        ({"input_ids": ids.float()}, "integer token ids"),
        ({"input_ids": ids + 39}, "below vocab_size = 40 .* tokenizer"),
        ({"input_ids": -ids}, "not negative"),
        ({"input_ids": ids, "attention_mask": ids[:, 1:]}, r"\(B, past \+ N\) = \(3, 13\).*got \(3, 12\)"),
    ):
        with pytest.raises(ValueError, match=message):
            typical(**arguments)
    cache = OSNCache(typical.config)
    typical(ids[:, :12], past_key_values=cache)
    with pytest.raises(ValueError, match=r"\(3, 13\).*got \(3, 1\)"):
        typical(ids[:, 12:], attention_mask=torch.ones(3, 1), past_key_values=cache)
    with pytest.raises(ValueError, match="disagrees with past_key_values"):
        typical(ids[:, 12:], attention_mask=(torch.arange(13) > 0).expand(3, -1), past_key_values=cache)
    assert cache.get_seq_length() == 12


@torch.no_grad()
def test_inputs_embeds_and_logits_to_keep_and_tuples(typical, ids):
    expected = logits(typical, ids)
    embedded = typical.get_input_embeddings()(ids)
    assert torch.equal(typical(inputs_embeds=embedded, use_cache=False).logits, expected)
    assert torch.equal(logits(typical, ids, logits_to_keep=2), typical.lm_head(typical.model(ids)[0][:, -2:]))
    torch.testing.assert_close(logits(typical, ids, logits_to_keep=torch.tensor([0, 5])), expected[:, [0, 5]])
    as_tuple = typical(ids, use_cache=False, return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], expected)


@torch.no_grad()
def test_one_token_and_one_sequence(model):
    assert logits(model, torch.tensor([[5]])).isfinite().all()


@torch.no_grad()
def test_longer_than_what_it_was_trained_on(typical):
    ids = torch.randint(1, 40, (1, 300), generator=torch.Generator().manual_seed(2))
    config = copy.deepcopy(typical.config)
    config.max_position_embeddings = 8
    assert logits(typical, ids).isfinite().all()
