"""What a distillation has come to, in one file: safetensors of weights and moments, and JSON in its head.

It is written whole or not at all, in place of the one before.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FILE = "distillation.safetensors"

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Kept(NamedTuple):
    """A distillation between two steps.

    Attributes:
        tensors: each parameter that is trained, "weight:NAME", and its two moments.
        options: of the call.
        step: how many steps were made.
        elapsed: seconds of training.
        raised: log of the factor on all couplings.
        proportions: the couplings that it multiplies.
    """

    tensors: dict[str, Tensor]
    options: dict[str, Any]
    step: int
    elapsed: float
    raised: float
    proportions: list[list[float]]

    def load_into(self, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Give parameters and an optimizer of these parameters what was kept."""
        for name, parameter in parameters.items():
            parameter.data.copy_(self.tensors[f"weight:{name}"])
            state: dict[str, Any] = {x: self.tensors[f"{x}:{name}"].to(parameter.device) for x in _MOMENTS}
            optimizer.state[parameter] = {"step": torch.tensor(float(self.step), device="cpu"), **state}


def tensors_of(parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What `Kept.tensors` holds of a training that made a step."""
    found = {}
    for name, parameter in parameters.items():
        found[f"weight:{name}"] = parameter.detach().contiguous()
        for moment in _MOMENTS:
            state = optimizer.state.get(parameter, {})
            found[f"{moment}:{name}"] = state.get(moment, torch.zeros_like(parameter)).contiguous()
    return found


def fingerprint(*named: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that tell weights or batches, tensors by name, from others."""
    found = hashlib.sha256()
    for each in named:
        for name, x in sorted(each.items()):
            if isinstance(x, Tensor):
                found.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
                found.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            else:
                found.update(f"{name} {x!r}".encode())
    return found.hexdigest()[:16]


def prepare(folder: Path) -> None:
    """Make the folder, and make sure that it can be written to.

    Raises:
        OSError: it cannot, or it is no folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".partial-") as probe:
            probe.write(b"0")
            probe.flush()
    except OSError as error:
        raise OSError(f"folder must be one that can be written to, got {folder}: {error.strerror}") from error


def write_kept(folder: Path, kept: Kept) -> None:
    """Write the file whole or not at all.

    Raises:
        OSError: it cannot be written; what was there before is there still.
    """
    head = {"distillation": json.dumps(kept._replace(tensors={})._asdict())}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
        path = Path(partial) / FILE
        try:
            save_file(kept.tensors, path, metadata=head)
        except SafetensorError as error:
            raise OSError(f"cannot write {folder / FILE}: {error}") from error
        os.replace(path, folder / FILE)


def read_kept(folder: Path, options: dict[str, Any], parameters: dict[str, Tensor]) -> Kept | None:
    """What is kept in a folder, or None.

    Args:
        options: of this call; what is kept must be of the same.
        parameters: by name, whose shapes must be the same.

    Raises:
        ValueError: the file is damaged, or of another call.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            head = json.loads((file.metadata() or {})["distillation"])
            kept = Kept(**{**head, "tensors": {name: file.get_tensor(name) for name in list(file.keys())}})
        (kept.step + 0, kept.elapsed + 0.0, kept.raised + 0.0, kept.options.items())  # numbers, an object
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged or no distillation's: remove it to begin anew ({error})"
        ) from error
    for name, value in options.items():
        if kept.options.get(name) != value:
            raise ValueError(
                f"{path} is of a distillation with {name} {kept.options.get(name)!r}, got {value!r}: go on "
                "as it began, or remove it to begin anew"
            )
    shapes = {f"weight:{name}": x.shape for name, x in parameters.items()}
    if {name: x.shape for name, x in kept.tensors.items() if name.startswith("weight:")} != shapes or len(
        kept.tensors
    ) != 3 * len(shapes):
        raise ValueError(f"{path} is of another model: remove it to begin anew")
    return kept
