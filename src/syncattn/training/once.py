"""A run that is done once: read if it is there, gone on with if it was interrupted, else begun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from syncattn.training.checkpoints import check_checkpoint, find_checkpoint
from syncattn.training.data import Corpus
from syncattn.training.errors import Diverged, Interrupted, UserError
from syncattn.training.files import RESULT_FILE, RUN_FILE, read_object, write_json
from syncattn.training.lock import locked
from syncattn.training.options import TrainingOptions
from syncattn.training.record import EARLIER, NEUTRAL, PLACE, Record
from syncattn.training.settings import describe_config
from syncattn.training.train import train

DIVERGED_FILE = "diverged.json"


def train_once(
    config: PreTrainedConfig,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    options: TrainingOptions,
    *,
    console: Console | None = None,
    label: str = "",
) -> Record:
    """`train`, whose record is read from `folder` if the same run is there, finished or interrupted.

    Raises:
        Diverged: it diverges, or did so when it was run before (`folder/diverged.json` says so).
        UserError: `folder` has a run with other settings, or another process trains in it; and what `train`
            raises.
    """
    with locked(folder):
        return _train_once(config, corpus, tokenizer, folder, options, console, label)


def _train_once(
    config: PreTrainedConfig,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    options: TrainingOptions,
    console: Console | None,
    label: str,
) -> Record:
    settings = {
        "model_type": config.model_type,
        "config": describe_config(config),
        "options": options.as_dict(),
        "sha256": corpus.sha256,
        "vocabulary": len(tokenizer),
    }
    for name in (RESULT_FILE, DIVERGED_FILE):
        if (folder / name).is_file():
            found = read_object(folder / name)
            _same_settings(folder, found, settings)
            record = None if name == DIVERGED_FILE else Record.from_json(found, folder / name)
            if record is None and not isinstance(found.get("message"), str):
                raise UserError(f"{folder / name} must have a message, got {found.get('message')!r}")
            if console is not None:
                console.print(f"{label}: already there", highlight=False)
            if record is None:
                raise Diverged(found["message"])
            return record
    checkpoint = None
    if (folder / RUN_FILE).is_file():
        _same_settings(folder, read_object(folder / RUN_FILE), settings)
        try:
            checkpoint = find_checkpoint(folder)
            check_checkpoint(checkpoint)
        except UserError:
            checkpoint = None  # stopped before its first checkpoint, or while writing: this run starts again
    try:
        return train(
            config,
            corpus,
            tokenizer,
            folder,
            options,
            overwrite=checkpoint is None,
            checkpoint=checkpoint,
            console=console,
            label=label,
        )
    except Diverged as error:
        run = read_object(folder / RUN_FILE)
        write_json(folder / DIVERGED_FILE, run | {"message": str(error)})
        raise
    except Interrupted as error:
        about = str(error).partition(";")[0]
        raise Interrupted(
            f"{label}: {about}; start the same command again to go on from there", error.step
        ) from None


def _same_settings(folder: Path, record: dict[str, Any], settings: dict[str, Any]) -> None:
    try:
        found = {name: record[name] for name in ("model_type", "config", "options")}
        found |= {"sha256": record["data"]["sha256"], "vocabulary": record["data"]["vocabulary"]}
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder} has no usable record of its run ({error}): use --overwrite or another --out"
        ) from error
    differing = [name for name in ("model_type", "config", "vocabulary") if found[name] != settings[name]]
    for name, value in settings["options"].items():
        if name not in (*NEUTRAL, *PLACE) and (EARLIER | found["options"]).get(name) != value:
            differing.append(name)
    if found["sha256"] != settings["sha256"]:
        differing.append("text")
    if differing:
        raise UserError(
            f"{folder} has a run with other settings ({', '.join(differing)} differ): use --overwrite or "
            "another --out"
        )
