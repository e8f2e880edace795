"""Forces on charged particles by an OSN and by full softmax attention with the same features of position.

    python benchmarks/tasks/points.py --out benchmarks/results/points [--steps 800] [--seeds 0 1 2]

Clouds have four points in each unit of volume; equal charges repel each other by 1 - r at a distance r, and
by nothing beyond r = 1. Learned on 4 clouds of 256 points a step, tested on larger ones; then both models'
time by the number of points, at that density. Every run is a line of runs.jsonl, the same command goes on
where it stopped, and README.md and the picture are made anew from the lines at the end.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from statistics import fmean, median
from typing import Any

import resumed
import torch
from resumed import chosen
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from syncattn.drawing import canvas, png
from syncattn.models import OSNConfig, OSNModel
from syncattn.nn import Frequency, calibrate, count_locked
from syncattn.nn.frequency import turn_values
from syncattn.training.environment import machine, versions
from syncattn.training.files import write_text

RATES = (0.006, 0.012)
WIDTH, HEADS, LAYERS, LEARNED = 48, 4, 2, 256
TESTED = (256, 1024, 4096)
TIMED = {"osn": [1000 * 2**i for i in range(7)], "softmax": [1000 * 2**i for i in range(4)]}
TITLES = {"osn": "OSN", "softmax": "full softmax"}


def cloud(batch: int, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Places (B, N, 3) of n points, and their charges (B, N, 1)."""
    places = torch.rand(batch, n, 3, generator=generator) * (n / 4) ** (1 / 3)
    return places, torch.randint(2, (batch, n, 1), generator=generator) * 2.0 - 1


def forces(places: Tensor, charges: Tensor) -> Tensor:
    """(B, N, 3)."""
    away, pairs = places[:, :, None] - places[:, None], charges[:, :, None] * charges[:, None]
    r = away.norm(dim=-1, keepdim=True)
    return (pairs * (1 - r).clamp(min=0) * away / r.clamp(min=1e-6)).sum(2)


class Softmax(nn.Module):
    """Softmax attention in the OSN's place: the same frequencies of contents and places, and turned values.

    A pair's score is -a D, with D the squared detuning and a learned in each head, so that a head can have a
    radius; and nobody, whose value is 0, has a learned score too, so that sums can be told from averages. As
    many parameters as the OSN's attention has.
    """

    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        windows = like.frequency.window_range
        options = {"position": "own_drift", "axes": 3, "window_range": windows, "delay": 0.0}
        self.frequency = Frequency(WIDTH, HEADS, like.frequency.freq_dim, **options)
        self.value_proj, self.out_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        # At one window's distance the detuning alone is 2 m = 12, and the weight exp(-3).
        self.log_sharpness = nn.Parameter(torch.full((HEADS,), math.log(0.25)))
        self.nobody = nn.Parameter(torch.zeros(HEADS))

    def forward(self, x: Tensor, *, positions: Tensor, **_: Any) -> tuple[Tensor, None]:
        """x (B, N, E), positions (B, N, 3) -> the same shape."""
        places = positions - positions.mean(1, keepdim=True)
        w = self.frequency.emit(x, places)  # (B, H, N, m)
        w = w - w.mean(2, keepdim=True)
        a = self.log_sharpness.exp()[:, None, None]
        value = self.value_proj(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        value = turn_values(value, places, 100.0)
        # -a |w_i - w_j|^2 but for what a whole row has: 2 a w_i . w_j - a |w_j|^2; nobody has (0, score).
        own = a * w.square().sum(-1, keepdim=True)
        ones = torch.ones_like(own)
        q, k = torch.cat([2 * a * w, ones, own], -1), torch.cat([w, -own, torch.zeros_like(own)], -1)
        score = self.nobody[:, None, None].expand_as(own[:, :, :1])
        none = torch.cat([torch.zeros_like(w[:, :, :1]), score, ones[:, :, :1]], -1)
        k, wide = torch.cat([none, k], 2), value.shape[-1]
        q, k = (pad(each, (0, wide - each.shape[-1])) for each in (q, k))  # as SDPA's fast form wants it
        out = scaled_dot_product_attention(q, k, pad(value, (0, 0, 1, 0)), scale=1.0)
        out = turn_values(out, -places, 100.0)
        return self.out_proj(out.transpose(1, 2).flatten(-2)), None


class Model(nn.Module):
    """Charges at places to forces; `name` says by which attention, all else is alike."""

    def __init__(self, name: str) -> None:
        super().__init__()
        sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
        self.embed, self.read = nn.Linear(1, WIDTH), nn.Linear(WIDTH, 3)
        self.base = OSNModel(OSNConfig.preset("points", vocab_size=1, **sizes))
        if name == "softmax":
            for layer in self.base.layers:
                layer.self_attn = Softmax(layer.self_attn)
            return
        places, charges = cloud(4, LEARNED, torch.Generator().manual_seed(0))
        calibrate(self.base, inputs_embeds=self.embed(charges), positions=places, partners_range=(8, 24))

    def forward(self, places: Tensor, charges: Tensor) -> Tensor:
        """(B, N, 3), (B, N, 1) -> (B, N, 3)."""
        found = self.base(inputs_embeds=self.embed(charges), positions=places)
        return self.read(found.last_hidden_state)


def train(name: str, rate: float, seed: int, steps: int) -> Model:
    """A model that has learned."""
    torch.manual_seed(seed)
    model, generator = Model(name), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(steps):
        points = cloud(4, LEARNED, generator)
        (model(*points) - forces(*points)).square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(), schedule.step(), optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def explained(model: Model, n: int, seed: int) -> float:
    """The share of the forces' variance on 4,096 points in clouds of n."""
    points = cloud(4096 // n, n, torch.Generator().manual_seed(seed))
    wanted = forces(*points)
    return 1 - float((model(*points) - wanted).square().mean() / wanted.square().mean())


def run(name: str, rate: float, seed: int, steps: int, folder: Path) -> dict[str, Any]:
    """Train one model; its line. The model of the first seed is kept, for the times."""
    start = time.process_time()
    model = train(name, rate, seed, steps)
    seconds = round(time.process_time() - start, 1)
    torch.save(model.state_dict(), folder / f"{name}-lr{rate:g}-seed{seed}.pt")
    return {
        "key": f"{name}/lr{rate:g}/seed{seed}",
        "steps": steps,
        "validation": explained(model, LEARNED, 10_000),
        "test": {str(n): explained(model, n, 20_000) for n in TESTED},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": seconds,
        "machine": machine(),
        "versions": versions(),
    }


@torch.no_grad()
def times(models: dict[str, Model], rounds: int) -> list[dict[str, Any]]:
    """Seconds of processor time of a forward pass by number of points; sizes take turns."""
    points = {n: cloud(1, n, torch.Generator().manual_seed(n)) for n in TIMED["osn"]}
    taken: dict[tuple[str, int], list[float]] = {}
    for turn in range(rounds + 1):
        for name, model in models.items():
            for n in TIMED[name]:
                start = time.process_time()
                model(*points[n])
                if turn:  # the first is for warmth
                    taken.setdefault((name, n), []).append(time.process_time() - start)
    found = []
    for (name, n), seconds in taken.items():
        line: dict[str, Any] = {"key": f"time/{name}/{n}", "seconds": median(seconds), "all": seconds}
        if name == "osn":
            places, charges = points[n]
            locked = count_locked(
                models[name].base, inputs_embeds=models[name].embed(charges), positions=places
            )
            line["partners"] = fmean(float(layer.partners.mean()) for layer in locked.values())
        found.append(line)
    return found


def publish(lines: list[dict[str, Any]], out: Path) -> None:
    """README.md and the picture."""
    rows, speed = [], []
    for name, title in TITLES.items():
        for line in (each for each in lines if each["key"].startswith(f"{name}/")):
            _, rate, seed = line["key"].split("/")
            scores = " | ".join(f"{line['test'][str(n)]:.4f}" for n in TESTED)
            mark = "yes" if line in chosen(lines, name) else ""
            rows.append(f"| {title} | {rate[2:]} | {seed[4:]} | {mark} | {line['parameters']:,} | {scores} |")
        measured = {n: _time(lines, name, n) for n in TIMED["osn"]}
        cells = [f"{1e6 * t['seconds'] / n:.1f}" if t else "–" for n, t in measured.items()]
        speed.append(f"| {title}, microseconds a point | {' | '.join(cells)} |")
    partners = [f"{_time(lines, 'osn', n)['partners']:.1f}" for n in TIMED["osn"]]
    speed.append(f"| OSN, partners, mean over layers and heads | {' | '.join(partners)} |")
    first, last = TIMED["osn"][0], TIMED["osn"][-1]
    each = [_time(lines, "osn", n)["seconds"] / n for n in (first, last)]
    heard = [_time(lines, "osn", n)["partners"] for n in (first, last)]
    least = min(_time(lines, "osn", n)["seconds"] / n for n in TIMED["osn"])
    made = next(line for line in lines if "machine" in line)
    text = [
        "# Points: an OSN beside full softmax with the same features of position",
        "",
        "Made by `python benchmarks/tasks/points.py --out benchmarks/results/points`, which says what is "
        "done; the lines are in [runs.jsonl](runs.jsonl).",
        "",
        f"{made['steps']} steps of 4 clouds of {LEARNED} points. Both models have the same blocks, embedding "
        "and reading, the same frequencies (three coordinates of the content's, three of the place's) and "
        "turned values; only the weights differ: synchronization, in the absolute frame, or softmax over all "
        "points of minus the squared detuning, with a learned score for nobody. The learning rate is the one "
        "that seed 0 validates best with, on 4,096 other points. Explained of the forces' variance:",
        "",
        f"| model | rate | seed | chosen | parameters | {' | '.join(f'{n:,} points' for n in TESTED)} |",
        "| --- | ---: | ---: | --- | ---: |" + " ---: |" * len(TESTED),
        *rows,
        "",
        "Processor time of a forward pass, one thread, both blocks, seed 0, medians of rounds in which sizes "
        "take turns (the machine is shared with other work):",
        "",
        f"| points | {' | '.join(f'{n:,}' for n in TIMED['osn'])} |",
        "| --- |" + " ---: |" * len(TIMED["osn"]),
        *speed,
        "",
        f"From {first:,} to {last:,} points the OSN's time for each grows by a factor of "
        f"{each[1] / each[0]:.2f} ({each[1] / least:.2f} from the fastest size); wanted: at most 1.2. "
        f"Partners grow by {heard[1] / heard[0]:.2f}, since fewer points lie near a face of the cube; time "
        f"for each partner by {each[1] / each[0] / (heard[1] / heard[0]):.2f}.",
        "",
        "![Explained variance by points of the cloud, a dot for each seed, and time by number of "
        "points](points.png)",
        "",
        f"Machine: {', '.join(f'{k} {v}' for k, v in made['machine'].items() if v)}. "
        f"torch {made['versions']['torch']}, syncattn {made['versions']['syncattn']}.",
        "",
    ]
    (out / "points.png").write_bytes(picture(lines))
    write_text(out / "README.md", "\n".join(text))


def picture(lines: list[dict[str, Any]]) -> bytes:
    """What is explained, and time by number of points."""
    paint = {"osn": "#147d8a", "softmax": "#c2457f"}
    with canvas("light", 8.4, 3.3, "constrained") as figure:
        left, right = figure.subplots(1, 2)
        for name, title in TITLES.items():
            for line in chosen(lines, name):
                left.plot(TESTED, list(line["test"].values()), "o-", ms=4, lw=1, color=paint[name])
            measured = {n: found["seconds"] for n in TIMED[name] if (found := _time(lines, name, n))}
            right.plot([*measured], [*measured.values()], "o-", ms=4, color=paint[name], label=title)
        left.set(xscale="log", xlabel="points of a cloud", ylabel="explained of the variance")
        left.set_xticks(TESTED, [f"{n:,}" for n in TESTED])
        right.set(xscale="log", yscale="log", xlabel="points", ylabel="seconds, forward")
        for axes in (left, right):
            axes.minorticks_off()
        figure.legend(loc="outside upper center", ncols=2, fontsize=8.5)
        return png(figure)


def _time(lines: list[dict[str, Any]], name: str, n: int) -> dict[str, Any] | None:
    return next((line for line in lines if line["key"] == f"time/{name}/{n}"), None)


def main() -> None:
    given = resumed.parser(__doc__, steps=800)
    given.add_argument("--rounds", type=int, default=5, help="of the times")
    arguments, lines = resumed.begin(given)
    if arguments.rounds < 1:
        given.error(f"--rounds must be at least 1, got {arguments.rounds}")
    torch.set_num_threads(1)
    folder = arguments.out / "models"
    folder.mkdir(parents=True, exist_ok=True)

    def one(name: str, rate: float, seed: int) -> dict[str, Any]:
        return run(name, rate, seed, arguments.steps, folder)

    resumed.go_on(arguments.out, lines, [*TITLES], RATES, arguments.seeds, one)
    if not any(line["key"].startswith("time/") for line in lines):
        models = {}
        for name in TITLES:
            _, rate, _ = chosen(lines, name)[0]["key"].split("/")
            models[name] = Model(name).eval()
            models[name].load_state_dict(torch.load(folder / f"{name}-{rate}-seed0.pt", weights_only=True))
        for line in times(models, arguments.rounds):
            resumed.keep(arguments.out, lines, line)
    publish(lines, arguments.out)


if __name__ == "__main__":
    main()
