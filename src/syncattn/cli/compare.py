"""The command `syncattn compare`. Heavy imports are inside, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from syncattn.cli.given import (
    Budget,
    Manners,
    ModelOptions,
    TextOptions,
    config_of,
    noting_unknown,
    read_corpus,
    refuse,
    refuse_limits,
    tokenizer_of,
    training_options,
)
from syncattn.cli.options import Panel, Written, command
from syncattn.cli.show import show_comparison
from syncattn.option import option
from syncattn.starting import loading
from syncattn.training.errors import UserError
from syncattn.training.options import TrainingOptions, numbers


@dataclass(frozen=True)
class Comparison:
    """What is compared, and where it goes."""

    out: Path | None = option(None, "A folder for all runs and the report.")
    baseline: str = option("rotary", "The Transformer's position: 'alibi', 'rotary' or 'both'.")
    baseline_delay: float | None = option(
        None, "Fraction of the Transformer's heads that read the key of the token before.", shown="the OSN's"
    )
    baseline_token_shift: bool | None = option(
        None, "Whether the Transformer mixes tokens with the one before.", shown="the OSN's"
    )
    baseline_settings: list[str] | None = option(
        None,
        "Any other field of TransformerConfig, its value as JSON: --baseline-set qk_norm=true.",
        flag="--baseline-set",
        metavar="NAME=VALUE",
    )
    seeds: str = option("0", "Seeds, as a list: 0,1,2.")
    learning_rate: float = option(6e-3, "Peak learning rate of all models.", flag="--lr")
    baseline_learning_rate: float | None = option(
        None, "The Transformer's own.", flag="--baseline-lr", shown="that of --lr"
    )
    lr_grid: str | None = option(
        None,
        "Learning rates to try for every model, as a list: 0.001,0.003. Each keeps the one with the lowest "
        "validation loss with the first seed.",
    )
    prompt: str | None = option(None, "What the samples go on from.", shown="a piece of the validation text")

    def rates(self) -> tuple[list[float], list[float] | None]:
        """The learning rates to try, and the Transformers' where they have their own."""
        own = None if self.baseline_learning_rate is None else [self.baseline_learning_rate]
        if self.lr_grid is None:
            return [self.learning_rate], own
        found = numbers("--lr-grid", self.lr_grid, float)
        if own is not None:
            raise UserError("--baseline-lr and --lr-grid exclude each other")
        return found, None


_TRAINING = Panel("Training", without=("learning_rate", "seed"), defaults={"final_eval_tokens": 100_000})


@command
def compare_command(
    comparison: Comparison,
    text: Annotated[TextOptions, Panel("Text")],
    model: Annotated[ModelOptions, Panel("Model")],
    training: Annotated[partial[TrainingOptions], _TRAINING],
    budget: Annotated[Budget, Panel("Training")],
    manners: Manners,
    written: Written,
) -> None:
    """Train an OSN and softmax Transformers of its size on the same data, and write a report.

    Started again with the same options, it goes on where it stopped and repeats no finished run.
    """
    out, console = comparison.out, manners.console()
    if out is None:
        raise UserError("--out is missing: expected a folder for the runs and the report")
    rates, own_rates = comparison.rates()
    if comparison.lr_grid is not None:
        refuse(written, {"learning_rate"}, "--lr-grid says which learning rates are tried")
    seeds = numbers("--seeds", comparison.seeds, int)
    options = training_options(training, budget, written, learning_rate=rates[0], seed=seeds[0])
    with loading("the text and PyTorch", quiet=manners.quiet):
        corpus = read_corpus(text, console)
        from syncattn.training.compare import REPORT_FILE, compare
        from syncattn.training.contenders import contenders
        from syncattn.training.report import write_report
    tokenizer = tokenizer_of(text, corpus, options.context)
    names = ("alibi", "rotary") if comparison.baseline == "both" else (comparison.baseline,)
    corpus = noting_unknown(corpus, tokenizer, console)
    config = config_of(model, tokenizer, options.context)
    refuse_limits(written, config, options)
    results = compare(
        contenders(
            *(config, names, rates, own_rates, comparison.baseline_delay, comparison.baseline_token_shift),
            baseline_settings=comparison.baseline_settings or (),
        ),
        corpus,
        tokenizer,
        out,
        options,
        seeds=seeds,
        prompt=comparison.prompt,
        overwrite=manners.overwrite,
        console=console,
    )
    write_report(results, out / REPORT_FILE)
    show_comparison(results, out / REPORT_FILE)
