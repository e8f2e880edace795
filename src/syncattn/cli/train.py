"""The command `syncattn train`. Heavy imports are inside, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from syncattn.cli.given import (
    Budget,
    Manners,
    ModelOptions,
    TextOptions,
    config_of,
    model_of,
    noting_unknown,
    read_corpus,
    refuse,
    refuse_limits,
    say,
    speaks,
    tokenizer_of,
    training_options,
)
from syncattn.cli.options import Panel, Written, command
from syncattn.cli.show import show_run
from syncattn.option import option
from syncattn.starting import loading
from syncattn.training.errors import UserError
from syncattn.training.options import TrainingOptions

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from syncattn.training.record import Record

_SHAPE = {"hidden_size", "layers", "heads", "freq_dim", "paper", "preset", "settings"}


@dataclass(frozen=True)
class Start:
    """What a run begins with, and where it goes."""

    out: Path | None = option(None, "A new folder for the model.")
    resume: Path | None = option(
        None, "Go on with the unfinished run in this folder, or from one of its checkpoints, as it was begun."
    )
    init_from: Path | None = option(
        None,
        "Begin with the weights, the shape and the tokenizer of the model in this folder, not from scratch.",
        metavar="MODEL",
    )


@command
def train_command(
    start: Start,
    text: Annotated[TextOptions, Panel("Text")],
    model: Annotated[ModelOptions, Panel("Model")],
    training: Annotated[partial[TrainingOptions], Panel("Training")],
    budget: Annotated[Budget, Panel("Training")],
    manners: Manners,
    written: Written,
) -> None:
    """Train an OSN on text; Ctrl-C leaves a checkpoint that --resume goes on from."""
    out = start.out
    if start.resume is not None:
        refuse(written, set(written) - {"resume", "quiet"}, "--resume goes on with a run as it was begun")
        with loading(quiet=manners.quiet):
            from syncattn.training.train import resume
        record = resume(start.resume, manners.console())
        out = start.resume.absolute()
        if not (out / "training.json").is_file():
            out = out.parent.parent
    else:
        if out is None:
            raise UserError("--out is missing: expected a new folder for the model")
        changed = _begun_from(start.init_from, out, training.keywords["calibrate"], written)
        make = partial(training, **changed)
        record = _train(start, out, text, model, make, budget, manners, written)
    if speaks():
        show_run(record, out)


def _begun_from(init_from: Path | None, out: Path, calibrate: bool, written: Written) -> dict[str, Any]:
    """The options that a trained model changes."""
    if init_from is None:
        return {}
    refuse(
        written,
        _SHAPE | ({"calibrate"} if calibrate else set()),
        "--init-from takes the model as it is",
    )
    from syncattn.training.checkpoints import model_folder

    init_from = model_folder(init_from)
    if not init_from.is_dir():
        raise UserError(f"--init-from must be the folder of a model, got {str(init_from)!r}")
    if init_from.resolve() == out.resolve():
        raise UserError(f"--init-from and --out are the same folder: expected a new one for --out, got {out}")
    return {"init_from": str(init_from.absolute()), "calibrate": False}


def _train(
    start: Start,
    out: Path,
    text: TextOptions,
    model: ModelOptions,
    make: partial[TrainingOptions],
    budget: Budget,
    manners: Manners,
    written: Written,
) -> Record:
    """A run from its beginning; the record."""
    from syncattn.training.files import check_output

    if speaks():  # a process that comes later finds what this one has written
        check_output(out, overwrite=manners.overwrite)
    options = training_options(make, budget, written)
    console = manners.console()
    with loading("the text and PyTorch", quiet=manners.quiet):
        corpus = read_corpus(text, console)
        from syncattn.training.train import train
    if start.init_from is None:
        tokenizer = tokenizer_of(text, corpus, options.context)
        config: PreTrainedConfig = config_of(model, tokenizer, options.context)
    else:
        config, tokenizer = model_of(
            Path(options.init_from or start.init_from), text, options.context, written
        )
        if "context" not in written and (length := getattr(config, "max_position_embeddings", None)):
            options = training_options(make, budget, written, context=length)
        say(console, [f"weights, shape and tokenizer of {start.init_from}; context {options.context}"])
    refuse_limits(written, config, options)
    corpus = noting_unknown(corpus, tokenizer, console)
    return train(config, corpus, tokenizer, out, options, overwrite=manners.overwrite, console=console)
