"""Look through the built site: every link inside leads somewhere, and no page asks anything of the network.

python docs/site/check.py build/site     # prints what it found; status 1 if something is broken
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"img": "src", "script": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"}
LOADED_LINKS = {"stylesheet", "icon", "preload", "modulepreload", "preconnect", "dns-prefetch", "manifest"}


class Page(HTMLParser):
    """The addresses in a page, those that it loads by itself, and the places that can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.places: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.places |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag in LOADED and given.get(LOADED[tag]):
            self.loads.append(given[LOADED[tag]])
        elif tag == "link" and LOADED_LINKS & set(given.get("rel", "").split()):
            self.loads.append(given.get("href", ""))
        elif tag in ("a", "link") and given.get("href"):
            self.links.append(given["href"])


def check(site: Path) -> tuple[int, int, list[str]]:
    """Pages, links within the site, and what is wrong: a sentence each."""
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}
    count, wrong = 0, []
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        wrong += [f"{name} loads {a}" for a in page.loads if urlsplit(a).netloc or a.startswith("//")]
        for address in page.links + page.loads:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            count += 1
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            place = unquote(parts.fragment)
            if not target.exists():
                wrong.append(f"{name} links to {address}, which is not there")
            elif place and target in pages and place not in pages[target].places:
                wrong.append(f"{name} links to {address}, but there is no such place on that page")
    for sheet in site.rglob("*.css"):
        if "url(http" in (text := sheet.read_text(encoding="utf-8")) or "@import" in text:
            wrong.append(f"{sheet.relative_to(site)} loads something from elsewhere")
    return len(pages), count, wrong


if __name__ == "__main__":
    pages, links, wrong = check(Path(sys.argv[1]))
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    print(f"{pages} pages, {links} links between them, {len(wrong)} broken: {sys.argv[1]}/index.html")
    sys.exit(bool(wrong or not pages))
