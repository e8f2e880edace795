"""The OSN's configuration, and how its models start."""

import functools
import inspect
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from syncattn.models import OSNConfig, OSNForCausalLM, OSNImageConfig, OSNModel, OSNSeriesConfig
from syncattn.nn import SelectiveSynchronizationAttention, calibrate, locked_density, preset
from syncattn.nn.published import published


def test_the_attention_options_are_the_layers_arguments_with_the_same_defaults():
    parameters = inspect.signature(SelectiveSynchronizationAttention).parameters
    keyword_only = {n: p for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    defaults = {name: each.default for name, each in keyword_only.items() if name not in ("device", "dtype")}
    # a layer may stand where tokens have no order; in a language model they have one
    assert OSNConfig().attention_options() == defaults | {
        "token_shift": True,
        "nearest_gate": True,
        "directed": True,
        "directed_rank": 4,
    }


@pytest.mark.parametrize("kind", [OSNConfig, OSNImageConfig, OSNSeriesConfig])
def test_a_model_stored_before_the_gate_has_none(kind, tmp_path):
    kind().save_pretrained(tmp_path)
    assert kind.from_pretrained(tmp_path).nearest_gate
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["nearest_gate"]  # the default since
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert not kind.from_pretrained(tmp_path).nearest_gate
    assert kind.from_pretrained(tmp_path, nearest_gate=True).nearest_gate
    assert kind.from_dict({}).nearest_gate  # stored by nobody


def test_every_option_reaches_the_layer():
    options = {
        "freq_dim": 6,
        "phase_dim": 3,
        "directed": True,
        "directed_rank": 2,
        "position": "rotary",
        "window_range": (2.0, 9.0),
        "windows": (2.0, 3.0, 9.0, 7.0),
        "delay": 0.25,
        "detuning": True,
        "token_shift": False,
        "self_coupling": True,
        "frame": "absolute",
        "power": 1.5,
        "edge": 0.1,
        "eps": 0.2,
        "top_k": 7,
        "order_parameter": False,
        "density_range": (0.2, 0.4),
        "sharpness": 10.0,
        "parametrisation": "softplus",
        "freq_bias": True,
        "bounded_content": True,
        "axes": 3,
        "helix_scales": (2.0, 5.0),
        "value_rotation": 100.0,
        "short_convolution": 3,
        "value_residual": True,
        "nearest_gate": False,
    }
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1}
    config = OSNConfig(**sizes, attention_dropout=0.1, **options)
    assert config.attention_options() == options
    layer = OSNModel(config).layers[0].self_attn
    frequency = layer.frequency
    assert (layer.num_heads, layer.freq_dim, layer.dropout, layer.top_k) == (4, 6, 0.1, 7)
    assert (layer.frame, layer.power, layer.edge, layer.self_coupling) == ("absolute", 1.5, 0.1, True)
    assert (layer.density_range, layer.sharpness, layer.parametrisation) == ((0.2, 0.4), 10.0, "softplus")
    assert layer.phase_proj is None and layer.value_mix is not None and layer.shift.shape == (2, 2, 32)
    assert (frequency.position, frequency.window_range, frequency.delay) == ("rotary", (2.0, 9.0), 0.25)
    assert (frequency.axes, frequency.helix_scales, layer.value_rotation) == (3, (2.0, 5.0), 100.0)
    assert frequency.ask_mix.shape == (4, 2, 6) and frequency.detuning is not None
    assert frequency.receive_proj.bias is not None and frequency.log_radius.shape == (4,)


MIX = {
    "position": ("drift", "own_screw", "none", "helix"),
    "directed": (True, False, False, True),
    "delay": (True, True, False, False),
    "windows": (3.0, 12.0, None, None),
    "helix_scales": (None, (3.0,), None, (5.0,)),
    "value_rotation": (50.0, None, None, 20.0),
}


def test_a_mix_of_heads_is_stored_as_it_is(tmp_path):
    sizes = {"vocab_size": 40, "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1}
    config = OSNConfig(**sizes, **MIX)
    assert OSNConfig.from_dict(json.loads(config.to_json_string())).attention_options() == (
        config.attention_options()
    )
    torch.manual_seed(0)
    model, ids = OSNForCausalLM(config).eval(), torch.randint(0, 40, (2, 12))
    model.save_pretrained(tmp_path)
    again = OSNForCausalLM.from_pretrained(tmp_path).eval()
    assert {name: getattr(again.config, name) for name in MIX} == MIX
    assert torch.equal(model(ids).logits, again(ids).logits)
    options = {"max_new_tokens": 8, "do_sample": False}
    cached, whole = (again.generate(ids, use_cache=cache, **options) for cache in (True, False))
    assert torch.equal(cached, whole)
    fields = json.loads((tmp_path / "config.json").read_text())
    del fields["windows"]  # a folder of an older version has none
    fields["delay"], fields["directed"] = 0.5, False
    old = OSNConfig.from_dict(fields)
    assert (old.windows, old.delay, old.directed) == (None, 0.5, False)


@pytest.mark.parametrize("stored", [{}, {"freq_bias": True, "bounded_content": True}], ids=["plain", "more"])
@pytest.mark.parametrize("directed", [True, [True, False, False, True]], ids=str)
@pytest.mark.parametrize("rank", [None, 3])
def test_a_checkpoint_of_symmetric_heads_is_where_directed_ones_start(stored, directed, rank, tmp_path):
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
    model = OSNForCausalLM(OSNConfig(**sizes, directed=False, **stored)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(tmp_path)
    ids = torch.randint(0, 256, (2, 20))
    wider = OSNForCausalLM.from_pretrained(tmp_path, directed=directed, directed_rank=rank).eval()
    assert torch.equal(wider(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    "options", [{"bounded_content": True}, {"position": "helix"}, {"detuning": True}], ids=str
)
def test_what_a_checkpoint_lacks_of_frequencies_has_their_start(options, tmp_path):
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1}
    OSNForCausalLM(OSNConfig(**sizes)).save_pretrained(tmp_path)
    frequency = OSNForCausalLM.from_pretrained(tmp_path, **options).model.layers[0].self_attn.frequency
    start = OSNForCausalLM(OSNConfig(**sizes, **options)).model.layers[0].self_attn.frequency
    if "detuning" in options:
        assert 0.2 < frequency.detuning.std() < 0.8
    else:
        name = "log_radius" if "bounded_content" in options else "log_amplitude"
        assert torch.equal(frequency.get_parameter(name), start.get_parameter(name))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"directed": [True]}, "directed must be True or False, or a list .* each of the 8 heads"),
        ({"delay": [True]}, "delay must be a fraction of the heads, or a list .* each of the 8 heads"),
        ({"windows": [3.0]}, "windows must be None or a list with one for each of the 8 heads"),
    ],
)
def test_mixes_that_do_not_fit_the_heads(options, message):
    with pytest.raises(ValueError, match=message):
        OSNConfig(**options)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(OSNConfig, "text"), (OSNConfig, "points"), (OSNImageConfig, "images"), (OSNSeriesConfig, "series")],
)
def test_presets(kind, name):
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1}
    config = kind.preset(name, **sizes, sharpness=50.0)
    wanted = {n: tuple(v) if isinstance(v, list) else v for n, v in preset(name, 4).items()}
    assert {n: getattr(config, n) for n in wanted} == wanted and config.sharpness == 50.0
    assert config.is_causal == (name == "text")
    assert kind.preset(name, **sizes, value_rotation=7.0).value_rotation == 7.0
    assert kind.from_dict(json.loads(config.to_json_string())).attention_options() == (
        config.attention_options()
    )


def test_presets_that_do_not_exist_or_fit():
    with pytest.raises(ValueError, match=r"preset must be one of 'text', .* got 'prose'"):
        OSNConfig.preset("prose")
    with pytest.raises(ValueError, match="num_heads must be at least 2 for preset='text'"):
        OSNConfig.preset("text", num_attention_heads=1)
    with pytest.raises(ValueError, match=r"position='own_helix' needs freq_dim of at least 7 .* got 4"):
        OSNConfig.preset("text", hidden_size=16, num_attention_heads=4)
    with pytest.raises(ValueError, match="axes must be 2 for images"):
        OSNImageConfig.preset("points")


@pytest.mark.parametrize(
    "options", [{"position": "own_drift", "freq_dim": 1}, {"position": "rotary", "freq_dim": 5}]
)
def test_options_that_do_not_go_together(options):
    for make in (functools.partial(SelectiveSynchronizationAttention, 32, 4), OSNConfig):
        with pytest.raises(ValueError, match=r"position='.*' needs .*freq_dim.*, got"):
            make(**options)


def test_the_published_formulation():
    config = OSNConfig.paper(hidden_size=512, num_hidden_layers=1)
    assert (config.num_attention_heads, config.freq_dim, config.phase_dim) == (8, 64, 64)
    assert (config.position, config.delay, config.frame, config.power) == ("none", 0.0, "absolute", 1)
    assert config.self_coupling and config.order_parameter and config.freq_bias
    assert {"token_shift": False, "nearest_gate": False}.items() < published(64).items()  # said, not left out
    assert config.intermediate_size == 2048 and config.layer_norm_eps == 1e-5 and config.hidden_act == "gelu"
    assert sum(p.numel() for p in OSNModel(config).layers.parameters()) == 3_152_393
    assert OSNConfig.paper(hidden_size=64, num_attention_heads=2, freq_dim=5).freq_dim == 5
    with pytest.raises(ValueError, match="num_attention_heads must divide hidden_size"):
        OSNConfig.paper(hidden_size=65)


def test_the_frequencies_start_calibrated():
    """Each layer's densities on normalised input are the ladder's, and models differ by their seed only."""
    config = OSNConfig(vocab_size=60, hidden_size=64, num_hidden_layers=2, num_attention_heads=4)
    torch.manual_seed(0)
    model = OSNForCausalLM(config)
    torch.manual_seed(0)
    again = OSNForCausalLM(config)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
    x = torch.randn(4, 96, 64, generator=torch.Generator().manual_seed(3))
    ladder = torch.tensor([0.05, 0.108, 0.232, 0.5])
    for layer in model.model.layers:
        found = layer.self_attn.locked_density(x, is_causal=True)
        torch.testing.assert_close(found, ladder, rtol=0.35, atol=0.02)
    ids = torch.randint(0, 60, (2, 96))
    calibrate(model, ids, use_cache=False)
    for found in locked_density(model, ids).values():
        torch.testing.assert_close(found, ladder, rtol=0.02, atol=0.01)


@torch.no_grad()
def test_a_missing_frequency_is_calibrated_and_the_rest_is_as_saved(osn, ids, tmp_path):
    """A checkpoint without one of the tensors: transformers warns, and fills it in as in a new model."""
    osn.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    dropped = "model.layers.0.self_attn.frequency.receive_proj.weight"
    shape = tensors.pop(dropped).shape
    save_file(tensors, file, metadata={"format": "pt"})
    loaded = OSNForCausalLM.from_pretrained(tmp_path).state_dict()
    for name, tensor in osn.state_dict().items():
        assert name == dropped or torch.equal(loaded[name], tensor), name
    assert loaded[dropped].shape == shape and 0.01 < loaded[dropped].std() < 1.0
