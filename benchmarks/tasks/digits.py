"""Handwritten digits with rows and columns as positions: an OSN beside a ViT with a table of positions.

    python benchmarks/tasks/digits.py --out benchmarks/results/digits [--steps 400] [--seeds 0 1 2]

scikit-learn's 8 x 8 digits, as 64 pixels and as 16 patches of 2 x 2, in the parts of the study's task
"digits": 70 % to learn from, 15 % to choose the learning rate on with seed 0, 15 % for the test. Every run is
a line of runs.jsonl, the same command goes on where it stopped, and README.md is made anew from the lines.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import fmean
from typing import Any

import resumed
import torch
from resumed import chosen
from torch import Tensor, nn
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification

from syncattn.models import OSNForImageClassification, OSNImageConfig
from syncattn.nn import calibrate, count_locked, limit_density_
from syncattn.training.environment import machine, versions
from syncattn.training.files import write_text
from syncattn_lab.study.synthetic import make_task

RATES = (0.0005, 0.001, 0.002, 0.004)
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_labels": 10}
FORMS = {"patches": 2, "pixels": 1}
"""A token's height and width in pixels, by form."""
WIDE = {"patches": 230, "pixels": 214}
"""The ViT's feed-forward width, for as many parameters as the OSN has or a few more."""
TITLES = {"osn": "OSN", "vit": "ViT"}
BATCH, DENSEST = 64, 0.25


def images(part: str, count: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images (B, 1, 8, 8) from -1 to 1 and their classes (B,); validation and test are given whole."""
    windows = make_task("digits").windows(part, count, seed)
    ids = torch.stack([windows[i]["input_ids"] for i in range(len(windows))])  # type: ignore[arg-type]
    return ids[:, :-1].view(-1, 1, 8, 8) / 8 - 1, ids[:, -1] - 17


def build(name: str, form: str) -> PreTrainedModel:
    """An untrained model; the OSN is the preset "images"."""
    image = {"image_size": 8, "patch_size": FORMS[form], "num_channels": 1}
    if name == "vit":
        return ViTForImageClassification(ViTConfig(**SIZES, **image, intermediate_size=WIDE[form]))
    model = OSNForImageClassification(OSNImageConfig.preset("images", **SIZES, **image))
    calibrate(model, images("train", BATCH)[0])
    return model


def train(name: str, form: str, rate: float, seed: int, steps: int) -> PreTrainedModel:
    """A model that has learned; an OSN that starts dense, with a quarter of the pairs at most soon after."""
    torch.manual_seed(seed)
    model = build(name, form).train()
    x, y = images("train", steps * BATCH, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for step in range(steps):
        batch = slice(step * BATCH, (step + 1) * BATCH)
        if name == "osn" and step % 10 == 0:
            limit_density_(model, DENSEST, x[batch][:16])
        model(x[batch], labels=y[batch]).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(), schedule.step(), optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def right(model: PreTrainedModel, part: str) -> float:
    """The share of a part's images that is told right."""
    x, y = images(part)
    return float((model(x).logits.argmax(-1) == y).float().mean())


def run(name: str, form: str, rate: float, seed: int, steps: int) -> dict[str, Any]:
    """Train one model; its line."""
    start = time.process_time()
    model = train(name, form, rate, seed, steps)
    line = {
        "key": f"{form}/{name}/lr{rate:g}/seed{seed}",
        "steps": steps,
        "validation": right(model, "validation"),
        "test": right(model, "test"),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": round(time.process_time() - start, 1),
        "machine": machine(),
        "versions": versions(),
    }
    if name == "osn":
        found = count_locked(model, images("test")[0][:64])
        line["partners"] = [layer.partners.tolist() for layer in found.values()]
    return line


def publish(lines: list[dict[str, Any]], out: Path) -> None:
    """README.md."""
    rows = []
    for form in FORMS:
        for name, title in TITLES.items():
            best = chosen(lines, f"{form}/{name}")
            if not best:
                continue
            firsts = {
                line["key"].split("/")[2][2:]: line["validation"]
                for line in lines
                if line["key"].startswith(f"{form}/{name}/") and line["key"].endswith("/seed0")
            }
            tried = ", ".join(f"{found:.3f} ({rate})" for rate, found in firsts.items())
            tests = [line["test"] for line in best]
            heard = ""
            if name == "osn":
                heads = [partners for line in best for layer in line["partners"] for partners in layer]
                heard = f"{fmean(heads):.1f} of {64 // FORMS[form] ** 2}"
            rows.append(
                f"| {form} | {title} | {best[0]['parameters']:,} | {tried} | "
                f"{', '.join(f'{each:.3f}' for each in tests)} | {fmean(tests):.3f} | "
                f"{fmean(line['seconds'] for line in best):.0f} | {heard} |"
            )
    made = lines[0]
    ran = [form for form in FORMS if chosen(lines, f"{form}/osn")]
    only = "" if len(ran) == len(FORMS) else f" --forms {' '.join(ran)}"
    text = [
        "# Digits with two axes: an OSN beside a ViT",
        "",
        f"Made by `python benchmarks/tasks/digits.py --out benchmarks/results/digits{only}`, which says what "
        "is done; the lines are in [runs.jsonl](runs.jsonl).",
        "",
        f'{made["steps"]} steps of {BATCH} images. The OSN is the preset "images", its pairs limited to a '
        "quarter; the ViT is that of transformers. One image of the test is .004. Seconds are of processor "
        "time, tests included; partners are means over layers, heads and seeds.",
        "",
        "| tokens | model | parameters | validation, seed 0 (rate) | test, by seed | mean | seconds | "
        "partners |",
        "| --- | --- | ---: | --- | --- | ---: | ---: | --- |",
        *rows,
        "",
        f"Machine: {', '.join(f'{k} {v}' for k, v in made['machine'].items() if v)}. "
        f"torch {made['versions']['torch']}, syncattn {made['versions']['syncattn']}.",
        "",
    ]
    write_text(out / "README.md", "\n".join(text))


def main() -> None:
    given = resumed.parser(__doc__, steps=400)
    given.add_argument("--forms", choices=[*FORMS], nargs="+", default=[*FORMS])
    arguments, lines = resumed.begin(given, fewest=2)
    torch.set_num_threads(1)

    def one(cell: str, rate: float, seed: int) -> dict[str, Any]:
        form, name = cell.split("/")
        return run(name, form, rate, seed, arguments.steps)

    cells = [f"{form}/{name}" for form in arguments.forms for name in TITLES]
    resumed.go_on(arguments.out, lines, cells, RATES, arguments.seeds, one)
    publish(lines, arguments.out)


if __name__ == "__main__":
    main()
