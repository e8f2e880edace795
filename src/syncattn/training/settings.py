"""From options to a model's config, to the model that training begins with, and to its layers' backend."""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from syncattn.backends.select import BackendError, use_backend
from syncattn.models import DecoderConfig, OSNConfig
from syncattn.nn.presets import CAUSAL
from syncattn.training.checkpoints import WEIGHTS, load_weights
from syncattn.training.errors import UserError
from syncattn.training.options import TrainingOptions


def make_config(
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    hidden_size: int,
    layers: int,
    heads: int,
    freq_dim: int | None = None,
    paper: bool = False,
    settings: Sequence[str] | None = None,
    preset: str | None = None,
) -> OSNConfig:
    """An OSN's config for a tokeniser.

    Args:
        paper: the published formulation instead of the trainable one.
        settings: any other fields that OSNConfig itself has, as "name=value", the value as JSON, or a plain
            string where it is none.
        preset: a mix of heads by name, which `settings` change.

    Raises:
        UserError: an unknown field, a preset that is not for texts or beside `paper`, or what the config
            itself refuses.
    """
    fields: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": context,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if freq_dim is not None:
        fields["freq_dim"] = freq_dim
    fields |= fields_of(OSNConfig, settings or [], "--set")
    if preset is not None and (preset not in CAUSAL or paper):
        raise UserError(
            f"--preset must be {' or '.join(CAUSAL)}, a mix of heads for texts, and without --paper, got "
            f"{preset}{' and --paper' if paper else ''}"
        )
    with config_errors():
        if preset is not None:
            config = OSNConfig.preset(preset, **fields)
        else:
            config = OSNConfig.paper(**fields) if paper else OSNConfig(**fields)
    if not config.is_causal:
        raise UserError("--set is_causal: must be true, since what is trained here predicts the next token")
    return config


def fields_of(kind: type[DecoderConfig], settings: Sequence[str], flag: str) -> dict[str, Any]:
    """Fields of a config as a command line gives them, "name=value", the value as JSON or a plain string.

    Raises:
        UserError: an unknown field, or one that is decided elsewhere; the message begins with `flag`.
    """
    # Not the fields that it inherits from others, such as id2label: they say nothing about these models.
    known, fields = set(kind.own_fields()), {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or name not in known:
            near = difflib.get_close_matches(name, known - {name})
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise UserError(
                f"{flag} {setting}: expected NAME=VALUE with a field of {kind.__name__} as NAME{hint}"
            )
        if name == "vocab_size":
            raise UserError(f"{flag} vocab_size: the tokenizer decides it")
        try:
            fields[name] = json.loads(value)
        except ValueError:
            fields[name] = value
    return fields


def first_model(
    config: PreTrainedConfig, options: TrainingOptions, checkpoint: Path | None
) -> tuple[Any, TrainingOptions]:
    """The model that training begins with, in float32, and the options with the hash of its weights.

    Its weights are fresh, or those of `options.init_from`; where a checkpoint will give them, any.

    Raises:
        UserError: what `load_weights` raises, a model of another config, or other weights than before.
    """
    if options.init_from is None or checkpoint is not None:
        return AutoModelForCausalLM.from_config(copy.deepcopy(config)), options
    model = load_weights(options.init_from)
    if type(model.config) is not type(config) or describe_config(model.config) != describe_config(config):
        raise UserError(f"the config differs from that of the model in init_from, got {options.init_from!r}")
    with (Path(options.init_from) / WEIGHTS).open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if options.init_sha256 not in (None, found):
        raise UserError(f"the weights in {options.init_from} are no longer those that the run began with")
    return model.float().train(), replace(options, init_sha256=found)


def describe_config(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields as a model's folder stores them, as JSON; equal descriptions are equal models."""
    fields: dict[str, Any] = json.loads(config.to_json_string(use_diff=True))
    # filled in when a model is built
    for name in ("transformers_version", "architectures", "dtype", "use_cache", "auto_map"):
        fields.pop(name, None)
    return fields


@contextmanager
def config_errors() -> Iterator[None]:
    """A config checks itself; what it refuses is the user's to mend."""
    try:
        yield
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error


@contextmanager
def chosen_backend(name: str | None) -> Iterator[None]:
    """`use_backend`; that it cannot run here, or cannot take a call, is the user's to mend."""
    try:
        with nullcontext() if name is None else use_backend(name):
            yield
    except BackendError as error:
        raise UserError(str(error)) from error


@contextmanager
def chosen_threads(count: int | None) -> Iterator[None]:
    """PyTorch's threads on the CPU; None leaves its choice."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' progress bars, hints and warnings out of the output; errors still show."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    accelerate = logging.getLogger("accelerate")
    accelerate_level = accelerate.level
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    accelerate.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        accelerate.setLevel(accelerate_level)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def as_told(options: TrainingOptions) -> Iterator[None]:
    """Around all that a run does: its backend, its threads, and no word from the libraries."""
    with quiet(), chosen_threads(options.threads), chosen_backend(options.backend):
        yield
