"""From what the command line gives to a model's config, and to the backend of its layers."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from transformers import PreTrainedTokenizerBase

from syncattn.backends.select import BackendError, use_backend
from syncattn.models import OSNConfig
from syncattn.training.errors import UserError


def make_config(
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    hidden_size: int,
    layers: int,
    heads: int,
    freq_dim: int | None = None,
    paper: bool = False,
    settings: Sequence[str] | None = None,
) -> OSNConfig:
    """An OSN's config for a tokeniser.

    Args:
        paper: the published formulation instead of the trainable one.
        settings: any other fields that OSNConfig itself has, as "name=value", the value as JSON, or a plain
            string where it is none.

    Raises:
        UserError: an unknown field, or what the config itself refuses.
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
    # Not the fields that it inherits, such as id2label: they say nothing about an OSN.
    known = set(OSNConfig.own_fields())
    for setting in settings or []:
        name, equals, value = setting.partition("=")
        if not equals or name not in known:
            near = difflib.get_close_matches(name, known - {name})
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise UserError(f"--set {setting}: expected NAME=VALUE with a field of OSNConfig as NAME{hint}")
        if name == "vocab_size":
            raise UserError("--set vocab_size: the tokenizer decides it")
        try:
            fields[name] = json.loads(value)
        except ValueError:
            fields[name] = value
    with config_errors():
        return OSNConfig.paper(**fields) if paper else OSNConfig(**fields)


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
