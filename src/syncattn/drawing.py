"""How the project's pictures look and how they are written; matplotlib, without pyplot and its display."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.figure import Figure

PAGES = {
    "light": {"ink": "#26292e", "faint": "#d9dce1", "paper": "#ffffff", "zero": "#eceef1"},
    "dark": {"ink": "#d6d9de", "faint": "#40454d", "paper": "#1b1e23", "zero": "#2a2e35"},
}
FORMATS = ("png", "svg", "pdf")


@contextmanager
def style(page: str = "light") -> Iterator[None]:
    """A page's colours and type for what is drawn inside."""
    colours = PAGES[page]
    settings: Any = {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 9.5,
        "figure.facecolor": colours["paper"],
        "axes.facecolor": colours["paper"],
        "savefig.facecolor": colours["paper"],
        "text.color": colours["ink"],
        "axes.labelcolor": colours["ink"],
        "axes.titlesize": 10,
        "axes.edgecolor": colours["faint"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": colours["ink"],
        "ytick.color": colours["ink"],
        "grid.color": colours["faint"],
        "legend.frameon": False,
        "axes.unicode_minus": True,
        "svg.hashsalt": "syncattn",  # the same picture gives the same file
        "pdf.fonttype": 42,
    }
    with matplotlib.rc_context(settings):
        yield


@contextmanager
def canvas(
    page: str, width: float, height: float, layout: Literal["constrained"] | None = None
) -> Iterator[Figure]:
    """A figure in the page's colours, in inches; never one of pyplot's, which would ask for a display."""
    with style(page):
        yield Figure(figsize=(width, height), layout=layout)


def png(figure: Figure) -> bytes:
    """The figure as a PNG file's bytes."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # then a box stands for the character
        figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write the figure as PNG, SVG and PDF without dates in them; the paths."""
    dateless = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    paths = [folder / f"{name}.{kind}" for kind in FORMATS]
    for path, kind in zip(paths, FORMATS):
        figure.savefig(path, format=kind, dpi=160, metadata=dateless[kind])
    return paths
