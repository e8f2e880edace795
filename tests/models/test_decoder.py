"""Decoding, padding and causality: what a token gives does not depend on how it came to the model."""

import copy

import pytest
import torch
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
)

from syncattn.models import DecoderCache, OSNPreTrainedModel, TransformerPreTrainedModel
from syncattn.models.causal import soft_capped
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
    cache = DecoderCache(model.config)
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
    cache = DecoderCache(model.config)
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
    made = soft_capped(model.lm_head(out.hidden_states[-1]), model.config.logit_softcap)
    torch.testing.assert_close(made, out.logits)

    cache = DecoderCache(model.config)
    model(ids[:, :9], past_key_values=cache)
    last = model(ids[:, 9:], past_key_values=cache, output_attentions=True)
    for whole, part in zip(out.attentions, last.attentions):
        torch.testing.assert_close(part, whole[:, :, 9:], **TOLERANCE)


@torch.no_grad()
def test_bad_input(typical, ids):
    for arguments, message in (
        ({}, "one of input_ids and inputs_embeds must be given, got neither"),
        ({"input_ids": ids, "inputs_embeds": torch.zeros(3, 13, 32)}, "must be given, got both"),
        ({"input_ids": ids[:, :0]}, r"at least one token, got torch.int64 \(3, 0\)"),
        ({"input_ids": ids[0]}, r"integer token ids \(B, N\) .* got torch.int64 \(13,\)"),
        (
            {"inputs_embeds": torch.zeros(3, 13, 31)},
            r"must be \(B, N, 32\), .* got torch.float32 \(3, 13, 31\)",
        ),
        ({"input_ids": ids.float()}, "integer token ids"),
        ({"input_ids": ids + 39}, "below vocab_size = 40 .* tokenizer"),
        ({"input_ids": -ids}, "not negative"),
        (
            {"input_ids": ids, "attention_mask": ids[:, 1:]},
            r"\(B, past \+ N\) = \(3, 13\).*got torch.int64 \(3, 12\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            typical(**arguments)
    cache = DecoderCache(typical.config)
    typical(ids[:, :12], past_key_values=cache)
    with pytest.raises(ValueError, match=r"\(3, 13\).*got torch.float32 \(3, 1\)"):
        typical(ids[:, 12:], attention_mask=torch.ones(3, 1), past_key_values=cache)
    with pytest.raises(ValueError, match=r"what past_key_values holds .* got another mask of 3 sequences"):
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


@pytest.mark.parametrize(
    "head", [GenericForSequenceClassification, GenericForTokenClassification, GenericForQuestionAnswering]
)
@torch.no_grad()
def test_the_heads_of_transformers(typical, ids, mask, head):
    name = head.__name__.replace("Generic", "Our")  # transformers finds the loss by it
    kind = OSNPreTrainedModel if isinstance(typical, OSNPreTrainedModel) else TransformerPreTrainedModel
    model_class = type(name, (head, kind), {})
    config = copy.deepcopy(typical.config)
    config.num_labels = 3
    model = model_class(config).eval()
    model.model.load_state_dict(typical.model.state_dict())
    out = model(ids * mask, mask, position_ids=torch.arange(13)[None], output_hidden_states=True)
    expected = typical.model(ids * mask, mask).last_hidden_state
    assert torch.equal(out.hidden_states[-1], expected)
    if head is GenericForSequenceClassification:
        torch.testing.assert_close(out.logits, model.score(expected)[:, -1])
        assert model(ids, labels=torch.tensor([0, 1, 2])).loss.isfinite()
    elif head is GenericForTokenClassification:
        assert torch.equal(out.logits, model.score(expected))
    else:
        assert torch.equal(out.start_logits, model.qa_outputs(expected)[..., 0])
