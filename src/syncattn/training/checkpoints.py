"""Reading back what training wrote: found, checked, loaded; no pickled code is ever run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.trainer_pt_utils import safe_globals

import syncattn.models  # noqa: F401  registers the models with the Auto classes
from syncattn.training.errors import UserError
from syncattn.training.files import CHECKPOINTS
from syncattn.training.tokenizers import load_tokenizer

WEIGHTS = "model.safetensors"
_STATES = ("optimizer.pt", "scheduler.pt")
_RANDOM_STATES = "rng_state*.pth"  # one file, or one for each process
_JSON = ("config.json", "trainer_state.json", "progress.json")


def find_checkpoint(folder: Path) -> Path:
    """The checkpoint to go on from: `folder` itself when it is one, else the newest that `folder`'s run left.

    Raises:
        UserError: neither.
    """
    if not folder.is_dir():
        raise UserError(f"cannot resume from {folder}: no such folder")
    if is_checkpoint(folder):
        return folder
    found = [path for path in (folder / CHECKPOINTS).glob("checkpoint-*") if is_checkpoint(path)]
    if not found:
        raise UserError(
            f"cannot resume from {folder}: it holds no checkpoint (expected the --out folder of an "
            f"unfinished run, or one of its {CHECKPOINTS}/checkpoint-N)"
        )
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]))


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder has all the files that training goes on from."""
    files = (WEIGHTS, *_STATES, *_JSON)
    if not folder.name.rpartition("-")[2].isdigit() or not any(folder.glob(_RANDOM_STATES)):
        return False
    return all((folder / name).is_file() for name in files)


def check_checkpoint(checkpoint: Path) -> None:
    """Read every file of a checkpoint, so that damage is found before training starts.

    Raises:
        UserError: a file is truncated or corrupted.
    """
    check_weights(checkpoint / WEIGHTS)
    states = [checkpoint / name for name in _STATES]
    for path in (*states, *sorted(checkpoint.glob(_RANDOM_STATES))):
        try:
            with safe_globals():  # the arrays of NumPy's generator
                torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load has no error class of its own for damaged files
            raise _damaged(path, error) from error
    for name in _JSON:
        _check_json(checkpoint / name)


def check_weights(path: Path) -> None:
    """Make sure that a safetensors file is complete; its header is checked against its size.

    Raises:
        UserError: missing, truncated or corrupted.
    """
    if not path.is_file():
        raise UserError(f"no {path.name} in {path.parent}")
    try:
        with safe_open(path, framework="pt") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def load_config(folder: Path) -> PreTrainedConfig:
    """The model's config from a local folder.

    Raises:
        UserError: missing, damaged, or of a model that is not known here.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"no config.json in {folder}")
    _check_json(folder / "config.json")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise _damaged(folder / "config.json", error) from error


def load_model(folder: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A trained model, in evaluation mode, and its tokeniser, from a folder that training wrote.

    Raises:
        UserError: what `load_weights` raises, or no tokenizer.
    """
    return load_weights(folder), load_tokenizer(Path(folder).expanduser())


def load_weights(folder: str | Path) -> PreTrainedModel:
    """A trained model, in evaluation mode, from a folder that training or `save_pretrained` wrote.

    Raises:
        UserError: no such folder, a file is missing, truncated or corrupted, or the weights are not this
            config's.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: expected one that `syncattn train --out` wrote")
    if not (folder / "config.json").is_file() and (folder / CHECKPOINTS).is_dir():
        raise UserError(
            f"training in {folder} is not finished: go on with `syncattn train --resume {folder}`, or give "
            f"one of its {CHECKPOINTS}/checkpoint-N"
        )
    config = load_config(folder)
    check_weights(folder / WEIGHTS)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported below, like missing ones
            output_loading_info=True,
        )
    except (OSError, SafetensorError) as error:
        raise _damaged(folder / WEIGHTS, error) from error
    model, report = loaded
    wrong = [
        name
        for key in ("missing_keys", "unexpected_keys", "mismatched_keys")
        for name in report.get(key) or ()
    ]
    if wrong:
        raise UserError(
            f"{folder / WEIGHTS} does not fit {folder / 'config.json'}: {len(wrong)} tensors are missing, "
            f"unexpected or of another shape, the first is {_name(wrong[0])}"
        )
    return model.eval()


def _check_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _name(key: Any) -> str:
    return str(key[0]) if isinstance(key, tuple) else str(key)


def _damaged(path: Path, error: BaseException) -> UserError:
    detail = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(f"cannot load {path}, it is truncated, corrupted or of another kind: {detail}")
