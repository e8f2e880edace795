"""The models that come with the package load, speak, and are as good as their cards say."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from syncattn.models import OSNForCausalLM, pretrained
from syncattn.training.checkpoints import load_model

NAMES = pretrained.names()


def test_there_is_one():
    assert "osn-python-1m" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_as_its_card_says(name):
    folder = pretrained.folder(name)
    card = (folder / "README.md").read_text(encoding="utf-8")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert type(model) is OSNForCausalLM and model.dtype == torch.float32
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in card
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3e6
    assert tokenizer("def ")["input_ids"] == list(b"def ")
    record = json.loads((folder / "training.json").read_text())
    assert f"{record['result']['test_loss']:.4f}" in card
    assert not any(place in str(record["command"]) for place in ("/tmp", "/home", "/work", "/root"))


@torch.no_grad()
def test_the_python_model_knows_python():
    model, tokenizer = load_model("osn-python-1m")
    source = "import os\n\n\ndef read(path):\n    with open(path) as file:\n        return file.read()\n"
    ids = tokenizer(source, return_tensors="pt").input_ids
    assert model(ids, labels=ids).loss < 1.5  # an untrained one has 5.5
    scrambled = ids[:, torch.randperm(ids.shape[1], generator=torch.Generator().manual_seed(0))]
    assert model(scrambled, labels=scrambled).loss > 3


def test_another_name_is_an_error():
    with pytest.raises(ValueError, match="name must be one of 'osn-python-1m', got 'gpt'"):
        pretrained.folder("gpt")
