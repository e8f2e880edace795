"""Models of transformers through SSA: their outputs are those of their own attention."""

import copy
import subprocess
import sys

import pytest
import torch
from transformers import (
    AutoModel,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertLMHeadModel,
    BertModel,
    BloomConfig,
    BloomModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5Model,
    ViTConfig,
    ViTModel,
)
from transformers.utils import logging

from syncattn.integrations.transformers import boolean_mask, register, ssa_attention

logging.set_verbosity_error()
SIZES = {
    "vocab_size": 60,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "initializer_range": 0.15,  # scores of 10 and more: with the usual start all weights are nearly equal
}
GROUPED = SIZES | {"num_key_value_heads": 2}
GPT2 = {"vocab_size": 60, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128, "pad_token_id": 0}
CAUSAL = {
    "bert": (BertLMHeadModel, BertConfig(**SIZES, is_decoder=True)),
    "llama": (LlamaForCausalLM, LlamaConfig(**GROUPED)),
    "mistral": (MistralForCausalLM, MistralConfig(**GROUPED, sliding_window=6)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**GROUPED)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**GROUPED, head_dim=80)),
    "gpt2": (GPT2LMHeadModel, GPT2Config(**GPT2, bos_token_id=1, eos_token_id=None, initializer_range=0.15)),
}
MODELS = CAUSAL | {"encoder": (BertModel, BertConfig(**SIZES))}
BART = {
    "vocab_size": 60,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "max_position_embeddings": 64,
    "init_std": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "forced_eos_token_id": None,
    "decoder_start_token_id": 2,
}


@pytest.fixture(autouse=True)
def registered():
    register()
    torch.manual_seed(0)


def pair(kind, config, coupling=None):
    """The same model with its own attention and with SSA."""
    config = copy.deepcopy(config)
    own = kind._from_config(config, attn_implementation="eager").eval()
    ours = kind._from_config(copy.deepcopy(config), attn_implementation="ssa").eval()
    ours.load_state_dict(own.state_dict())
    assert ours.config._attn_implementation == "ssa" and own.config._attn_implementation == "eager"
    if coupling is not None:
        ours.config.ssa_coupling = coupling
    return own, ours


def texts():
    """(3, 20) tokens of which the second text has padding after it, the third before it; and the mask."""
    ids = torch.randint(3, 60, (3, 20))
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    mask[2, :5] = 0
    return ids.masked_fill(mask == 0, 0), mask


def apart(found, expected, mask=None):
    """The largest difference of real tokens, by the size of what is expected."""
    real = torch.ones_like(expected) if mask is None else mask[..., None].to(expected.dtype)
    return (((found - expected).abs() * real).max() / expected.abs().max().clamp(min=1)).item()


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_outputs_are_those_of_its_own_attention(name, padded):
    own, ours = pair(*MODELS[name], coupling=1e4)
    ids, mask = texts()
    inputs = {"input_ids": ids, "attention_mask": mask} if padded else {"input_ids": ids.clamp(min=1)}
    expected = own(**inputs, output_hidden_states=True).hidden_states
    found = ours(**inputs, output_hidden_states=True).hidden_states
    assert len(found) == 4
    for a, b in zip(found, expected):
        assert apart(a, b, mask if padded else None) < 2e-5


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_small_couplings_have_exact_zeros(name):
    _, ours = pair(*MODELS[name], coupling=5.0)
    ids, mask = texts()
    weights = ours(input_ids=ids, attention_mask=mask, output_attentions=True).attentions
    assert len(weights) == 3
    allowed = (
        mask[:, None, None].bool()
        if name == "encoder"
        else (mask[:, None, None] * torch.ones(20, 20).tril()).bool()
    )
    for weight in weights:
        assert weight.shape == (3, 4, 20, 20)
        assert (weight.masked_select(~allowed.expand_as(weight)) == 0).all()
        share = (weight.masked_select(allowed.expand_as(weight)) == 0).float().mean()
        assert 0.1 < share < 0.95
        real = mask[:, None].bool().expand(3, 4, 20)
        assert torch.allclose(weight.sum(-1)[real], torch.ones(int(real.sum())))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_weights_are_softmaxs(name):
    own, ours = pair(*MODELS[name])
    ids, mask = texts()
    for a, b in zip(*(m(ids, attention_mask=mask, output_attentions=True).attentions for m in (ours, own))):
        assert ((a - b) * mask[:, None, :, None]).abs().max() < 2e-5
    assert ours(ids, attention_mask=mask).attentions is None


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_cached_generation(name, cache):
    own, ours = pair(*CAUSAL[name])
    ids, mask = torch.randint(3, 60, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    options = {
        "attention_mask": mask,
        "max_new_tokens": 12,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
        "cache_implementation": cache,
    }
    expected, found = own.generate(ids, **options), ours.generate(ids, **options)
    assert torch.equal(found.sequences, expected.sequences)
    for a, b in zip(found.logits, expected.logits):
        assert apart(a, b) < 5e-5


@torch.no_grad()
def test_cross_attention():
    own, ours = pair(BartForConditionalGeneration, BartConfig(**BART))
    ids, mask = texts()
    inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": torch.randint(3, 60, (3, 7))}
    expected, found = own(**inputs), ours(**inputs)
    assert apart(found.logits, expected.logits) < 2e-5
    cross = ours(**inputs, output_attentions=True).cross_attentions
    assert [x.shape for x in cross] == [(3, 4, 7, 20)] * 2
    assert all((x * (1 - mask)[:, None, None]).max() == 0 for x in cross)
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "num_beams": 2}
    assert torch.equal(ours.generate(ids, **options), own.generate(ids, **options))


@torch.no_grad()
def test_images():
    sizes = {
        k: SIZES[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads", "initializer_range")
    }
    own, ours = pair(ViTModel, ViTConfig(**sizes, intermediate_size=96, image_size=16, patch_size=4))
    images = torch.randn(2, 3, 16, 16)
    assert apart(ours(images).last_hidden_state, own(images).last_hidden_state) < 2e-5


@torch.no_grad()
def test_it_loads_by_name_and_keeps_its_couplings(tmp_path):
    config = BertConfig(**SIZES)
    BertModel(config).save_pretrained(tmp_path)
    own = AutoModel.from_pretrained(tmp_path, attn_implementation="eager")
    model = AutoModel.from_pretrained(tmp_path, attn_implementation="ssa")
    ids, mask = texts()
    expected = own(ids, attention_mask=mask).last_hidden_state
    assert apart(model(ids, attention_mask=mask).last_hidden_state, expected, mask) < 2e-5
    model.config.ssa_coupling = [5.0, [1.0, 2.0, 3.0, 4.0], 1e4]
    changed = model(ids, attention_mask=mask).last_hidden_state
    assert apart(changed, expected, mask) > 1e-3
    model.save_pretrained(tmp_path / "changed")
    again = AutoModel.from_pretrained(tmp_path / "changed", attn_implementation="ssa")
    assert again.config.ssa_coupling == model.config.ssa_coupling
    assert torch.equal(again(ids, attention_mask=mask).last_hidden_state, changed)
    model.set_attn_implementation("eager")
    assert torch.equal(model(ids, attention_mask=mask).last_hidden_state, expected)


@pytest.mark.parametrize(
    ("coupling", "kind", "message"),
    [
        ("strong", TypeError, "ssa_coupling must be a number, got 'strong'"),
        (0.0, ValueError, "ssa_coupling must be positive and finite, got 0.0"),
        ([1.0, 2.0], ValueError, "an entry for layer 2 of BertSelfAttention .*, got a list of 2"),
        (
            [[1.0, 2.0], 3.0, 4.0],
            ValueError,
            r"each of the 4 heads of BertSelfAttention .*, got \[1.0, 2.0\]",
        ),
        ([1.0, [1.0, 2.0, -3.0, 1.0], 4.0], ValueError, "ssa_coupling must be positive and finite, got -3.0"),
    ],
)
def test_couplings_that_do_not_fit(coupling, kind, message):
    _, ours = pair(*MODELS["encoder"], coupling=coupling)
    with pytest.raises(kind, match=message):
        ours(texts()[0])


def test_gradients_and_dropout():
    own, ours = pair(*MODELS["encoder"])
    ids, mask = texts()
    for model in (own, ours):
        (model(ids, attention_mask=mask).last_hidden_state * mask[..., None]).square().sum().backward()
    for (name, a), b in zip(ours.named_parameters(), own.parameters()):
        if b.grad is not None and b.grad.abs().max() > 1e-3:  # a key's bias has none: softmax ignores it
            assert (a.grad - b.grad).abs().max() < 1e-3 * b.grad.abs().max(), name
    ours.train()
    first, second = ours(ids).last_hidden_state, ours(ids).last_hidden_state
    assert not torch.equal(first, second) and first.isfinite().all()


def test_half_precision():
    own, ours = pair(*MODELS["llama"])
    ids, mask = texts()
    with torch.no_grad():
        expected = own(ids, attention_mask=mask).logits
        errors = [
            apart(m.bfloat16()(ids, attention_mask=mask).logits.float(), expected, mask) for m in (own, ours)
        ]
    assert errors[1] < 1.5 * errors[0] + 1e-3


@pytest.mark.parametrize("name", ["encoder", "llama"])
@torch.no_grad()
def test_it_compiles_without_graph_breaks(name, fresh_compiler):
    _, ours = pair(*MODELS[name])
    ids, mask = texts()
    expected = ours(ids, attention_mask=mask)[0]
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    assert apart(compiled(ids, attention_mask=mask)[0], expected, mask) < 1e-6


REFUSED = {
    "t5": (
        T5Model,
        T5Config(vocab_size=60, d_model=32, d_kv=8, num_heads=4, num_layers=1, d_ff=32),
        "position bias",
    ),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config(**GROUPED, head_dim=16), r"scores are capped \(softcap\)"),
    "gpt_oss": (
        GptOssForCausalLM,
        GptOssConfig(**GROUPED, head_dim=16, num_local_experts=2),
        "attention sinks",
    ),
    "bloom": (
        BloomModel,
        BloomConfig(vocab_size=60, hidden_size=32, n_layer=1, n_head=4),
        "AttentionInterface",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_change_their_scores_are_refused(name):
    kind, config, message = REFUSED[name]
    model = kind._from_config(config, attn_implementation="ssa").eval()
    ids = texts()[0]
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if name == "t5" else {})
    with pytest.raises(ValueError, match=message):
        model(**inputs)


def test_masks():
    module = BertModel(BertConfig(**SIZES))
    lowest = torch.finfo(torch.float32).min
    additive = torch.tensor([0.0, lowest, -torch.inf, -1e4])
    assert boolean_mask(additive, module).tolist() == [True, False, False, False]
    assert boolean_mask(None, module) is None
    with pytest.raises(ValueError, match=r"BertModel .*adds to the scores.*values such as -0.5"):
        boolean_mask(torch.tensor([0.0, -0.5]), module)
    with pytest.raises(ValueError, match=r"boolean .* or floating-point, got torch.int64"):
        boolean_mask(torch.tensor([0, 1]), module)


def test_empty_calls_and_heads_that_do_not_fit():
    module, x = torch.nn.Module(), torch.randn(2, 4, 3, 8)
    out, weights = ssa_attention(module, x[:, :, :0], x, x, None)
    assert out.shape == (2, 0, 4, 8) and weights is None
    with pytest.raises(ValueError, match="heads of key must divide those of query, got 3 and 4"):
        ssa_attention(module, x, x[:, :3], x[:, :3], None)


def test_importing_syncattn_does_not_import_transformers():
    code = "import sys, syncattn.nn, syncattn.integrations.softmax; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
