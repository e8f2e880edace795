"""Who is compared: an OSN, and softmax Transformers with as many parameters and what the OSN has besides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from syncattn.models import (
    DecoderConfig,
    OSNConfig,
    TransformerConfig,
    count_parameters,
    fit_parameters,
    match_parameters,
)
from syncattn.training.errors import UserError
from syncattn.training.settings import config_errors, fields_of

BASELINES = ("alibi", "rotary")


@dataclass(frozen=True, eq=False)
class Contender:
    """One of the models that are compared."""

    name: str
    title: str
    config: DecoderConfig
    learning_rates: tuple[float, ...]


def contenders(
    config: OSNConfig,
    baselines: Sequence[str],
    learning_rates: Sequence[float],
    baseline_learning_rates: Sequence[float] | None = None,
    baseline_delay: float | None = None,
    baseline_token_shift: bool | None = None,
    baseline_settings: Sequence[str] = (),
) -> list[Contender]:
    """The OSN that `config` describes and softmax Transformers with as many parameters, within 1 %.

    Args:
        baselines: "alibi", "rotary" or both.
        learning_rates: tried for the OSN, and for the Transformers too unless they have their own.
        baseline_delay: fraction of the Transformers' heads that read the key of the token before; None for
            the OSN's, so that what is compared is the attention.
        baseline_token_shift: whether the Transformers mix tokens with the one before; None for the OSN's, or
            its short convolution.
        baseline_settings: other fields of the Transformers' `TransformerConfig`, "name=value"; those that the
            OSN has too are the OSN's without it.

    Raises:
        UserError: an unknown or missing baseline, no learning rate, or what the config refuses.
    """
    if not baselines or not set(baselines) <= set(BASELINES):
        raise UserError(
            f"baselines must be among {', '.join(BASELINES)}, got {', '.join(baselines) or 'none'}"
        )
    rates = tuple(dict.fromkeys(learning_rates))
    others = tuple(dict.fromkeys(baseline_learning_rates or rates))
    if not rates:
        raise UserError("no learning rate given")
    # Of heads that are told one by one, the Transformers' are as many.
    given = config.delay
    share = given if isinstance(given, (int, float)) else sum(given) / len(given)
    delay = share if baseline_delay is None else baseline_delay
    shift = config.token_shift if baseline_token_shift is None else baseline_token_shift
    convolution = config.short_convolution if baseline_token_shift is None else None
    own = {"delay": delay, "token_shift": shift, "short_convolution": convolution}
    own |= {"value_residual": config.value_residual, "score_gate": config.nearest_gate}
    own |= fields_of(TransformerConfig, baseline_settings, "--baseline-set")
    found: list[Contender] = []
    for name in dict.fromkeys(baselines):
        with config_errors():
            # All are as large as the plain Transformer: the OSN stays the same whatever that is given.
            osn, plain = match_parameters(config, TransformerConfig.of_sizes(config, position=name))
            shared = TransformerConfig.of_sizes(config)
            kept = {name: getattr(shared, name) for name in DecoderConfig.own_fields()}
            other = TransformerConfig(**kept | {"position": name} | own)
            matched = fit_parameters(other, count_parameters(plain))
        if not found:
            found.append(Contender("osn", "OSN", osn, rates))
        title = f"Transformer, {'ALiBi' if name == 'alibi' else name}{_extras(other)}"
        found.append(Contender(name, title, matched, others))
    return found


def _extras(config: TransformerConfig) -> str:
    """What a Transformer has that a plain one has not, in words."""
    words = {
        "delay": config.delay,
        "token shift": config.token_shift,
        "short convolution": config.short_convolution,
        "QK-norm": config.qk_norm,
        "value residual": config.value_residual,
        "gate": config.score_gate,
    }
    return "".join(f", {word}" for word, has in words.items() if has)
