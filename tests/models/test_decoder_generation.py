"""`generate()`: the same tokens however they are computed."""

import copy

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, StaticCache

from syncattn.models import DecoderCache, OSNConfig, OSNForCausalLM
from syncattn.training.tokenizers import byte_tokenizer


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
    assert isinstance(out.past_key_values, DecoderCache) == use_cache


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
    cache = DecoderCache(typical.config)
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
    with pytest.raises(TypeError, match=r"must be a syncattn\.models\.DecoderCache, got DynamicCache"):
        generate(typical, ids, past_key_values=filled)


def test_a_cache_of_another_kind_is_refused_before_it_is_filled(typical, ids):
    for other in (DynamicCache(offloading=True), StaticCache(typical.config, max_cache_len=20)):
        with pytest.raises(TypeError, match=r"must be a syncattn\.models\.DecoderCache, got"):
            generate(typical, ids, past_key_values=other)


def test_the_growing_cache_may_be_asked_for_by_name(typical, ids):
    expected = generate(typical, ids)
    named = {"cache_implementation": "dynamic"}
    assert torch.equal(generate(typical, ids, **named), expected)
    assert torch.equal(generate(typical, ids, **named, use_cache=False), expected)
    given = DecoderCache(typical.config)
    assert torch.equal(generate(typical, ids, **named, past_key_values=given), expected)
    stored = GenerationConfig(max_new_tokens=6, do_sample=False, pad_token_id=0, **named)
    assert torch.equal(typical.generate(ids, generation_config=stored), expected)
    assert stored.cache_implementation == "dynamic"
    model = copy.deepcopy(typical)
    model.generation_config.cache_implementation = "quantized"  # as a generation_config.json may say
    with pytest.raises(ValueError, match="must be None, 'dynamic' or 'static', got 'quantized'"):
        generate(model, ids)


@pytest.mark.parametrize("implementation", ["quantized", "offloaded", "offloaded_static"])
def test_other_caches_are_refused(typical, ids, implementation):
    with pytest.raises(ValueError, match=f"must be None, 'dynamic' or 'static', got '{implementation}'"):
        generate(typical, ids, cache_implementation=implementation)


def test_continuous_batching_is_refused(typical, ids):
    with pytest.raises(ValueError, match=r"continuous batching .* not supported"):
        generate(typical, ids, cache_implementation="paged")
    with pytest.raises(ValueError, match=r"continuous batching .* not supported"):
        typical.generate_batch(ids.tolist())


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.filterwarnings("ignore:.*requires_grad=True:UserWarning", "ignore:.*deprecated.*:FutureWarning")
def test_in_training_mode_with_checkpointing_it_has_a_cache(typical, ids, reentrant):
    """What a sampling callback does: without gradients nothing is recomputed."""
    model = copy.deepcopy(typical).train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    out = generate(model, ids, return_dict_in_generate=True)
    assert torch.equal(out.sequences, generate(typical, ids))
    assert isinstance(out.past_key_values, DecoderCache)
    with torch.no_grad():
        assert isinstance(model(ids, use_cache=True).past_key_values, DecoderCache)
        assert model(ids).past_key_values is None


def test_stop_strings():
    tokenizer = byte_tokenizer()
    model = OSNForCausalLM(OSNConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1)).eval()
    ids = tokenizer("a", return_tensors="pt").input_ids
    others = [i for i in range(len(tokenizer)) if i != ids[0, 0]]
    out = generate(model, ids, suppress_tokens=others, stop_strings=["aaa"], tokenizer=tokenizer)
    assert tokenizer.batch_decode(out) == ["aaa"]


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"num_beams": 2}, {"prefill_chunk_size": 4}])
def test_positions_given_to_generate(typical, ids, options):
    """transformers lengthens them token by token; the layers' own count is the same."""
    padded, mask = left_padded(ids)
    expected = generate(typical, padded, attention_mask=mask, **options)
    counted = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
    for positions in (counted, torch.arange(13).expand(3, -1)):
        given = {"attention_mask": mask, "position_ids": positions} | options
        assert torch.equal(generate(typical, padded, **given), expected)
    with pytest.raises(ValueError, match=r"with several texts in a row, .* a cache holds one text a row"):
        generate(typical, ids, position_ids=torch.arange(13)[None] % 5)


def test_prompt_lookup_gives_the_greedy_tokens(model, ids):
    repeated = ids[:1, :5].repeat(1, 4)  # there is something to look up, and most of it is wrong
    out = generate(
        model, repeated, prompt_lookup_num_tokens=3, max_new_tokens=30, return_dict_in_generate=True
    )
    assert torch.equal(out.sequences, greedy(model, repeated, 30))
    assert out.past_key_values.get_seq_length() == 49


@pytest.mark.parametrize("assistant", ["osn", "rotary token shift", "alibi delay"])
def test_assisted_decoding_gives_the_greedy_tokens(typical, ids, build_model, assistant):
    """The assistant's tokens are taken back where the model has others, in both caches."""
    helper = build_model(assistant)
    helper.generation_config.assistant_confidence_threshold = 0.0  # it goes on however unsure it is
    expected = greedy(typical, ids[:1], 20)
    assert torch.equal(generate(typical, ids[:1], assistant_model=helper, max_new_tokens=20), expected)
    masked, mask = ids[:1] * (torch.arange(13) > 2), (torch.arange(13) > 2).long()[None]
    padded = generate(typical, masked, attention_mask=mask, assistant_model=helper, max_new_tokens=20)
    assert torch.equal(padded[:, 13:], greedy(typical, ids[:1, 3:], 20)[:, 10:])


def test_assisted_sampling_goes_on_from_a_cache(typical, ids, build_model):
    cache = DecoderCache(typical.config)
    with torch.no_grad():
        typical(ids[:1, :10], past_key_values=cache)
    options = {"assistant_model": build_model("osn"), "do_sample": True, "past_key_values": cache}
    assert generate(typical, ids[:1], **options).shape == (1, 19)


def test_the_attentions_top_k_is_no_option_of_sampling(ids):
    model = OSNForCausalLM(OSNConfig(vocab_size=40, hidden_size=32, num_hidden_layers=1, top_k=2))
    assert model.generation_config.top_k == GenerationConfig().top_k
    assert model.config.top_k == model.model.layers[0].self_attn.top_k == 2


def test_unknown_arguments_are_refused(typical, ids):
    with pytest.raises(ValueError, match="not used by the model: \\['temprature'\\]"):
        generate(typical, ids, temprature=2.0)
