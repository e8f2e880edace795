"""One vector for a text, and embeddings of sentences."""

import pytest
import torch
from transformers import BertConfig, BertModel

from syncattn.models import last_pooling, mean_pooling, sentence_embeddings
from syncattn.training.tokenizers import byte_tokenizer

SENTENCES = ["to lock", "to drift apart, slowly", "", "phase", "é"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_pooling_sees_real_tokens_alone(dtype):
    hidden = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]])
    other = torch.where(mask[..., None].bool(), hidden, torch.nan)  # whatever padding holds
    mean, last = mean_pooling(other, mask), last_pooling(other, mask)
    assert mean.dtype == last.dtype == dtype
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(mean[0], hidden[0].mean(0), **tolerance)
    torch.testing.assert_close(mean[1], hidden[1, 2:4].mean(0), **tolerance)
    assert torch.equal(last[0], hidden[0, 4]) and torch.equal(last[1], hidden[1, 3])
    assert not mean[2].any() and not last[2].any()
    for pool in (mean_pooling, last_pooling):
        assert torch.equal(pool(hidden), pool(hidden, torch.ones(3, 5, dtype=torch.bool)))
        assert pool(hidden[:0], mask[:0]).shape == (0, 4)


@pytest.mark.parametrize("pool", [mean_pooling, last_pooling])
def test_bad_input(pool):
    hidden = torch.zeros(2, 3, 4)
    with pytest.raises(TypeError, match="hidden must be a tensor, got list"):
        pool([hidden])
    with pytest.raises(TypeError, match="attention_mask must be a tensor, got str"):
        pool(hidden, "all")
    with pytest.raises(ValueError, match=r"hidden must be \(B, N, D\), .* got \(3, 4\)"):
        pool(hidden[0])
    with pytest.raises(ValueError, match=r"attention_mask must have shape .* \(2, 3\), got \(2, 4\)"):
        pool(hidden, torch.ones(2, 4))


def test_an_embedding_is_that_of_the_sentence_alone(typical_encoder):
    model = type(typical_encoder)(type(typical_encoder.config)(**SIZES, is_causal=False)).train()
    tokenizer = byte_tokenizer()
    found = sentence_embeddings(model, tokenizer, SENTENCES, batch_size=2)
    assert model.training and found.shape == (5, 32) and not found.requires_grad
    model.eval()
    for sentence, vector in zip(SENTENCES, found):
        if not sentence:
            assert not vector.any()
            continue
        ids = torch.tensor([list(sentence.encode())])
        with torch.no_grad():
            expected = model(ids).last_hidden_state[0].mean(0)
        torch.testing.assert_close(vector, expected, rtol=1e-5, atol=1e-5)
        one = sentence_embeddings(model, tokenizer, sentence, normalize=True)
        torch.testing.assert_close(one, vector / vector.norm(), rtol=1e-5, atol=1e-5)
    cut = sentence_embeddings(model, tokenizer, SENTENCES, max_length=3)
    torch.testing.assert_close(cut[0], sentence_embeddings(model, tokenizer, "to "))
    assert sentence_embeddings(model, tokenizer, []).shape == (0, 32)


SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}


def test_embeddings_of_another_model():
    config = BertConfig(vocab_size=256, intermediate_size=32, **SIZES)
    found = sentence_embeddings(BertModel(config), byte_tokenizer(), SENTENCES[:2])
    assert found.shape == (2, 32) and found.isfinite().all()


def test_bad_sentences(typical_encoder):
    for sentences, options, error, message in (
        ([1], {}, TypeError, "sentences must be a string or several, got one that is 1"),
        (["a"], {"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        (["a"], {"max_length": 2.5}, TypeError, "max_length must be an integer, got 2.5"),
        (["a"], {"normalize": 1}, TypeError, "normalize must be True or False, got 1"),
    ):
        with pytest.raises(error, match=message):
            sentence_embeddings(typical_encoder, byte_tokenizer(), sentences, **options)
