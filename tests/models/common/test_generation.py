"""`generate()`: the shapes of all that it can return, every way of searching, and going on from before."""

import copy
import inspect

import pytest
import torch
from transformers import GenerationMixin, LogitsProcessor, StoppingCriteria
from transformers.generation import (
    CompileConfig,
    GenerateBeamDecoderOnlyOutput,
    GenerateDecoderOnlyOutput,
    LogitsProcessorList,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

import syncattn.models
from syncattn.models import DecoderCache

NEW = 3
EVERYTHING = {
    "output_scores": True,
    "output_logits": True,
    "output_hidden_states": True,
    "output_attentions": True,
    "return_dict_in_generate": True,
}
WARPED = {"top_k": 10, "top_p": 0.7, "temperature": 0.7}
WAYS = {
    "greedy": {},
    "sample": {"do_sample": True, "num_return_sequences": 2, **WARPED},
    "beams": {"num_beams": 2, "length_penalty": 2.0},
    "sampled beams": {"num_beams": 2, "do_sample": True, **WARPED},
}


@pytest.fixture
def model(generator):
    """Every model that generates; it never ends by itself."""
    model = generator.build()
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture
def inputs(generator):
    """Padded ids and their mask."""
    return generator.inputs


def generate(model, inputs, **options):
    torch.manual_seed(0)
    given = {"do_sample": False, "max_new_tokens": NEW, "min_new_tokens": NEW} | inputs | options
    return model.generate(**given)


def assert_alike(one, two):
    """The same tokens; where they are not, the scores of the first that differs are nearly the same.

    Two ways of computing them round differently, and of two tokens as likely either may be chosen.
    """
    for row in range(len(one.sequences)):
        new = len(one.scores)
        differs = (one.sequences[row, -new:] != two.sequences[row, -new:]).nonzero()
        if len(differs):
            first = int(differs[0])
            torch.testing.assert_close(one.scores[first][row], two.scores[first][row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_everything_that_can_be_returned(model, inputs, way, use_cache):
    """For each new token a tuple over layers; with a cache only the new token is computed."""
    options, config = WAYS[way], model.config
    batch, prompt = inputs["input_ids"].shape
    rows = batch * options.get("num_return_sequences", 1) * options.get("num_beams", 1)
    controls = {"repetition_penalty": 1.2, "bad_words_ids": [[1, 0]], "remove_invalid_values": True}
    out = generate(model, inputs, use_cache=use_cache, **EVERYTHING, **controls, **options)
    beams = "num_beams" in options
    assert type(out) is (GenerateBeamDecoderOnlyOutput if beams else GenerateDecoderOnlyOutput)
    assert out.sequences.shape == (batch * options.get("num_return_sequences", 1), prompt + NEW)
    assert [s.shape for s in (*out.scores, *out.logits)] == [(rows, config.vocab_size)] * 2 * NEW
    assert len(out.hidden_states) == len(out.attentions) == NEW
    for step, (hidden, attentions) in enumerate(zip(out.hidden_states, out.attentions, strict=True)):
        queries = 1 if use_cache and step else prompt + step
        assert [h.shape for h in hidden] == [(rows, queries, config.hidden_size)] * 3
        shape = (rows, config.num_attention_heads, queries, prompt + step)
        assert [a.shape for a in attentions] == [shape] * 2
    if not use_cache:
        assert out.past_key_values is None
        return
    cache = out.past_key_values
    assert isinstance(cache, DecoderCache) and len(cache) == config.num_hidden_layers
    assert (cache.batch_size, cache.get_seq_length()) == (rows, prompt + NEW - 1)
    for state in cache.states:
        assert state.value.shape == (rows, config.num_attention_heads, prompt + NEW - 1, config.head_dim)
    assert torch.equal(out.sequences, generate(model, inputs, use_cache=use_cache, **controls, **options))


def test_without_a_prompt(model):
    out = model.generate(do_sample=False, max_new_tokens=NEW)
    assert out.shape == (1, 1 + NEW) and out[0, 0] == model.config.bos_token_id


@pytest.mark.parametrize("assistant", ["itself", "another", "the prompt"])
@pytest.mark.parametrize("do_sample", [False, True])
def test_tokens_that_another_proposes(generator, model, assistant, do_sample):
    """All are right, most are wrong, or looked up: greedy's tokens, and all that is returned beside them."""
    inputs = {name: value[1:2] for name, value in generator.inputs.items()}
    plain = {"max_new_tokens": 5, "use_cache": True, "do_sample": do_sample, **EVERYTHING}
    helper = model if assistant == "itself" else generator.build(initializer_range=0.3)
    helper.generation_config.num_assistant_tokens = 2
    helper.generation_config.num_assistant_tokens_schedule = "constant"
    proposed = {"prompt_lookup_num_tokens": 2} if assistant == "the prompt" else {"assistant_model": helper}
    out = model.generate(**inputs, **plain, **proposed)
    assert out.sequences.shape == (1, 12) and len(out.scores) == len(out.hidden_states) == 5
    assert out.past_key_values.get_seq_length() == 11
    for step, attentions in enumerate(out.attentions):
        assert [a.shape for a in attentions] == [(1, 2, 7 if step == 0 else 1, 7 + step)] * 2
    if not do_sample:
        assert_alike(model.generate(**inputs, **plain), out)


def test_left_padding_of_any_length_changes_nothing(model, inputs):
    def last(ids, mask):
        positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
        with torch.no_grad():
            return model(ids, mask, positions, use_cache=False).logits[:, -1]

    ids, mask = inputs.values()
    padded = [torch.cat((torch.zeros(len(ids), 32, dtype=torch.long), x), 1) for x in (ids, mask)]
    torch.testing.assert_close(last(*padded), last(ids, mask), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_cache_of_one_call(model, inputs):
    out = model(**inputs, use_cache=True)
    batch, tokens = inputs["input_ids"].shape
    assert isinstance(out.past_key_values, DecoderCache)
    assert len(out.past_key_values) == model.config.num_hidden_layers
    assert (out.past_key_values.batch_size, out.past_key_values.get_seq_length()) == (batch, tokens)


@pytest.mark.parametrize("beams", [1, 2])
def test_from_embeddings_with_and_without_their_ids(model, inputs, beams):
    options = {"num_beams": beams, "return_dict_in_generate": True, "output_scores": True}
    ids, mask = inputs.values()
    embedded = model.get_input_embeddings()(ids).detach()
    expected = generate(model, inputs, **options)
    both = generate(model, inputs, inputs_embeds=embedded, **options)
    alone = generate(model, {"inputs_embeds": embedded, "attention_mask": mask}, **options)
    assert torch.equal(both.sequences, expected.sequences)
    assert torch.equal(alone.sequences, expected.sequences[:, ids.shape[1] :])
    other = generate(model, inputs, inputs_embeds=torch.rand_like(embedded), **options)
    assert not any(torch.allclose(a, b) for a, b in zip(other.scores, expected.scores, strict=True))


@pytest.mark.parametrize("by", ["ids", "embeddings"])
def test_going_on_in_a_second_call(model, inputs, by):
    """Three tokens and one more, with the cache of the first call: the same four, and the same cache."""
    ids, mask = inputs.values()
    options = {"return_dict_in_generate": True, "pad_token_id": -1, "min_new_tokens": None}

    def call(ids, mask, new, **more):
        prompt = {"input_ids": ids} if by == "ids" else {"inputs_embeds": model.get_input_embeddings()(ids)}
        out = generate(model, {**prompt, "attention_mask": mask}, max_new_tokens=new, **options, **more)
        return (out.sequences if by == "ids" else torch.cat((ids, out.sequences), 1)), out.past_key_values

    whole, expected = call(ids, mask, 4)
    first, cache = call(ids, mask, 3)
    longer = torch.nn.functional.pad(mask, (0, 3), value=1)
    second, cache = call(first, longer, 1, past_key_values=cache)
    assert torch.equal(second, whole)
    for a, b in zip(cache.states, expected.states, strict=True):
        torch.testing.assert_close((a.send, a.value), (b.send, b.value), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_logits_of_the_last_tokens_only(model, inputs):
    every, last = (model(**inputs, logits_to_keep=n).logits for n in (0, 1))
    assert every.shape[1] == 7 and last.shape[1] == 1
    torch.testing.assert_close(every[:, -1:], last, rtol=1e-5, atol=1e-5)
    assert torch.equal(generate(model, inputs, logits_to_keep=0), generate(model, inputs))


def test_positions_by_hand_are_those_that_are_counted(model, inputs):
    mask = inputs["attention_mask"]
    positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)
    assert torch.equal(generate(model, inputs, position_ids=positions), generate(model, inputs))


def test_what_the_class_has_of_generation(model, inputs):
    assert isinstance(model, GenerationMixin) and not model._is_stateful
    assert "inputs_embeds" in inspect.signature(model.prepare_inputs_for_generation).parameters
    own = {"output_attentions": True, "custom_arg": "value", "numeric_arg": 42}
    prepared = model.prepare_inputs_for_generation(torch.tensor([[1, 2]]), **own)
    assert own.items() <= prepared.items() and torch.equal(prepared["input_ids"], torch.tensor([[1, 2]]))


def test_one_half_of_a_prompt_after_the_other(model, inputs):
    whole = generate(model, inputs)
    assert torch.equal(generate(model, inputs, prefill_chunk_size=4), whole)


def test_ones_own_processor_criterion_and_streamer(model, inputs):
    """Each is called once for a token; the criterion ends the text, the processor has the last word."""

    class Only(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores.masked_fill(torch.arange(scores.shape[-1]) != 9, -torch.inf)

    class After(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return input_ids[:, -2:].eq(9).all(-1)

    class Kept(BaseStreamer):
        def __init__(self):
            self.tokens, self.ended = [], False

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            self.ended = True

    streamer = Kept()
    one = {name: value[1:2] for name, value in inputs.items()}
    out = model.generate(
        **one,
        max_new_tokens=10,
        do_sample=False,
        logits_processor=LogitsProcessorList([Only()]),
        stopping_criteria=StoppingCriteriaList([After()]),
        streamer=streamer,
    )
    assert out[0, 7:].tolist() == [9, 9] and streamer.tokens == out[0].tolist() and streamer.ended


def test_what_is_not_served_is_refused_by_name(model, inputs):
    """Caches of other kinds, packed rows, masks that say who sees whom."""
    ids, mask = inputs["input_ids"][1:2], torch.ones(1, 7, dtype=torch.long)
    for name in ("offloaded_static", "quantized", "offloaded"):
        with pytest.raises(ValueError, match=f"cache_implementation must be .* got '{name}'"):
            generate(model, {"input_ids": ids}, cache_implementation=name)
    packed = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    with pytest.raises(ValueError, match="use_cache must be left out with several texts in a row"):
        model(ids, mask, packed, use_cache=True)
    with pytest.raises(ValueError, match="who sees whom among real tokens is not for the mask to say"):
        model(ids, torch.ones(1, 1, 7, 7))
    for way in ({"penalty_alpha": 0.6, "top_k": 4}, {"num_beams": 4, "num_beam_groups": 2}):
        with pytest.raises(ValueError, match="trust_remote_code=True"):  # no longer transformers' own
            generate(model, {"input_ids": ids}, **way)


def test_a_cache_of_fixed_size(model, inputs):
    """The tokens of the one that grows; its own class, with its length and its places."""
    assert model._can_compile_fullgraph
    found = generate(
        model, inputs, cache_implementation="static", return_dict_in_generate=True, max_new_tokens=5
    )
    assert torch.equal(found.sequences, generate(model, inputs, max_new_tokens=5))
    cache = found.past_key_values
    assert isinstance(cache, syncattn.models.StaticDecoderCache)
    assert cache.get_seq_length() == found.sequences.shape[1] - 1 <= cache.get_max_length()


def test_asking_for_compilation_is_without_effect(model, inputs):
    """transformers compiles for caches of a fixed size alone."""
    config = CompileConfig(fullgraph=True)
    config._compile_all_devices = True
    assert torch.equal(generate(model, inputs, compile_config=config), generate(model, inputs))
    assert not hasattr(model, "_compiled_call") or model._compiled_call is None
    assert copy.deepcopy(model).generation_config == model.generation_config
