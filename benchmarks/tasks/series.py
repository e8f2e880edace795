"""Real series with gaps, forecast by an OSN, by a Transformer with time embeddings, and by least squares.

    python benchmarks/tasks/series.py --out benchmarks/results/series [--steps 400] [--seeds 0 1 2]

The series that statsmodels has: CO2 at Mauna Loa (weeks, 59 of them missing), sunspots (years) and El Nino
(months of sea surface temperature). Of each window's past half of the values are left out at random; what is
forecast in tests lies after what was learned. Every run is a line of runs.jsonl, the same command goes on
where it stopped, and README.md and the picture are made anew from the lines at the end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import resumed
import torch
from resumed import chosen, of_cell, rate_of
from torch import Tensor, nn

from syncattn.drawing import canvas, png
from syncattn.models import OSNForTimeSeriesPrediction, OSNSeriesConfig
from syncattn.nn import calibrate, locked_density
from syncattn.training.environment import machine, versions
from syncattn.training.files import write_text

RATES = (0.001, 0.002, 0.004, 0.008)
BATCH, WIDTH, HEADS, LAYERS = 16, 48, 4, 2


@dataclass(frozen=True)
class Series:
    """A series of one number at a time: `values` (T,), NaN where there is none, one time unit apart.

    Windows are `past` and then `future` long; `season` is the length of its season, which all are told; what
    is forecast in training ends before `split`, in tests it begins there.
    """

    values: Tensor
    past: int
    future: int
    season: float
    split: int
    unit: str

    def windows(self, starts: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Past (B, past, 1), half of it left out, and future (B, future, 1)."""
        values = self.values[starts[:, None] + torch.arange(self.past + self.future)]
        gone = torch.rand(len(starts), self.past, generator=generator) < 0.5
        values[:, : self.past][gone] = torch.nan
        return values[:, : self.past, None], values[:, self.past :, None]

    def tests(self) -> tuple[Tensor, Tensor]:
        """The windows that are tested, always the same."""
        last = len(self.values) - self.past - self.future
        starts = torch.arange(self.split - self.past, last + 1, max(1, (last - self.split + self.past) // 64))
        return self.windows(starts, torch.Generator().manual_seed(0))


def read() -> dict[str, Series]:
    """The three series; statsmodels has them."""
    from statsmodels.datasets import co2, elnino, sunspots

    def numbers(found: Any) -> Tensor:
        return torch.tensor(found.to_numpy(dtype=float)).float()

    weeks = numbers(co2.load_pandas().data["co2"])
    years = numbers(sunspots.load_pandas().data["SUNACTIVITY"])
    months = numbers(elnino.load_pandas().data.iloc[:, 1:]).flatten()
    week = 365.25 / 7
    return {
        "co2": Series(weeks, 104, 52, week, round((1990 - 1958.24) * week), "ppm"),
        "sunspots": Series(years, 66, 22, 11.0, 200, "sunspots"),
        "elnino": Series(months, 96, 24, 12.0, 480, "°C"),
    }


class Softmax(nn.Module):
    """A bidirectional Transformer over measurements and questions, each with an embedding of its time.

    The embedding is learned from the time itself, and from sines and cosines of it with periods from two
    units to twice the window, in geometric steps, and with the season's and half of the season's. Values are
    counted from each window's mean in its standard deviation, as the OSN does. What is missing is padding.
    """

    def __init__(self, series: Series, feed: int) -> None:
        super().__init__()
        whole = series.past + series.future
        periods = [2 * whole ** (i / 15) for i in range(16)] + [series.season, series.season / 2]
        self.register_buffer("rates", 2 * math.pi / torch.tensor(periods))
        self.past, self.whole = series.past, whole
        self.value = nn.Linear(2, WIDTH)
        self.time = nn.Linear(2 * len(periods) + 1, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, feed, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, past: Tensor) -> Tensor:
        """Past (B, past, 1) with NaN where nothing was measured -> the future (B, future, 1)."""
        there = ~past.isnan()
        count = there.sum(1, keepdim=True)
        filled = torch.where(there, past, torch.zeros_like(past))
        mean = filled.sum(1, keepdim=True) / count
        std = (torch.where(there, past - mean, torch.zeros_like(past)).square().sum(1, True) / count).sqrt()
        std = std.clamp(min=1e-5)
        scaled = torch.where(there, (past - mean) / std, torch.zeros_like(past))
        asked = self.whole - self.past
        given = torch.cat([scaled, torch.zeros_like(scaled[:, :1]).expand(-1, asked, -1)], 1)
        known = torch.cat([torch.ones_like(scaled), torch.zeros_like(given[:, :asked])], 1)
        times = torch.arange(self.whole, dtype=torch.float32)[:, None]
        angles = times * self.rates
        when = self.time(torch.cat([times / self.whole, angles.sin(), angles.cos()], 1))
        padding = torch.cat([~there[..., 0], torch.zeros_like(given[:, :asked, 0], dtype=torch.bool)], 1)
        out = self.layers(self.value(torch.cat([given, known], 2)) + when, src_key_padding_mask=padding)
        return self.head(out[:, self.past :]) * std + mean


def make_osn(series: Series) -> nn.Module:
    """Two heads hear what is near in time, two what stands at the same place of the season."""
    forms = ["own_drift", "own_drift", "own_helix", "own_helix"]
    config = OSNSeriesConfig(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        prediction_length=series.future,
        position=forms,
        window_range=(4.0, series.season),
        helix_scales=[series.season / (2 * math.pi)],
        directed=False,  # the preset's
        nearest_gate=False,
    )
    model = OSNForTimeSeriesPrediction(config)
    starts = torch.linspace(0, series.split - series.past - series.future, 32).long()
    calibrate(model, series.windows(starts, torch.Generator().manual_seed(0))[0])
    return model


def make_softmax(series: Series) -> nn.Module:
    """With as many parameters as the OSN, within one feed-forward unit, through the feed-forward width."""
    wanted, base = size(make_osn(series)), size(Softmax(series, 1))
    return Softmax(series, 1 + (wanted - base) // (size(Softmax(series, 2)) - base))


MODELS: dict[str, tuple[str, Callable[[Series], nn.Module]]] = {
    "osn": ("OSN", make_osn),
    "softmax": ("Transformer, time embeddings", make_softmax),
}


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def least_squares(series: Series, past: Tensor) -> Tensor:
    """A line and two harmonics of the season, fitted to what was measured of each window."""
    when = torch.arange(series.past + series.future) / series.season
    waves = [f(2 * math.pi * n * when) for n in (1, 2) for f in (torch.sin, torch.cos)]
    basis = torch.stack([torch.ones_like(when), when, *waves], 1)
    there = [~x.isnan() for x in past[..., 0]]
    fits = [
        torch.linalg.lstsq(basis[: series.past][t], x[t, None]).solution for t, x in zip(there, past[..., 0])
    ]
    return torch.stack([basis[series.past :] @ fit for fit in fits])


def error(told: Tensor, future: Tensor) -> float:
    """Root mean squared, over what was measured, in the series' unit."""
    return float((told - future).square().nanmean().sqrt())


def run(name: str, series: Series, model_name: str, rate: float, seed: int, steps: int) -> dict[str, Any]:
    """Train one model; its line."""
    torch.manual_seed(seed)
    model, start = MODELS[model_name][1](series).train(), time.process_time()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    # The last tenth of what may be learned is kept for the choice of the rate.
    last = series.split - series.past - series.future
    held = torch.arange(round(0.9 * last), last, max(1, last // 320))
    for _ in range(steps):
        past, future = series.windows(
            torch.randint(round(0.9 * last), (BATCH,), generator=generator), generator
        )
        told = predict(model, past, future)
        # What was not measured is chosen away before it is squared, or its gradient would be NaN.
        ((told - future) / spread(past))[~future.isnan()].square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(), schedule.step(), optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        past, future = series.windows(held, torch.Generator().manual_seed(1))
        validation = error(predict(model, past, future), future)
        past, future = series.tests()
        test = error(predict(model, past, future), future)
    density = None
    if model_name == "osn":
        density = float(torch.stack([*locked_density(model, past[:8]).values()]).mean())
    return {
        "key": f"{name}/{model_name}/lr{rate:g}/seed{seed}",
        "steps": steps,
        "validation": validation,
        "test": test,
        "least_squares": error(least_squares(series, past), future),
        "parameters": size(model),
        "density": density,
        "seconds": round(time.process_time() - start, 1),
        "machine": machine(),
        "versions": versions(),
    }


def predict(model: nn.Module, past: Tensor, future: Tensor) -> Tensor:
    """Forecasts (B, future, 1) in the series' unit."""
    found = model(past) if isinstance(model, Softmax) else model(past).prediction_outputs
    return found[:, : future.shape[1]]


def spread(past: Tensor) -> Tensor:
    """Of each window's measured values, (B, 1, 1), which errors are counted in while learning."""
    there = ~past.isnan()
    mean = past.nanmean(1, keepdim=True)
    square = torch.where(there, past - mean, torch.zeros_like(past)).square().sum(1, keepdim=True)
    return (square / there.sum(1, keepdim=True)).sqrt().clamp(min=1e-5)


def publish(lines: list[dict[str, Any]], out: Path, every: dict[str, Series]) -> None:
    """README.md and the picture, from the lines."""
    rows = []
    for name, series in every.items():
        for model, (title, _) in MODELS.items():
            found = chosen(lines, f"{name}/{model}", min)
            if not found:
                continue
            rate = rate_of(found[0])
            tests = [line["test"] for line in found]
            tried = {rate_of(line): line for line in of_cell(lines, f"{name}/{model}")}
            density = found[0]["density"]
            rows.append(
                f"| {name}, {series.unit} | {title} | {fmean(tests):.3g} | "
                f"{', '.join(f'{test:.3g}' for test in tests)} | {found[0]['least_squares']:.3g} | "
                f"{rate:g} of "
                f"{', '.join(f'{each:g}' for each in sorted(tried))} | {found[0]['parameters']:,} | "
                f"{'1' if density is None else f'{density:.2f}'} |"
            )
    steps = ", ".join(str(each) for each in sorted({line["steps"] for line in lines}))
    made = lines[0]
    text = [
        "# Series with gaps: an OSN beside a Transformer with time embeddings",
        "",
        "Made by `python benchmarks/tasks/series.py --out benchmarks/results/series`, which says what is "
        "done; the lines are in [runs.jsonl](runs.jsonl).",
        "",
        f"{len(lines)} runs of {steps} steps of {BATCH} windows. Error: root mean squared, in the series' "
        "unit, on "
        "windows after those learned; half of each window's past is left out at random. The learning rate is "
        "the one that seed 0 validates best with. Least squares: a line and two harmonics of the season for "
        "each window.",
        "",
        "| series | model | test error, mean | by seed | least squares | rate | parameters | density |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *rows,
        "",
        "![Test error over that of least squares, by series, a dot for each seed](errors.png)",
        "",
        f"Machine: {', '.join(f'{k} {v}' for k, v in made['machine'].items() if v)}. "
        f"torch {made['versions']['torch']}, syncattn {made['versions']['syncattn']}.",
        "",
    ]
    (out / "errors.png").write_bytes(picture(lines, every))
    write_text(out / "README.md", "\n".join(text))


def picture(lines: list[dict[str, Any]], every: dict[str, Series]) -> bytes:
    """Test error over least squares', a row for each series."""
    paint = {"osn": "#147d8a", "softmax": "#c2457f"}
    with canvas("light", 7.0, 2.6, "constrained") as figure:
        axes = figure.subplots()
        for row, name in enumerate(every):
            for shift, (model, (title, _)) in zip((-0.12, 0.12), MODELS.items()):
                found = chosen(lines, f"{name}/{model}", min)
                ratios = [line["test"] / line["least_squares"] for line in found]
                label = title if row == 0 else None
                axes.scatter(ratios, [row + shift] * len(ratios), color=paint[model], s=28, label=label)
        axes.axvline(1, lw=0.9, ls=(0, (4, 3)), color="#26292e")
        axes.set_yticks(range(len(every)), list(every))
        axes.set_ylim(len(every) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.set_xlabel("test error over that of a line and two harmonics, fitted to each window")
        figure.legend(loc="outside upper center", ncols=2, fontsize=8.5)
        return png(figure)


def main() -> None:
    given = resumed.parser(__doc__, steps=400)
    given.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    arguments, lines = resumed.begin(given)
    torch.set_num_threads(1)
    every = read()

    def one(cell: str, rate: float, seed: int) -> dict[str, Any]:
        name, model = cell.split("/")
        return run(name, every[name], model, rate, seed, arguments.steps)

    cells = [f"{name}/{model}" for name in every for model in MODELS]
    resumed.go_on(arguments.out, lines, cells, arguments.rates, arguments.seeds, one, best=min)
    publish(lines, arguments.out, every)


if __name__ == "__main__":
    main()
