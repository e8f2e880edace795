"""The complexity section's picture: time and memory against N, time against density."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from syncattn_lab.paper.operations import exponent_of_times
from syncattn_lab.paper.section import Numbers

_STYLES: dict[str, tuple[str, str, Any]] = {
    "published, dense": ("#cf5c2b", "o", "-"),
    "published, top-64": ("#e08a62", "s", (0, (3, 1.5))),
    "ours, 5 % lock": ("#083a52", "o", "-"),
    "ours, k lock, m = 8": ("#0b6e8f", "s", (0, (3, 1.5))),
    "ours, k lock, m = 1": ("#1b8a8f", "D", "-"),
    "ours, drift": ("#39b5a5", "^", "-"),
}


def draw(numbers: Numbers) -> Figure:
    """Four panels: operations, time, memory and time against density; exponents are in the legend."""
    figure = Figure(figsize=(9.0, 7.0), layout="constrained")
    panels = figure.subplots(2, 2)
    _operations(panels[0, 0], numbers)
    _density(panels[1, 1], numbers)
    series = numbers["series"]
    times = {
        name: (one["tokens"], [1000 * _fastest(rounds) for rounds in one["seconds"]])
        for name, one in series.items()
    }
    _lines(panels[0, 1], times, "Processor time of two heads, ms")
    if "no_memory" in numbers:
        panels[1, 0].set_axis_off()
        panels[1, 0].text(0, 0.5, "Peak memory was not measured:\n" + numbers["no_memory"], wrap=True)
    else:
        peaks = {
            name: (one["memory"]["tokens"], [x / 2**20 for x in one["memory"]["bytes"]])
            for name, one in series.items()
        }
        _lines(panels[1, 0], peaks, "Peak memory of two heads, MiB")
    handles = [
        Line2D([], [], color=colour, marker=marker, ls=style, lw=1.6, ms=4.2, label=_label(name, numbers))
        for name, (colour, marker, style) in _STYLES.items()
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=2,
        fontsize=9.5,
        handlelength=3.2,
        columnspacing=3,
        title="Exponent with N of time, and of peak memory",
        title_fontsize=9.5,
        alignment="left",
    )
    return figure


def _label(name: str, numbers: Numbers) -> str:
    series, setting = numbers["series"][name], numbers["setting"]
    text = f"{name}, window {setting['window']}" if name == "ours, drift" else name
    text = text.replace("k lock", f"{setting['partners']} a token lock")
    time = exponent_of_times(series["tokens"], series["seconds"])["median"]
    exponents = [time, *([series["memory"]["exponent"]] if "memory" in series else [])]
    return f"{text}: " + ", ".join(f"{x:.2f}" for x in exponents)


def _fastest(rounds: list[float | None]) -> float:
    return min(seconds for seconds in rounds if seconds is not None)


def _operations(axes: Axes, numbers: Numbers) -> None:
    counts = numbers["counts"]
    tokens = counts["tokens"]
    setting = numbers["setting"]
    for name in ("published, dense", "published, top-64"):
        colour, marker, style = _STYLES[name]
        axes.plot(tokens, counts[name]["operations"], color=colour, marker=marker, ls=style, lw=1.6, ms=4.2)
    claimed = [4 * n * setting["top_k"] * setting["head_dim"] for n in tokens]
    axes.plot(tokens, claimed, color="#8a8f98", lw=1.6)
    axes.annotate(
        "claimed for top-k:\n4 N k d",
        (tokens[4], claimed[4]),
        (8, -8),
        va="top",
        textcoords="offset points",
        color="#6b7682",
        fontsize=9,
    )
    axes.annotate(
        "dense and top-k\nas published: N²",
        (tokens[3], counts["published, dense"]["operations"][3]),
        (-4, 14),
        ha="right",
        textcoords="offset points",
        color="#cf5c2b",
        fontsize=9,
    )
    axes.set_title("Operations of one head, counted", loc="left")
    _finish(axes, tokens)
    axes.yaxis.set_major_locator(LogLocator(base=10))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"$10^{{{len(str(int(value))) - 1}}}$"))


def _lines(axes: Axes, lines: dict[str, tuple[list[int], list[float]]], title: str) -> None:
    for name, (tokens, values) in lines.items():
        colour, marker, style = _STYLES[name]
        axes.plot(tokens, values, color=colour, marker=marker, ls=style, lw=1.6, ms=4.2)
    axes.set_title(title, loc="left")
    _finish(axes, sorted({n for tokens, _ in lines.values() for n in tokens}))


def _density(axes: Axes, numbers: Numbers) -> None:
    found = numbers["density"]
    colour = "#0b6e8f"
    seconds = [_fastest(rounds) for rounds in found["seconds"]]
    axes.plot(found["density"], [s / seconds[-1] for s in seconds], color=colour, marker="o", lw=1.6, ms=4.2)
    axes.plot(
        [found["density"][0], found["density"][-1]],
        [found["density"][0] / found["density"][-1], 1],
        color="#8a8f98",
        lw=1.2,
    )
    axes.annotate(
        "in proportion to the\npairs that lock",
        (0.06, 0.06 / found["density"][-1]),
        (6, -3),
        color="#6b7682",
        textcoords="offset points",
        va="top",
        fontsize=9,
    )
    axes.set_title(f"Ours over density, N = {found['tokens']:,}", loc="left")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("share of pairs that lock")
    axes.set_ylabel("time over the densest's")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(base=10, subs=(1.0, 3.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=8.5)
    axes.grid(axis="y", lw=0.6)


def _finish(axes: Axes, tokens: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(tokens))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g}" if value < 1024 else f"{value / 1024:g}k")
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("N, tokens")
    axes.tick_params(labelsize=8.5)
    axes.grid(axis="y", lw=0.6)
