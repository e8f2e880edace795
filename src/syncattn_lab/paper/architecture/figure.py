"""Figure 2: the blocks side by side, every box and every count from the modules themselves."""

from __future__ import annotations

from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch

from syncattn_lab.paper.section import Numbers

INK, LINE, GREY = "#26292e", "#8b939c", "#6b7682"
PLAIN = ("#f3f4f6", "#c9d0d6")  # face and edge of what all blocks share
COLUMNS = ("transformer", "published", "trainable")
TITLES = ("Transformer block", "OSN block, published", "OSN block, trainable")
COLOURS = ("#8d63c4", "#cf5c2b", "#0b6e8f")
TINTS = ("#f4effa", "#fbefe9", "#e9f3f6")
RULES = {
    "transformer": r"$\mathrm{softmax}(q \cdot k \, / \sqrt{d})$",
    "published": r"$S = \sqrt{\max(e^{-2 \alpha D} - D / \kappa^2, \, 0)}$",
    "trainable": r"$S^2 = \max(e^{-2 \alpha D} - D / \kappa^2, \, 0)$",
}
WIDTH, LANE, INDENT = 3.2, 0.17, 0.42  # of a column, inches: all, the residual's line, where boxes begin


class _Pen(NamedTuple):
    """Where and with what a column is drawn."""

    axes: Axes
    left: float
    colour: str
    tint: str

    @property
    def middle(self) -> float:
        return self.left + 0.5 * (INDENT + WIDTH)

    def box(
        self, x: float, top: float, width: float, height: float, colours: tuple[str, str], lift: float = 2
    ) -> None:
        self.axes.add_patch(
            FancyBboxPatch(
                (x, top - height),
                width,
                height,
                boxstyle="round,pad=0,rounding_size=0.06",
                facecolor=colours[0],
                edgecolor=colours[1],
                linewidth=1,
                zorder=lift,
            )
        )

    def write(self, x: float, y: float, text: str, **options: Any) -> None:
        standard: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9, "zorder": 5}
        self.axes.text(x, y, text, **(standard | options))

    def line(self, x: list[float], y: list[float]) -> None:
        self.axes.plot(x, y, color=LINE, linewidth=1.1, zorder=1, solid_capstyle="round")

    def arrow(self, x: float, start: float, end: float) -> None:
        style = {"arrowstyle": "-|>", "color": LINE, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0}
        self.axes.annotate("", (x, end), (x, start), arrowprops=style, zorder=4)


def draw(numbers: Numbers) -> Figure:
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    axes = figure.subplots()
    bottom = min(
        _column(_Pen(axes, place * (WIDTH + 0.2), colour, tint), numbers, name, title)
        for place, (name, title, colour, tint) in enumerate(zip(COLUMNS, TITLES, COLOURS, TINTS))
    )
    axes.set_xlim(0.1, 3 * WIDTH + 0.45)
    axes.set_ylim(bottom - 0.05, 0.5)
    axes.set_aspect("equal")
    axes.axis("off")
    return figure


def _column(pen: _Pen, numbers: Numbers, name: str, title: str) -> float:
    """One block from top to bottom; the height at which it ends."""
    block = numbers["blocks"][name]
    more = block["parameters"] - numbers["blocks"]["transformer"]["parameters"]
    total = f"{block['parameters']:,} parameters"
    if name != "transformer":
        total += f" ({more:+,})".replace("-", "\N{MINUS SIGN}")
    pen.write(pen.middle, 0.4, title, fontsize=12, weight="bold", color=pen.colour)
    pen.write(pen.middle, 0.14, total, fontsize=10)
    top = -0.04
    group: list[dict[str, Any]] = []
    for step in block["steps"]:
        if step["kind"] == "add":
            top = _branch(pen, group, block, name, top)
            group = []
        else:
            group.append(step)
    pen.arrow(pen.middle, top, top - 0.22)
    return top - 0.22


def _branch(pen: _Pen, steps: list[dict[str, Any]], block: dict[str, Any], name: str, top: float) -> float:
    """The steps up to an addition and the residual around them; the height below the addition."""
    lane = pen.left + LANE
    begin = top - 0.1
    pen.line([pen.middle, pen.middle], [top, begin])
    at = begin
    for step in steps:
        pen.arrow(pen.middle, at, at - 0.19)
        at -= 0.19
        at = _attention(pen, step, block, name, at) if step["name"] == "self_attn" else _plain(pen, step, at)
    radius = 0.1
    centre = at - 0.18 - radius
    pen.arrow(pen.middle, at, centre + radius)
    pen.line([pen.middle, lane, lane, pen.middle - radius], [begin, begin, centre, centre])
    pen.axes.add_patch(Circle((pen.middle, centre), radius, facecolor="white", edgecolor=LINE, zorder=3))
    pen.write(pen.middle, centre - 0.005, "+", fontsize=10)
    return centre - radius


def _plain(pen: _Pen, step: dict[str, Any], top: float) -> float:
    """A step that all blocks share: its kind, for a linear map its sizes, and its parameters."""
    height, x = 0.34, pen.left + INDENT
    pen.box(x, top, WIDTH - INDENT, height, PLAIN)
    label = step["kind"]
    if step["kind"] == "Linear":
        out, into = step["shape"]
        label += f" {into:,} \N{RIGHTWARDS ARROW} {out:,}"
    pen.write(x + 0.12, top - 0.5 * height, label, ha="left")
    pen.write(pen.left + WIDTH - 0.12, top - 0.5 * height, f"{step['parameters']:,}", ha="right")
    return top - height


def _attention(pen: _Pen, step: dict[str, Any], block: dict[str, Any], name: str, top: float) -> float:
    """The attention: three projections, the rule that makes weights of them, the output projection."""
    x, width, height = pen.left + INDENT, WIDTH - INDENT, 2.3
    pen.box(x, top, width, height, (pen.tint, pen.colour))
    pen.write(x + 0.12, top - 0.18, "self-attention", ha="left", weight="bold", color=pen.colour)
    pen.write(x + width - 0.12, top - 0.18, f"{step['parameters']:,}", ha="right", color=pen.colour)
    projections, rule, output = parts(block["attention"])
    edge, gap = 0.12, 0.08
    inner = width - 2 * edge
    each = (inner - 2 * gap) / 3
    first = top - 0.36
    for place, (label, count) in enumerate(projections):
        shared = label == "values" or name == "transformer"
        left = x + edge + place * (each + gap)
        pen.box(left, first, each, 0.52, ("white", PLAIN[1] if shared else pen.colour), lift=3)
        pen.write(left + 0.5 * each, first - 0.16, label, fontsize=8.5, color=INK if shared else pen.colour)
        pen.write(left + 0.5 * each, first - 0.37, f"{count:,}")
        pen.arrow(left + 0.5 * each, first - 0.52, first - 0.69)
    second = first - 0.69
    pen.box(x + edge, second, inner, 0.6, ("white", pen.colour), lift=3)
    pen.write(pen.middle, second - 0.21, RULES[name], fontsize=9.5, color=pen.colour)
    frame = "nearest frame, " if name == "trainable" else ""
    strengths = f"{frame}K and \N{GREEK SMALL LETTER ALPHA}: {rule:,} parameters" if rule else "no parameters"
    pen.write(pen.middle, second - 0.45, strengths, fontsize=8.5)
    pen.arrow(pen.middle, second - 0.6, second - 0.77)
    third = second - 0.77
    pen.box(x + edge, third, inner, 0.34, ("white", PLAIN[1]), lift=3)
    pen.write(x + edge + 0.1, third - 0.17, "output", ha="left")
    pen.write(x + edge + inner - 0.1, third - 0.17, f"{output:,}", ha="right")
    return top - height


def parts(attention: list[dict[str, Any]]) -> tuple[list[tuple[str, int]], int, int]:
    """(three projections with their parameters; parameters of the rule; those of the output projection)."""
    count = {one["name"]: one["parameters"] for one in attention}

    def under(*prefixes: str) -> int:
        return sum(number for name, number in count.items() if name.startswith(prefixes))

    if "in_proj_weight" in count:  # PyTorch keeps queries, keys and values in one matrix, one below the other
        each = under("in_proj") // 3
        projections = [("queries", each), ("keys", each), ("values", each)]
    else:
        projections = [
            ("frequencies", under("frequency.")),
            ("phases", under("phase_proj.")),
            ("values", under("value_proj.")),
        ]
    return projections, under("raw_"), under("out_proj.")
