"""Options are checked before any work."""

import math

import pytest
import torch

from syncattn.models import OSNForCausalLM
from syncattn.training.errors import UserError
from syncattn.training.options import TrainingOptions, numbers
from syncattn.training.settings import first_model, make_config
from syncattn.training.tokenizers import byte_tokenizer


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("context", 1),
        ("batch_size", 0),
        ("steps", 0),
        ("max_density", 0.0),
        ("max_density", 1.5),
        ("max_density", math.nan),
        ("max_partners", 0.0),
        ("max_partners", -1.0),
        ("max_partners", math.nan),
        ("max_partners", math.inf),
        ("coupling_lr", 0.0),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("weight_decay", -1.0),
        ("weight_decay", math.nan),
        ("weight_decay", math.inf),
        ("warmup", -1),
        ("warmup", 1200),
        ("eval_every", 0),
        ("threads", 0),
        ("seed", -1),
        ("seed", 2**32),
        ("beta2", 1.0),
        ("beta2", math.nan),
        ("precision", "fp16"),
        ("device", "tpu"),
        ("max_grad_norm", 0.0),
        ("max_grad_norm", math.nan),
    ],
)
def test_a_bad_option_is_named(field, value):
    with pytest.raises(UserError, match=f"{field} must be"):
        TrainingOptions(**{field: value})


def test_defaults_follow_the_length_of_the_run():
    options = TrainingOptions(steps=200, batch_size=4, context=32)
    assert (options.warmup_steps, options.every("log"), options.every("eval")) == (10, 4, 20)
    assert options.tokens == 200 * 4 * 32
    assert TrainingOptions(steps=3, eval_every=2).every("eval") == 2
    short = TrainingOptions(steps=3)
    assert (short.warmup_steps, short.every("log")) == (1, 1)


def test_a_budget_of_tokens_is_never_undercut():
    options = TrainingOptions(batch_size=4, context=32)
    assert options.for_tokens(128).steps == 1 and options.for_tokens(129).steps == 2
    with pytest.raises(UserError, match="tokens"):
        options.for_tokens(0)


def test_lists_of_numbers():
    assert numbers("--seeds", "0,1, 2", int) == [0, 1, 2]
    with pytest.raises(UserError, match="--seeds must be numbers"):
        numbers("--seeds", "0,x", int)
    with pytest.raises(UserError, match=r"--lr-grid must be different numbers, got .* with 0\.1 twice"):
        numbers("--lr-grid", "0.1,0.2,0.10", float)


def test_settings_reach_the_config():
    settings = ["delay=0.25", "window_range=[2, 32]", "position=own_drift", "top_k=null"]
    config = make_config(byte_tokenizer(), 64, 32, 2, 4, freq_dim=4, settings=settings)
    assert (config.delay, config.window_range, config.position) == (0.25, (2.0, 32.0), "own_drift")
    assert (config.vocab_size, config.freq_dim, config.max_position_embeddings) == (256, 4, 64)
    assert make_config(byte_tokenizer(), 64, 32, 2, 4, paper=True).parametrisation == "softplus"
    settings = ["value_rotation=50", "delay=[true, false, false, true]"]
    config = make_config(byte_tokenizer(), 64, 32, 2, 4, preset="text", settings=settings)
    assert config.position == ("drift", "drift", "drift", "own_helix")
    assert (config.value_rotation, config.delay) == (50, (True, False, False, True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "points"}, "--preset must be text or recall, .* got points"),
        ({"preset": "text", "paper": True}, "without --paper, got text and --paper"),
        ({"preset": "text", "freq_dim": 4}, "position='own_helix' needs freq_dim of at least 7"),
    ],
)
def test_bad_presets_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        make_config(byte_tokenizer(), 64, 32, 2, 4, **options)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["delay"], "expected NAME=VALUE"),
        (["dellay=1"], "a field of OSNConfig as NAME; did you mean delay"),
        (["id2label=1"], "a field of OSNConfig"),
        (["model_type=x"], "a field of OSNConfig"),
        (["delay=NaN"], "delay must be"),
        (["delay=2"], "delay must be"),
        (["vocab_size=3"], "the tokenizer decides"),
        (["position=sideways"], "position must be"),
        (["is_causal=false"], "is_causal: must be true"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        make_config(byte_tokenizer(), 64, 32, 2, 4, settings=settings)


def test_a_bad_model_shape_is_refused():
    with pytest.raises(UserError, match="num_attention_heads must divide hidden_size"):
        make_config(byte_tokenizer(), 64, 30, 2, 4)


def test_a_run_begins_with_the_weights_of_a_model(tmp_path):
    config = make_config(byte_tokenizer(), 16, 16, 1, 2)
    saved = OSNForCausalLM(config).bfloat16()
    saved.save_pretrained(tmp_path)
    assert TrainingOptions().calibrates and not TrainingOptions(init_from="x").calibrates
    model, options = first_model(config, TrainingOptions(init_from=str(tmp_path)), None)
    assert model.training and len(options.init_sha256) == 64
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32 and torch.equal(parameter, saved.get_parameter(name).float())
    assert first_model(config, options, None)[1] == options
    gone = TrainingOptions(init_from=str(tmp_path / "gone"))
    assert first_model(config, gone, tmp_path)[1] == gone  # a checkpoint has the weights
    with pytest.raises(UserError, match=r"no folder .*gone"):
        first_model(config, gone, None)
    with pytest.raises(UserError, match="the config differs from that of the model in init_from, got"):
        first_model(make_config(byte_tokenizer(), 16, 32, 1, 2), options, None)
    OSNForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="are no longer those that the run began with"):
        first_model(config, options, None)
