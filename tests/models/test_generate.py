"""`generate()`: the same tokens however they are computed."""

import copy

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

from syncattn.models import OSNCache, OSNConfig, OSNForCausalLM


def greedy(model, ids, steps):
    """The definition: append the most likely token, computing everything anew."""
    for _ in range(steps):
        with torch.no_grad():
            best = model(ids, use_cache=False).logits[:, -1].argmax(-1)
        ids = torch.cat((ids, best[:, None]), 1)
    return ids


def generate(model, ids, **kwargs):
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0} | kwargs
    return model.generate(ids, **options)


def left_padded(ids, lengths=(13, 8, 2)):
    mask = torch.ones_like(ids)
    for row, length in enumerate(lengths):
        mask[row, : ids.shape[1] - length] = 0
    return ids * mask, mask


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_is_the_most_likely_token_again_and_again(model, ids, use_cache):
    expected = greedy(model, ids, 6)
    out = generate(model, ids, use_cache=use_cache, return_dict_in_generate=True)
    assert torch.equal(out.sequences, expected)
    assert isinstance(out.past_key_values, OSNCache) == use_cache


def test_left_padding(model, ids):
    padded, mask = left_padded(ids)
    together = generate(model, padded, attention_mask=mask)
    for row in range(3):
        alone = greedy(model, ids[row : row + 1, mask[row].bool()], 6)
        assert torch.equal(together[row, 13:], alone[0, -6:])


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
def test_beams_with_a_cache_are_those_without(typical, ids, options):
    padded, mask = left_padded(ids)
    with_cache, without = (
        generate(typical, padded, attention_mask=mask, use_cache=use_cache, **options)
        for use_cache in (True, False)
    )
    assert torch.equal(with_cache, without)
    assert with_cache.shape == (3 * options.get("num_return_sequences", 1), 19)
    # Beam search finds a text that is at least as likely as the greedy one.
    assert (
        likelihood(typical, with_cache[:1], 13) >= likelihood(typical, greedy(typical, ids[:1], 6), 13) - 1e-4
    )


def likelihood(model, ids, start):
    with torch.no_grad():
        log_p = model(ids, use_cache=False).logits.log_softmax(-1)
    return log_p[0, start - 1 : -1].gather(-1, ids[0, start:, None]).sum()


def test_sampling_is_reproducible_and_the_cache_does_not_change_it(typical, ids):
    def sample(seed, **kwargs):
        torch.manual_seed(seed)
        return generate(typical, ids, do_sample=True, top_k=0, num_return_sequences=2, **kwargs)

    first = sample(0)
    assert first.shape == (6, 19)
    assert torch.equal(first, sample(0))
    assert torch.equal(first, sample(0, use_cache=False))
    assert not torch.equal(first, sample(1))


def test_going_on_from_a_cache(typical, ids):
    """A prompt's cache can be used for several continuations; texts can be continued turn by turn."""
    expected = generate(typical, ids)
    cache = OSNCache(typical.config)
    with torch.no_grad():
        typical(ids[:, :10], past_key_values=cache)
    for _ in range(2):
        own = copy.deepcopy(cache)
        assert torch.equal(generate(typical, ids, past_key_values=own), expected)
        assert own.get_seq_length() == 18
        assert torch.equal(generate(typical, expected, past_key_values=own), greedy(typical, expected, 6))


def test_prefill_in_chunks(typical, ids):
    assert torch.equal(generate(typical, ids, prefill_chunk_size=4), generate(typical, ids))


def test_from_embeddings(typical, ids):
    embedded = typical.get_input_embeddings()(ids).detach()
    new = typical.generate(inputs_embeds=embedded, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert torch.equal(new, greedy(typical, ids, 6)[:, 13:])


def test_an_untouched_foreign_cache_is_replaced(typical, ids):
    assert torch.equal(generate(typical, ids, past_key_values=DynamicCache()), generate(typical, ids))
    filled = DynamicCache()
    filled.update(torch.zeros(3, 4, 2, 8), torch.zeros(3, 4, 2, 8), 0)
    with pytest.raises(TypeError, match=r"must be a syncattn\.models\.OSNCache, got DynamicCache"):
        generate(typical, ids, past_key_values=filled)


@pytest.mark.parametrize("implementation", ["static", "quantized", "offloaded", "offloaded_static"])
def test_other_caches_are_refused(typical, ids, implementation):
    with pytest.raises(
        ValueError, match=f"cache_implementation must be None or 'dynamic', got '{implementation}'"
    ):
        generate(typical, ids, cache_implementation=implementation)


def test_decoding_that_would_have_to_go_back_is_refused(typical, ids):
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        generate(typical, ids[:1], prompt_lookup_num_tokens=3)


def test_the_attentions_top_k_is_no_option_of_sampling(ids):
    model = OSNForCausalLM(OSNConfig(vocab_size=40, hidden_size=32, num_hidden_layers=1, top_k=2))
    assert model.generation_config.top_k == GenerationConfig().top_k
    assert model.config.top_k == model.model.layers[0].self_attn.top_k == 2


def test_unknown_arguments_are_refused(typical, ids):
    with pytest.raises(ValueError, match="not used by the model: \\['temprature'\\]"):
        generate(typical, ids, temprature=2.0)
