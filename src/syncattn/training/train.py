"""One training run: from a config and a corpus to a folder with the model and every number measured."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from syncattn.models import DecoderConfig  # and registers the models with the Auto classes
from syncattn.models.sharing import CARD, accompany, is_foreign
from syncattn.training.card import sections
from syncattn.training.checkpoints import (
    check_checkpoint,
    check_weights,
    find_checkpoint,
    is_checkpoint,
    load_config,
)
from syncattn.training.data import Corpus, encode_corpus, encode_documents, reload_corpus
from syncattn.training.errors import DiskError, Interrupted, UserError
from syncattn.training.files import (
    CHECKPOINTS,
    LOGS,
    RESULT_FILE,
    RUN_FILE,
    check_output,
    disk_errors,
    prepare_output,
    remove_staging,
    staged,
    write_json,
)
from syncattn.training.fit import Fitted, check_device, fit, parameter_count
from syncattn.training.lock import locked
from syncattn.training.logs import EventFile, has_tensorboard
from syncattn.training.loop import Keeping
from syncattn.training.options import TrainingOptions
from syncattn.training.packed import InRandomOrder, PackedWindows
from syncattn.training.progress import Display
from syncattn.training.record import Record, Result, describe_run, read_run, write_start
from syncattn.training.settings import as_told, chosen_backend, first_model
from syncattn.training.tokenizers import encode, load_tokenizer
from syncattn.training.windows import EvaluationWindows, RandomWindows, Windows, inputs_of, stacked

PROBE_WINDOWS = 4
"""Windows of validation text on which densities are measured."""


def train(
    config: PreTrainedConfig,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    out: str | Path,
    options: TrainingOptions,
    *,
    overwrite: bool = False,
    checkpoint: Path | None = None,
    console: Console | None = None,
    label: str = "",
) -> Record:
    """`fit` on text, in a folder: from scratch, from a trained model's weights, or from the run's checkpoint.

    The finished folder has `config.json`, `model.safetensors`, the tokeniser's files, and `training.json`,
    the record that is returned.

    Args:
        config: of any causal language model that the Auto classes know; its vocabulary must be the
            tokeniser's.
        out: a new or empty folder, unless `overwrite` or `checkpoint` is given.
        checkpoint: one of this run's own, see `resume`.
        console: where progress goes; None is silent.
        label: the run's name in the progress.

    Raises:
        UserError: bad options, data or output folder; `Diverged` when the loss is no longer finite;
            `Interrupted` after Ctrl-C, with how to go on.
    """
    out = Path(out)
    check_start(config, tokenizer, options)
    with locked(out), _says_how_to_go_on(out):
        return _train(config, corpus, tokenizer, out, options, overwrite, checkpoint, console, label)


def _train(
    config: PreTrainedConfig,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    options: TrainingOptions,
    overwrite: bool,
    checkpoint: Path | None,
    console: Console | None,
    label: str,
) -> Record:
    """`train` in a folder that no other process has."""
    main = int(os.environ.get("RANK", "0")) == 0
    state = checkpoint if checkpoint is not None and is_checkpoint(checkpoint) else None
    if checkpoint is None and main:
        check_output(out, overwrite=overwrite)
    elif main:
        for folder in (out, out / CHECKPOINTS):
            remove_staging(folder)
        if state is None:
            shutil.rmtree(out / LOGS, ignore_errors=True)  # they begin again, too
    with as_told(options):
        encoded = encoded_corpus(corpus, tokenizer, options)
        set_seed(options.seed)
        model, options = first_model(config, options, state)

        def begin() -> None:  # not before, so that a start that fails leaves nothing behind
            if checkpoint is None and main:
                # The final model, one checkpoint (model and two moments), another while it is replaced, logs.
                prepare_output(out, 8 * 4 * parameter_count(model) + 2_000_000, overwrite=overwrite)
                write_start(out, describe_run(config, corpus, tokenizer, options), config, tokenizer)

        windows = packed_windows_of(encoded, options) if options.pack else windows_of(encoded, options)
        display = Display(console if main else None, label, every_log=options.log_every is not None)
        shown: list[Display | EventFile] = [display]
        if main and has_tensorboard():
            shown.append(EventFile(out / LOGS))
        with ExitStack() as opened:
            for callback in shown:
                opened.callback(callback.close)
            keep = Keeping(out / CHECKPOINTS, tokenizer, state, begin)
            try:
                fitted = fit(model, windows, options, callbacks=shown, keep=keep)
            except Interrupted as error:
                raise _interrupted(out, error.step) from None
        record = Record(
            **describe_run(model.config, corpus, tokenizer, options),
            parameters=fitted.parameters,
            tokens={
                name: sum(map(len, part)) if options.pack else len(part) for name, part in encoded.items()
            },
            history=fitted.history,
            result=_result(fitted, windows),
            device=fitted.device,
        )
        try:
            if main:
                _write(out, model, tokenizer, record)
        except KeyboardInterrupt:
            raise _interrupted(out, options.steps) from None
        return record


def windows_of(tokens: Mapping[str, torch.Tensor], options: TrainingOptions) -> Windows:
    """The windows of a run on text, from the tokens of its three parts."""
    context, validation = options.context, tokens["validation"]
    probe = EvaluationWindows(validation, context, PROBE_WINDOWS * context)
    return Windows(
        train=RandomWindows(tokens["train"], context, options.steps * options.batch_size, options.seed),
        validation=EvaluationWindows(validation, context, options.eval_tokens or None),
        probe=stacked(probe, len(probe)),
        final={
            name: EvaluationWindows(tokens[name], context, options.final_eval_tokens or None)
            for name in ("validation", "test")
        },
    )


def packed_windows_of(documents: Mapping[str, Sequence[torch.Tensor]], options: TrainingOptions) -> Windows:
    """The windows of a run whose documents are packed, from the tokens of each document of the three parts.

    Raises:
        UserError: the documents of a part have a token each.
    """
    context, final = options.context, options.final_eval_tokens or None
    parts = {name: PackedWindows(documents[name], context) for name in documents}
    for name, part in parts.items():
        if len(part) == 0:
            raise UserError(f"pack needs documents of two tokens or more, got none in the {name} text")
    validation = documents["validation"]
    probe = PackedWindows(validation, context, PROBE_WINDOWS * context)
    given = inputs_of(probe, range(len(probe)))
    return Windows(
        train=InRandomOrder(parts["train"], options.steps * options.batch_size, options.seed),
        validation=PackedWindows(validation, context, options.eval_tokens or None),
        probe=given["input_ids"],
        final={name: PackedWindows(documents[name], context, final) for name in ("validation", "test")},
        probe_texts=given["sequence_ids"],
    )


def encoded_corpus(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, options: TrainingOptions) -> Any:
    """The tokens of the three parts by name, document by document if they are packed."""
    encode_all = encode_documents if options.pack else encode_corpus
    return encode_all(corpus, lambda text: encode(tokenizer, text), options.context)


def check_start(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, options: TrainingOptions
) -> None:
    """What can be known before any work.

    Raises:
        UserError: a vocabulary that does not fit, a batch that the processes cannot share, documents that a
            model of others would not keep apart, no such device, no such backend.
    """
    if config.vocab_size < len(tokenizer):
        raise UserError(
            f"config.vocab_size must be at least the tokenizer's {len(tokenizer)} tokens, "
            f"got {config.vocab_size}"
        )
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if options.batch_size % processes:
        raise UserError(
            f"batch_size must be a multiple of the number of processes, {processes}, got {options.batch_size}"
        )
    if options.pack and not isinstance(config, DecoderConfig):
        raise UserError(
            f"pack must be False for models of others, which may not keep texts apart, got True with a model "
            f"of type {config.model_type!r}"
        )
    with chosen_backend(options.backend):
        pass
    check_device(options)


def resume(folder: str | Path, console: Console | None = None, label: str = "") -> Record:
    """Go on with an unfinished run, with the text and options that it was started with.

    Args:
        folder: the run's output folder, or one of its checkpoints.

    Raises:
        UserError: the folder is neither, its run is finished, or its text has changed; and what `train`
            raises.
    """
    folder = Path(folder).expanduser().absolute()
    out = folder.parent.parent if folder.parent.name == CHECKPOINTS else folder
    if not folder.is_dir():
        raise UserError(f"cannot resume from {folder}: no such folder")
    if (out / RESULT_FILE).is_file():
        raise UserError(f"nothing to resume: the run in {out} is finished")
    if not (out / RUN_FILE).exists():
        raise UserError(
            f"cannot resume from {folder}: it holds no checkpoint, {out} no {RUN_FILE} (expected the --out "
            f"folder of an unfinished run, or one of its {CHECKPOINTS}/checkpoint-N)"
        )
    with locked(out), _says_how_to_go_on(out):
        checkpoint = find_checkpoint(folder)
        options, data = read_run(out, check_checkpoint(checkpoint))
        config = load_config(checkpoint)
        if is_checkpoint(checkpoint):
            check_weights(checkpoint, config)
        tokenizer = load_tokenizer(checkpoint)
        corpus = reload_corpus(data)
        if corpus.sha256 != data["sha256"]:
            texts = ", ".join(data["sources"])
            raise UserError(
                f"cannot resume from {folder}: the text in {texts} has changed since the run began"
            )
        return train(
            config, corpus, tokenizer, out, options, checkpoint=checkpoint, console=console, label=label
        )


def _result(fitted: Fitted, windows: Windows) -> Result:
    predicted = {name: part.predicted for name, part in windows.final.items()}  # type: ignore[attr-defined]
    return Result(
        validation_loss=fitted.losses["validation"],
        validation_tokens=predicted["validation"],
        test_loss=fitted.losses["test"],
        test_tokens=predicted["test"],
        density=fitted.density,
        partners=fitted.partners,
        tokens_per_second=fitted.tokens_per_second,
        train_seconds=fitted.train_seconds,
        wall_seconds=fitted.wall_seconds,
    )


def _write(out: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, record: Record) -> None:
    """Write the final files, and remove what the run could have gone on from."""
    with disk_errors(f"cannot write the model to {out}"), staged(out, last=RESULT_FILE) as folder:
        accompany(model, folder, *sections(record))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / RESULT_FILE, record.to_json())
        if is_foreign(out / CARD):  # what somebody wrote there stays
            (folder / CARD).unlink()
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    (out / RUN_FILE).unlink(missing_ok=True)


@contextmanager
def _says_how_to_go_on(out: Path) -> Iterator[None]:
    """Ctrl-C at any time, and a full disk, end in one line that has the way to go on, if there is one."""
    try:
        yield
    except KeyboardInterrupt:
        raise _interrupted(out) from None
    except DiskError as error:
        way = _way_to_go_on(out)
        raise type(error)(f"{error}; {way}" if way and way not in str(error) else str(error)) from error


def _interrupted(out: Path, step: int | None = None) -> Interrupted:
    stopped = "stopped" if step is None else f"stopped at step {step}"
    return Interrupted(f"{stopped}; {_way_to_go_on(out) or f'there is nothing to go on from in {out}'}")


def _way_to_go_on(out: Path) -> str | None:
    """In words; None if nothing is kept."""
    if (out / RESULT_FILE).is_file():
        return f"the run is finished, its model is in {out}"
    try:
        found = find_checkpoint(out)
    except UserError:
        return None
    what = f"the checkpoint of step {found.name.rpartition('-')[2]} is in {out / CHECKPOINTS}: go on with"
    if not is_checkpoint(found):
        what = "that is before the first checkpoint: begin again with"
    return f"{what} `syncattn train --resume {shlex.quote(str(out))}`"
