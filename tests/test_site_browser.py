"""The built site in a real browser: it needs `make docs` and Chromium, and is skipped without them."""

import importlib.util
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SITE = TESTS.parent / "build/site"
PAGES = ["docs/README", "docs/theory", "docs/api/layers", "docs/measured", "docs/from-flashattention"]
# What reaches beyond the window, but for what scrolls in a box of its own.
OUTSIDE = """[...document.querySelectorAll("article *")].filter((e) => e.offsetParent
  && !e.closest(".table-wrapper, pre, .sig, p:has(> img:only-child)")
  && e.getBoundingClientRect().right > innerWidth + 0.5)
  .map((e) => e.tagName + " " + e.className)"""


@pytest.fixture(scope="module")
def browser():
    if not (SITE / "index.html").exists():
        pytest.skip("no site: make docs")
    places = (TESTS / "chromium.py", TESTS / "explorer/chromium.py")
    spec = importlib.util.spec_from_file_location("chromium", next(p for p in places if p.exists()))
    chromium = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(chromium)
    path = chromium.find()
    if path is None:
        pytest.skip("no browser: Chromium is not on this machine")
    found = chromium.Chromium(path)
    yield found
    found.close()


def quiet(browser):
    return not browser.console and all(address.startswith(("file:", "data:")) for address in browser.requests)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("page", PAGES)
def test_pages_fit_and_ask_for_nothing(browser, page, width, scheme):
    browser.open(SITE / f"{page}.html", width=width, scheme=scheme)
    assert browser.run("[innerWidth, document.documentElement.scrollWidth]") == [width, width]
    assert browser.run(OUTSIDE) == []
    assert quiet(browser)
    red, *_ = browser.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert red < 64 if scheme == "dark" else red > 191


@pytest.mark.parametrize("word", ["Lambert", "locking_radius", "FlashAttention"])
def test_search_finds_without_a_server(browser, word):
    browser.open(SITE / "search.html", anchor=f"?q={word}")
    summary = "document.querySelector('.search-summary')?.textContent.startsWith('Search finished')"
    browser.wait(summary, "the search does not end")
    found = browser.run(
        "[...document.querySelectorAll('#search-results li a')].map((a) => a.getAttribute('href'))"
    )
    wanted = {
        "Lambert": "docs/theory.html",
        "locking_radius": "docs/api/locking.html#syncattn.locking.locking_radius",
        "FlashAttention": "docs/from-flashattention.html",
    }
    assert any(address.startswith(wanted[word]) for address in found), found
    assert quiet(browser)


def test_the_folder_opens_on_the_first_page(browser):
    browser.open(SITE / "index.html")
    title = "document.querySelector('h1')?.textContent.startsWith('Documentation')"
    browser.wait(title, "index.html leads nowhere")
