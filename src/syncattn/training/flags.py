"""The options that `train` and `compare` share, with their help."""

from typing import Annotated

import typer

Texts = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="TEXT...",
        help="Files, folders, or the built-in corpora 'stdlib' and 'pydoc'.",
        show_default=False,
    ),
]
MaxChars = Annotated[
    int | None,
    typer.Option(
        help="Read this many characters of TEXT at most.", show_default=False, rich_help_panel="Text"
    ),
]
Validation = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Validate with this file, folder or built-in corpus.",
        show_default="a part of TEXT",
        rich_help_panel="Text",
    ),
]
Test = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Test with this file, folder or built-in corpus.",
        show_default="a part of TEXT",
        rich_help_panel="Text",
    ),
]
Encoding = Annotated[
    str, typer.Option(metavar="NAME", help="How all files are encoded.", rich_help_panel="Text")
]
SkipUndecodable = Annotated[
    bool,
    typer.Option(
        "--skip-undecodable",
        help="Leave out files that are no text in that encoding, and say which.",
        rich_help_panel="Text",
    ),
]
TokenizerOption = Annotated[
    str,
    typer.Option(
        "--tokenizer",
        help="'byte', 'char', or the path of a tokenizer on this machine.",
        rich_help_panel="Text",
    ),
]
HiddenSize = Annotated[int, typer.Option(help="Width of the model.", rich_help_panel="Model")]
Layers = Annotated[int, typer.Option(help="Number of blocks.", rich_help_panel="Model")]
Heads = Annotated[int, typer.Option(help="Attention heads per block.", rich_help_panel="Model")]
FreqDim = Annotated[
    int | None,
    typer.Option(
        help="Coordinates of a frequency.", show_default="16, at most a head's width", rich_help_panel="Model"
    ),
]
Paper = Annotated[bool, typer.Option("--paper", help="The published formulation.", rich_help_panel="Model")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Any other field of OSNConfig, its value as JSON: --set delay=0.25 --set 'window_range=[2,32]'.",
        show_default=False,
        rich_help_panel="Model",
    ),
]
Context = Annotated[int, typer.Option(help="Tokens per window.", rich_help_panel="Training")]
BatchSize = Annotated[int, typer.Option(help="Windows per step.", rich_help_panel="Training")]
Steps = Annotated[int, typer.Option(help="Optimiser steps.", rich_help_panel="Training")]
Tokens = Annotated[
    int | None,
    typer.Option(
        help="A budget of training tokens, instead of --steps.",
        show_default=False,
        rich_help_panel="Training",
    ),
]
WeightDecay = Annotated[float, typer.Option(help="AdamW's weight decay.", rich_help_panel="Training")]
Warmup = Annotated[
    int | None,
    typer.Option(help="Steps of warm-up.", show_default="5 % of the steps", rich_help_panel="Training"),
]
LogEvery = Annotated[
    int | None,
    typer.Option(
        help="Steps between logs; if given, each is a line on the screen.",
        show_default="a 50th of the run",
        rich_help_panel="Training",
    ),
]
EvalEvery = Annotated[
    int | None,
    typer.Option(
        help="Steps between evaluations.", show_default="a tenth of the run", rich_help_panel="Training"
    ),
]
SaveEvery = Annotated[
    int | None,
    typer.Option(
        help="Steps between checkpoints.", show_default="a 5th of the run", rich_help_panel="Training"
    ),
]
FinalEvalTokens = Annotated[
    int,
    typer.Option(
        help="Tokens of the last evaluation, evenly spaced over the validation and the test text; 0 is all.",
        rich_help_panel="Training",
    ),
]
Precision = Annotated[
    str, typer.Option(help="'fp32', or 'bf16' for mixed precision.", rich_help_panel="Training")
]
Device = Annotated[str, typer.Option(help="'auto', 'cpu' or 'cuda'.", rich_help_panel="Training")]
Backend = Annotated[
    str | None,
    typer.Option(
        help="The backend of all synchronization layers, such as 'triton'; see `syncattn doctor`.",
        show_default="the first that can",
        rich_help_panel="Training",
    ),
]
Threads = Annotated[
    int | None, typer.Option(help="CPU threads.", show_default="PyTorch's choice", rich_help_panel="Training")
]
Calibrate = Annotated[
    bool,
    typer.Option(
        help="Set bandwidths and couplings from the first batch, so that tokens lock.",
        rich_help_panel="Training",
    ),
]
MaxDensity = Annotated[
    float,
    typer.Option(
        help="The mean share of pairs that may lock in a layer while training; 1 sets no limit.",
        rich_help_panel="Training",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run left in --out.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
