"""The cache of fixed size: what the growing one gives, by steps of one shape that a compiler takes."""

import copy

import pytest
import torch
from torch.nn.functional import pad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import StaticCache
from transformers.generation import CompileConfig

import syncattn
from syncattn.models import (
    DecoderCache,
    OSNConfig,
    OSNForCausalLM,
    StaticDecoderCache,
    TransformerConfig,
    TransformerForCausalLM,
)

from .conftest import DENSE, SIZES, build

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
PLACES = 20


@torch.no_grad()
def decode(model, ids, cache, sizes, mask=None, wide=False, **options):
    """The logits of all tokens, so many at a time; options by their places, too."""
    at, found = cache.get_seq_length(), []
    for tokens in sizes:
        of_call = {name: given[:, at : at + tokens] for name, given in options.items()}
        if mask is not None:
            of_call["attention_mask"] = mask[:, : at + tokens]
            if wide:  # as wide at each call; what it says of places to come is not read
                of_call["attention_mask"] = pad(of_call["attention_mask"], (0, PLACES - at - tokens), value=1)
        given = ids[:, at : at + tokens].contiguous()  # strides are part of a compiled step
        found.append(model(given, past_key_values=cache, **of_call).logits)
        at += tokens
    assert cache.get_seq_length() == at
    return torch.cat(found, 1)


def addresses(cache):
    return [held.data_ptr() for state in cache.fixed for held in state.memory.values()]


@pytest.mark.parametrize("sizes", [(5, 1, 1, 6), (1,) * 13, (13,)], ids=str)
def test_it_gives_what_the_growing_cache_gives(model, ids, mask, sizes):
    """With padding and without; the same memory again after a reset, and from a start in tensors."""
    cache = StaticDecoderCache(model.config, PLACES)
    for real, wide in ((None, False), (mask, False), (mask, True)):
        expected = decode(model, ids, DecoderCache(model.config), sizes, real)
        seen = slice(None) if real is None else real.bool()
        for start in (cache.reset, lambda: cache.start(model, 3)):
            start()
            found = decode(model, ids, cache, sizes, real, wide)
            torch.testing.assert_close(found[seen], expected[seen], **CLOSE)
    before, size = addresses(cache), cache.nbytes
    cache.reset()
    assert cache.get_seq_length() == 0 and not cache.is_initialized and cache.batch_size == -1
    decode(model, ids, cache, sizes)
    assert addresses(cache) == before and cache.nbytes == size and cache.spare_nbytes == 0


def test_the_first_tokens_are_those_of_the_growing_cache_bit_for_bit(model, ids, mask):
    for real in (None, mask):
        cache, other = StaticDecoderCache(model.config, PLACES), DecoderCache(model.config)
        assert torch.equal(decode(model, ids, cache, (13,), real), decode(model, ids, other, (13,), real))


def test_given_positions(build_model, ids, mask):
    """From the first token on, or later; with gaps; integers and real numbers; and what is refused."""
    for name in ("osn", "osn rotary", "rotary delay"):
        model = build(name)
        at = (torch.arange(13) + torch.arange(13) // 5 * 3)[None].expand(3, -1)
        numbered = (mask.cumsum(1) - 1).clamp(min=0)
        for real, options in (
            (None, {"position_ids": at}),
            (None, {"positions": at[..., None] * 0.5}),
            (mask, {"position_ids": numbered}),
            (mask, {"position_ids": torch.arange(13).expand(3, -1)}),
        ):
            expected = decode(model, ids, DecoderCache(model.config), (6, 1, 1, 5), real, **options)
            cache = StaticDecoderCache(model.config, PLACES)
            found = decode(model, ids, cache, (6, 1, 1, 5), real, **options)
            seen = slice(None) if real is None else real.bool()
            torch.testing.assert_close(found[seen], expected[seen], **CLOSE)
        caches = DecoderCache(model.config), StaticDecoderCache(model.config, PLACES)
        for cache in caches:
            decode(model, ids, cache, (6, 1))
        later = {"positions": at[..., None].double()}
        expected, found = (decode(model, ids, cache, (1, 5), **later) for cache in caches)
        torch.testing.assert_close(found, expected, **CLOSE)
        with pytest.raises(ValueError, match="position_ids must rise"):
            decode(model, ids, StaticDecoderCache(model.config, PLACES), (6, 7), position_ids=at.flip(1) + 0)


def test_windows_and_many_tokens(monkeypatch):
    """Windows change nothing, nor is anything forgotten; a cache may be full to its last place."""
    for room in ("nn.groups", "nn.state", "models.cache"):
        monkeypatch.setattr(f"syncattn.{room}.BLOCK", 8)
    config = OSNConfig(**{**DENSE, "num_hidden_layers": 1}, windows=[0.2, 0.3, 4.0, 60.0])
    torch.manual_seed(0)
    model = OSNForCausalLM(config).eval()
    ids = torch.randint(1, 40, (1, 90), generator=torch.Generator().manual_seed(1))
    growing, fixed = DecoderCache(config), StaticDecoderCache(config, 90)
    expected = decode(model, ids, growing, (50, 1, 1, 38))
    torch.testing.assert_close(decode(model, ids, fixed, (50, 1, 1, 38)), expected, **CLOSE)
    assert any(state.forgets for state in growing.states) and not any(s.forgets for s in fixed.states)


def small(**fields):
    """Quick to compile, and has all that a layer can have of its past."""
    torch.manual_seed(0)
    sizes = {**DENSE, "num_hidden_layers": 1}
    return OSNForCausalLM(OSNConfig(**sizes, token_shift=True, **fields)).eval()


@pytest.mark.usefixtures("fresh_compiler")
@torch.no_grad()
def test_one_compiled_step_serves_all_tokens(ids, mask):
    """The first one, too, after start(); then it goes on from an eager call, and eager calls from it."""
    model = small()
    step = torch.compile(model, fullgraph=True, backend="eager")
    cache = StaticDecoderCache(model.config, PLACES)
    cache.start(model, 3)
    before = addresses(cache)
    found = decode(step, ids, cache, (1,), mask, wide=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = torch.cat((found, decode(step, ids, cache, (1,) * 12, mask, wide=True)), 1)
        seen, expected = mask.bool(), model(ids, mask, use_cache=False).logits
        torch.testing.assert_close(found[seen], expected[seen], **CLOSE)
        cache.reset()
        parts = decode(model, ids, cache, (4,), mask), decode(step, ids, cache, (1,) * 3, mask, wide=True)
        found = torch.cat((*parts, decode(model, ids, cache, (6,), mask)), 1)
        torch.testing.assert_close(found[seen], expected[seen], **CLOSE)
        more = pad(mask, (0, 7), value=1)
        decode(step, ids.repeat(1, 2), cache, (1,) * 7, more, wide=True)
        held = [x.clone() for state in cache.fixed for x in state.memory.values()]
        with pytest.raises(RuntimeError, match="must have room for the new tokens"):
            step(ids[:, :1].contiguous(), past_key_values=cache, attention_mask=more)
        kept = [x for state in cache.fixed for x in state.memory.values()]
        assert all(map(torch.equal, kept, held)) and addresses(cache) == before


@pytest.mark.usefixtures("fresh_compiler")
@torch.no_grad()
def test_a_compiled_prompt_and_a_compiled_transformer(ids):
    """What comes first is a graph of its own, as in a growing cache."""
    torch.manual_seed(0)
    model = TransformerForCausalLM(TransformerConfig(**SIZES | {"num_hidden_layers": 1}, delay=0.5)).eval()
    step, cache = torch.compile(model, fullgraph=True, backend="eager"), StaticDecoderCache(model.config, 7)
    found = decode(step, ids, cache, (5, 1, 1))
    torch.testing.assert_close(found, model(ids[:, :7], use_cache=False).logits, **CLOSE)


GREEDY = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}
STATIC = {"cache_implementation": "static"}


def test_generate(model, ids, mask):
    padded = torch.where(mask.bool(), ids, 0)
    for inputs in ({"inputs": ids}, {"inputs": padded, "attention_mask": mask}):
        assert torch.equal(model.generate(**inputs, **GREEDY, **STATIC), model.generate(**inputs, **GREEDY))


def test_generate_in_other_modes(typical, ids):
    embedded = typical.get_input_embeddings()(ids).detach()
    for options in (
        {"num_beams": 3},
        {"num_beams": 2, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 2},
        {"prefill_chunk_size": 4},
        {"inputs": None, "inputs_embeds": embedded},
    ):
        found = []
        for cache in (STATIC, {}):
            torch.manual_seed(0)
            found.append(typical.generate(**{"inputs": ids, **GREEDY, **options, **cache}))
        assert torch.equal(*found), options
    out = typical.generate(ids, **GREEDY, **STATIC, return_dict_in_generate=True, output_attentions=True)
    cache = out.past_key_values
    assert type(cache) is StaticDecoderCache and cache.get_seq_length() == 18
    assert cache.get_max_length() == typical._previous_max_cache_length >= 18
    assert out.attentions[1][0].shape == (3, 4, 1, cache.max_cache_len)
    own = StaticDecoderCache(typical.config, 18)
    assert torch.equal(typical.generate(ids, **GREEDY, past_key_values=own), out.sequences)
    with pytest.raises(ValueError, match="assisted generate is not supported with Static"):
        typical.generate(ids[:1], **GREEDY, **STATIC, prompt_lookup_num_tokens=2)
    own.reset()
    with pytest.raises(ValueError, match="StaticDecoderCache cannot take tokens back"):
        typical.generate(ids[:1], **GREEDY, past_key_values=own, prompt_lookup_num_tokens=2)


@pytest.mark.usefixtures("fresh_compiler")
def test_generate_compiles_the_step_once(ids, mask):
    """With padding, whose mask grows in generate() and is of one width here; for later calls, too."""
    model = small()
    config = CompileConfig(fullgraph=True, backend="eager", mode=None)
    config._compile_all_devices = True
    told = {"return_dict_in_generate": True, "output_hidden_states": True, "output_attentions": True}
    options = {"inputs": torch.where(mask.bool(), ids, 0), "attention_mask": mask, **GREEDY, **told}
    expected = model.generate(**options)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for tokens in (6, 3):
            found = model.generate(**{**options, "max_new_tokens": tokens}, **STATIC, compile_config=config)
            assert torch.equal(found.sequences, expected.sequences[:, : 13 + tokens])
            for a, b in zip(found.hidden_states[1:], expected.hidden_states[1:]):
                torch.testing.assert_close(a, b, **CLOSE)
            for (a,), (b,) in zip(found.attentions[1:], expected.attentions[1:]):
                torch.testing.assert_close(a, pad(b, (0, a.shape[-1] - b.shape[-1])), **CLOSE)


@torch.no_grad()
def test_what_is_refused_leaves_the_cache_as_it_was(typical, ids, mask):
    cache = StaticDecoderCache(typical.config, 15)
    decode(typical, ids, cache, (8, 4), mask)
    expected = copy.deepcopy(cache)
    more = torch.cat((mask, mask.new_ones(3, 3)), 1)
    bad = typical.get_input_embeddings()(ids[:, :2]).clone()
    bad[1] = torch.nan
    calls = [
        ({"input_ids": ids[:, :4]}, r"room for the new tokens, 4, got one of 15 places that holds 12: make"),
        ({"input_ids": ids.repeat(1, 2)[:, :16]}, "new tokens, 16, got one of 15 places that holds 12"),
        ({"input_ids": ids[:2, :1]}, "as many sequences as the input, 2, got 3"),
        ({"input_ids": ids[:, :1], "attention_mask": more[:, :12]}, r"\(3, 12 \+ 1\) or .* = \(3, 15\)"),
        ({"input_ids": ids[:, :1], "attention_mask": more[:2, :13]}, "must have shape"),
        ({"input_ids": ids[:, :1], "attention_mask": more[:, :13] * 0}, "another mask of 3 sequences"),
        ({"input_ids": ids[:, :1], "attention_mask": pad(more[:, :13], (0, 2)) * 2}, "must hold 1 for real"),
        ({"input_ids": ids[:, :1], "attention_mask": more[:, None, :13]}, "must have shape"),
        ({"input_ids": ids[:, :1], "attention_mask": torch.ones(())}, "must have shape"),
    ]
    if "osn" in type(typical).__name__.lower():  # softmax of NaN is NaN
        calls.append(({"inputs_embeds": bad}, "must hold finite frequencies"))
    for call, message in calls:
        with pytest.raises(ValueError, match=message):
            typical(**call, past_key_values=cache)
    with torch.enable_grad(), pytest.raises(ValueError, match=r"records no gradients: .*torch\.no_grad"):
        typical(ids[:, :1], past_key_values=cache)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match=r"holds torch\.float32 on cpu"),
    ):
        typical(ids[:, :1], past_key_values=cache)
    for state, other in zip(cache.fixed, expected.fixed, strict=True):
        for name, held in state.memory.items():
            assert torch.equal(held, other.memory[name]), name
    found = typical(ids[:, 12:], more[:, :13], past_key_values=cache).logits
    assert torch.equal(found, typical(ids[:, 12:], more[:, :13], past_key_values=expected).logits)


@torch.no_grad()
def test_other_caches_and_what_cannot_be_done(ids):
    model, other = build("osn"), build("rotary")
    for wrong, error in ((0, ValueError), (-1, ValueError), (2.5, TypeError), (None, TypeError)):
        with pytest.raises(error, match="max_cache_len must be"):
            StaticDecoderCache(model.config, wrong)
    cache = StaticDecoderCache(model.config, 15)
    assert cache.is_compileable and not cache.is_croppable and cache.get_mask_sizes(1, 0) == (15, 0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        cache.start(model, 0)
    with pytest.raises(ValueError, match="16, got one of 15 places that holds 0"):
        model(ids.repeat(1, 2)[:, :16], past_key_values=cache)
    decode(model, ids, cache, (5,))
    with pytest.raises(
        ValueError, match=r"must be a cache of this model, .* got one that another model made"
    ):
        other(ids[:, :1], past_key_values=cache)
    one = OSNForCausalLM(OSNConfig(**{**DENSE, "num_hidden_layers": 1}))
    with pytest.raises(ValueError, match="as many layers as the model, 1, got 2"):
        one(ids[:, :1], past_key_values=cache)
    for refused, error, message in (
        (lambda: cache.crop(-1), ValueError, r"cannot take tokens back: .* reset\(\)"),
        (cache.activate_past_recording, ValueError, "cannot take tokens back"),
        (lambda: cache.batch_repeat_interleave(2), ValueError, "keeps its number of sequences"),
        (lambda: cache.batch_select_indices(torch.tensor([0])), ValueError, "keeps its number of sequences"),
        (lambda: cache.early_initialization(1, 4, 8, torch.float32, "cpu"), TypeError, "start\\(model"),
        (lambda: cache.update(ids, ids, 0), TypeError, "has no update"),
    ):
        with pytest.raises(error, match=message):
            refused()
    assert cache.get_seq_length() == 5
    with pytest.raises(TypeError, match=r"got StaticCache: .*StaticDecoderCache\(model\.config, max_cache"):
        model(ids, past_key_values=StaticCache(model.config, max_cache_len=20))
    cache.reset()
    torch.testing.assert_close(
        decode(other, ids, cache, (13,)), other(ids, use_cache=False).logits, **CLOSE
    )  # it holds nothing of the first one


@torch.no_grad()
def test_it_can_be_copied_and_reordered(typical, ids):
    cache = StaticDecoderCache(typical.config, 13)
    decode(typical, ids, cache, (12,))
    expected = typical(ids, use_cache=False).logits[:, -1]
    copied = copy.deepcopy(cache)
    copied.reorder_cache(torch.tensor([2, 0, 0]))
    found = typical(ids[[2, 0, 0], 12:], past_key_values=copied).logits[:, 0]
    torch.testing.assert_close(found, expected[[2, 0, 0]], **CLOSE)
    torch.testing.assert_close(typical(ids[:, 12:], past_key_values=cache).logits[:, 0], expected, **CLOSE)


def test_in_inference_mode_and_out_of_it(typical, ids):
    cache = StaticDecoderCache(typical.config, 13)
    with torch.inference_mode():
        first = typical(ids[:, :5], past_key_values=cache).logits
    with torch.no_grad():
        then = typical(ids[:, 5:9], past_key_values=cache).logits
        expected = typical(ids, use_cache=False).logits
    with torch.inference_mode():
        last = typical(ids[:, 9:], past_key_values=cache).logits
        torch.testing.assert_close(torch.cat((first, then, last), 1), expected, **CLOSE)


class OnMeta(TorchDispatchMode):
    """Where everything computed with is on the meta device, nothing comes from the host."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
        assert all(x.is_meta for x in tensors), function
        return out


@torch.no_grad()
def test_a_step_waits_for_no_device_and_brings_nothing_to_it(build_model):
    """A CUDA graph can hold it then. On the meta device to read any number is an error."""
    for name in ("osn token shift", "osn modern", "rotary gate"):
        model = build_model(name).to("meta")
        ids = torch.zeros(3, 13, dtype=torch.int64, device="meta")
        cache = StaticDecoderCache(model.config, PLACES)
        with syncattn.use_backend("eager"):
            model(ids, past_key_values=cache)
            before = {name: held for state in cache.fixed for name, held in state.memory.items()}
            with OnMeta():
                for _ in range(3):
                    model(ids[:, :1].contiguous(), past_key_values=cache)
        after = {name: held for state in cache.fixed for name, held in state.memory.items()}
        assert all(after[name] is held for name, held in before.items())  # and it stays where it was


@torch.no_grad()
def test_bfloat16(build_model, ids):
    for name in ("osn token shift", "rotary"):
        model = build_model(name).to(torch.bfloat16)
        cache = StaticDecoderCache(model.config, PLACES)
        found = decode(model, ids, cache, (6, 1, 1, 5))
        expected = decode(model, ids, DecoderCache(model.config), (6, 1, 1, 5))
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
        memory = cache.fixed[0].memory
        assert memory["value"].dtype == torch.bfloat16
