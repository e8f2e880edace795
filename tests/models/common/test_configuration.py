"""Every configuration: attributes, JSON, folders, labels, and the keywords that all of transformers has."""

import json
import logging

import pytest
import torch

from syncattn.models import OSNConfig, OSNImageConfig, OSNSeriesConfig, TransformerConfig

GIVEN = {
    OSNConfig: {
        "hidden_size": 24,
        "num_attention_heads": 3,
        "freq_dim": 4,
        "top_k": 5,
        "eos_token_id": [2, 3],
    },
    TransformerConfig: {"hidden_size": 24, "num_attention_heads": 3, "position": "alibi", "eos_token_id": 2},
    OSNImageConfig: {"hidden_size": 24, "num_attention_heads": 3, "image_size": [8, 12], "patch_size": 4},
    OSNSeriesConfig: {"hidden_size": 24, "num_attention_heads": 3, "prediction_length": 5, "scaling": "none"},
}
"""Fields of each configuration class that are not its defaults; a new class is a line here."""


@pytest.fixture(params=list(GIVEN), ids=lambda kind: kind.__name__)
def kind(request):
    """Every configuration class in turn."""
    return request.param


def stored(config):
    """The fields as JSON stores them, without the folder that they came from."""
    return {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}


def test_what_every_model_of_texts_has_can_be_read_and_assigned(kind):
    config = kind(**GIVEN[kind])
    for name in ("vocab_size", "hidden_size", "num_attention_heads", "num_hidden_layers"):
        assert getattr(config, name) > 0
        setattr(config, name, 7)
        assert getattr(config, name) == 7
    assert config.get_text_config() is config and not config.sub_configs  # no configuration within another


def test_json_holds_what_was_given(kind, tmp_path):
    config = kind(**GIVEN[kind])
    text = json.loads(config.to_json_string())
    for name, value in GIVEN[kind].items():
        assert text[kind.stored_as.get(name, name)] == value
    config.to_json_file(tmp_path / "config.json")
    again = kind.from_json_file(tmp_path / "config.json")
    assert stored(again) == stored(config) and again.attention_options() == config.attention_options()


@pytest.mark.parametrize("subfolder", ["", "within"])
def test_folders(kind, tmp_path, subfolder):
    config = kind(**GIVEN[kind])
    config.save_pretrained(tmp_path / subfolder)
    assert stored(kind.from_pretrained(tmp_path, subfolder=subfolder)) == stored(config)
    changed = kind.from_pretrained(tmp_path, subfolder=subfolder, vocab_size=20)
    assert stored(changed) == stored(config) | {"vocab_size": 20}
    with pytest.raises(OSError, match=r"nowhere|config\.json"):
        kind.from_pretrained(tmp_path / "nowhere")


def test_labels_follow_their_number(kind):
    config = kind(**GIVEN[kind], num_labels=5)
    assert len(config.id2label) == len(config.label2id) == 5
    config.num_labels = 3
    assert len(config.id2label) == len(config.label2id) == config.num_labels == 3


def test_nothing_need_be_given_and_nothing_is_said(kind, caplog, recwarn):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        for given in ({}, GIVEN[kind]):
            kind(**given)
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records and not recwarn.list


def test_keywords_of_every_configuration(kind):
    given = {
        "return_dict": False,
        "output_hidden_states": True,
        "output_attentions": True,
        "dtype": "float16",
        "architectures": ["SomeModel"],
        "id2label": {0: "label"},
        "label2id": {"label": 0},
        "problem_type": "regression",
        "tie_word_embeddings": False,
        "bos_token_id": 6,
        "pad_token_id": 7,
        "eos_token_id": 8,
        "chunk_size_feed_forward": 5,
    }
    config = kind(**given)
    assert config.dtype == torch.float16
    assert all(getattr(config, name) == value for name, value in given.items() if name != "dtype")
    assert kind(attn_implementation="eager")._attn_implementation == "eager"
    with pytest.raises(ValueError, match="attn_implementation must be left out or 'eager', got 'sdpa'"):
        kind(attn_implementation="sdpa")
    with pytest.raises(ValueError, match="chunk_size_feed_forward must be at least 1, got -1"):
        kind(chunk_size_feed_forward=-1)
