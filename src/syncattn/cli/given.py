"""What `train` and `compare` take from the command line, and what they make of it. Imports nothing slow."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syncattn.cli.options import Written
from syncattn.option import argument, option
from syncattn.terminal import fold
from syncattn.training.errors import UserError
from syncattn.training.options import TrainingOptions

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from syncattn.models import OSNConfig
    from syncattn.training.data import Corpus


@dataclass(frozen=True)
class TextOptions:
    """The text to train on, see `load_corpus` and `make_tokenizer`."""

    texts: list[str] | None = argument(
        None, "Files, folders, or the built-in corpora 'stdlib' and 'pydoc'.", metavar="TEXT..."
    )
    tokenizer: str = option("byte", "'byte', 'char', or the path of a tokenizer on this machine.")
    max_chars: int | None = option(None, "Read this many characters of TEXT at most.")
    validation: str | None = option(
        None,
        "Validate with this file, folder or built-in corpus.",
        metavar="TEXT",
        shown="a part of TEXT",
    )
    test: str | None = option(
        None, "Test with this file, folder or built-in corpus.", metavar="TEXT", shown="a part of TEXT"
    )
    encoding: str = option("utf-8", "How all files are encoded.", metavar="NAME")
    skip_undecodable: bool = option(
        False, "Leave out files that are no text in that encoding, and say which."
    )


@dataclass(frozen=True)
class ModelOptions:
    """The shape of the OSN, see `make_config`."""

    hidden_size: int = option(96, "Width of the model.")
    layers: int = option(2, "Number of blocks.")
    heads: int = option(4, "Attention heads per block.")
    freq_dim: int | None = option(None, "Coordinates of a frequency.", shown="16, at most a head's width")
    paper: bool = option(False, "The published formulation.")
    preset: str | None = option(None, "A mix of heads: text or recall (docs/positions.md).", metavar="NAME")
    settings: list[str] | None = option(
        None,
        "Any other field of OSNConfig, its value as JSON: --set delay=0.25 --set 'window_range=[2,32]'.",
        flag="--set",
        metavar="NAME=VALUE",
    )


@dataclass(frozen=True)
class Budget:
    """How long to train, other than by a number of steps."""

    tokens: int | None = option(None, "A budget of training tokens, instead of --steps.", after="steps")


@dataclass(frozen=True)
class Manners:
    """What becomes of an earlier run, and what is said meanwhile."""

    overwrite: bool = option(False, "Replace what an earlier run left in --out.")
    quiet: bool = option(False, "No progress.")

    def console(self) -> Console | None:
        """Where progress goes."""
        from rich.console import Console

        return Console() if speaks() and not self.quiet else None


def speaks() -> bool:
    """Of several processes, one speaks."""
    return os.environ.get("RANK", "0") == "0"


def refuse(written: Written, names: set[str], why: str) -> None:
    """Options that would be ignored are an error.

    Raises:
        UserError: one of `names` is given.
    """
    if found := [given for name, given in written.items() if name in names]:
        raise UserError(f"{why}: leave out {', '.join(found)}")


def refuse_limits(written: Written, config: PreTrainedConfig, options: TrainingOptions) -> None:
    """Limits and starts that a model does not have would be ignored.

    Raises:
        UserError: one of them is given.
    """
    from syncattn.models import DecoderConfig

    if isinstance(config, DecoderConfig) and getattr(config, "parametrisation", None) != "log":
        why = "only heads with a coupling of their own are limited and calibrated, which this model has not"
        refuse(written, {"max_density", "max_partners", "start_partners"}, why)
    if not options.calibrates:
        refuse(written, {"start_partners"}, "nothing is calibrated")


def training_options(
    make: partial[TrainingOptions], budget: Budget, written: Written, **changed: Any
) -> TrainingOptions:
    """The options of a command, some of them changed, for its number of steps or tokens.

    Raises:
        UserError: what the options refuse, or both a number of steps and of tokens.
    """
    if {"steps", "tokens"} <= written.keys():
        raise UserError("--steps and --tokens exclude each other: both say how long to train")
    warmup = make.keywords.get("warmup")  # its bound is known when the steps are
    options = make(**{"warmup": None} | changed)
    return replace(options if budget.tokens is None else options.for_tokens(budget.tokens), warmup=warmup)


def read_corpus(text: TextOptions, console: Console | None) -> Corpus:
    """The text that the command line names, see `load_corpus`; what was left out is said."""
    from syncattn.training.data import load_corpus

    given = asdict(text)
    del given["tokenizer"]
    corpus = load_corpus(given.pop("texts") or [], **given)
    say(console, corpus.notes)
    return corpus


def tokenizer_of(text: TextOptions, corpus: Corpus, context: int) -> PreTrainedTokenizerBase:
    """The tokenizer that the command line names, see `make_tokenizer`."""
    from syncattn.training.tokenizers import make_tokenizer

    characters = corpus.train + corpus.validation + corpus.test if text.tokenizer == "char" else ""
    return make_tokenizer(text.tokenizer, characters, context)


def config_of(model: ModelOptions, tokenizer: PreTrainedTokenizerBase, context: int) -> OSNConfig:
    """The model that the command line describes, see `make_config`."""
    from syncattn.training.settings import make_config

    return make_config(tokenizer, context, **asdict(model))


def model_of(
    folder: Path, text: TextOptions, context: int, written: Written
) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """The config and the tokenizer of the model that training begins with.

    Raises:
        UserError: no such model; a tokenizer that is given in place of its own, or needed and not given; a
            context that the model cannot have.
    """
    from syncattn.models import DecoderConfig
    from syncattn.training.checkpoints import load_config
    from syncattn.training.tokenizers import load_tokenizer, make_tokenizer

    config = load_config(folder)
    longest = getattr(config, "max_position_embeddings", None)
    any_length = isinstance(config, DecoderConfig)
    if "context" in written and longest is not None and not any_length and context > longest:
        raise UserError(f"--context must be at most {longest} for the model in {folder}, got {context}")
    if (folder / "tokenizer_config.json").is_file():
        refuse(written, {"tokenizer"}, f"--init-from takes the tokenizer in {folder}, too")
        return config, load_tokenizer(folder)
    given = text.tokenizer if "tokenizer" in written else None
    if given in (None, "char"):
        raise UserError(
            f"there is no tokenizer in {folder}: --tokenizer must name the one that the model was trained "
            f"with, 'byte' or a path, got {given}"
        )
    return config, make_tokenizer(text.tokenizer, "", context)


def noting_unknown(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, console: Console | None) -> Corpus:
    """The corpus with a note on the characters that its tokenizer does not know, which is said, too."""
    unknown = unknown_characters(tokenizer, corpus)
    say(console, unknown)
    return replace(corpus, notes=(*corpus.notes, *unknown))


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


def say(console: Console | None, lines: Iterable[str]) -> None:
    """Print sentences, folded where the console is a terminal."""
    if console is not None:
        for line in lines:
            columns = console.width if console.is_terminal else None
            folded = fold(line.split(" "), columns, between=" ")
            console.print(folded, highlight=False, markup=False, soft_wrap=True)
