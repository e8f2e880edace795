"""Models whose heads cannot reach everything: what they forget of a text changes no bit of what follows."""

import copy
import math

import pytest
import torch

from syncattn.models import (
    DecoderCache,
    OSNConfig,
    OSNForCausalLM,
    TransformerConfig,
    TransformerForCausalLM,
)
from syncattn.nn import preset

SIZES = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GREEDY = {"do_sample": False, "max_new_tokens": 40}


@pytest.fixture(scope="module")
def narrow():
    """Heads that reach some 10 to 300 tokens."""
    torch.manual_seed(0)
    return OSNForCausalLM(OSNConfig(**SIZES, window_range=(1.0, 30.0), pad_token_id=0)).eval()


@pytest.fixture
def small_blocks(monkeypatch):
    for room in ("nn.groups", "nn.state", "models.cache"):
        monkeypatch.setattr(f"syncattn.{room}.BLOCK", 8)


@torch.no_grad()
def continued(model, ids, cuts, cache):
    outs, at = [], 0
    for n in cuts:
        outs.append(model(ids[:, at : at + n], past_key_values=cache).logits)
        at += n
    return torch.cat(outs, 1)


def test_every_layer_says_how_far_its_heads_reach(narrow, build_model):
    windows = narrow.windows()
    assert windows.shape == (2, 4) and windows.dtype == torch.float64
    assert (windows.diff(dim=1) > 0).all() and 5 < windows.min() < windows.max() < 1000
    assert torch.equal(windows, narrow.model.windows())
    first, second = build_model("osn post-norm").windows()
    assert first.isinf().all() and second.isfinite().all()
    for kind in ("osn rotary", "rotary", "alibi", "osn paper"):
        assert build_model(kind).windows().isinf().all()
    assert build_model("osn mix").windows().isinf().tolist() == [[False, True, True, True]] * 2


@pytest.mark.parametrize("wide", [False, True])
def test_the_bits_are_those_of_all_tokens(narrow, wide, monkeypatch):
    """In calls of up to 24 rows, the CPU kernel's block; in longer ones up to the order of sums."""
    if wide:  # two groups of heads
        torch.manual_seed(0)
        narrow = OSNForCausalLM(OSNConfig(**SIZES, window_range=(1.0, 250.0))).eval()
    ids = torch.randint(1, 40, (2, 2300), generator=torch.Generator().manual_seed(1))
    cuts = [2000, *[1] * 60, 24, 7, *[1] * 9, 200]
    caches = [DecoderCache(narrow.config, evict=evict) for evict in (True, False, False)]
    monkeypatch.setattr(caches[2], "use_windows_of", lambda *_: None)
    out, kept, plain = (continued(narrow, ids, cuts, cache) for cache in caches)
    assert torch.equal(out, kept)
    assert torch.equal(out[:, :2100], plain[:, :2100])
    torch.testing.assert_close(out, plain)
    assert caches[0].get_seq_length() == 2300
    total, whole = (cache.nbytes + cache.spare_nbytes for cache in caches[:2])
    assert total < whole
    assert caches[0].nbytes < (0.8 if wide else 0.4) * caches[1].nbytes
    assert caches[1].nbytes == caches[2].nbytes
    assert [len(state.groups) for state in caches[0].states] == [1 + wide] * 2


MODES = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "prompt lookup": {"prompt_lookup_num_tokens": 4},
    "assisted": {"assistant_model": True},
    "in chunks": {"prefill_chunk_size": 30},
    "weights": {"output_attentions": True, "return_dict_in_generate": True},
}


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("mode", MODES)
def test_generate_forgets_in_every_mode(narrow, mode, monkeypatch):
    monkeypatch.setattr("syncattn.nn.state._RECORDED", 10)
    batch = 1 if mode in ("assisted", "prompt lookup") else 2
    ids = torch.randint(1, 40, (batch, 12), generator=torch.Generator().manual_seed(2)).repeat(1, 12)
    mask = torch.ones_like(ids)
    if batch == 2:
        ids[0, :50], mask[0, :50] = 0, 0
    options = {**GREEDY, **MODES[mode], "attention_mask": mask}
    if mode == "assisted":
        options["assistant_model"] = narrow
    found = []
    for evict in (True, False):
        cache = DecoderCache(narrow.config, evict=evict)
        found.append(narrow.generate(ids, past_key_values=cache, **options))
        assert evict == any(state.forgets for state in cache.states)
    torch.manual_seed(0)
    alone = narrow.generate(ids, **options)
    if mode == "weights":
        for one, other in zip(found[0].attentions, found[1].attentions, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        assert found[0].attentions[-1][0].shape == (2, 4, 1, ids.shape[1] + 39)
        found, alone = [x.sequences for x in found], alone.sequences
    assert torch.equal(*found) and torch.equal(found[0], alone)
    if mode in ("assisted", "prompt lookup"):
        assert torch.equal(alone, narrow.generate(ids, **GREEDY))


BACK = {"token_shift": False, "short_convolution": 4, "value_residual": True}
TURNED = {"directed": [True, False, True, False], "delay": [True, True, False, False], "detuning": True}
MIXES = {
    "convolution": {"windows": [2.0, 3.0, 4.0, 30.0], "value_rotation": 50.0, **BACK},
    "kinds": {"windows": [2.0, 3.0, 4.0, 60.0], **TURNED},
    "forms": {
        "position": ["own_drift", "drift", "own_screw", "none"],
        "helix_scales": [2.0, 8.0],
        "windows": [1.0, 3.0, 2.0, None],
        **TURNED,
        **BACK,
    },
    "preset": preset("series", 4) | {"window_range": (1.0, 3.0)},
    "post-norm, absolute": {
        "windows": [1.0, 2.0, 3.0, 8.0],
        "norm_first": False,
        "frame": "absolute",
        "top_k": 4,
    },
}


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("mix", MIXES)
@torch.no_grad()
def test_mixes_of_heads_forget_nothing_that_is_read(mix):
    """Padded rows, in calls of several sizes, taken back and copied, as the whole text at once."""
    torch.manual_seed(0)
    model = OSNForCausalLM(OSNConfig(**SIZES, **MIXES[mix])).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("shift", "value_mix", "detuning")):
            parameter.normal_(std=0.1)
    ids = torch.randint(1, 40, (2, 280), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(280) >= torch.tensor([[0], [90]])).long()
    want = model(ids, attention_mask=mask, use_cache=False).logits
    found = []
    for evict in (True, False):
        cache, at, outs = DecoderCache(model.config, evict=evict), 0, []
        for n in (150, *[1] * 30, 24, 24, 20, 32):
            outs.append(model(ids[:, at : at + n], mask[:, : at + n], past_key_values=cache).logits)
            at += n
            if at == 180:
                cache.activate_past_recording()
            if at == 248:
                cache = copy.deepcopy(cache)
                cache.crop(-30)
                model(ids[:, 218:248], mask[:, :248], past_key_values=cache)
        assert evict == any(state.forgets for state in cache.states)
        found.append(torch.cat(outs, 1))
    assert torch.equal(*found)
    torch.testing.assert_close(found[0][mask.bool()], want[mask.bool()], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("small_blocks")
@torch.no_grad()
def test_a_call_that_fails_brings_back_what_was_forgotten(narrow, monkeypatch):
    ids = torch.randint(1, 40, (1, 200), generator=torch.Generator().manual_seed(3))
    cache = DecoderCache(narrow.config)
    narrow(ids[:, :100], past_key_values=cache)
    first = [group.first for state in cache.states for group in state.groups]
    with monkeypatch.context() as patch:
        patch.setattr(narrow.model.norm, "forward", lambda x: (_ for _ in ()).throw(RuntimeError("broken")))
        with pytest.raises(RuntimeError, match="broken"):
            narrow(ids[:, 50:150], past_key_values=cache)
    assert [group.first for state in cache.states for group in state.groups] == first
    want = narrow(ids, use_cache=False).logits[:, 100:]
    torch.testing.assert_close(narrow(ids[:, 100:], past_key_values=cache).logits, want)


@pytest.mark.usefixtures("small_blocks")
@torch.no_grad()
def test_windows_are_those_of_the_weights_as_they_are(narrow):
    """A cache that is emptied and used again learns them again."""
    ids = torch.randint(1, 40, (1, 60), generator=torch.Generator().manual_seed(3))
    cache = DecoderCache(narrow.config)
    narrow(ids, past_key_values=cache)
    before = cache.states[0].windows.reach
    slope = narrow.model.layers[0].self_attn.frequency.log_slope
    slope.sub_(math.log(3))
    cache.crop(-60)
    narrow(ids, past_key_values=cache)
    assert cache.states[0].windows.reach[-1] > 2 * before[-1]
    slope.add_(math.log(3))
    cache.reset()
    narrow(ids, past_key_values=cache)
    assert cache.states[0].windows.reach == pytest.approx(before, rel=1e-5)


def test_what_evict_refuses(narrow):
    with pytest.raises(TypeError, match="evict must be True or False, got 1"):
        DecoderCache(narrow.config, evict=1)
    rival = TransformerForCausalLM(TransformerConfig(**SIZES)).eval()
    cache = DecoderCache(rival.config)
    continued(rival, torch.ones(1, 600, dtype=torch.int64), [600], cache)
    assert cache.states[0].windows is None and not cache.states[0].forgets
