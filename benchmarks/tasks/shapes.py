"""Shapes told from points by an OSN and by full softmax attention with the same features of position.

    python benchmarks/tasks/shapes.py --out benchmarks/results/shapes [--steps 600] [--seeds 0 1 2]

256 points of the surface of a sphere, cube, tetrahedron, cylinder, cone or torus, of a coil, or of a solid
ball, each moved at random by a tenth of the shape's size, the whole turned at random and made up to a quarter
larger or smaller. All shapes have the same mean square distance from their centre, and the points say nothing
but where they are. Both models are those of points.py, but that what is read is the mean over the points.
Every run is a line of runs.jsonl, the same command goes on where it stopped, and README.md is made anew.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import resumed
import torch
from points import HEADS, LAYERS, TITLES, WIDTH, Softmax
from resumed import chosen
from torch import Tensor, nn

from syncattn.models import OSNConfig, OSNModel
from syncattn.nn import calibrate, count_locked
from syncattn.training.environment import machine, versions
from syncattn.training.files import write_text

RATES = (0.003, 0.006)
SHAPES = ("sphere", "ball", "cube", "tetrahedron", "cylinder", "cone", "torus", "coil")
POINTS, BATCH, NOISE = 256, 8, 0.05
TESTED = (128, 256, 512)
WINDOWS = (0.4, 1.6)  # in units of the shapes' root mean square radius
TESTS = 1024  # clouds


def sampled(shape: str, n: int, generator: torch.Generator) -> Tensor:
    """n points (n, 3) of a shape, evenly over it, not centred and of any size."""
    u, v, w = torch.rand(3, n, generator=generator)
    angle = 2 * math.pi * u
    if shape in ("sphere", "ball"):
        at = torch.randn(n, 3, generator=generator)
        at = at / at.norm(dim=1, keepdim=True)
        return at * v[:, None] ** (1 / 3) if shape == "ball" else at
    if shape == "cube":
        at = 2 * torch.stack([u, v, w], 1) - 1
        face = torch.randint(3, (n, 1), generator=generator)
        return at.scatter(1, face, at.gather(1, face).sign())
    if shape == "tetrahedron":
        corners = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
        parts = -torch.log1p(-torch.stack([u, v, w], 1))  # exponential clocks: even over a face
        parts = parts / parts.sum(1, keepdim=True)
        left_out = torch.randint(4, (n,), generator=generator)
        faces = torch.tensor([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])[left_out]
        return (parts[..., None] * corners[faces]).sum(1)
    if shape == "cylinder":  # radius 1, height 2: side 4 pi, each of two ends pi
        end = w < 1 / 3
        radius = torch.where(end, v.sqrt(), 1.0)
        z = torch.where(end, torch.where(w < 1 / 6, -1.0, 1.0), 2 * v - 1)
        return torch.stack([radius * angle.cos(), radius * angle.sin(), z], 1)
    if shape == "cone":  # radius 1, height 2: side pi sqrt 5, base pi
        base = w < 1 / (1 + math.sqrt(5))
        radius = v.sqrt()
        z = torch.where(base, 0.0, 2 * (1 - radius))
        return torch.stack([radius * angle.cos(), radius * angle.sin(), z], 1)
    if shape == "torus":  # radii 1 and .4; angles by rejection, since the outside is larger
        turn = 2 * math.pi * torch.rand(4 * n, generator=generator)
        kept = torch.rand(4 * n, generator=generator) < (1 + 0.4 * turn.cos()) / 1.4
        turn = torch.cat([turn[kept], turn[~kept]])[:n]
        radius = 1 + 0.4 * turn.cos()
        return torch.stack([radius * angle.cos(), radius * angle.sin(), 0.4 * turn.sin()], 1)
    assert shape == "coil"  # two turns
    return torch.stack([(2 * angle).cos(), (2 * angle).sin(), 2 * u - 1], 1)


def clouds(batch: int, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Places (B, N, 3) of shapes drawn at random, centred, noise included, and which they are (B,)."""
    which = torch.randint(len(SHAPES), (batch,), generator=generator)
    at = torch.stack([sampled(SHAPES[int(each)], n, generator) for each in which])
    at = at - at.mean(1, keepdim=True)
    at = at / at.square().sum(2).mean(1).sqrt()[:, None, None]
    at = at + NOISE * torch.randn(at.shape, generator=generator)
    turn, _ = torch.linalg.qr(torch.randn(batch, 3, 3, generator=generator))
    size = 0.8 + 0.45 * torch.rand(batch, 1, 1, generator=generator)
    return at @ turn * size, which


class Classifier(nn.Module):
    """Places to a logit for each shape; `name` says by which attention, all else is alike."""

    def __init__(self, name: str) -> None:
        super().__init__()
        sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
        self.embed, self.read = nn.Linear(3, WIDTH), nn.Linear(WIDTH, len(SHAPES))
        self.base = OSNModel(OSNConfig.preset("points", vocab_size=1, window_range=WINDOWS, **sizes))
        if name == "softmax":
            for layer in self.base.layers:
                layer.self_attn = Softmax(layer.self_attn)
            return
        places, _ = clouds(BATCH, POINTS, torch.Generator().manual_seed(0))
        calibrate(self.base, **self.inputs(places), partners_range=(8, 24))

    def inputs(self, places: Tensor) -> dict[str, Tensor]:
        return {"inputs_embeds": self.embed(places), "positions": places}

    def forward(self, places: Tensor) -> Tensor:
        """(B, N, 3) -> (B, classes)."""
        return self.read(self.base(**self.inputs(places)).last_hidden_state.mean(1))


def train(name: str, rate: float, seed: int, steps: int) -> Classifier:
    """A model that has learned."""
    torch.manual_seed(seed)
    model, generator = Classifier(name), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(steps):
        places, which = clouds(BATCH, POINTS, generator)
        nn.functional.cross_entropy(model(places), which).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(), schedule.step(), optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def right(model: Classifier, n: int, seed: int) -> tuple[float, dict[str, float]]:
    """The share of test clouds of n points that is told right, and that of each shape's."""
    generator, told = torch.Generator().manual_seed(seed), []
    for _ in range(TESTS // 16):
        places, which = clouds(16, n, generator)
        told.append(torch.stack([which, (model(places).argmax(1) == which).long()], 1))
    which, hits = torch.cat(told).T
    by = {shape: float(hits[which == i].float().mean()) for i, shape in enumerate(SHAPES)}
    return float(hits.float().mean()), by


def run(name: str, rate: float, seed: int, steps: int) -> dict[str, Any]:
    """Train one model; its line."""
    start = time.process_time()
    model = train(name, rate, seed, steps)
    seconds = round(time.process_time() - start, 1)
    tests = {n: right(model, n, 20_000) for n in TESTED}
    line = {
        "key": f"{name}/lr{rate:g}/seed{seed}",
        "steps": steps,
        "validation": right(model, POINTS, 10_000)[0],
        "test": {str(n): found for n, (found, _) in tests.items()},
        "shapes": tests[POINTS][1],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": seconds,
        "machine": machine(),
        "versions": versions(),
    }
    if name == "osn":
        places, _ = clouds(4, POINTS, torch.Generator().manual_seed(20_000))
        locked = count_locked(model.base, **model.inputs(places))
        line["partners"] = [layer.partners.tolist() for layer in locked.values()]
    return line


def publish(lines: list[dict[str, Any]], out: Path) -> None:
    """README.md."""
    rows, shapes = [], []
    for name, title in TITLES.items():
        best = chosen(lines, name)
        for line in (each for each in lines if each["key"].startswith(f"{name}/")):
            _, rate, seed = line["key"].split("/")
            scores = " | ".join(f"{line['test'][str(n)]:.3f}" for n in TESTED)
            mark = "yes" if line in best else ""
            rows.append(
                f"| {title} | {rate[2:]} | {seed[4:]} | {mark} | {line['parameters']:,} | "
                f"{line['seconds']:.0f} | {scores} |"
            )
        means = [sum(line["shapes"][shape] for line in best) / len(best) for shape in SHAPES]
        shapes.append(f"| {title} | {' | '.join(f'{mean:.3f}' for mean in means)} |")
    made = lines[0]
    heard = next(line["partners"] for line in chosen(lines, "osn"))
    text = [
        "# Shapes: an OSN beside full softmax with the same features of position",
        "",
        "Made by `python benchmarks/tasks/shapes.py --out benchmarks/results/shapes`, which says what is "
        "done; the lines are in [runs.jsonl](runs.jsonl).",
        "",
        f"{made['steps']} steps of {BATCH} clouds of {POINTS} points, {len(SHAPES)} shapes, {TESTS:,} clouds "
        "a test. Both models have the same blocks and reading, the same frequencies (three coordinates of "
        "the content's, three of the place's) and turned values; only the weights differ: synchronization, "
        "in the absolute frame, or softmax over all points of minus the squared detuning, with a learned "
        "score for nobody. The learning rate is the one that seed 0 validates best with, on other clouds. "
        "Told right:",
        "",
        "| model | rate | seed | chosen | parameters | seconds | "
        f"{' | '.join(f'{n} points' for n in TESTED)} |",
        "| --- | ---: | ---: | --- | ---: | ---: |" + " ---: |" * len(TESTED),
        *rows,
        "",
        f"Of each shape's clouds of {POINTS} points, means over the seeds at the chosen rate:",
        "",
        f"| model | {' | '.join(SHAPES)} |",
        "| --- |" + " ---: |" * len(SHAPES),
        *shapes,
        "",
        f"Partners of a receiver by head, OSN, its first line at the chosen rate, of {POINTS}: "
        + "; ".join(
            f"layer {i + 1} {', '.join(f'{each:.0f}' for each in layer)}" for i, layer in enumerate(heard)
        )
        + ".",
        "",
        f"Machine: {', '.join(f'{k} {v}' for k, v in made['machine'].items() if v)}. "
        f"torch {made['versions']['torch']}, syncattn {made['versions']['syncattn']}.",
        "",
    ]
    write_text(out / "README.md", "\n".join(text))


def main() -> None:
    arguments, lines = resumed.begin(resumed.parser(__doc__, steps=600), fewest=2)
    torch.set_num_threads(1)

    def one(name: str, rate: float, seed: int) -> dict[str, Any]:
        return run(name, rate, seed, arguments.steps)

    resumed.go_on(arguments.out, lines, [*TITLES], RATES, arguments.seeds, one)
    publish(lines, arguments.out)


if __name__ == "__main__":
    main()
