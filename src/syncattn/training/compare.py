"""An OSN beside softmax Transformers of its size: the same text, windows, order and budget."""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from syncattn.models import count_parameters
from syncattn.training.checkpoints import load_model
from syncattn.training.contenders import Contender
from syncattn.training.data import Corpus, encode_corpus
from syncattn.training.environment import command, machine, versions
from syncattn.training.errors import Diverged, UserError
from syncattn.training.explored import explore_text
from syncattn.training.files import check_output, prepare_output, write_json, write_text
from syncattn.training.generate import encode_prompt, generate
from syncattn.training.lock import locked
from syncattn.training.once import train_once
from syncattn.training.options import Sampling, TrainingOptions
from syncattn.training.record import Record
from syncattn.training.settings import quiet
from syncattn.training.tokenizers import encode, token_labels
from syncattn.training.train import check_start

RUNS = "runs"
COMPARE_FILE = "compare.json"
RESULTS_FILE = "results.json"
REPORT_FILE = "report.html"
EXPLORER_FILE = "explorer.html"

_SENTENCE = range(24, 41)
_PROMPT = 120
_READ = 256
"""Tokens of the validation text on the explorer's page."""
_MOST_SWITCHED = 64
"""Heads up to which the model also runs without each of them, which takes as many runs."""


def compare(
    entrants: Sequence[Contender],
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    out: str | Path,
    options: TrainingOptions,
    *,
    seeds: Sequence[int] = (0,),
    prompt: str | None = None,
    sampling: Sampling | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train every entrant with every seed, and collect what there is to say about them.

    With several learning rates, each entrant first runs all of them with the first seed and keeps the one
    with the lowest validation loss. Each run has a folder of its own in `out/runs`; a comparison that was
    interrupted goes on where it stopped when it is started again with the same arguments, and runs that are
    already there with equal settings are not repeated. At the end `out/results.json` has every number
    (`report.write_report` makes a page of them), and `out/explorer.html` shows the OSN of the first seed
    reading validation text.

    Args:
        options: for all runs; `learning_rate` and `seed` come from the entrants and from `seeds`.
        prompt: what the samples go on from; None takes a piece of the validation text.
        overwrite: throw away what is in `out`.
        console: where progress goes; None is silent.

    Raises:
        UserError: bad arguments, data or output folder, a run with other settings in `out`, or all learning
            rates of an entrant diverged; `Interrupted` after Ctrl-C.
    """
    comparison = _Comparison(
        entrants, corpus, tokenizer, Path(out), options, list(dict.fromkeys(seeds)), console
    )
    with locked(comparison.out):
        comparison.check()
        encode_corpus(corpus, lambda text: encode(tokenizer, text), options.context)
        prompt = prompt_from(corpus.validation) if prompt is None else prompt
        encode_prompt(tokenizer, prompt)
        _prepare(comparison.out, entrants, options, overwrite)
        run = cache(comparison.run)  # what the grid has run, the seeds need not look up again
        rates, grid = _choose_rates(comparison, run)
        runs = _run_seeds(comparison, rates, run)
        results: dict[str, Any] = {
            "format": 1,
            "command": command(),
            "versions": versions(),
            "machine": machine(),
            "data": corpus.describe() | {"vocabulary": len(tokenizer)},
            "options": options.as_dict(),
            "tokens": options.tokens,
            "seeds": comparison.seeds,
            "learning_rate_grid": grid,
            "models": [
                _summary(
                    entrant,
                    runs[entrant.name],
                    f"{RUNS}/{_key(entrant, rates[entrant.name], comparison.seeds[0])}",
                )
                for entrant in entrants
            ],
            "prompt": prompt,
            "sentence": sentence_from(corpus.validation),
        }
        with quiet():
            for summary in results["models"]:
                model, own_tokenizer = load_model(comparison.out / summary["folder"])
                summary["sample"] = generate(
                    model, own_tokenizer, prompt, sampling or Sampling(max_new_tokens=300)
                )
                summary["weights"], results["labels"] = sentence_weights(
                    model, own_tokenizer, results["sentence"]
                )
        results["explorer"] = _explore(comparison, results)
        write_json(comparison.out / RESULTS_FILE, results)
        return results


def _explore(comparison: _Comparison, results: dict[str, Any]) -> str | None:
    """Write the explorer's page of the OSN that was trained with the first seed; its name, None if there is
    no such page, which the console is told."""
    osn = results["models"][0]
    text = prompt_from(comparison.corpus.validation, _READ * 16)  # no token is longer in the mean
    try:
        with quiet():
            model, tokenizer = load_model(comparison.out / osn["folder"])
            page, _ = explore_text(
                model,
                tokenizer,
                text,
                title="The OSN of this comparison reads validation text",
                max_tokens=min(_READ, comparison.options.context),
                switch_off=sum(len(layer) for layer in osn["weights"]) <= _MOST_SWITCHED,
                history=osn["runs"][0]["history"],
            )
    except UserError as error:
        if comparison.console is not None:
            comparison.console.print(f"no page of the explorer: {error}", highlight=False)
        return None
    write_text(comparison.out / EXPLORER_FILE, page.html)
    return EXPLORER_FILE


_Run = Callable[[Contender, float, int], Record | None]


@dataclass(frozen=True, eq=False)
class _Comparison:
    """What all runs of a comparison share; each is an entrant's, with a learning rate and a seed."""

    entrants: Sequence[Contender]
    corpus: Corpus
    tokenizer: PreTrainedTokenizerBase
    out: Path
    options: TrainingOptions
    seeds: list[int]
    console: Console | None

    def check(self) -> None:
        """Make sure, before anything is run, that every run can start.

        Raises:
            UserError: one cannot.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("compare runs in one process; train is the command for several devices")
        if not self.seeds:
            raise UserError("no seed given: expected at least one")
        for entrant in self.entrants:
            check_start(entrant.config, self.tokenizer, self.options)
            for rate, seed in product(entrant.learning_rates, self.seeds):
                try:
                    replace(self.options, learning_rate=rate, seed=seed)
                except UserError as error:
                    raise UserError(f"{entrant.title}: {error}") from error

    def run(self, entrant: Contender, rate: float, seed: int) -> Record | None:
        """One run's record; None if it diverged."""
        key = _key(entrant, rate, seed)
        options = replace(self.options, learning_rate=rate, seed=seed)
        try:
            return train_once(
                entrant.config,
                self.corpus,
                self.tokenizer,
                self.out / RUNS / key,
                options,
                console=self.console,
                label=key,
            )
        except Diverged as error:
            if self.console is not None:
                self.console.print(f"{key}: {error}", highlight=False)
            return None


def _choose_rates(
    comparison: _Comparison, run: _Run
) -> tuple[dict[str, float], dict[str, list[dict[str, Any]]]]:
    """Each entrant's learning rate, by its name; and of those that had several, the loss with each.

    Raises:
        UserError: an entrant diverged with all of them.
    """
    chosen: dict[str, float] = {}
    grid: dict[str, list[dict[str, Any]]] = {}
    for entrant in comparison.entrants:
        rates = entrant.learning_rates
        if len(rates) == 1:
            chosen[entrant.name] = rates[0]
            continue
        tried = {rate: run(entrant, rate, comparison.seeds[0]) for rate in rates}
        losses = {rate: record.result.validation_loss for rate, record in tried.items() if record}
        if not losses:
            raise UserError(f"{entrant.title} diverged with every learning rate: {rates}")
        chosen[entrant.name] = min(losses, key=lambda rate: losses[rate])
        grid[entrant.name] = [{"learning_rate": rate, "validation_loss": losses.get(rate)} for rate in rates]
        if comparison.console is not None:
            comparison.console.print(
                f"{entrant.title}: learning rate {chosen[entrant.name]:g} of {len(tried)} tried"
            )
    return chosen, grid


def _run_seeds(comparison: _Comparison, rates: dict[str, float], run: _Run) -> dict[str, list[Record]]:
    """Each entrant's runs with its learning rate, one for each seed.

    Raises:
        UserError: one diverged.
    """
    runs: dict[str, list[Record]] = {entrant.name: [] for entrant in comparison.entrants}
    for seed in comparison.seeds:
        for entrant in comparison.entrants:
            rate = rates[entrant.name]
            record = run(entrant, rate, seed)
            if record is None:
                raise UserError(
                    f"{entrant.title} diverged with learning rate {rate:g} and seed {seed}; lower it"
                )
            runs[entrant.name].append(record)
    return runs


def sentence_weights(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentence: str
) -> tuple[list[list[list[list[float]]]], list[str]]:
    """Each head's weights on one sentence, nested lists (layer, head, N, N), and a label for each token."""
    ids = tokenizer(sentence, add_special_tokens=False)["input_ids"][: max(_SENTENCE)]
    with torch.no_grad():
        output = model(input_ids=torch.tensor([ids]), output_attentions=True, use_cache=False)
    weights = [  # three digits of each, never rounded to 0
        [[[float(f"{w:.3g}") for w in row] for row in head] for head in layer[0].tolist()]
        for layer in output.attentions
    ]
    return weights, token_labels(tokenizer, ids)


def sentence_from(text: str) -> str:
    """A line of about 24 to 40 characters with several words, from the middle of a text on."""
    middle = len(text) // 2
    lines = (text[middle:] + "\n" + text[:middle]).splitlines()[1:]
    for line in lines:
        line = line.strip()
        letters = sum(character.isalpha() or character == " " for character in line)
        if len(line) in _SENTENCE and line.count(" ") >= 3 and letters >= 0.9 * len(line):
            return line
    return text[middle : middle + max(_SENTENCE)]


def prompt_from(text: str, characters: int = _PROMPT) -> str:
    """The lines after the middle of a text, 120 characters of them, to be continued."""
    start = text.find("\n", len(text) // 2) + 1
    return text[start : start + characters] or text[:characters]


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (of the sample, n - 1); None for the deviation of a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def _prepare(out: Path, entrants: Sequence[Contender], options: TrainingOptions, overwrite: bool) -> None:
    """Refuse or make the folder; one with `compare.json` is a comparison's, to be gone on with."""
    known = (out / COMPARE_FILE).is_file()
    if not known or overwrite:
        check_output(out, overwrite=overwrite, resumes=False)
    if overwrite and known:
        shutil.rmtree(out / RUNS, ignore_errors=True)
        for name in (RESULTS_FILE, REPORT_FILE, EXPLORER_FILE):
            (out / name).unlink(missing_ok=True)
    largest = max(count_parameters(entrant.config) for entrant in entrants)
    prepare_output(out, 12 * 4 * largest + 10_000_000, overwrite=True)
    (out / RUNS).mkdir(exist_ok=True)
    write_json(out / COMPARE_FILE, {"format": 1, "command": command(), "options": options.as_dict()})


def _key(entrant: Contender, rate: float, seed: int) -> str:
    short = f"{rate:g}"
    if float(short) != rate:  # two rates that are near would share a folder
        short = repr(rate)
    return f"{entrant.name}-lr{short}-seed{seed}"


def _summary(entrant: Contender, runs: list[Record], folder: str) -> dict[str, Any]:
    """What the table and the report say about one entrant; the runs in full are part of it."""
    results = [run.result for run in runs]
    loss, spread = mean_and_spread([result.validation_loss for result in results])
    test, test_spread = mean_and_spread([result.test_loss for result in results])
    densities = [value for result in results for layer in result.density for value in layer]
    partners = [value for result in results for layer in result.partners for value in layer]
    return {
        "name": entrant.name,
        "title": entrant.title,
        "parameters": runs[0].parameters,
        "learning_rate": runs[0].options["learning_rate"],
        "validation_loss": loss,
        "validation_spread": spread,
        "test_loss": test,
        "test_spread": test_spread,
        "density": statistics.fmean(densities) if densities else None,
        "partners": statistics.fmean(partners) if partners else None,
        "tokens_per_second": statistics.fmean(result.tokens_per_second for result in results),
        "wall_seconds": statistics.fmean(result.wall_seconds for result in results),
        "folder": folder,
        "runs": [run.to_json() for run in runs],
    }
