"""The commands train, compare and generate. Heavy imports are inside, so that `--help` is quick."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from syncattn.starting import loading
from syncattn.terminal import fold
from syncattn.training.flags import (
    Backend,
    BatchSize,
    Calibrate,
    Context,
    Device,
    Encoding,
    EvalEvery,
    FinalEvalTokens,
    FreqDim,
    Heads,
    HiddenSize,
    Layers,
    LogEvery,
    MaxChars,
    MaxDensity,
    Overwrite,
    Paper,
    Precision,
    Quiet,
    SaveEvery,
    Settings,
    SkipUndecodable,
    Steps,
    Test,
    Texts,
    Threads,
    TokenizerOption,
    Tokens,
    Validation,
    Warmup,
    WeightDecay,
)
from syncattn.training.given import (
    config_of,
    given_options,
    model_of,
    read_corpus,
    refuse,
    tokenizer_of,
    training_options,
    unknown_characters,
)
from syncattn.training.show import show_comparison, show_run

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from syncattn.training.data import Corpus


def train_command(
    ctx: typer.Context,
    texts: Texts = None,
    out: Annotated[Path | None, typer.Option(help="A new folder for the model.", show_default=False)] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Go on with the unfinished run in this folder, or from one of its checkpoints, as it was "
            "begun.",
            show_default=False,
        ),
    ] = None,
    init_from: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL",
            help="Begin with the weights, the shape and the tokenizer of the model in this folder, not from "
            "scratch.",
            show_default=False,
        ),
    ] = None,
    tokenizer: TokenizerOption = "byte",
    max_chars: MaxChars = None,
    validation: Validation = None,
    test: Test = None,
    encoding: Encoding = "utf-8",
    skip_undecodable: SkipUndecodable = False,
    hidden_size: HiddenSize = 96,
    layers: Layers = 2,
    heads: Heads = 4,
    freq_dim: FreqDim = None,
    paper: Paper = False,
    settings: Settings = None,
    context: Context = 128,
    batch_size: BatchSize = 16,
    steps: Steps = 1200,
    tokens: Tokens = None,
    learning_rate: Annotated[
        float,
        typer.Option("--lr", help="Peak learning rate; the schedule is cosine.", rich_help_panel="Training"),
    ] = 6e-3,
    weight_decay: WeightDecay = 0.1,
    warmup: Warmup = None,
    seed: Annotated[
        int, typer.Option(help="Of weights, data order and dropout.", rich_help_panel="Training")
    ] = 0,
    log_every: LogEvery = None,
    eval_every: EvalEvery = None,
    save_every: SaveEvery = None,
    final_eval_tokens: FinalEvalTokens = 0,
    precision: Precision = "fp32",
    device: Device = "auto",
    backend: Backend = None,
    threads: Threads = None,
    calibrate: Calibrate = True,
    max_density: MaxDensity = 0.1,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train an OSN on text; Ctrl-C leaves a checkpoint that --resume goes on from."""
    from syncattn.cli import user_errors

    with user_errors():
        from syncattn.training.errors import UserError

        given = given_options(ctx)
        console = _console(quiet)
        if resume is not None:
            refuse(given, set(given) - {"resume", "quiet"}, "--resume goes on with a run as it was begun")
            with loading(quiet=quiet):
                from syncattn.training.train import resume as resume_run
            record = resume_run(resume, console)
            out = resume.absolute()
            if not (out / "training.json").is_file():
                out = out.parent.parent
        else:
            if out is None:
                raise UserError("--out is missing: expected a new folder for the model")
            record = _train(ctx.params, given, out, console)
        if _speaks():
            show_run(record, out)


def _train(
    values: dict[str, Any], given: dict[str, str], out: Path, console: Console | None
) -> dict[str, Any]:
    """A run from its beginning; the record."""
    from syncattn.training.errors import UserError
    from syncattn.training.files import check_output

    init_from: Path | None = values["init_from"]
    changed: dict[str, Any] = {"init_from": None}
    if init_from is not None:
        shape = {"hidden_size", "layers", "heads", "freq_dim", "paper", "settings"}
        shape |= {"calibrate"} & given.keys() if values["calibrate"] else set()
        refuse(given, shape, "--init-from takes the model as it is")
        if not init_from.is_dir():
            raise UserError(f"--init-from must be the folder of a model, got {str(init_from)!r}")
        if init_from.resolve() == out.resolve():
            raise UserError(
                f"--init-from and --out are the same folder: expected a new one for --out, got {out}"
            )
        changed = {"init_from": str(init_from.absolute()), "calibrate": False}
    if _speaks():  # a process that comes later finds what this one has written
        check_output(out, overwrite=values["overwrite"])
    options = training_options(values, given, **changed)
    with loading("the text and PyTorch", quiet=values["quiet"]):
        corpus = read_corpus(values)
        _say(console, corpus.notes)
        from syncattn.training.train import train
    if init_from is None:
        tokenizer = tokenizer_of(values, corpus)
        config: PreTrainedConfig = config_of(values, tokenizer)
    else:
        config, tokenizer = model_of(init_from, values, given)
        if "context" not in given and (length := getattr(config, "max_position_embeddings", None)):
            options = training_options(values, given, **changed, context=length)
        _say(console, [f"weights, shape and tokenizer of {init_from}; context {options.context}"])
    corpus = _noting_unknown(corpus, tokenizer, console)
    return train(config, corpus, tokenizer, out, options, overwrite=values["overwrite"], console=console)


def compare_command(
    ctx: typer.Context,
    texts: Texts = None,
    out: Annotated[
        Path | None, typer.Option(help="A folder for all runs and the report.", show_default=False)
    ] = None,
    baseline: Annotated[
        str, typer.Option(help="The Transformer's position: 'alibi', 'rotary' or 'both'.")
    ] = "rotary",
    baseline_delay: Annotated[
        float, typer.Option(help="Fraction of the Transformer's heads that read the key of the token before.")
    ] = 0.0,
    seeds: Annotated[str, typer.Option(help="Seeds, as a list: 0,1,2.")] = "0",
    learning_rate: Annotated[float, typer.Option("--lr", help="Peak learning rate of all models.")] = 6e-3,
    baseline_learning_rate: Annotated[
        float | None,
        typer.Option("--baseline-lr", help="The Transformer's own.", show_default="that of --lr"),
    ] = None,
    lr_grid: Annotated[
        str | None,
        typer.Option(
            help="Learning rates to try for every model, as a list: 0.001,0.003. Each keeps the one with the "
            "lowest validation loss with the first seed.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="What the samples go on from.", show_default="a piece of the validation text"),
    ] = None,
    tokenizer: TokenizerOption = "byte",
    max_chars: MaxChars = None,
    validation: Validation = None,
    test: Test = None,
    encoding: Encoding = "utf-8",
    skip_undecodable: SkipUndecodable = False,
    hidden_size: HiddenSize = 96,
    layers: Layers = 2,
    heads: Heads = 4,
    freq_dim: FreqDim = None,
    paper: Paper = False,
    settings: Settings = None,
    context: Context = 128,
    batch_size: BatchSize = 16,
    steps: Steps = 1200,
    tokens: Tokens = None,
    weight_decay: WeightDecay = 0.1,
    warmup: Warmup = None,
    log_every: LogEvery = None,
    eval_every: EvalEvery = None,
    save_every: SaveEvery = None,
    final_eval_tokens: FinalEvalTokens = 100_000,
    precision: Precision = "fp32",
    device: Device = "auto",
    backend: Backend = None,
    threads: Threads = None,
    calibrate: Calibrate = True,
    max_density: MaxDensity = 0.1,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train an OSN and softmax Transformers of its size on the same data, and write a report.

    Started again with the same options, it goes on where it stopped and repeats no finished run.
    """
    from syncattn.cli import user_errors

    with user_errors():
        from syncattn.training.errors import UserError
        from syncattn.training.options import numbers

        console = _console(quiet)
        if out is None:
            raise UserError("--out is missing: expected a folder for the runs and the report")
        rates = [learning_rate] if lr_grid is None else numbers("--lr-grid", lr_grid, float)
        if lr_grid is not None and baseline_learning_rate is not None:
            raise UserError("--baseline-lr and --lr-grid exclude each other")
        own_rates = None if baseline_learning_rate is None else [baseline_learning_rate]
        seed_list = numbers("--seeds", seeds, int)
        options = training_options(ctx.params, given_options(ctx), learning_rate=rates[0], seed=seed_list[0])
        with loading("the text and PyTorch", quiet=quiet):
            corpus = read_corpus(ctx.params)
            _say(console, corpus.notes)
            from syncattn.training.compare import REPORT_FILE, compare, contenders
            from syncattn.training.report import write_report
        made = tokenizer_of(ctx.params, corpus)
        names = ("alibi", "rotary") if baseline == "both" else (baseline,)
        corpus = _noting_unknown(corpus, made, console)
        entrants = contenders(config_of(ctx.params, made), names, rates, own_rates, baseline_delay)
        results = compare(
            entrants,
            corpus,
            made,
            out,
            options,
            seeds=seed_list,
            prompt=prompt,
            overwrite=overwrite,
            console=console,
        )
        write_report(results, out / REPORT_FILE)
        show_comparison(results, out / REPORT_FILE)


def generate_command(
    folder: Annotated[Path, typer.Argument(help="A folder that `syncattn train` wrote.", show_default=False)],
    prompt: Annotated[str, typer.Option(help="What to go on from.", show_default=False)],
    max_new_tokens: Annotated[int, typer.Option(help="Length of the continuation.")] = 200,
    temperature: Annotated[float, typer.Option(help="Below 1 is more cautious.")] = 0.8,
    top_k: Annotated[
        int | None, typer.Option(help="Sample among the likeliest tokens only.", show_default="all")
    ] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always take the likeliest token.")] = False,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
) -> None:
    """Write text with a trained model."""
    from syncattn.cli import user_errors

    with user_errors():
        with loading():
            from syncattn.training.checkpoints import load_model
            from syncattn.training.generate import Sampling, generate
            from syncattn.training.train import quiet

        sampling = Sampling(max_new_tokens, temperature, top_k, greedy, seed)
        with quiet():
            model, tokenizer = load_model(folder)
            text = generate(model, tokenizer, prompt, sampling)
        typer.echo(prompt + text)


def _speaks() -> bool:
    """Of several processes, one speaks."""
    return os.environ.get("RANK", "0") == "0"


def _console(quiet: bool) -> Console | None:
    from rich.console import Console

    return Console() if _speaks() and not quiet else None


def _noting_unknown(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, console: Console | None) -> Corpus:
    unknown = unknown_characters(tokenizer, corpus)
    _say(console, unknown)
    return replace(corpus, notes=(*corpus.notes, *unknown))


def _say(console: Console | None, lines: Iterable[str]) -> None:
    if console is not None:
        for line in lines:
            columns = console.width if console.is_terminal else None
            folded = fold(line.split(" "), columns, between=" ")
            console.print(folded, highlight=False, markup=False, soft_wrap=True)
