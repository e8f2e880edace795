"""How many parameters a model has, and models with equally many."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from transformers import AutoModelForCausalLM

from syncattn.models.configuration import DecoderConfig

_STEPS = (64, 8, 1)  # of a width
_HARDLY = 0.005  # of the parameters: how far off a coarser step may take a model
_FEWEST = 16  # of its steps a width has at least: by a large vocabulary's share anything would be hardly off

_Config = TypeVar("_Config", bound=DecoderConfig)
_Other = TypeVar("_Other", bound=DecoderConfig)


def count_parameters(config: DecoderConfig) -> int:
    """Parameters of a language model with this config, causal or masked, shared ones counted once; allocates
    none."""
    config = copy.deepcopy(config)
    config.is_causal = True  # the two have the same
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def fit_parameters(config: _Config, count: int) -> _Config:
    """A copy of a configuration whose feed-forward layers make it a model of `count` parameters, within 1 %.

    In a large model whose layers are wide as well their width is a multiple of 64, or of 8: what GPUs
    multiply fast, in half precision, has rows of so many.

    Raises:
        ValueError: no width gives that: the rest of the model has more, or one unit makes too much of a step.
    """
    fitted = copy.deepcopy(config)
    fitted.intermediate_size = 1
    least = count_parameters(fitted)
    fitted.intermediate_size = 2
    unit = count_parameters(fitted) - least
    width = 1 + (count - least) / unit
    coarse = min(2 * _HARDLY * count / unit, width / _FEWEST)
    step = next(step for step in _STEPS if step == 1 or step <= coarse)
    fitted.intermediate_size = max(1, step * round(width / step))
    found = count_parameters(fitted)
    if abs(found - count) > 0.01 * count:
        raise ValueError(
            f"config is too small to match parameters within 1 %: {count} were wanted, with "
            f"intermediate_size={fitted.intermediate_size} it has {found}, and one more unit costs {unit}"
        )
    return fitted


def match_parameters(first: _Config, second: _Other) -> tuple[_Config, _Other]:
    """Copies of two configurations, of any kinds, of models with equally many parameters, within 1 %.

    The model with fewer parameters gets a wider feed-forward layer. With the default options and equal sizes
    that is the OSN beside a softmax Transformer: its frequencies are narrower than keys.

    Raises:
        ValueError: the models are so small that one more feed-forward unit makes more than 1 % difference.

    Example:
        >>> osn = OSNConfig(hidden_size=128)
        >>> osn, transformer = match_parameters(osn, TransformerConfig.of_sizes(osn))
        >>> osn.intermediate_size, transformer.intermediate_size
        (380, 341)
    """
    counts = count_parameters(first), count_parameters(second)
    return (
        fit_parameters(first, counts[1]) if counts[0] < counts[1] else copy.deepcopy(first),
        fit_parameters(second, counts[0]) if counts[1] < counts[0] else copy.deepcopy(second),
    )
