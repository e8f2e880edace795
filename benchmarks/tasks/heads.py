"""What the heads of a study's models do while they copy: weights, and how many lie on the place to copy from.

    python benchmarks/tasks/heads.py benchmarks/tasks/plan.toml KEY [KEY ...] --out heads.png [--models DIR]

KEY is a run of the plan on a task of the kind "copy" or "reverse", such as longer/copy/osn/lr0.004/seed0.
It is trained again, as the plan says, unless DIR has its model; there it is kept. For each run: weights of
every head on one window of 24 symbols (rows: the tokens that answer; columns: all that they hear; red: the
place to copy from). On the right the share of weight on it, in the best head, by symbols.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import PowerNorm
from transformers import AutoModelForCausalLM, PreTrainedModel

from syncattn.drawing import PAGES, canvas, png
from syncattn.training.errors import UserError
from syncattn.training.settings import quiet
from syncattn_lab.study.answers import train_on_answers
from syncattn_lab.study.plan import Run, build_config, read_plan
from syncattn_lab.study.synthetic import make_task
from syncattn_lab.study.varied import task_of

SHOWN = 24
SYMBOLS = (16, 32, 64, 128, 256, 512)
PLACES = {"copy": lambda n: torch.arange(n), "reverse": lambda n: torch.arange(n).flip(0)}
"""By kind: which symbol each answer is."""


def trained(run: Run, models: Path | None) -> PreTrainedModel:
    """A run's model, from the folder or trained."""
    folder = models / run.key.replace("/", "--") if models is not None else None
    if folder is not None and folder.is_dir():
        with quiet():
            return AutoModelForCausalLM.from_pretrained(folder).eval()
    task, _ = task_of(run.task_options)
    config = build_config(run, task.vocab_size, task.length)
    options = replace(run.options, context=task.length)
    _, model = train_on_answers(config, task, options, label=run.key)
    if folder is not None:
        model.save_pretrained(folder)
    return model.eval()


@torch.no_grad()
def answers(model: PreTrainedModel, run: Run, symbols: int) -> np.ndarray:
    """Weights of the tokens that answer, (layers, heads, symbols, N), on a test window of so many symbols."""
    options = {k: v for k, v in run.task_options.items() if k not in ("kind", "train", "tests", "symbols")}
    task = make_task(run.task_options["kind"], **options, symbols=symbols)
    ids = task.windows("test", 1, 1)[0]["input_ids"][None]
    found = model(input_ids=ids, output_attentions=True, use_cache=False).attentions
    return np.stack([layer[0, :, -symbols - 1 : -1].numpy() for layer in found])


def on_place(weights: np.ndarray, kind: str) -> float:
    """The mean weight on the place to copy from, in the head that has most of it."""
    symbols = weights.shape[2]
    return float(weights[:, :, np.arange(symbols), PLACES[kind](symbols).numpy()].mean(-1).max())


def draw(runs: list[tuple[Run, np.ndarray, list[float]]]) -> bytes:
    """Two rows for each run, its layers, and beside them the share of weight by length."""
    layers, heads = runs[0][1].shape[:2]
    rows = layers * len(runs)
    page = PAGES["light"]
    with canvas("light", 2.2 * heads + 3.4, 1.35 * rows + 0.5, layout="constrained") as figure:
        grid = figure.add_gridspec(rows, heads + 1, width_ratios=[1] * heads + [1.3])
        for index, (run, weights, shares) in enumerate(runs):
            kind = run.task_options["kind"]
            places = PLACES[kind](SHOWN).numpy()
            for layer in range(layers):
                for head in range(heads):
                    axes = figure.add_subplot(grid[index * layers + layer, head])
                    axes.set_facecolor(page["zero"])
                    shown = np.ma.masked_equal(weights[layer, head], 0)
                    axes.imshow(shown, norm=PowerNorm(0.5, 0, 1), cmap="Blues", interpolation="nearest")
                    axes.plot(places, np.arange(SHOWN), ".", ms=1.6, color="#c0392b")
                    axes.set(xticks=[], yticks=[])
                    if layer == head == 0:
                        axes.set_title(run.title, fontsize=8.5, loc="left")
                    if head == 0:
                        axes.set_ylabel(f"layer {layer + 1}", fontsize=8)
            axes = figure.add_subplot(grid[index * layers : (index + 1) * layers, heads])
            axes.plot(SYMBOLS[: len(shares)], shares, marker="o", ms=3.5, color="#147d8a")
            axes.set(xscale="log", ylim=(-0.03, 1.03))
            axes.set_xticks(SYMBOLS, [str(each) for each in SYMBOLS], fontsize=7)
            axes.minorticks_off()
            axes.axvspan(SYMBOLS[0] / 1.3, 64, color=page["faint"], alpha=0.35, lw=0)
            axes.set_ylabel("weight on the place", fontsize=8)
            axes.set_xlabel("symbols", fontsize=8)
        return png(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", type=Path)
    parser.add_argument("keys", nargs="+", metavar="KEY")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", type=Path, help="a folder for the models")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        plan = {run.key: run for run in read_plan(arguments.plan).runs}
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    found = []
    for key in arguments.keys:
        if key not in plan or plan[key].task_options["kind"] not in PLACES:
            raise SystemExit(f"error: KEY must be a run of the plan on {' or '.join(PLACES)}, got {key!r}")
        run = plan[key]
        model = trained(run, arguments.models)
        shares = [on_place(answers(model, run, n), run.task_options["kind"]) for n in SYMBOLS]
        print(json.dumps({"key": key, "weight on the place": dict(zip(SYMBOLS, shares))}), flush=True)
        found.append((run, answers(model, run, SHOWN), shares))
    arguments.out.write_bytes(draw(found))


if __name__ == "__main__":
    main()
