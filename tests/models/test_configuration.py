"""The configurations: checked where they are made, exact through JSON."""

import copy
import json
import math

import pytest
from transformers import AutoConfig

from syncattn.models import OSNConfig, OSNForCausalLM, SoftmaxAttention, TransformerConfig
from syncattn.nn import SelectiveSynchronizationAttention
from syncattn.nn.presets import PRESETS


@pytest.mark.parametrize(
    "config",
    [
        OSNConfig(),
        OSNConfig(top_k=3, window_range=(2, 8), density_range=None, eos_token_id=[1, 2], norm_first=False),
        OSNConfig.paper(hidden_size=64),
        TransformerConfig(position="alibi", delay=0.5, tie_word_embeddings=False),
    ],
)
def test_json_round_trip(config, tmp_path):
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is type(config)
    assert again.to_dict() == config.to_dict() | {"_name_or_path": str(tmp_path)}
    assert again.attention_options() == config.attention_options()
    assert copy.deepcopy(config).attention_options() == config.attention_options()


def test_a_stored_model_does_not_depend_on_the_defaults(tmp_path):
    assert {"gated", "vocab_size", "freq_dim", "top_k"} < set(OSNConfig.own_fields())
    OSNConfig().save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    for name in OSNConfig.own_fields():
        assert ("attention_top_k" if name == "top_k" else name) in stored


def test_a_field_that_a_stored_model_lacks_is_what_it_was(tmp_path, monkeypatch):
    """Whatever the default is by now; a field that it has, or that is given, is that."""
    OSNConfig(hidden_size=16).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    without = {name: value for name, value in stored.items() if name != "nearest_gate"}
    monkeypatch.setattr(OSNConfig, "unless_stored", {"nearest_gate": "what it was"})
    monkeypatch.setattr(OSNConfig, "check", lambda config: None)
    for text, given, expected in [
        (without, {}, "what it was"),
        (without, {"nearest_gate": True}, True),
        (stored | {"nearest_gate": False}, {}, False),
    ]:
        (tmp_path / "config.json").write_text(json.dumps(text))
        assert AutoConfig.from_pretrained(tmp_path, **given).nearest_gate == expected
    assert OSNConfig.from_dict({}).nearest_gate == OSNConfig().nearest_gate


@pytest.mark.parametrize(
    ("field", "value", "error", "message"),
    [
        ("vocab_size", 0, ValueError, "vocab_size must be at least 1, got 0"),
        ("hidden_size", 30, ValueError, "num_attention_heads = 8 and hidden_size = 30"),
        ("num_hidden_layers", 2.0, TypeError, "num_hidden_layers must be an integer, got 2.0"),
        ("num_attention_heads", True, TypeError, "num_attention_heads must be an integer"),
        ("intermediate_size", -1, ValueError, "intermediate_size must be at least 1"),
        ("hidden_act", "sofplus", ValueError, "hidden_act must be one of .*gelu"),
        ("hidden_dropout", 1.0, ValueError, r"hidden_dropout must be in \[0, 1\), got 1.0"),
        ("attention_dropout", "none", TypeError, "attention_dropout must be a number, got 'none'"),
        ("layer_norm_eps", 0.0, ValueError, "layer_norm_eps must be positive"),
        ("initializer_range", float("nan"), ValueError, "initializer_range must be positive and finite"),
        ("norm_first", 1, TypeError, "norm_first must be True or False, got 1"),
        ("pad_token_id", 256, ValueError, "pad_token_id must be None or an id below vocab_size = 256"),
        ("eos_token_id", [3, -1], ValueError, "eos_token_id must be .* got -1"),
        ("freq_dim", 0, ValueError, "freq_dim must be at least 1"),
        ("top_k", 0, ValueError, "top_k must be at least 1"),
        ("position", "alibi", ValueError, "position must be one of 'drift', .* got 'alibi'"),
        ("frame", "far", ValueError, "frame must be one of"),
        ("parametrisation", "exp", ValueError, "parametrisation must be one of"),
        (
            "window_range",
            (8, 4),
            ValueError,
            r"window_range must be two numbers, 0 < low <= high, got \(8, 4\)",
        ),
        ("window_range", 4, TypeError, "window_range must be two numbers"),
        ("density_range", (0.1, 1.5), ValueError, "density_range must be two numbers, 0 < low <= high <= 1"),
        ("density_range", [0.0, 0.5], ValueError, "density_range"),
        ("delay", 1.5, ValueError, r"delay must be a fraction of the heads, in \[0, 1\], got 1.5"),
        ("power", 0, ValueError, "power must be positive"),
        ("edge", -0.1, ValueError, "edge must be at least 0"),
        ("sharpness", 0, ValueError, "sharpness must be positive"),
        ("directed", "yes", TypeError, "directed must be True or False"),
        ("hidden_size", 2**21, ValueError, "hidden_size must be at most 1048576, got 2097152"),
        ("top_k", 2**80, ValueError, "top_k must be at most 2147483647, got 12089"),
        ("freqdim", 8, TypeError, "OSNConfig has no field 'freqdim'; did you mean 'freq_dim'?"),
        ("hidden_sizes", 8, TypeError, "did you mean 'hidden_size'?"),
        ("id2label", {}, ValueError, r"id2label must have a name for each of 0, 1, ..., got \[\]"),
        ("id2label", {0: "a", 2: "b"}, ValueError, r"for each of 0, 1, ..., got \[0, 2\]"),
        ("classifier_dropout", "x", TypeError, "classifier_dropout must be a number, got 'x'"),
    ],
)
def test_a_bad_field_is_named(field, value, error, message):
    with pytest.raises(error, match=message):
        OSNConfig(**{field: value})


VALUES = (None, True, 0, 1, -1, 0.5, 1.5, math.nan, math.inf, "x", "log", (1, 2), [2, 1], (0.1, 0.5), (1,))


KINDS = ((SelectiveSynchronizationAttention, OSNConfig), (SoftmaxAttention, TransformerConfig))


@pytest.mark.parametrize(
    ("layer", "config", "name"),
    [
        (*kind, name)
        for kind in KINDS
        for name in kind[1]().attention_options()
        if name in kind[1].own_fields()
    ],
)
def test_the_layer_and_the_configuration_refuse_the_same_values(layer, config, name):
    """In the same words; but for sizes beyond any model's, which only a damaged file holds."""

    def refusal(make, **options):
        try:
            make(**options)
        except (TypeError, ValueError) as error:
            return type(error), str(error)

    refused = 0
    for value in VALUES:
        ours = refusal(layer, embed_dim=8, num_heads=2, device="meta", **{name: value})
        assert ours == refusal(config, hidden_size=8, num_attention_heads=2, **{name: value}), value
        assert ours is None or (name in ours[1] and ", got " in ours[1]), value
        refused += ours is not None
    assert refused > 3


def test_a_field_assigned_later_is_checked_when_the_model_is_built():
    config = OSNConfig()
    config.num_attention_heads = 7
    with pytest.raises(ValueError, match="num_attention_heads = 7"):
        OSNForCausalLM(config)


def test_names_of_labels_alone_say_their_numbers_too():
    """Pipelines read both."""
    made = OSNConfig(id2label={0: "no", 1: "yes", 2: "perhaps"})
    assert made.num_labels == 3 and made.label2id == {"no": 0, "yes": 1, "perhaps": 2}
    assert OSNConfig(num_labels=2).label2id == {"LABEL_0": 0, "LABEL_1": 1}
    assert OSNConfig(id2label={0: "a", 1: "b"}, label2id={"a": 0, "B": 1}).label2id == {"a": 0, "B": 1}


MIXES = {
    "lists": {
        "position": ["drift", "own_helix", "none", "own_screw"],
        "helix_scales": [None, [2.0, 8.0], None, [4.0, 1.0]],
        "value_rotation": [None, 100.0, False, 10.0],
        "directed": [False, False, True, True],
        "delay": [True, False, True, False],
        "windows": [5.0, None, None, 20.0],
        "window_range": [4, 64],
        "density_range": [0.05, 0.5],
        "eos_token_id": [1, 2],
    },
    "tuples": {"delay": (True, False, False, False), "directed": (True,) * 4, "helix_scales": (4, 16)},
    "nothing": {"density_range": None, "value_rotation": None},
}


@pytest.mark.parametrize("name", [*MIXES, *PRESETS])
def test_what_is_loaded_is_what_was_saved(name, tmp_path):
    """Equal, and the same bytes when saved again, of whatever differs by head."""
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1}
    if name in MIXES:
        config = OSNConfig(**sizes, **MIXES[name])
    else:
        config = OSNConfig.preset(name, **sizes)
    config.save_pretrained(tmp_path / "once")
    loaded = OSNConfig.from_pretrained(tmp_path / "once")
    assert loaded == config and config == loaded
    assert loaded.to_json_string() == config.to_json_string() and loaded.to_dict() == config.to_dict()
    assert OSNConfig(**config.to_dict()) == config
    loaded.save_pretrained(tmp_path / "again")
    first, second = ((tmp_path / folder / "config.json").read_bytes() for folder in ("once", "again"))
    assert first == second
    assert OSNConfig(**{**sizes, "power": 1}) != OSNConfig(**sizes)


def test_a_models_configuration_is_loaded_as_it_is(tmp_path):
    config = OSNConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=1, **MIXES["lists"])
    model = OSNForCausalLM(config)
    model.save_pretrained(tmp_path)
    for loaded in (AutoConfig.from_pretrained(tmp_path), OSNForCausalLM.from_pretrained(tmp_path).config):
        assert loaded.to_json_string() == model.config.to_json_string()
        assert {name: getattr(loaded, name) for name in loaded.own_fields()} == {
            name: getattr(config, name) for name in config.own_fields()
        }
