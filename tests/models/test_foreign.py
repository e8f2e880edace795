"""Fields that a configuration is given and does not have."""

import json
import re
import warnings

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM

from syncattn.models import OSNConfig, OSNForCausalLM, TransformerConfig

CONFIGURATIONS = pytest.mark.parametrize("config", [OSNConfig, TransformerConfig])


@CONFIGURATIONS
def test_fields_without_effect_are_kept_and_named_in_one_warning(config):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        silent = config(
            num_labels=3, output_attentions=True, is_causal=True, num_key_value_heads=8, head_dim=32
        )
    assert silent.num_labels == 3 and silent.output_attentions
    message = f"{config.__name__} has no field 'corpus', 'temperature': without effect on the model"
    with pytest.warns(UserWarning, match=message) as caught:
        made = config(corpus="stdlib", temperature=0.5)
    assert made.corpus == "stdlib" and len(caught) == 1 and caught[0].filename == __file__


def test_a_newer_versions_config_loads_with_one_warning(tmp_path):
    """A field that resembles a known one is no typing error there."""
    small = OSNConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    OSNForCausalLM(small).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"positions": 2, "planes": 2, "_kind": 1}))
    with pytest.warns(
        UserWarning, match=r"'positions' \(is 'position' meant\?\), 'planes', '_kind'"
    ) as caught:
        model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert len(caught) == 1 and model.config.planes == 2 and not hasattr(model.config, "_kind")


FOREIGN = {
    "is_decoder": False,
    "is_encoder_decoder": True,
    "use_bidirectional_attention": True,
    "add_cross_attention": True,
    "pruned_heads": {"0": [1]},
    "chunk_size_feed_forward": 4,
    "tie_last_hidden_states": False,
    "sliding_window": 128,
    "layer_types": ["full_attention"] * 4,
    "per_layer_config": {"0": {"num_attention_heads": 2}},
    "rope_theta": 5e5,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "attn_implementation": "flash_attention_2",
    "_attn_implementation": "sdpa",
    "num_key_value_heads": 2,
    "head_dim": 64,
    "model_type": "llama",
}


@CONFIGURATIONS
def test_fields_that_would_make_it_another_model_are_refused_by_name(config, tmp_path):
    config().save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    for name, value in FOREIGN.items():
        message = rf"{name} must be .*got {re.escape(repr(value))}"
        with pytest.raises(ValueError, match=message):
            config(**{name: value})
        with pytest.raises(ValueError, match=message):
            config.from_dict(stored | {name: value})
        if name not in ("head_dim", "num_key_value_heads", "model_type"):
            with pytest.raises(ValueError, match=message):
                AutoConfig.from_pretrained(tmp_path, **{name: value})
    later = config()
    later.is_decoder = False
    with pytest.raises(ValueError, match="is_decoder must be left out or True, got False"):
        later.check()


DAMAGED = {
    "hidden_size": 10**12,
    "vocab_size": 2**40,
    "intermediate_size": 2**40,
    "num_hidden_layers": 100_000,
    "freq_dim": 2**30,
    "max_position_embeddings": 10**300,
    "num_labels": 10**9,
    "power": 10**400,
    "window_range": [1, 10**400],
    "hidden_act": ["gelu"],
    "dtype": "floaty",
    "torch_dtype": "int8",
    "id2label": ["a"],
    "architectures": "OSNForCausalLM",
    "problem_type": "chess",
    "return_dict": "yes",
    "output_attentions": 2,
    "quantization_config": {"quant_method": "halves"},
    "to_dict": 1,
    "attribute_map": {"hidden_size": "vocab_size"},
    "__class__": "list",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_a_damaged_file_may_hold_is_refused_in_one_line(name):
    stored = OSNConfig().to_dict()
    with pytest.raises((TypeError, ValueError, StrictDataclassError), match=name) as caught:
        OSNConfig.from_dict(stored | {name: DAMAGED[name]})
    if not isinstance(caught.value, StrictDataclassError):  # some versions of transformers look first
        message = str(caught.value)
        assert ", got " in message and "\n" not in message and len(message) < 400
