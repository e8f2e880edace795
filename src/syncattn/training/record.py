"""What a run is, written when it begins and read when it goes on, and what came of it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from syncattn.training.data import Corpus
from syncattn.training.environment import command, machine, versions
from syncattn.training.errors import UserError
from syncattn.training.files import (
    CHECKPOINTS,
    PROGRESS_FILE,
    RUN_FILE,
    START,
    disk_errors,
    fingerprints,
    is_number,
    read_object,
    staged,
    write_json,
)
from syncattn.training.options import TrainingOptions
from syncattn.training.settings import describe_config

FORMAT = 1
NEUTRAL = ("log_every", "eval_every", "save_every", "eval_tokens")
"""Options that say how a run is watched, not what comes out: runs may differ in them."""
EARLIER = {"optimizer": "adamw", "max_partners": None, "start_partners": None}
"""Options that records of earlier versions do not have, and what they were."""
PLACE = ("device", "threads", "backend")
"""Options that say where a run computes, and with what; it may go on elsewhere."""
_PARTS = {"data": dict, "options": dict}
_DATA: dict[str, Any] = {
    "sources": list,
    "max_chars": int | None,
    "validation_source": str | None,
    "sha256": str,
}
_DATA |= {"test_source": str | None, "encoding": str, "skip_undecodable": bool}


@dataclass(frozen=True)
class Result:
    """What a run on text ended with; losses are means in nats per predicted token.

    Attributes:
        validation_loss, test_loss: of that many tokens: validation_tokens, test_tokens.
        density: the share of allowed pairs that lock, (layer, head); [] without SSA.
        tokens_per_second, train_seconds: of the training steps alone.
        wall_seconds: of all, before an interruption too.
        partners: how many senders a receiver locks with, in the mean, (layer, head); records of earlier
            versions have none.
    """

    validation_loss: float
    validation_tokens: int
    test_loss: float
    test_tokens: int
    density: list[list[float]]
    tokens_per_second: float
    train_seconds: float
    wall_seconds: float
    partners: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True)
class Record:
    """All there is to say of a finished run on text, as training.json has it.

    Attributes:
        model_type, config: the model, as its folder stores it.
        options: see `TrainingOptions`.
        data: see `Corpus.describe`, and the size of the vocabulary.
        command, versions, machine: what it ran on.
        parameters: trainable ones, shared ones counted once.
        tokens: of the three parts of the text.
        history: see `history`.
        device: where the model was.
    """

    model_type: str
    config: dict[str, Any]
    options: dict[str, Any]
    data: dict[str, Any]
    command: str
    versions: dict[str, str]
    machine: dict[str, Any]
    parameters: int
    tokens: dict[str, int]
    history: list[dict[str, Any]]
    result: Result
    device: str

    def to_json(self) -> dict[str, Any]:
        """What training.json holds."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, found: dict[str, Any], path: Path) -> Record:
        """The record that `path` holds.

        Raises:
            UserError: something in it is missing, unknown or of another kind.
        """
        try:
            given = {name: value for name, value in found.items() if name != "format"}
            record = cls(**given | {"result": Result(**found["result"])})
        except (KeyError, TypeError):
            record = None
        if record is None or found.get("format") != FORMAT or not record._usable():
            raise UserError(f"{path} is no record that syncattn wrote: use --overwrite or another --out")
        return record

    def _usable(self) -> bool:
        """Whether what is computed with is there."""
        by_head = "density", "partners"
        numbers = [getattr(self.result, f.name) for f in fields(Result) if f.name not in by_head]
        for layers in (self.result.density, self.result.partners):
            if not (isinstance(layers, list) and all(isinstance(layer, list) for layer in layers)):
                return False
            numbers += [head for layer in layers for head in layer]
        numbers.append(self.parameters)
        return all(map(is_number, numbers)) and isinstance(self.history, list)


def describe_run(
    config: PreTrainedConfig, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, options: TrainingOptions
) -> dict[str, Any]:
    """What identifies a run and what it ran on."""
    return {
        "model_type": config.model_type,
        "config": describe_config(config),
        "options": options.as_dict(),
        "data": corpus.describe() | {"vocabulary": len(tokenizer)},
        "command": command(),
        "versions": versions(),
        "machine": machine(),
    }


def write_start(
    out: Path, run: dict[str, Any], config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Write what a run goes on from until it has a checkpoint: its description, config and tokeniser.

    Raises:
        DiskError: it cannot be written.
    """
    with disk_errors(f"cannot write to the output folder {out}"), staged(out, last=RUN_FILE) as folder:
        start = folder / CHECKPOINTS / START
        start.mkdir(parents=True)
        config.save_pretrained(start)
        tokenizer.save_pretrained(start)
        write_json(start / PROGRESS_FILE, {"options": run["options"], "files": fingerprints(start)})
        write_json(folder / RUN_FILE, run)


def read_run(out: Path, begun: dict[str, Any]) -> tuple[TrainingOptions, dict[str, Any]]:
    """Read back a run's description: its options, and of its text what `Corpus.describe` said.

    Args:
        begun: the options of what the run goes on from; it may go on at another place, not as another run.

    Raises:
        UserError: there is none, or something in it is missing, unknown, of another type or run.
    """
    path = out / RUN_FILE
    found = read_object(path)
    _check_types(path, "", {name: found.get(name) for name in ("data", "options")}, _PARTS)
    _check_types(path, "options.", found["options"], get_type_hints(TrainingOptions))
    data = {"encoding": "utf-8", "skip_undecodable": False, "max_chars": None, **found["data"]}
    _check_types(path, "data.", {name: data.get(name) for name in _DATA}, _DATA)
    if not all(isinstance(source, str) for source in data["sources"]):
        raise UserError(f"{path}: data.sources must be names of texts, got {data['sources']!r}")
    try:
        options = TrainingOptions(**(EARLIER | found["options"]))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    for name, value in options.as_dict().items():
        if name not in (*NEUTRAL, *PLACE) and name in begun and begun[name] != value:
            raise UserError(
                f"{path}: options.{name} must be {begun[name]!r} as when the run began, got {value!r}"
            )
    return options, data


def history(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The Trainer's log as one entry per step: loss, validation_loss, grad_norm, density and so on."""
    names = {"loss": "loss", "eval_loss": "validation_loss", "grad_norm": "grad_norm", "density": "density"}
    names |= {"partners": "partners"}
    names |= {"learning_rate": "learning_rate", "tokens_per_second": "tokens_per_second"}
    entries: dict[int, dict[str, Any]] = {}
    for line in log:
        # JSON has no nan or inf, which a gradient's norm may be once.
        found = {new: _finite(line[old]) for old, new in names.items() if old in line}
        if found:
            entries.setdefault(line["step"], {"step": line["step"]}).update(found)
    return list(entries.values())


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _check_types(path: Path, group: str, fields: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in fields.items():
        if name not in expected:
            raise UserError(f"{path}: {group}{name} is not known to this version, got {value!r}")
        kinds = get_args(expected[name]) if isinstance(expected[name], UnionType) else (expected[name],)
        kinds += (int,) if float in kinds else ()
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            raise UserError(f"{path}: {group}{name} must be of type {names}, got {value!r}")
