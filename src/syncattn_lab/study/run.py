"""One run of a study: build the model, train it on its task, measure it, and say so in one line."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedModel

from syncattn.nn import locked_density
from syncattn.training.checkpoints import load_model
from syncattn.training.data import Corpus, load_corpus, split_last_tenth
from syncattn.training.environment import command, machine, versions
from syncattn.training.errors import Diverged, UserError
from syncattn.training.fit import parameter_count
from syncattn.training.loop import head_densities
from syncattn.training.once import train_once
from syncattn.training.settings import describe_config, quiet
from syncattn.training.texts import BUILT_IN, read_text
from syncattn.training.tokenizers import byte_tokenizer, encode
from syncattn.training.windows import EvaluationWindows
from syncattn_lab.study.answers import scores_by_size, train_on_answers
from syncattn_lab.study.plan import TEXT, Run, build_config
from syncattn_lab.study.varied import task_of

LENGTH_TOKENS = 65_536
"""How much test text a model is evaluated on at each of a group's `lengths`: the same text at each."""
FIRST_STRETCH = 64
"""Losses by position are means over stretches of a window: of so many tokens, then as many as all before."""

PIECE = 2048
"""Longer windows are read in pieces of so many tokens, so that what is made for all pairs is bounded."""

DEAD_HEADS_TOKENS = 1024
"""How much of a window is looked at for heads that read one sender: all weights are made for it."""


def perform(run: Run, folder: Path, data: Path | None, console: Console | None = None) -> dict[str, Any]:
    """Do a run, or go on with it, in `folder`; return its line.

    Args:
        data: the folder that the paths of text tasks are in; None for the current one.

    Raises:
        UserError: the run cannot be done as the plan says; `Interrupted` after Ctrl-C.
    """
    line = describe(run)
    try:
        measured = _text(run, folder, data, console) if _is_text(run) else _answers(run, console)
    except Diverged as error:
        return line | {"outcome": "diverged", "message": str(error), "result": None, "history": []}
    return line | {"outcome": "finished", "message": None} | measured


def describe(run: Run) -> dict[str, Any]:
    """What a line says about its run before the run is done."""
    task_options = {name: value for name, value in run.task_options.items() if name != "kind"}
    return {
        "key": run.key,
        "kind": run.kind,
        "group": run.group,
        "group_title": run.group_title,
        "order": run.order,
        "task": run.task,
        "task_kind": run.task_options["kind"],
        "task_options": task_options,
        "variant": run.variant,
        "title": run.title,
        **({"prediction": run.prediction} if run.prediction else {}),
        "model": run.model,
        "learning_rate": run.options.learning_rate,
        "seed": run.options.seed,
        "tokens": run.options.tokens,
        "settings": {"sizes": run.sizes, "config": run.config, "lengths": list(run.lengths)},
        "options": run.options.as_dict(),
        "versions": versions(),
        "machine": machine(),
        "command": portable(command()),
    }


def portable(given: str) -> str:
    """A command line without this machine's folders, since lines are published: `--data DIR --out OUT`."""
    for option, name in (("--data", "DIR"), ("--out", "OUT")):
        given = re.sub(rf"(?<=\s)({option})([ =])('[^']*'|\S+)", rf"\1\2{name}", given)
    return given


@cache
def text_of(
    task: str, texts: tuple[str, ...], test: str | None, folder: Path, validation: str | None = None
) -> Corpus:
    """A text task's corpus, its sources named as in the plan, whatever folder they are in.

    With a `test` of its own, the last tenth of the others is for validation, unless there is a text for that.

    Raises:
        UserError: a text for validation alone; what `load_corpus` and `read_text` raise.
    """
    if test is None and validation is not None:
        raise UserError(f"task {task!r}: a text for validation needs one for test, too")
    named = [name if name in BUILT_IN else str(folder / name) for name in texts]
    if test is None:
        corpus = load_corpus(named)
        notes = tuple(note.replace(f"{folder}/", "") for note in corpus.notes)
        return replace(corpus, sources=texts, notes=notes)
    text = "\n".join(read_text(Path(name)) for name in named)
    if validation is not None:
        held = read_text(folder / validation)
        return Corpus(text, held, read_text(folder / test), (*texts, validation, test))
    train, held = split_last_tenth(text)
    return Corpus(train, held, read_text(folder / test), (*texts, test))


def corpus_of(task: str, options: dict[str, Any], data: Path | None) -> Corpus:
    """The corpus of a text task by its options in the plan.

    Raises:
        UserError: what `text_of` raises.
    """
    texts = tuple(options["text"])
    return text_of(task, texts, options.get("test"), data or Path(), options.get("validation"))


def _is_text(run: Run) -> bool:
    return run.task_options["kind"] == TEXT


def _text(run: Run, folder: Path, data: Path | None, console: Console | None) -> dict[str, Any]:
    corpus = corpus_of(run.task, run.task_options, data)
    tokenizer = byte_tokenizer(run.options.context)
    config = build_config(run, len(tokenizer), run.options.context)
    record = train_once(config, corpus, tokenizer, folder, run.options, console=console, label=run.key)
    tokens = {name: encode(tokenizer, getattr(corpus, name)) for name in ("validation", "test")}
    probe = EvaluationWindows(tokens["validation"], run.options.context, 4 * run.options.context)
    with quiet():
        model: Any = load_model(folder)[0]
        model.to(record.device)
        lengths = {
            str(length): loss_at(model, tokens["test"], length, LENGTH_TOKENS) for length in run.lengths
        }
        begun = [probe[i]["input_ids"][:DEAD_HEADS_TOKENS] for i in range(len(probe))]
        dead = dead_heads(model, torch.stack(begun))
    return {
        "config": record.config,
        "parameters": record.parameters,
        "data": record.data,
        "result": {
            **{name: getattr(record.result, name) for name in _KEPT},
            "validation_accuracy": None,
            "test_accuracy": None,
            "dead_heads": dead,
            "max_grad_norm": _largest(record.history),
            "lengths": lengths,
        },
        "history": record.history,
    }


_KEPT = ("validation_loss", "test_loss", "density", "tokens_per_second", "train_seconds", "wall_seconds")


def _answers(run: Run, console: Console | None) -> dict[str, Any]:
    task, tests = task_of(run.task_options)
    config = build_config(run, task.vocab_size, task.length)
    trained = replace(run.options, context=task.length)
    record, model = train_on_answers(config, task, trained, console=console, label=run.key)
    windows = task.windows("validation", 4, 0)
    with quiet():
        dead = dead_heads(model, torch.stack([windows[i]["input_ids"] for i in range(4)]))
        tested = {"tests": scores_by_size(model, tests)} if tests else {}
    return {
        "tokens": record["tokens"],
        "config": describe_config(config),
        "parameters": parameter_count(model),
        "data": None,
        "result": record["result"]
        | {"dead_heads": dead, "max_grad_norm": _largest(record["history"]), "lengths": {}}
        | tested,
        "history": record["history"],
    }


@torch.no_grad()
def dead_heads(model: PreTrainedModel, input_ids: torch.Tensor) -> int | None:
    """How many heads lock, in every row of a batch (B, N), to one sender at most; None without any SSA.

    In the nearest frame that sender is locked whatever the frequencies are, so such a head does not learn.
    """
    if not head_densities(model, input_ids[:1]):
        return None
    weights = model(input_ids=input_ids.to(model.device), output_attentions=True, use_cache=False).attentions
    return sum(int(((layer > 0).sum(-1).amax((0, 2)) <= 1).sum()) for layer in weights)


@torch.no_grad()
def loss_at(model: PreTrainedModel, tokens: torch.Tensor, length: int, count: int) -> dict[str, Any]:
    """Mean loss over the first `count` tokens of a text in windows of `length`, nats per token, and density.

    "by_position" has the loss of tokens 1 to 63 of a window, 64 to 127, 128 to 255 and so on: for each of
    these stretches the number of its first token, and the mean.

    Raises:
        UserError: the text is shorter than one window.
    """
    windows = EvaluationWindows(tokens[:count], length)
    if len(windows) == 0:
        raise UserError(f"the test text has {len(tokens)} tokens, fewer than one window of {length}")
    total = torch.zeros(length - 1, dtype=torch.float64, device="cpu")
    for index in range(len(windows)):
        ids = windows[index]["input_ids"].to(model.device)
        logits = read(model, ids)[:-1]
        total += torch.nn.functional.cross_entropy(logits.float(), ids[1:], reduction="none").double().cpu()
    losses = total / len(windows)
    begins = [1, *(FIRST_STRETCH << n for n in range(length.bit_length()) if FIRST_STRETCH << n < length)]
    stretches = zip(begins, [*begins[1:], length])
    by_position = [[begin, float(losses[begin - 1 : end - 1].mean())] for begin, end in stretches]
    ids = ids[None]
    density = None
    if head_densities(model, ids[:, :2]):
        heads = torch.stack(list(locked_density(model, input_ids=ids, use_cache=False).values()))
        density = float(heads.mean())
    return {"loss": float(losses.mean()), "density": density, "by_position": by_position}


def read(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Logits (N, vocab) of one window (N,), longer ones read in pieces, each with a cache of those before."""
    if len(ids) <= PIECE:
        return model(input_ids=ids[None], use_cache=False).logits[0]
    cache, found = None, []
    for part in ids.split(PIECE):
        out = model(input_ids=part[None], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        found.append(out.logits[0])
    return torch.cat(found)


def _largest(history: list[dict[str, Any]]) -> float | None:
    return max((entry["grad_norm"] for entry in history if entry.get("grad_norm")), default=None)
