"""The explorer's page of a model of transformers whose attention is "ssa"."""

import json
import re

import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

import syncattn
from syncattn.explorer import tokens_that_fit
from syncattn.explorer.gather import listen
from syncattn.explorer.payload import weights
from syncattn.integrations.transformers import register

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.3,
}


def model_of(kind):
    register()
    register()
    torch.manual_seed(0)
    if kind == "encoder":
        model = BertModel(BertConfig(**SIZES))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2))
    model.set_attn_implementation("ssa")
    model.config.ssa_coupling = [[3.0, 5.0, 8.0, 20.0], 4.0]
    return model.eval()


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_the_weights_that_are_shown_are_the_models(kind):
    model, ids = model_of(kind), torch.randint(3, 60, (1, 17))
    found = model(ids, output_attentions=True).attentions
    heard, logits = listen(model, {"input_ids": ids})
    assert (logits is None) == (kind == "encoder") and [one.coupling.tolist()[0] for one in heard] == [3, 4]
    for one, weight in zip(heard, found, strict=True):
        assert one.name.endswith(("attention.self", "self_attn"))
        torch.testing.assert_close(weights(one)[1], weight[0], atol=1e-5, rtol=1e-4)


def test_a_page():
    model, ids = model_of("decoder"), torch.randint(3, 60, (1, 9))
    page = syncattn.explore(model, ids)
    assert page.tokens == 9 and tokens_that_fit(model) == 512
    data = json.loads(re.search(r"<script[^>]*application/json[^>]*>(.*?)</script>", page.html, re.S)[1])
    assert [layer["frame"] for layer in data["layers"]] == ["nearest"] * 2 and data["off"] is None
    assert data["layers"][0]["freqDim"] == 9 and len(data["layers"][0]["heads"]) == 4


def test_what_cannot_be_shown():
    model = model_of("encoder")
    with pytest.raises(ValueError, match="inputs must be one text of at least one token, got 2 of 5 in"):
        syncattn.explore(model, torch.randint(3, 60, (2, 5)))
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="model must have SelectiveSynchronizationAttention layers"):
        syncattn.explore(model, torch.randint(3, 60, (1, 5)))
