"""Figure 3 and Table 1 from the benchmark's numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from syncattn.bench.timing import ratios
from syncattn.page import Chart, Line
from syncattn_lab.paper.section import Numbers

# name in the numbers: (label, colour, marker, line style)
CONTENDERS: dict[str, tuple[str, str, str, Any]] = {
    "transformer": ("Transformer, as published", "#8d63c4", "o", "-"),
    "transformer_sdpa": ("Transformer, fused softmax", "#8d63c4", "D", (0, (1, 1.2))),
    "osn_dense": ("OSN as published, dense", "#cf5c2b", "o", "-"),
    "osn_sparse": ("OSN as published, top-64", "#cf5c2b", "s", (0, (3, 1.5))),
    "ours_locked": ("the same OSN, our kernel: all lock", "#0b6e8f", "o", "-"),
    "ours_alone": ("the same OSN, our kernel: self alone", "#0b6e8f", "s", (0, (3, 1.5))),
    "ours_trainable": ("our trainable block", "#39b5a5", "^", "-"),
}
PUBLISHED_NAMES = ("osn_dense", "osn_sparse")
_TOP_K = "our kernel has no top-k: plain PyTorch"
_TICKS: Any = FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")


def draw(numbers: Numbers) -> Figure:
    """Absolute figures of this machine above; below, ratios to the Transformer within each machine."""
    figure = Figure(figsize=(9.4, 6.2), layout="constrained")
    panels = figure.subplots(2, 3)
    rows = numbers["rows"]
    tokens = [row["tokens"] for row in rows]
    throughput = _of(rows, lambda row, name: row["tokens"] * row["batch"] / _seconds(row, name) / 1000)
    _lines(panels[0, 0], tokens, throughput, "Throughput, thousand tokens/s")
    _lines(
        panels[0, 1],
        tokens,
        _of(rows, lambda row, name: _seconds(row, name) * 1000),
        "Latency of a batch, ms",
    )
    times = _of(rows, _over_transformer)
    _ratios(panels[1, 0], numbers, times, "throughput", "Time over the Transformer's")
    if "no_memory" in numbers:
        for axes in (panels[0, 2], panels[1, 1]):
            axes.set_axis_off()
        panels[0, 2].text(0, 0.5, "Peak memory was not measured:\n" + numbers["no_memory"], wrap=True)
    else:
        held = _of(rows, lambda row, name: row["contenders"][name]["peak_mib"])
        _lines(panels[0, 2], tokens, held, "Peak memory, MiB")
        base = {row["tokens"]: row["contenders"]["transformer"]["peak_mib"] for row in rows}
        peaks = {name: (x, [y / base[n] for n, y in zip(x, values)]) for name, (x, values) in held.items()}
        _ratios(panels[1, 1], numbers, peaks, "peak", "Peak memory over the Transformer's")
    _legend(panels[1, 2], numbers)
    return figure


Lines = dict[str, tuple[list[int], list[float]]]


def _seconds(row: Numbers, name: str) -> float:
    return median(s for s in row["contenders"][name]["seconds"] if s is not None)


def _over_transformer(row: Numbers, name: str) -> float:
    contenders = row["contenders"]
    return median(ratios(contenders[name]["seconds"], contenders["transformer"]["seconds"]))


def _of(rows: Sequence[Numbers], value: Callable[[Numbers, str], float]) -> Lines:
    """(N, value of the row and the name) of every contender."""
    found: Lines = {}
    for name in CONTENDERS:
        there = [row for row in rows if name in row["contenders"]]
        found[name] = ([row["tokens"] for row in there], [value(row, name) for row in there])
    return found


def charts(numbers: Numbers) -> list[Chart]:
    """The same for the page in the browser: throughput and, over the Transformer's, time and peak memory."""
    rows = numbers["rows"]
    throughput = _of(rows, lambda row, name: row["tokens"] * row["batch"] / _seconds(row, name) / 1000)
    found = [
        _chart("Throughput", "thousand tokens/s", throughput),
        _chart("Time of a batch over the Transformer's", "ratio", _of(rows, _over_transformer)),
    ]
    if "no_memory" not in numbers:
        base = {row["tokens"]: row["contenders"]["transformer"]["peak_mib"] for row in rows}
        peak = _of(rows, lambda row, name: row["contenders"][name]["peak_mib"] / base[row["tokens"]])
        found.append(_chart("Peak memory over the Transformer's", "ratio", peak))
    return found


def _chart(title: str, unit: str, found: Lines) -> Chart:
    lines = [
        Line(label, *found[name], (colour, colour), dashed=style != "-")
        for name, (label, colour, _, style) in CONTENDERS.items()
        if found[name][0]
    ]
    ends = "; ".join(f"{line.name} {line.y[-1]:.2f}" for line in lines)
    at = max(line.x[-1] for line in lines)
    says = f"{title}, {unit}, at {at:,} tokens: {ends}."
    return Chart(title, says, "tokens of a sequence, N", unit, lines, digits=2, log=True)


def _lines(axes: Axes, tokens: list[int], lines: Lines, title: str) -> None:
    for name, (x, y) in lines.items():
        _, colour, marker, style = CONTENDERS[name]
        axes.plot(x, y, color=colour, marker=marker, ls=style, lw=1.6, ms=4.2)
    axes.set_title(title, loc="left")
    _finish(axes, tokens)


def _ratios(axes: Axes, numbers: Numbers, lines: Lines, quantity: str, title: str) -> None:
    published = numbers["published"]
    base = published[quantity]["transformer"]
    for name in PUBLISHED_NAMES:
        pairs = list(zip(published[quantity][name], base))
        ratio = [b / a for a, b in pairs] if quantity == "throughput" else [a / b for a, b in pairs]
        marker = CONTENDERS[name][2]
        axes.plot(published["tokens"], ratio, color="#eab69c", marker=marker, ls="-", lw=3.2, ms=6, zorder=1)
    _lines(axes, published["tokens"], {k: v for k, v in lines.items() if k != "transformer"}, title)
    axes.axhline(1, color="#8d63c4", lw=1.4, zorder=1)
    axes.set_xlabel("N, tokens of a sequence")


def _finish(axes: Axes, tokens: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(tokens))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(_TICKS)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=8.5)
    axes.grid(axis="y", lw=0.6)


def _legend(axes: Axes, numbers: Numbers) -> None:
    axes.set_axis_off()
    handles = [
        Line2D([], [], color=colour, marker=marker, ls=style, lw=1.6, ms=4.2, label=label)
        for label, colour, marker, style in CONTENDERS.values()
    ]
    handles += [
        Line2D([], [], color="#eab69c", marker=marker, lw=3.2, ms=6, label=f"{label}, published, A100")
        for marker, label in (("o", "dense"), ("s", "top-64"))
    ]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(-0.06, 1.02), fontsize=9, handlelength=3.2)
    setting = numbers["setting"]
    axes.text(
        0,
        0.0,
        f"D {setting['width']}, H {setting['heads']}, float32, CPU, {_threads(setting)};\n"
        f"batch {_range([row['batch'] for row in numbers['rows']])}",
        transform=axes.transAxes,
        fontsize=8.5,
        va="bottom",
    )


def _threads(setting: Numbers) -> str:
    return "one thread" if setting["threads"] == 1 else f"{setting['threads']} threads"


def _range(values: list[int]) -> str:
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"


def table(numbers: Numbers) -> str:
    """Table 1 as Markdown: here in absolute numbers, then ratios here beside the published ones."""
    setting = numbers["setting"]
    timed = [one["seconds"] for row in numbers["rows"] for one in row["contenders"].values()]
    trials = [sum(s is not None for s in seconds) for seconds in timed]
    lines = [
        "# Table 1: the published benchmark, and ours",
        "",
        f"One block, D {setting['width']}, H {setting['heads']}, forward without gradients, float32, on the "
        f"CPU with {_threads(setting)}: {setting['warm_ups']} warm-up and {_range(trials)} trials in turn, "
        "not the paper's 10 and 50; the median counts. Peak memory includes parameters and input. Density "
        "is the share of pairs that lock.",
        "",
        "| N | batch | block | thousand tokens/s | latency, ms | peak, MiB | density |",
        "| ---: | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    labels = {name: label for name, (label, *_) in CONTENDERS.items()}
    labels["ours_top_k"] = f"the same OSN, top-{setting['top_k']}, ours ({_TOP_K})"
    for row in numbers["rows"]:
        for name, label in labels.items():
            if name not in row["contenders"]:
                continue
            one = row["contenders"][name]
            peak = f"{one['peak_mib']:,.0f}" if "peak_mib" in one else "-"
            seconds, density = _seconds(row, name), row["density"].get(name)
            speed = row["tokens"] * row["batch"] / seconds / 1000
            share = "-" if density is None else f"{density:.2g}"
            lines.append(
                f"| {row['tokens']:,} | {row['batch']} | {label} | {speed:.2f} | {seconds * 1000:,.0f} | "
                f"{peak} | {share} |"
            )
    return "\n".join([*lines, "", *_ratio_table(numbers, labels)]) + "\n"


def _ratio_table(numbers: Numbers, labels: dict[str, str]) -> list[str]:
    """Time and memory over the Transformer's as published, within each machine."""
    published, rows = numbers["published"], numbers["rows"]
    lines = [
        "Over the Transformer as published, within each machine (time, peak memory):",
        "",
        "| block | " + " | ".join(f"N {row['tokens']:,}" for row in rows) + " |",
        "| --- |" + " ---: |" * len(rows),
    ]
    for name, label in labels.items():
        if name == "transformer" or not any(name in row["contenders"] for row in rows):
            continue
        cells = []
        for row in rows:
            one, base = row["contenders"].get(name), row["contenders"]["transformer"]
            if one is None:
                cells.append("-")
                continue
            peak = f", {one['peak_mib'] / base['peak_mib']:.2f}" if "peak_mib" in one else ""
            cells.append(f"{_over_transformer(row, name):.2f}{peak}")
        lines.append(f"| {label}, here | " + " | ".join(cells) + " |")
        if name in PUBLISHED_NAMES:
            cells = []
            for row in rows:
                i = published["tokens"].index(row["tokens"])
                speed, peak_there = published["throughput"], published["peak"]
                slower = speed["transformer"][i] / speed[name][i]
                cells.append(f"{slower:.2f}, {peak_there[name][i] / peak_there['transformer'][i]:.2f}")
            lines.append(f"| {label}, published, A100 | " + " | ".join(cells) + " |")
    return lines
