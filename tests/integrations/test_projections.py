"""The linear map behind each attention: found in any architecture, and fitted again."""

import pytest
import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, LlamaConfig, LlamaModel

from syncattn.integrations.projections import (
    find_projections,
    refit_projections,
    results_of,
    set_weights,
    weights_of,
)
from syncattn.integrations.transformers import register

SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "pad_token_id": 0,
}
GPT2 = {"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}


def model_of(name):
    register()
    torch.manual_seed(0)
    made = {
        "bert": lambda: BertModel(BertConfig(**SIZES)),
        "gpt2": lambda: GPT2Model(GPT2Config(**GPT2)),
        "llama": lambda: LlamaModel(LlamaConfig(**SIZES, num_key_value_heads=1)),
    }[name]()
    made.set_attn_implementation("ssa")
    return made.eval()


def batches(count):
    masks = torch.ones(4, 12, dtype=torch.int64)
    masks[1, 8:] = 0
    return [{"input_ids": torch.randint(3, 60, (4, 12)), "attention_mask": masks} for _ in range(count)]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("bert", "encoder.layer.{}.attention.output.dense"),
        ("gpt2", "h.{}.attn.c_proj"),
        ("llama", "layers.{}.self_attn.o_proj"),
    ],
)
def test_a_lost_projection_is_found_again(name, path):
    model, data = model_of(name), batches(12)
    projections = find_projections(model, data[0])
    assert projections == {layer: model.get_submodule(path.format(layer)) for layer in (0, 1)}
    wanted, own = results_of(model, data, projections), weights_of(projections)
    assert wanted[0][0].shape == (44, 16)  # real tokens only
    with torch.no_grad():
        for module in projections.values():
            module.weight.add_(0.1 * torch.randn_like(module.weight))
    errors = refit_projections(model, data, {3, 7, 11}, projections, wanted)
    assert all(after < before / 20 for before, after in errors)
    model.set_attn_implementation("eager")
    set_weights(projections, own)
    assert torch.equal(model.get_submodule(path.format(0)).weight, own[0][0])


def test_what_is_right_is_not_changed():
    model, data = model_of("bert"), batches(4)
    projections = find_projections(model, data[0])
    own, wanted = weights_of(projections), results_of(model, data, projections)
    refit_projections(model, data, {3}, projections, wanted)
    for layer, (weight, _) in weights_of(projections).items():
        assert (weight - own[layer][0]).abs().max() < 2e-3  # what is wanted is kept in bfloat16


def test_something_else_behind_the_attention_is_refused():
    model = model_of("bert")
    model.encoder.layer[1].attention.output.dense = torch.nn.Sequential(torch.nn.Identity())
    with pytest.raises(ValueError, match=r"refit needs a linear map .* layers \[1\] have none: convert with"):
        find_projections(model, batches(1)[0])
