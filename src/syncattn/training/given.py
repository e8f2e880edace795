"""From what stands on the command line to what training takes. Imports nothing slow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from syncattn.models import OSNConfig
    from syncattn.training.data import Corpus
    from syncattn.training.options import TrainingOptions


def given_options(ctx: typer.Context) -> dict[str, str]:
    """What stands on the command line itself: `{name of the parameter: how it is written}`."""
    written = {p.name: max(p.opts, key=len) for p in ctx.command.params} | {"texts": "TEXT"}
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    return {
        name: written[name] for name, source in sources.items() if source and source.name == "COMMANDLINE"
    }


def refuse(given: Mapping[str, str], names: set[str], why: str) -> None:
    """Options that would be ignored are an error.

    Raises:
        UserError: one of `names` is given.
    """
    from syncattn.training.errors import UserError

    if found := [written for name, written in given.items() if name in names]:
        raise UserError(f"{why}: leave out {', '.join(found)}")


def training_options(values: Mapping[str, Any], given: Mapping[str, str], **changed: Any) -> TrainingOptions:
    """The options among a command's parameters, some of them changed.

    Raises:
        UserError: what the options refuse, or both a number of steps and of tokens.
    """
    from syncattn.training.errors import UserError
    from syncattn.training.options import TrainingOptions

    if {"steps", "tokens"} <= given.keys():
        raise UserError("--steps and --tokens exclude each other: both say how long to train")
    known = {field.name for field in dataclass_fields(TrainingOptions)}
    fields = {name: value for name, value in values.items() if name in known} | changed
    warmup = fields.pop("warmup")  # its bound is known when the steps are
    options = TrainingOptions(**fields)
    tokens: int | None = values["tokens"]
    return replace(options if tokens is None else options.for_tokens(tokens), warmup=warmup)


def unknown_characters(tokenizer: PreTrainedTokenizerBase, corpus: Corpus) -> tuple[str, ...]:
    """A sentence on the characters that a character tokenizer does not know, if there are any."""
    known = tokenizer.get_vocab()
    if tokenizer.unk_token_id is None or any(len(token) > 1 for token in known):
        return ()
    unknown = sorted({*corpus.train, *corpus.validation, *corpus.test} - known.keys())
    if not unknown:
        return ()
    first = " ".join(map(repr, unknown[:10])) + (" ..." if len(unknown) > 10 else "")
    return (f"{len(unknown)} characters are unknown to the tokenizer, and are all read as one: {first}",)


def read_corpus(values: Mapping[str, Any]) -> Corpus:
    """The text that the command line names, see `load_corpus`."""
    from syncattn.training.data import load_corpus

    names = ("max_chars", "validation", "test", "encoding", "skip_undecodable")
    return load_corpus(values["texts"] or [], **{name: values[name] for name in names})


def tokenizer_of(values: Mapping[str, Any], corpus: Corpus) -> PreTrainedTokenizerBase:
    """The tokenizer that the command line names, see `make_tokenizer`."""
    from syncattn.training.tokenizers import make_tokenizer

    kind: str = values["tokenizer"]
    text = corpus.train + corpus.validation + corpus.test if kind == "char" else ""
    return make_tokenizer(kind, text, values["context"])


def config_of(values: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> OSNConfig:
    """The model that the command line describes, see `make_config`."""
    from syncattn.training.settings import make_config

    names = ("context", "hidden_size", "layers", "heads", "freq_dim", "paper", "settings")
    return make_config(tokenizer, *(values[name] for name in names))


def model_of(
    folder: Path, values: Mapping[str, Any], given: Mapping[str, str]
) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """The config and the tokenizer of the model that training begins with.

    Raises:
        UserError: no such model; a tokenizer that is given in place of its own, or needed and not given; a
            context that the model cannot have.
    """
    from syncattn.models import OSNConfig, TransformerBaselineConfig
    from syncattn.training.checkpoints import load_config
    from syncattn.training.errors import UserError
    from syncattn.training.tokenizers import load_tokenizer, make_tokenizer

    config = load_config(folder)
    longest = getattr(config, "max_position_embeddings", None)
    any_length = isinstance(config, OSNConfig | TransformerBaselineConfig)
    if "context" in given and longest is not None and not any_length and values["context"] > longest:
        raise UserError(
            f"--context must be at most {longest} for the model in {folder}, got {values['context']}"
        )
    if (folder / "tokenizer_config.json").is_file():
        refuse(given, {"tokenizer"}, f"--init-from takes the tokenizer in {folder}, too")
        return config, load_tokenizer(folder)
    given_tokenizer = values["tokenizer"] if "tokenizer" in given else None
    if given_tokenizer in (None, "char"):
        raise UserError(
            f"there is no tokenizer in {folder}: --tokenizer must name the one that the model was trained "
            f"with, 'byte' or a path, got {given_tokenizer}"
        )
    return config, make_tokenizer(values["tokenizer"], "", values["context"])
