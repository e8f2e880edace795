"""CO2 at Mauna Loa, weeks of it missing: a forecast of the next year from any weeks of the last two."""

import math
import os

import torch
from statsmodels.datasets import co2  # pip install statsmodels

from syncattn.models import OSNForTimeSeriesPrediction, OSNSeriesConfig
from syncattn.nn import calibrate, locked_density

STEPS, SEED = int(os.environ.get("SYNCATTN_EXAMPLE_STEPS", "400")), int(os.environ.get("SEED", "0"))
PAST, NEXT, YEAR = 104, 52, 365.25 / 7  # in weeks; the model is told nothing else of the calendar
series = torch.tensor(co2.load_pandas().data["co2"].to_numpy()).float()  # 2,284 weeks from 1958, NaN: missing
since_1990 = round((1990 - 1958.24) * YEAR)
generator = torch.Generator().manual_seed(SEED)


def windows(starts):
    """Values of windows of 156 weeks (B, 156, 1). Of the past every second week is left out, at random."""
    values = series[starts[:, None] + torch.arange(PAST + NEXT)]
    gone = torch.rand(len(starts), PAST, generator=generator) < 0.5
    values[:, :PAST][gone] = torch.nan
    return values[:, :PAST, None], values[:, PAST:, None]


def last_year(past):
    """What was measured in the week nearest to a year ago, and the growth from the year before it."""
    found = torch.empty(len(past), NEXT)
    for row, values in enumerate(past[..., 0]):
        weeks = (~values.isnan()).nonzero()[:, 0]
        nearest = (weeks - (torch.arange(PAST, PAST + NEXT)[:, None] - YEAR)).abs().argmin(1)
        found[row] = values[weeks[nearest]] + values[-52:].nanmean() - values[:-52].nanmean()
    return found[..., None]


def least_squares(past):
    """A line and two harmonics of the year, fitted to what was measured."""
    weeks = torch.arange(PAST + NEXT) / YEAR
    waves = [f(2 * math.pi * n * weeks) for n in (1, 2) for f in (torch.sin, torch.cos)]
    basis = torch.stack([torch.ones_like(weeks), weeks, *waves], 1)
    fits = [torch.linalg.lstsq(basis[:PAST][~x.isnan()], x[~x.isnan(), None]).solution for x in past[..., 0]]
    return torch.stack([basis[PAST:] @ fit for fit in fits])


torch.manual_seed(SEED)
# Two heads hear what is near in time, and two what stands at the same place of the year.
times = {"window_range": (4.0, 52.0), "helix_scales": [YEAR / (2 * math.pi)]}
sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "prediction_length": NEXT}
model = OSNForTimeSeriesPrediction(OSNSeriesConfig.preset("series", **sizes, **times))
calibrate(model, windows(torch.arange(0, 1280, 40))[0])
optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=STEPS)
for _ in range(STEPS):
    past, future = windows(torch.randint(since_1990 - PAST - NEXT, (16,)))
    model(past, future_values=future).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step(), schedule.step(), optimizer.zero_grad()
starts = torch.arange(since_1990 - PAST, len(series) - PAST - NEXT, 8)  # what is told lies after 1990
past, future = windows(starts)
with torch.no_grad():
    told = {"model": model.eval()(past).prediction_outputs, "last year and its growth": last_year(past)}
told["a line and two harmonics"] = least_squares(past)
density = torch.stack([*locked_density(model, past[:8]).values()]).mean()
print(f"{len(past)} forecasts of a year from two with gaps, density {density:.2f}. Error in ppm:")
for name, values in told.items():
    print(f"{name}: {(values - future).square().nanmean().sqrt():.2f}")
