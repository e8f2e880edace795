"""What the heads of a study's models do while they copy: weights, and how many lie on the place to copy from.

    python benchmarks/tasks/heads.py benchmarks/tasks/plan.toml KEY [KEY ...] --out heads.png [--models DIR]

KEY is a run of the plan on a task of the kind "copy", "reverse", "selective" or "sort", such as
longer/copy/osn/lr0.004/seed0; all of one kind. It is trained again, as the plan says, unless DIR has its
model; there it is kept. For each run: weights of every head on one window (rows: the tokens that answer;
columns: all that they hear; red: the place to copy from). On the right the share of weight on it, in the best
head, by size; of "sort" on all symbols that are the one to be told. Of "selective" the share of the blanks'
weight on the last symbol before them is told, too.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.colors import PowerNorm
from transformers import AutoModelForCausalLM, PreTrainedModel

from syncattn.drawing import PAGES, canvas, png
from syncattn.training.errors import UserError
from syncattn.training.settings import quiet
from syncattn_lab.study.answers import train_on_answers
from syncattn_lab.study.plan import Run, build_config, read_plan
from syncattn_lab.study.sequences import IGNORED
from syncattn_lab.study.synthetic import make_task
from syncattn_lab.study.varied import task_of

SIZES = (16, 32, 64, 128, 256, 512)
KINDS = {
    "copy": ("symbols", 24),
    "reverse": ("symbols", 24),
    "selective": ("length", 32),
    "sort": ("symbols", 24),
}
"""By kind: the option that is its size, and the size that is shown."""


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


class Look(NamedTuple):
    """What all heads hear on one test window."""

    weights: np.ndarray  # (layers, heads, answers, N), of the tokens that answer
    places: np.ndarray  # (answers,), where what each answers stands
    alike: np.ndarray  # (answers, N) bool, where it stands as well, if there is no other way to tell
    last_symbol: list[float]  # by layer, the most of any head: the blanks' weight on the last symbol before

    def on_place(self) -> float:
        """The mean weight on the place to copy from, in the head that has most of it."""
        return float((self.weights * self.alike).sum(-1).mean(-1).max())


@torch.no_grad()
def look(model: PreTrainedModel, run: Run, size: int) -> Look:
    """At a test window of this size."""
    kind = run.task_options["kind"]
    sized, _ = KINDS[kind]
    options = {k: v for k, v in run.task_options.items() if k not in ("kind", "train", "tests", sized)}
    task = make_task(kind, **options, **{sized: size})
    window = task.windows("test", 1, 1)[0]
    found = model(input_ids=window["input_ids"][None], output_attentions=True, use_cache=False).attentions
    weights = torch.stack([layer[0] for layer in found])  # (layers, heads, N, N)
    answers = (window["labels"] != IGNORED).nonzero()[:, 0]
    last: list[float] = []
    if kind == "selective":
        context = window["input_ids"][: int(answers[0]) - 1]  # the marker follows
        symbol = context != options["vocabulary"]
        places = symbol.nonzero()[:, 0]
        before = torch.where(symbol, torch.arange(len(context)), -1).cummax(0).values
        blanks = ((before >= 0) & ~symbol).nonzero()[:, 0]
        last = weights[:, :, blanks, before[blanks]].mean(-1).amax(1).tolist()
    elif kind == "sort":
        places = window["input_ids"][: len(answers)].argsort(stable=True)
    else:
        places = torch.arange(len(answers))
        places = places.flip(0) if kind == "reverse" else places
    alike = torch.nn.functional.one_hot(places, len(window["input_ids"])).bool()
    if kind == "sort":
        alike[:, : len(answers)] = window["labels"][answers, None] == window["input_ids"][: len(answers)]
    return Look(weights[:, :, answers - 1].numpy(), places.numpy(), alike.numpy(), last)


def draw(runs: list[tuple[Run, Look, list[int], list[float]]]) -> bytes:
    """Two rows for each run, its layers, and beside them the share of weight by length."""
    layers, heads, shown, whole = runs[0][1].weights.shape
    rows, page = layers * len(runs), PAGES["light"]
    height = (0.27 + 2.2 * shown / whole) * rows + 0.5  # inches; a head is 2.2 wide
    with canvas("light", 2.2 * heads + 3.4, height, layout="constrained") as figure:
        grid = figure.add_gridspec(rows, heads + 1, width_ratios=[1] * heads + [1.3])
        for index, (run, seen, sizes, shares) in enumerate(runs):
            for layer in range(layers):
                for head in range(heads):
                    axes = figure.add_subplot(grid[index * layers + layer, head])
                    axes.set_facecolor(page["zero"])
                    shown = np.ma.masked_equal(seen.weights[layer, head], 0)
                    axes.imshow(shown, norm=PowerNorm(0.5, 0, 1), cmap="Blues", interpolation="nearest")
                    axes.plot(seen.places, np.arange(len(seen.places)), ".", ms=1.6, color="#c0392b")
                    axes.set(xticks=[], yticks=[])
                    if layer == head == 0:
                        axes.set_title(run.title, fontsize=8.5, loc="left")
                    if head == 0:
                        axes.set_ylabel(f"layer {layer + 1}", fontsize=8)
            axes = figure.add_subplot(grid[index * layers : (index + 1) * layers, heads])
            axes.plot(sizes, shares, marker="o", ms=3.5, color="#147d8a")
            axes.set(xscale="log", ylim=(-0.03, 1.03))
            axes.set_xticks(sizes, [str(each) for each in sizes], fontsize=7)
            axes.minorticks_off()
            alone = run.task_options.get(KINDS[run.task_options["kind"]][0])
            ends = (sizes[0] / 1.3, 64) if alone is None else (alone / 1.08, alone * 1.08)
            axes.axvspan(*ends, color=page["faint"], alpha=0.35, lw=0)
            axes.set_title("weight on the place", fontsize=8)
            axes.set_xlabel(KINDS[run.task_options["kind"]][0], fontsize=8)
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
        if key not in plan or plan[key].task_options["kind"] not in KINDS:
            raise SystemExit(f"error: KEY must be a run of the plan on {' or '.join(KINDS)}, got {key!r}")
        run = plan[key]
        sized, shown = KINDS[run.task_options["kind"]]
        shown = run.task_options.get(sized, shown)  # a task without sizes to vary is shown as it is learned
        sizes = list(SIZES) if sized == "symbols" else list(SIZES[1:])  # 16 tokens may leave no blank
        model = trained(run, arguments.models)
        seen = [look(model, run, size) for size in sizes]
        shares = [each.on_place() for each in seen]
        told = {"key": key, "weight on the place": dict(zip(sizes, shares))}
        if seen[0].last_symbol:
            told["blanks on the last symbol, by layer"] = dict(
                zip(sizes, (each.last_symbol for each in seen))
            )
        print(json.dumps(told), flush=True)
        found.append((run, look(model, run, shown), sizes, shares))
    arguments.out.write_bytes(draw(found))


if __name__ == "__main__":
    main()
