"""The record's pictures, as PNG bytes: time against density, time against N, memory against N."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from syncattn.bench.contenders import PUBLISHED, SDPA, TILED
from syncattn.bench.plan import BACKWARD, FORWARD
from syncattn.bench.session import threads_text
from syncattn.drawing import canvas, png
from syncattn.training.files import disk_errors, staged

_OURS, _SOFTMAX, _TILED, _PAPER = "#1b8a8f", "#dd7a1c", "#8d63c4", "#8a8f98"
_COLOURS = {SDPA: _SOFTMAX, TILED: _TILED, PUBLISHED: _PAPER}
_FORMS: dict[str, dict[str, Any]] = {  # how the preferred backend's lines differ
    "symmetric": {"marker": "o", "ls": "-"},
    "directed": {"marker": "s", "ls": (0, (4, 2))},
    "clustered": {"marker": "D", "ls": (0, (1, 1.5))},
}
_TITLES = {FORWARD: "forward", BACKWARD: "forward + backward"}


def write_figures(record: dict[str, Any], out: Path) -> list[str]:
    """Draw what the record has data for into `out`; returns the files' names."""
    drawn = {name: draw(record) for name, draw in FIGURES.items()}
    with disk_errors(f"cannot write figures to {out}"), staged(out) as folder:
        for name, png in drawn.items():
            if png is not None:
                (folder / name).write_bytes(png)
    return [name for name, png in drawn.items() if png is not None]


# Structures that stand in no line over the density: position decides who locks.
_APART = ("drift", "layer")


def density(record: dict[str, Any]) -> bytes | None:
    """Time over SDPA's against density, a panel per pass; quartiles as bars, targets as short lines."""
    ours, threads = record["preferred"], record["plan"]["threads"][0]
    series = {passes: _density_series(record, passes, threads, ours) for passes in (FORWARD, BACKWARD)}
    if not any(series.values()):
        return None
    drawn = (e["case"] for e in record["entries"] if e["suite"] in ("table", "variants"))
    case = next(case for case in drawn if case["structure"] not in _APART)
    with canvas("light", 8.6, 4.1, "constrained") as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (passes, lines) in zip(panels, series.items(), strict=True):
            for (label, style), points in lines.items():
                x, y, low, high = zip(*sorted(points))
                bars = [[a - b for a, b in zip(y, low)], [b - a for a, b in zip(y, high)]]
                axes.errorbar(x, y, bars, label=label, lw=1.7, ms=5, elinewidth=1, **dict(style))
            axes.axhline(1, color=_SOFTMAX, lw=1.4)
            axes.annotate(
                "SDPA",
                (0.02, 1),
                (0, 3),
                ("axes fraction", "data"),
                "offset points",
                color=_SOFTMAX,
                fontsize=9,
            )
            _mark_targets(axes, record.get("targets", {}).get("bounds", {}).get(passes, []))
            axes.set_xscale("log")
            axes.set_yscale("log")
            _density_ticks(axes, record["plan"]["densities"])
            _plain_ticks(axes, "y", (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20), "{:g} ×")
            axes.grid(axis="y", lw=0.6)
            axes.set_title(_TITLES[passes], loc="left")
            axes.set_xlabel("density: share of pairs that lock")
        panels[0].set_ylabel("time over SDPA's")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=9, handlelength=3)
        _headline(
            figure,
            f"N {case['tokens']}, d {case['head_dim']}, m {case['freq_dim']}, "
            f"H {case['heads']}, float32, {threads_text(threads)}",
        )
        return png(figure)


def _density_series(
    record: dict[str, Any], passes: str, threads: int, ours: str | None
) -> dict[tuple[str, tuple], list[tuple[float, ...]]]:
    """Points (density, ratio, quartiles) by label and style."""
    found: dict[tuple[str, tuple], list[tuple[float, ...]]] = {}
    for entry in record["entries"]:
        case = entry["case"]
        if (entry["passes"], entry["threads"]) != (passes, threads) or entry["suite"] not in (
            "table",
            "variants",
        ):
            continue
        plain = case["power"] == 2 and case["frame"] == "absolute" and case["dtype"] == "fp32"
        if not plain or case["structure"] in _APART:
            continue
        form = "directed" if case["directed"] else "symmetric"
        form = "clustered" if case["structure"] == "clustered" else form
        for name, result in entry["contenders"].items():
            if name == SDPA or "ratio" not in result or (name != ours and form != "symmetric"):
                continue
            if name == ours:
                style: dict[str, Any] = {"color": _OURS} | _FORMS[form]
            else:
                style = {"color": _COLOURS.get(name, _PAPER), "marker": "o", "ls": "-"}
            label = f"{name}, {form}" if name == ours else name
            ratio = result["ratio"]
            point = (entry["counted"]["density"], ratio["median"], *ratio["quartiles"])
            found.setdefault((label, tuple(style.items())), []).append(point)
    return found


def _mark_targets(axes: Axes, bounds: list[list[float]]) -> None:
    for number, (density, bound) in enumerate(bounds):
        label = None if number else "target"
        axes.plot([density / 1.25, density * 1.25], [bound] * 2, color="#26292e", lw=1.6, label=label)


def tokens(record: dict[str, Any]) -> bytes | None:
    """Time of one call against N, a panel per pass."""
    threads = record["plan"]["threads"][0]
    lines: dict[str, dict[tuple[str, str], list[tuple[float, float]]]] = {FORWARD: {}, BACKWARD: {}}
    for entry in record["entries"]:
        if entry["suite"] != "tokens":
            continue
        for name, result in entry["contenders"].items():
            # SDPA and tiled take the same time at any density: they are drawn from one case.
            where = "as published" if name == PUBLISHED else "dense"
            if result["status"] != "measured" or (name != record["preferred"] and entry["name"] != where):
                continue
            if name == record["preferred"] and entry["name"] == "as published":
                continue
            point = (entry["case"]["tokens"], 1000 * result["time"]["median"])
            lines[entry["passes"]].setdefault((name, entry["name"]), []).append(point)
    if not any(lines.values()):
        return None
    with canvas("light", 8.6, 4.1, "constrained") as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (passes, series) in zip(panels, lines.items(), strict=True):
            for (name, case), points in series.items():
                ours = name == record["preferred"]
                label = f"{name}, {case}" if ours else {SDPA: "SDPA", PUBLISHED: "published"}.get(name, name)
                style = {"color": _OURS if ours else _COLOURS.get(name, _PAPER)}
                style["ls"] = (0, (4, 2)) if ours and case != "dense" else "-"  # type: ignore[assignment]
                axes.plot(*zip(*sorted(points)), marker="o", ms=4, lw=1.7, label=label, **style)  # type: ignore
            _log_axes(axes, [n for points in series.values() for n, _ in points], "{:g}")
            axes.set_title(_TITLES[passes], loc="left")
        panels[0].set_ylabel("milliseconds")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=9, handlelength=3)
        plan = record["plan"]
        _headline(
            figure,
            f"d {plan['head_dim']}, m {plan['freq_dim']}, H {plan['heads']}, float32, "
            f"{threads_text(threads)}",
        )
        return png(figure)


def memory(record: dict[str, Any]) -> bytes | None:
    """Peak extra memory of forward and backward against N."""
    lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for each in sorted(record["memory"], key=lambda each: each["suite"] == "scaling"):
        if each["bytes"]:
            point = (each["tokens"], each["bytes"] / 2**20)
            lines.setdefault((each["contender"], each["suite"]), []).append(point)
    if not lines:
        return None
    with canvas("light", 5.6, 4.1, "constrained") as figure:
        axes = figure.subplots()
        for (name, suite), points in lines.items():
            ours = name == record["preferred"]
            window = suite == "scaling"
            label = {SDPA: "SDPA", PUBLISHED: "published"}.get(name, name)
            label = f"{label}, causal, window {record['plan']['window']}" if window else label
            colour = _OURS if ours else _COLOURS.get(name, _PAPER)
            dashes: Any = (0, (4, 2)) if window else "-"
            axes.plot(*zip(*sorted(points)), color=colour, ls=dashes, marker="o", ms=4, lw=1.7, label=label)
        _log_axes(axes, [n for points in lines.values() for n, _ in points], "{:g}")
        axes.set_ylabel("peak memory beyond the inputs, MiB")
        axes.set_title("forward + backward", loc="left")
        axes.legend(fontsize=9, handlelength=3)
        plan = record["plan"]
        _headline(figure, f"d {plan['head_dim']}, m {plan['freq_dim']}, H {plan['heads']}, float32, 1 thread")
        return png(figure)


FIGURES: dict[str, Callable[[dict[str, Any]], bytes | None]] = {
    "density.png": density,
    "tokens.png": tokens,
    "memory.png": memory,
}


def _log_axes(axes: Axes, lengths: list[float], form: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted(set(lengths))
    while len(ticks) > 7:
        ticks = ticks[::2]
    _plain_ticks(axes, "x", tuple(ticks), "{:g}")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", lw=0.6)
    axes.set_xlabel("tokens N")


def _plain_ticks(axes: Axes, which: str, ticks: tuple[float, ...], form: str) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: form.format(value)))
    axis.set_minor_locator(NullLocator())
    limits = axes.get_xlim() if which == "x" else axes.get_ylim()
    axis.set_ticks([tick for tick in ticks if limits[0] / 1.01 <= tick <= limits[1] * 1.01])


def _density_ticks(axes: Axes, densities: list[float]) -> None:
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(list(densities), [f"{100 * value:g} %" for value in densities])
    axes.set_xlim(min(densities) / 1.6, 1.6)


def _headline(figure: Any, text: str) -> None:
    figure.suptitle(text, x=0.01, ha="left", fontsize=9)
