"""A model's attention made sparse without training."""

import copy

import pytest
import torch
from transformers import (
    AutoModel,
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    GPTJConfig,
    GPTJModel,
    LlamaConfig,
    LlamaForCausalLM,
    XLNetConfig,
    XLNetModel,
)
from transformers.utils import logging

from syncattn.integrations.conversion import Conversion, convert, every_token, mean_pooled
from syncattn.integrations.transformers import register

logging.set_verbosity_error()
SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}


@pytest.fixture(autouse=True)
def registered():
    register()
    torch.manual_seed(0)


def encoder():
    return BertModel(BertConfig(**SIZES))


def batches(count=2, length=20):
    found = []
    for _ in range(count):
        ids = torch.randint(3, 60, (4, length))
        mask = torch.ones_like(ids)
        mask[1, length // 2 :] = 0
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


def state(model):
    config = model.config
    return (
        config._attn_implementation,
        getattr(config, "ssa_coupling", "none"),
        model.training,
        config.to_dict(),
    )


@torch.no_grad()
def outputs(model, data):
    return torch.cat([mean_pooled(model(**batch), batch) for batch in data])


def test_a_wanted_density():
    model, data = encoder().eval(), batches()
    before, weights = outputs(model, data), copy.deepcopy(model.state_dict())
    done = convert(model, data, density=0.4)
    assert 0.3 < done.mean_density <= 0.4 and model.config._attn_implementation == "ssa"
    assert [len(row) for row in done.coupling] == [len(row) for row in done.density] == [4, 4]
    cosine = torch.cosine_similarity(outputs(model, data), before, dim=-1)
    assert cosine.mean().item() == pytest.approx(done.cosine, abs=1e-6)
    assert cosine.min().item() == pytest.approx(done.worst, abs=1e-6)
    assert all(torch.equal(x, weights[name]) for name, x in model.state_dict().items())
    assert "mean density 0." in str(done) and len(str(done).splitlines()) == 4
    locked = total = 0  # the densities told are those of the weights
    for batch in data:
        for weight in model(**batch, output_attentions=True).attentions:
            allowed = batch["attention_mask"][:, None, None].bool().expand_as(weight)
            locked, total = locked + int((weight > 0).sum()), total + int(allowed.sum())
    assert locked / total == pytest.approx(done.mean_density, abs=1e-3)


def test_a_wanted_error_and_a_choice_better_than_one_coupling_for_all():
    model, data = encoder().eval(), batches(4)
    before = outputs(model, data)
    done = convert(model, data, error=0.002)
    assert 1 - done.cosine <= 0.002 and done.mean_density < 0.9
    assert len({kappa for row in done.coupling for kappa in row}) > 2
    model.config.ssa_coupling = None
    same = [convert_to(model, data, kappa, before) for kappa in (3.0, 5.0, 8.0, 12.0, 20.0, 40.0, 80.0)]
    assert all(density > done.mean_density for density, cosine in same if cosine >= done.cosine)


@torch.no_grad()
def convert_to(model, data, kappa, before):
    """The density and the mean cosine with one coupling for all."""
    model.config.ssa_coupling = kappa
    locked = total = 0
    for batch in data:
        for weight in model(**batch, output_attentions=True).attentions:
            locked += int((weight > 0).sum())
            total += int(batch["attention_mask"][:, None, None].expand_as(weight).sum())
    cosine = torch.cosine_similarity(outputs(model, data), before, dim=-1).mean().item()
    return locked / total, cosine


def test_projections_fitted_again_are_measured_where_they_were_not_fitted(tmp_path):
    torch.manual_seed(0)
    model, data = encoder().eval(), batches(12)
    only, before = copy.deepcopy(model), outputs(model, data[3::4])
    plain = convert(only, data, density=0.35)
    done = convert(model, data, density=0.35, refit=True)
    assert done.mean_density <= 0.35 and len(done.refitted) == 2 and plain.refitted == ()
    assert all(after < before for before, after in done.refitted)
    cosine = torch.cosine_similarity(outputs(model, data[3::4]), before, dim=-1)
    assert cosine.mean().item() == pytest.approx(done.cosine, abs=1e-6) and done.cosine > plain.cosine
    assert "when fitted again" in str(done)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, attn_implementation="ssa")
    assert torch.equal(outputs(again, data), outputs(model, data))


def test_heads_that_are_softmax_still_are_told():
    done = Conversion([[1.0, 1e5]], [[0.5, 0.995]], 0.9, 0.8)
    assert done.kept == [(0, 1)] and str(done).endswith("kept as softmax: layer 0 head 1")


def test_it_is_kept_by_saving(tmp_path):
    model, data = encoder(), batches()
    model.embeddings.eval()
    convert(model, data, density=0.5)
    assert model.training and model.encoder.training and not model.embeddings.training
    model.eval().save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, attn_implementation="ssa")
    assert torch.equal(outputs(again, data), outputs(model, data))


def test_half_precision():
    model = encoder().bfloat16()
    done = convert(model, batches(), density=0.5)
    assert 0.4 < done.mean_density <= 0.5 and done.cosine > 0.9


def test_a_causal_model_with_grouped_heads():
    model = LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2)).eval()
    done = convert(model, batches(), error=0.01, output=every_token)
    assert 1 - done.cosine <= 0.01 and 0 < done.mean_density < 0.95
    assert model.generate(torch.randint(3, 60, (1, 5)), max_new_tokens=3).shape == (1, 8)


def gptj():
    return GPTJModel(GPTJConfig(vocab_size=60, n_embd=32, n_layer=1, n_head=4, rotary_dim=4))


def xlnet():
    return XLNetModel(XLNetConfig(vocab_size=60, d_model=32, n_layer=1, n_head=4, d_inner=32))


def converted():
    model = encoder()
    model.config.ssa_coupling = 30.0
    return model


@pytest.mark.parametrize(
    ("model", "data", "options", "kind", "message"),
    [
        (encoder, batches, {}, ValueError, r"exactly one of density and error .* got None and None"),
        (encoder, batches, {"density": 1.5}, ValueError, "density must be between 0 and 1, got 1.5"),
        (encoder, batches, {"error": "low"}, TypeError, "error must be a number, got 'low'"),
        (encoder, list, {"density": 0.5}, ValueError, "data must hold at least one batch"),
        (encoder, lambda: batches()[0], {"density": 0.5}, TypeError, "data must be batches"),
        (encoder, lambda: batches(1, 2), {"density": 0.5}, ValueError, "data must hold longer texts"),
        (encoder, batches, {"density": 0.001}, ValueError, r"density must be at least 0\.\d+, .* got 0.001"),
        (gptj, batches, {"density": 0.5}, ValueError, "GPTJModel: its attention is not called through"),
        (xlnet, batches, {"density": 0.5}, ValueError, "XLNetModel: its attention is not called through"),
        (encoder, lambda: batches(1), {"density": 0.5, "refit": True}, ValueError, "at least 2 batches with"),
        (encoder, batches, {"density": 0.5, "refit": 1}, TypeError, "refit must be True or False, got 1"),
        (encoder, batches, {"density": 0.001, "refit": True}, ValueError, "density must be at least"),
        (encoder, batches, {"density": 0.5, "output": "mean"}, TypeError, "output must be a function"),
        (encoder, batches, {"density": 0.5, "output": lambda x, _: x}, TypeError, "give a tensor .* got B"),
        (encoder, batches, {"density": 0.5, "output": lambda x, _: x[0].sum((1, 2))}, ValueError, "real row"),
        (encoder, batches, {"density": 0.5, "output": lambda x, _: x[1].detach()}, ValueError, "some cut"),
        (converted, batches, {"density": 0.5}, ValueError, "model is converted already"),
        (lambda: torch.nn.Linear(2, 2), batches, {"density": 0.5}, TypeError, "of transformers, got Linear"),
        (
            lambda: BartModel(
                BartConfig(
                    vocab_size=60, d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32,
                    decoder_ffn_dim=32, encoder_attention_heads=4, decoder_attention_heads=4,
                )
            ),
            batches,
            {"density": 0.5},
            ValueError,
            "have a layer_idx of its own",
        ),
    ],
)  # fmt: skip
def test_what_fails_leaves_the_model_as_it_was(model, data, options, kind, message):
    model = model()
    before = state(model) if hasattr(model, "config") else None
    weights = copy.deepcopy(model.state_dict())
    with pytest.raises(kind, match=message):
        convert(model, data(), **options)
    assert before is None or state(model) == before
    assert all(torch.equal(x, weights[name]) for name, x in model.state_dict().items())


def test_within_no_grad_it_is_the_same_and_inference_mode_is_refused():
    model, data = encoder(), batches()
    other = copy.deepcopy(model)
    with torch.no_grad():
        done = convert(model, data, density=0.5)
    assert done == convert(other, data, density=0.5)
    with torch.inference_mode(), pytest.raises(ValueError, match="convert must be called outside of"):
        convert(encoder(), data, density=0.5)


def test_a_text_without_tokens_is_no_change():
    data = batches()
    whole = convert(encoder(), data, density=0.5)
    torch.manual_seed(0)
    data[0]["attention_mask"][3] = 0
    done = convert(encoder(), data, density=0.5)
    assert done.worst > 0.5 and abs(done.cosine - whole.cosine) < 0.02
