"""Handwritten digits with rows and columns as positions: an OSN beside a ViT with a table of positions.

    python benchmarks/tasks/digits.py --out benchmarks/results/digits [--steps 400] [--seeds 0 1 2]

scikit-learn's 8 x 8 digits, as 64 pixels and as 16 patches of 2 x 2, in the parts of the study's task
"digits": 70 % to learn from, 15 % to choose the learning rate on with seed 0, 15 % for the test. Every run is
a line of runs.jsonl, the same command goes on where it stopped, and README.md is made anew from the lines.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification

from syncattn.models import OSNForImageClassification, OSNImageConfig
from syncattn.nn import calibrate, count_locked, limit_density_
from syncattn.training.environment import machine, versions
from syncattn.training.files import write_text
from syncattn_lab.study.synthetic import make_task

RATES = (0.002, 0.004)
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
    calibrate(model, images("train", BATCH)[0], partners_range=(2, 10))
    return model


def train(name: str, form: str, rate: float, seed: int, steps: int) -> PreTrainedModel:
    """A model that has learned; an OSN with a quarter of the pairs locked at most."""
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


def chosen(lines: list[dict[str, Any]], cell: str) -> list[dict[str, Any]]:
    """Runs of a cell ("form/model") at the rate that its first seed validates best with, by seed."""
    runs = [line for line in lines if line["key"].startswith(f"{cell}/")]
    firsts = [line for line in runs if line["key"].endswith("/seed0")]
    if not firsts:
        return []
    rate = max(firsts, key=lambda line: line["validation"])["key"].split("/")[2]
    return sorted((line for line in runs if f"/{rate}/" in line["key"]), key=lambda line: line["key"])


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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--forms", choices=[*FORMS], nargs="+", default=[*FORMS])
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error(f"--steps must be at least 2, got {arguments.steps}")
    if 0 not in arguments.seeds:
        parser.error(f"--seeds must have 0, whose runs choose the rate, got {arguments.seeds}")
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "runs.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    begun = {line["steps"] for line in lines if "steps" in line}
    if begun - {arguments.steps}:
        parser.error(f"--steps must be {min(begun)}, as {path} has them, or --out another folder")
    for form in arguments.forms:
        for seed in sorted(set(arguments.seeds)):
            for name in TITLES:
                best = chosen(lines, f"{form}/{name}")
                for rate in RATES if seed == 0 else [float(best[0]["key"].split("/")[2][2:])]:
                    if f"{form}/{name}/lr{rate:g}/seed{seed}" in {line["key"] for line in lines}:
                        continue
                    lines.append(run(name, form, rate, seed, arguments.steps))
                    with path.open("a") as file:
                        file.write(json.dumps(lines[-1]) + "\n")
                    print(json.dumps({k: lines[-1][k] for k in ("key", "test", "seconds")}), flush=True)
    publish(lines, arguments.out)


if __name__ == "__main__":
    main()
