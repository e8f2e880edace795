"""Vocabularies that grow and shrink, tied to the output layer or not."""

import pytest
import torch
from torch import nn

VOCABULARY = 40


def rows(model):
    """(embeddings, the output layer's rows), both (vocabulary, width); None for what the model has not."""
    output = model.get_output_embeddings()
    return model.get_input_embeddings().weight, None if output is None else output.weight


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_tokens_are_added_and_removed(reader, tied):
    """What stays is untouched, what is new is about the old rows' mean, and the model goes on."""
    model = reader.build(tie_word_embeddings=tied)
    kind, before = type(model.get_input_embeddings()), [None if w is None else w.clone() for w in rows(model)]
    model.resize_token_embeddings(VOCABULARY)
    for size in (VOCABULARY + 10, VOCABULARY - 15):
        returned = model.resize_token_embeddings(size)
        assert returned is model.get_input_embeddings() and type(returned) is kind
        assert model.config.vocab_size == size
        for old, new in zip(before, rows(model), strict=True):
            if old is None:
                assert new is None
                continue
            kept = min(size, VOCABULARY)
            assert new.shape == (size, old.shape[1]) and torch.equal(new[:kept], old[:kept])
            if size > VOCABULARY:
                torch.testing.assert_close(new[kept:].mean(0), old.mean(0), rtol=1e-3, atol=1e-3)
        if rows(model)[1] is not None:
            assert (rows(model)[0] is rows(model)[1]) == tied
        inputs = reader.inputs
        inputs["input_ids"] = inputs["input_ids"].clamp_max(size - 1)
        inputs["input_ids"][:, -1] = size - 1
        assert model(**inputs)[0].isfinite().all()
    inputs["input_ids"][:, -1] = size
    with pytest.raises(ValueError, match=f"below vocab_size = {size}"):
        model(**inputs)


@torch.no_grad()
def test_sizes_are_rounded_up_to_a_multiple(reader):
    model = reader.build()
    for given, size in ((VOCABULARY, 64), (77, 128), (128, 128)):
        embeddings = model.resize_token_embeddings(given, pad_to_multiple_of=64)
        assert embeddings.weight.shape[0] == model.config.vocab_size == size
    with pytest.raises(ValueError, match=r"1\.3"):
        model.resize_token_embeddings(VOCABULARY, pad_to_multiple_of=1.3)


@torch.no_grad()
def test_a_vocabulary_smaller_than_the_model_is_wide_grows(reader):
    """The rows' covariance, which transformers draws new ones with, is singular then."""
    model = reader.build(vocab_size=4)
    old = model.get_input_embeddings().weight.mean(0)
    new = model.resize_token_embeddings(14).weight[4:].mean(0)
    torch.testing.assert_close(new, old, rtol=1e-3, atol=1e-3)


def test_a_resized_output_layer_is_not_initialised_anew(reader):
    model = reader.build(tie_word_embeddings=False)
    output = model.get_output_embeddings()
    if not isinstance(output, nn.Linear):
        return
    model.resize_token_embeddings(VOCABULARY + 10)
    before = model.get_output_embeddings().weight.detach().clone()
    model.post_init()
    assert torch.equal(model.get_output_embeddings().weight, before)


def test_a_resized_model_is_saved_and_loaded(reader, tmp_path):
    model = reader.build()
    model.resize_token_embeddings(VOCABULARY + 3)
    model.save_pretrained(tmp_path)
    loaded = reader.model_class.from_pretrained(tmp_path)
    assert loaded.config.vocab_size == VOCABULARY + 3
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
