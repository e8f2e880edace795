"""The page around everything: its head, its style, its scripts and its numbers."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

MOST_BYTES = 5_000_000
"""Of a whole page, so that it can be mailed and opens on a phone."""

_REPORT_SCRIPTS = ("drawing.js", "tables.js", "charts.js", "heads.js")


def document(
    title: str,
    body: str,
    *,
    note: str = "",
    style: Sequence[str] = (),
    scripts: Sequence[str] = (),
    data: dict[str, Any] | None = None,
) -> str:
    """A whole page, in which the browser refuses whatever would leave it.

    Args:
        title: plain text, of the window and as the first heading.
        body: HTML.
        note: a sentence below the title, plain text.
        style: further CSS, after what all pages have.
        scripts: JavaScript, run in this order.
        data: what the scripts read from the element "data", as JSON.

    Raises:
        ValueError: data has numbers that JSON has not, such as nan.
    """
    filled = {
        "title": escape(title),
        "note": f'<p class="notice">{escape(note)}</p>' if note else "",
        "style": "\n".join([own_file("syncattn.page", "base.css"), *style]),
        "body": body,
        "data": "" if data is None else f'<script type="application/json" id="data">{as_json(data)}</script>',
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    pieces = own_file("syncattn.page", "page.html").split("{{")
    page = [pieces[0]]  # one pass: what is filled in is not read again
    for piece in pieces[1:]:
        name, rest = piece.split("}}", 1)
        page += [filled[name], rest]
    return "".join(page)


def report(title: str, body: str, *, charts: Sequence[Any] = (), sentences: Sequence[Any] = ()) -> str:
    """A page with tables that sort, charts and sentences.

    Args:
        title, body: as in `document`.
        charts, sentences: the `data` of those whose places are in the body, in their order.

    Raises:
        ValueError: as `document`.
    """
    library = "/*!\n" + own_file("syncattn.page", "uplot/LICENSE") + "*/\n"
    library += own_file("syncattn.page", "uplot/uPlot.iife.min.js")
    return document(
        title,
        body,
        style=[own_file("syncattn.page", name) for name in ("uplot/uPlot.min.css", "report.css")],
        scripts=[library, *(own_file("syncattn.page", name) for name in _REPORT_SCRIPTS)],
        data={"charts": list(charts), "sentences": list(sentences)},
    )


def download(name: str, content: str, said: str) -> str:
    """A link that saves a text which stands in the page itself, without scripts too.

    Args:
        name: of the file; its ending says the kind.
        content: the file.
        said: what the link says.
    """
    kind = "application/json" if name.endswith(".json") else "text/plain"
    packed = base64.b64encode(content.encode()).decode("ascii")
    href = f"data:{kind};charset=utf-8;base64,{packed}"
    return f'<a download="{escape(name, quote=True)}" href="{href}">{escape(said)}</a>'


def as_json(data: Any) -> str:
    """JSON that can stand in a script element: nothing but "</" ends that, and JSON needs no such sign."""
    written = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return written.replace("<", "\\u003c")


def own_file(package: str, name: str) -> str:
    """The text of a file that lies in a package."""
    return (files(package) / name).read_text(encoding="utf-8")
