"""The command line. What needs more than typer is imported by the commands, so that `--help` is quick."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from syncattn.bench.command import bench_command
from syncattn.doctor import doctor_command
from syncattn.paper.command import paper_command
from syncattn.study.command import study_command
from syncattn.training.flags import (
    Backend,
    BatchSize,
    Calibrate,
    Context,
    Device,
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
    Steps,
    Texts,
    Threads,
    TokenizerOption,
    Tokens,
    Warmup,
    WeightDecay,
)
from syncattn.training.show import show_comparison, show_run

if TYPE_CHECKING:
    from syncattn.training.data import Corpus
    from syncattn.training.options import TrainingOptions

app = typer.Typer(
    name="syncattn",
    help="Selective Synchronization Attention: train, compare and use Oscillatory Synchronization Networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command("train")
def train_command(
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
    tokenizer: TokenizerOption = "byte",
    max_chars: MaxChars = None,
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
    with user_errors():
        from rich.console import Console

        from syncattn.training.errors import UserError
        from syncattn.training.files import check_output

        first = os.environ.get("RANK", "0") == "0"  # of several processes, one speaks
        console = Console() if first and not quiet else None
        if resume is not None:
            if texts or out is not None:
                raise UserError(
                    "--resume takes the text and the folder from the run itself: leave out TEXT and --out"
                )
            from syncattn.training.train import resume as resume_run

            record = resume_run(resume, console)
            out = resume.absolute()
            if not (out / "training.json").is_file():
                out = out.parent.parent
        else:
            if out is None:
                raise UserError("--out is missing: expected a new folder for the model")
            if first:  # a process that comes later finds what this one has written
                check_output(out, overwrite=overwrite)
            options = _options(
                tokens,
                context=context,
                batch_size=batch_size,
                steps=steps,
                learning_rate=learning_rate,
                weight_decay=weight_decay,
                warmup=warmup,
                seed=seed,
                log_every=log_every,
                eval_every=eval_every,
                save_every=save_every,
                final_eval_tokens=final_eval_tokens,
                precision=precision,
                device=device,
                backend=backend,
                threads=threads,
                calibrate=calibrate,
                max_density=max_density,
            )
            corpus = _corpus(texts, max_chars, console)
            from syncattn.training.settings import make_config
            from syncattn.training.tokenizers import make_tokenizer
            from syncattn.training.train import train

            made = make_tokenizer(tokenizer, corpus.train + corpus.validation + corpus.test, context)
            config = make_config(made, context, hidden_size, layers, heads, freq_dim, paper, settings)
            record = train(config, corpus, made, out, options, overwrite=overwrite, console=console)
        if first:
            show_run(record, out)


@app.command("compare")
def compare_command(
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
    with user_errors():
        from rich.console import Console

        from syncattn.training.errors import UserError
        from syncattn.training.options import numbers

        first = os.environ.get("RANK", "0") == "0"  # of several processes, one speaks
        console = Console() if first and not quiet else None
        if out is None:
            raise UserError("--out is missing: expected a folder for the runs and the report")
        rates = [learning_rate] if lr_grid is None else numbers("--lr-grid", lr_grid, float)
        if lr_grid is not None and baseline_learning_rate is not None:
            raise UserError("--baseline-lr and --lr-grid exclude each other")
        own_rates = None if baseline_learning_rate is None else [baseline_learning_rate]
        seed_list = numbers("--seeds", seeds, int)
        options = _options(
            tokens,
            context=context,
            batch_size=batch_size,
            steps=steps,
            learning_rate=rates[0],
            weight_decay=weight_decay,
            warmup=warmup,
            seed=seed_list[0],
            log_every=log_every,
            eval_every=eval_every,
            save_every=save_every,
            final_eval_tokens=final_eval_tokens,
            precision=precision,
            device=device,
            backend=backend,
            threads=threads,
            calibrate=calibrate,
            max_density=max_density,
        )
        corpus = _corpus(texts, max_chars, console)
        from syncattn.training.compare import REPORT_FILE, compare, contenders
        from syncattn.training.report import write_report
        from syncattn.training.settings import make_config
        from syncattn.training.tokenizers import make_tokenizer

        made = make_tokenizer(tokenizer, corpus.train + corpus.validation + corpus.test, context)
        config = make_config(made, context, hidden_size, layers, heads, freq_dim, paper, settings)
        names = ("alibi", "rotary") if baseline == "both" else (baseline,)
        entrants = contenders(config, names, rates, own_rates, baseline_delay)
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


@app.command("generate")
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
    with user_errors():
        from syncattn.training.checkpoints import load_model
        from syncattn.training.generate import Sampling, generate
        from syncattn.training.train import quiet

        sampling = Sampling(max_new_tokens, temperature, top_k, greedy, seed)
        with quiet():
            model, tokenizer = load_model(folder)
            text = generate(model, tokenizer, prompt, sampling)
        typer.echo(prompt + text)


app.command("bench")(bench_command)
app.command("paper")(paper_command)
app.command("study")(study_command)
app.command("doctor")(doctor_command)


@contextmanager
def user_errors() -> Iterator[None]:
    """What a user can mend becomes a line on stderr and exit code 1 (Ctrl-C: 130); bugs keep their trace."""
    from syncattn.training.errors import Interrupted, UserError

    try:
        yield
    except UserError as error:
        print(f"syncattn: {error}", file=sys.stderr)
        raise typer.Exit(130 if isinstance(error, Interrupted) else 1) from None
    except ModuleNotFoundError as error:
        if not error.name or error.name.startswith("syncattn"):
            raise
        extra = "paper" if error.name.partition(".")[0] == "scipy" else "train"
        print(
            f"syncattn: this command needs '{error.name}': install syncattn with its '{extra}' extra",
            file=sys.stderr,
        )
        raise typer.Exit(1) from None


def _options(tokens: int | None, **fields: Any) -> TrainingOptions:
    from syncattn.training.options import TrainingOptions

    warmup = fields.pop("warmup")  # its bound is known when the steps are
    options = TrainingOptions(**fields)
    return replace(options if tokens is None else options.for_tokens(tokens), warmup=warmup)


def _corpus(texts: list[str] | None, max_chars: int | None, console: Any) -> Corpus:
    from syncattn.training.data import load_corpus

    corpus = load_corpus(texts or [], max_chars)
    if console is not None:
        for note in corpus.notes:
            console.print(note, highlight=False, soft_wrap=True)
    return corpus
