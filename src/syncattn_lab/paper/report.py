"""A run of the audit as one HTML page that needs nothing else: verdicts, figures, measurements, numbers."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from syncattn.page import MOST_BYTES, Cell, Chart, Weights, chart, download, report, sentence, table
from syncattn.training.files import read_json
from syncattn_lab.paper import sections
from syncattn_lab.paper.judge import HOLDS_IF, Claim
from syncattn_lab.paper.ledger import number

REPORT_FILE = "report.html"
_ROOM = 60_000
"""Bytes that are kept free for sentences about what was left out."""


def render(out: Path, found: dict[str, list[Claim]], about: str) -> str:
    """The page's HTML.

    Args:
        out: the run's folder, with the sections' numbers and pictures.
        found: each section's claims.
        about: a paragraph on the run, as the ledger has it.

    Raises:
        UserError: a section's numbers cannot be read.
    """
    numbers = {name: read_json(out / f"{name}.json")["numbers"] for name in found}
    charts: list[Chart] = []
    sentences: list[Weights] = []
    parts = [
        "<p>What <i>Selective Synchronization Attention</i> (Hays, arXiv:2602.14445) claims, each with a "
        "verdict that rests on measurements. Verdicts hang on counts, bytes and values; times decide "
        "nothing.</p>",
        f'<p class="soft">{escape(about.replace("`", ""))}</p>',
        "<h2>Verdicts</h2>",
        _card(table("Every claim; a click on a column's name sorts by it", *_verdicts(found), sorts=True)),
    ]
    for name, claims in found.items():
        parts += _section(name, claims, numbers[name], out, charts, sentences)

    def page(records: str) -> str:
        body = "\n".join([*parts, "<h2>Data</h2>", f"<p>{records}</p>"])
        return report(
            "Selective Synchronization Attention, claim by claim",
            body,
            charts=[one.data for one in charts],
            sentences=[one.data for one in sentences],
        )

    left = MOST_BYTES - len(page("").encode()) - _ROOM
    return page(_records(out, list(found), left))


def _verdicts(found: dict[str, list[Claim]]) -> tuple[list[str], list[list[str | Cell]]]:
    rows: list[list[str | Cell]] = []
    for name, claims in found.items():
        for claim in claims:
            rows.append([Cell(claim.says, prose=True), claim.source, name, verdict(claim)])
    return ["claim", "where", "section", "verdict"], rows


def verdict(claim: Claim) -> str:
    """A claim's verdict in words; that it is not shown where its measurements do not bear it out."""
    text = "holds under a condition" if claim.verdict == HOLDS_IF else claim.verdict
    return text if claim.shown else f"not shown ({text} was expected)"


def _section(
    name: str,
    claims: Sequence[Claim],
    numbers: dict[str, Any],
    out: Path,
    charts: list[Chart],
    sentences: list[Weights],
) -> list[str]:
    one = sections.section(name)
    parts = [f"<h2>{escape(one.title)}</h2>"]
    findings = " ".join(claim.finding for claim in claims)
    for drawing in one.drawings:
        path = out / f"{drawing.name}.png"
        if path.is_file():
            parts.append(_figure(drawing.title, findings, path.read_bytes()))
    for shown in one.charts(numbers) if one.charts is not None else []:
        charts.append(shown)
        parts.append(chart(shown, len(charts) - 1))
    if name == "concept":
        sentences.append(_concept(numbers))
        parts += [_CONCEPT, sentence(sentences[-1], len(sentences) - 1)]
    rows: list[list[str | Cell]] = []
    for claim in claims:
        parts.append(
            f"<p><b>{escape(claim.source)}: {escape(claim.says)}</b> {escape(verdict(claim).capitalize())}. "
            f"{escape(claim.finding)}</p>"
        )
        for check in claim.checks:
            wanted = check.expected + ("" if check.met else ", not met")
            measured = Cell(number(check.measured), value=float(check.measured))
            rows.append([Cell(check.what, prose=True), measured, wanted, claim.name])
        for one_time in claim.times:
            spread = f"{number(one_time.median)} ({number(one_time.low)} to {number(one_time.high)})"
            rows.append([Cell(one_time.what, prose=True), spread, "a time: decides nothing", claim.name])
    header = ["measured", "value", "wanted", "claim"]
    parts.append(_card(table(f"{one.title}: what was measured", header, rows, sorts=True)))
    return parts


_CONCEPT = (
    "<p>The figure's sentence, to explore: point at a word, or go from one to the next with the arrow keys, "
    "to see to whom it listens and how much. Nothing of it was trained: each word was given a natural "
    "frequency, function words one way and content words the other.</p>"
)


def _concept(numbers: dict[str, Any]) -> Weights:
    """The concept's sentence: S over its row sums."""
    weights = [[s / sum(row) for s in row] for row in numbers["sync"]]
    words = [f" {word}" if place else word for place, word in enumerate(numbers["words"])]
    return Weights(words, ["S by the operator"], ["var(--lock)"], [[[weights]]], [True], causal=False)


def _figure(title: str, findings: str, png: bytes) -> str:
    packed = base64.b64encode(png).decode("ascii")
    says = escape(f"{title}. {findings}", quote=True)
    return (
        f'<figure class="chart card"><figcaption>{escape(title)}</figcaption>'
        f'<div class="image" tabindex="0" role="region" aria-label="{escape(title, quote=True)}">'
        f'<img src="data:image/png;base64,{packed}" alt="{says}"></div>'
        '<p class="soft narrow">Wider than this screen: move it sideways.</p></figure>'
    )


def _records(out: Path, names: Sequence[str], left: int) -> str:
    """Links to the numbers, as many as the page has bytes left for, small ones first."""
    files = [out / "claims.json", *(out / f"{name}.json" for name in names)]
    links: list[str] = []
    beside: list[str] = []
    for path in sorted((path for path in files if path.is_file()), key=lambda path: path.stat().st_size):
        # without the indents, which are a third of it
        content = json.dumps(read_json(path), separators=(",", ":"))
        link = download(path.name, content, path.name)
        left -= len(link)
        (links if left > 0 else beside).append(link if left > 0 else path.name)
    text = "Download the numbers: " + ", ".join(links) + "." if links else ""
    if beside:
        text += (
            f" Too large for one page, and beside it in the run's folder: {', '.join(map(escape, beside))}."
        )
    return text


def _card(inside: str) -> str:
    return f'<div class="card">{inside}</div>'
