"""The models of a comparison: as many parameters, and what the OSN has besides."""

import pytest

from syncattn.models import OSNConfig, count_parameters
from syncattn.training.contenders import contenders
from syncattn.training.errors import UserError


def test_transformers_get_what_the_osn_has_and_leave_it_as_it_was():
    def made(**given):
        config = OSNConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=2)
        return contenders(config, ("rotary",), (0.01,), **given)

    osn, other = made()
    assert (other.config.delay, other.config.token_shift) == (osn.config.delay, osn.config.token_shift)
    assert other.title == "Transformer, rotary, delay, token shift, gate"
    told = OSNConfig(hidden_size=64, num_attention_heads=4, delay=[True, False, False, False])
    assert contenders(told, ("rotary",), (0.01,))[1].config.delay == 0.25  # as many heads
    same, plain = made(baseline_delay=0.0, baseline_token_shift=False, baseline_settings=["score_gate=false"])
    assert plain.title == "Transformer, rotary"
    assert (plain.config.delay, plain.config.token_shift) == (0.0, False)
    assert same.config.to_dict() == osn.config.to_dict()
    counts = [count_parameters(one.config) for one in (osn, other, plain)]
    assert max(counts) / min(counts) < 1.01


def test_the_transformer_can_be_given_more():
    config = OSNConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=2)
    modern = ["qk_norm=true", "hidden_act=relu2", "gated=false", "short_convolution=4", "logit_softcap=15.0"]
    osn, strong = contenders(
        config, ("rotary",), (0.01,), baseline_token_shift=False, baseline_settings=modern
    )
    found = strong.config
    assert (found.qk_norm, found.hidden_act, found.gated) == (True, "relu2", False)
    assert (found.short_convolution, found.logit_softcap, osn.config.logit_softcap) == (4, 15.0, None)
    assert strong.title == "Transformer, rotary, delay, short convolution, QK-norm, gate"
    assert abs(count_parameters(found) - count_parameters(osn.config)) <= 0.01 * count_parameters(found)
    convolved = OSNConfig.of_sizes(config, token_shift=False, short_convolution=3, value_residual=True)
    (_, same) = contenders(convolved, ("rotary",), (0.01,))
    assert same.config.short_convolution == 3 and same.config.value_residual and same.config.score_gate
    assert same.title.endswith("value residual, gate")
    for given, message in (
        (
            "qk_nrom=true",
            "--baseline-set qk_nrom=true: expected NAME=VALUE with a field of TransformerConfig",
        ),
        ("vocab_size=3", "--baseline-set vocab_size: the tokenizer decides it"),
        ("short_convolution=4", "token_shift must be False with it"),
    ):
        with pytest.raises(UserError, match=message):
            contenders(config, ("rotary",), (0.01,), baseline_settings=[given])
