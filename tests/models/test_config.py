"""The configurations: checked where they are made, exact through JSON."""

import copy
import inspect
import json
import re
import warnings

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM

from syncattn.models import OSNConfig, OSNForCausalLM, TransformerBaselineConfig
from syncattn.models.configuration_osn import ATTENTION_OPTIONS
from syncattn.models.modeling_osn import OSNLayer
from syncattn.nn import SelectiveSynchronizationAttention


def test_the_attention_options_are_the_layers_arguments_with_the_same_defaults():
    parameters = inspect.signature(SelectiveSynchronizationAttention).parameters
    keyword_only = {n: p for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert set(ATTENTION_OPTIONS) == keyword_only.keys() - {"device", "dtype"}
    defaults = {name: keyword_only[name].default for name in ATTENTION_OPTIONS}
    # a layer may stand where tokens have no order; in a language model they have one
    assert OSNConfig().attention_options() == defaults | {"token_shift": True}


def test_every_option_reaches_the_layer():
    options = {
        "freq_dim": 6,
        "phase_dim": 3,
        "directed": True,
        "position": "rotary",
        "window_range": (2.0, 9.0),
        "delay": 0.25,
        "detuning": True,
        "token_shift": True,
        "self_coupling": True,
        "frame": "absolute",
        "power": 1.5,
        "edge": 0.1,
        "eps": 0.2,
        "top_k": 7,
        "order_parameter": False,
        "density_range": (0.2, 0.4),
        "sharpness": 10.0,
        "strength": "softplus",
        "freq_bias": True,
    }
    assert options.keys() == set(ATTENTION_OPTIONS)
    config = OSNConfig(hidden_size=32, num_attention_heads=4, attention_dropout=0.1, **options)
    layer = OSNLayer(config).self_attn
    frequency = layer.frequency
    assert (layer.num_heads, layer.freq_dim, layer.dropout, layer.top_k) == (4, 6, 0.1, 7)
    assert (layer.frame, layer.power, layer.edge, layer.self_coupling) == ("absolute", 1.5, 0.1, True)
    assert (layer.density_range, layer.sharpness, layer.strength) == ((0.2, 0.4), 10.0, "softplus")
    assert layer.phase_proj is None
    assert (frequency.position, frequency.window_range, frequency.delay) == ("rotary", (2.0, 9.0), 0.25)
    assert frequency.send_proj is not None and frequency.detuning is not None
    assert frequency.receive_proj.bias is not None


@pytest.mark.parametrize(
    "config",
    [
        OSNConfig(),
        OSNConfig(top_k=3, window_range=(2, 8), density_range=None, eos_token_id=[1, 2], norm_first=False),
        OSNConfig.paper(hidden_size=64),
        TransformerBaselineConfig(position="alibi", delay=0.5, tie_word_embeddings=False),
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
    OSNConfig().save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    for name in (*ATTENTION_OPTIONS, "gated", "hidden_act", "intermediate_size", "norm_first"):
        assert ("attention_top_k" if name == "top_k" else name) in stored


def test_the_published_formulation():
    config = OSNConfig.paper(hidden_size=512)
    assert (config.num_attention_heads, config.freq_dim, config.phase_dim) == (8, 64, 64)
    assert (config.position, config.delay, config.frame, config.power) == ("none", 0.0, "absolute", 1)
    assert config.self_coupling and config.order_parameter and config.freq_bias
    assert config.intermediate_size == 2048 and config.layer_norm_eps == 1e-5 and config.hidden_act == "gelu"
    assert sum(p.numel() for p in OSNLayer(config).parameters()) == 3_152_393
    assert OSNConfig.paper(hidden_size=64, num_attention_heads=2, freq_dim=5).freq_dim == 5
    with pytest.raises(ValueError, match="num_attention_heads must divide hidden_size"):
        OSNConfig.paper(hidden_size=65)


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
        ("strength", "exp", ValueError, "strength must be one of"),
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
    ],
)
def test_a_bad_field_is_named(field, value, error, message):
    with pytest.raises(error, match=message):
        OSNConfig(**{field: value})


def test_a_field_assigned_later_is_checked_when_the_model_is_built():
    config = OSNConfig()
    config.num_attention_heads = 7
    with pytest.raises(ValueError, match="num_attention_heads = 7"):
        OSNForCausalLM(config)


CONFIGURATIONS = pytest.mark.parametrize("config", [OSNConfig, TransformerBaselineConfig])


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
    file.write_text(json.dumps(json.loads(file.read_text()) | {"positions": 2, "axes": 2, "_kind": 1}))
    with pytest.warns(UserWarning, match=r"'positions' \(is 'position' meant\?\), 'axes', '_kind'") as caught:
        model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert len(caught) == 1 and model.config.axes == 2 and not hasattr(model.config, "_kind")


FOREIGN = {
    "is_causal": False,
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
    later.is_causal = False
    with pytest.raises(ValueError, match="is_causal must be left out or True, got False"):
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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"position": "drift"}, r"position must be one of \('rotary', 'alibi'\), got 'drift'"),
        ({"delay": 2}, "delay must be a fraction of the heads"),
        ({"hidden_size": 24, "num_attention_heads": 8}, "even head_dim .* got 3"),
        ({"freq_dim": 8}, "freq_dim has no meaning for softmax attention, got 8"),
        ({"density_range": [0.1, 0.5]}, "density_range has no meaning"),
    ],
)
def test_the_baselines_own_options(fields, message):
    with pytest.raises(ValueError, match=message):
        TransformerBaselineConfig(**fields)
    stored = TransformerBaselineConfig().to_dict()
    assert stored["position"] == "rotary" and not {"freq_dim", "frame", "attention_top_k"} & stored.keys()
