"""A report's parts in a real browser: read by pointer and keys, switched off, sorted, explored."""

import re

import pytest

from syncattn.page import Cell, Chart, Line, Weights, chart, report, sentence, table

SPARSE = [[0.0] * 4, [1.0, 0, 0, 0], [0.25, 0.75, 0, 0], [0, 0, 1.0, 0]]
FULL = [[0.0] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.2, 0.3, 0.5, 0]]
SOFT = [[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.2, 0.3, 0.5, 0], [0.1, 0.2, 0.3, 0.4]]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    losses = Chart(
        "Validation loss",
        "It falls.",
        "tokens read",
        "loss",
        [
            Line("OSN", [500, 1500], [2.5, 1.2], ("#1b8a8f", "#1b8a8f"), pale=True),
            Line(
                "OSN",
                [1000, 2000, 3000],
                [2.0, 1.5, 1.25],
                ("#1b8a8f",) * 2,
                [1.9, 1.4, 1.2],
                [2.1, 1.6, 1.3],
            ),
            Line("other", [1000, 3000], [2.2, 1.75], ("#dd7a1c",) * 2),
        ],
        (1.0, 3.0),
    )
    weights = Weights("abcd", ["OSN", "other"], ["#000", "#111"], [[[SPARSE, FULL]], [[SOFT]]], [False, True])
    rows = [["b", Cell("10", value=10.0), "1.5 ± .1"], ["a", "9", "–"], ["c", "1,000", "−2"]]
    body = (
        table("Results", ["name", "count", "loss"], rows, sorts=True)
        + chart(losses, 0)
        + sentence(weights, 0)
    )
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report("Parts", body, charts=[losses.data], sentences=[weights.data]), encoding="utf-8")
    return path


@pytest.fixture
def page(browser, path):
    """The page in the browser; what it says on the console fails the test."""
    browser.open(path)
    yield browser
    assert browser.console == []


def read(page):
    return page.run("document.querySelector('.read').textContent")


def legend(page):
    return page.run("[...document.querySelectorAll('.legend button')].map((one) => one.textContent)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 800, 1280])
def test_it_is_silent_asks_for_nothing_and_fits(width, scheme, browser, path):
    browser.check(path, width, scheme)


def test_pointing_reads_the_lines(page):
    page.point(".u-over", across=0.999)
    assert read(page) == "At 3k tokens read: OSN 1.250, other 1.750"
    page.point(".u-over", across=0.6)  # 2,000: the other line's nearest point is told
    assert read(page).startswith("At 2k tokens read: OSN 1.500, other ")
    assert legend(page) == ["OSN1.500", "other" + read(page)[-5:]]


def test_keys_read_the_lines(page):
    page.run("document.querySelector('.plot').focus()")
    seen = []
    for key in ("ArrowLeft", "ArrowLeft", "Home", "ArrowRight", "End", "ArrowRight"):
        page.key(key)
        seen.append(re.match(r"At (\S+) .*OSN ([\d.]+)", read(page)).groups())
    ends = ("3k", "1.250")
    # of the training loss, at 500 and 1,500, nothing is read
    assert seen == [ends, ("2k", "1.500"), ("1k", "2.000"), ("2k", "1.500"), ends, ends]
    assert "It falls." in page.run("document.querySelector('.plot').ariaLabel")


def test_a_click_in_the_legend_switches_lines_off(page):
    pixels = "document.querySelector('.plot canvas').toDataURL()"
    drawn = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    button = "document.querySelectorAll('.legend button')[0]"
    page.run(drawn)
    before = page.run(pixels)
    page.run(f"{button}.click()")
    page.run(drawn)
    without = page.run(pixels)
    assert page.run(f"{button}.ariaPressed") == "false" and without != before
    page.point(".u-over", across=0.999)
    assert read(page) == "At 3k tokens read: other 1.750"
    page.run(f"{button}.click()")
    page.run(drawn)
    assert page.run(pixels) == before


def test_names_of_columns_sort(page):
    def column(n):
        return page.run(
            f"[...document.querySelectorAll('.sorts tbody tr')].map((r) => r.cells[{n}].textContent)"
        )

    def click(n):
        page.run(f"document.querySelectorAll('.sorts th button')[{n}].click()")
        return page.run("[...document.querySelectorAll('.sorts th')].map((one) => one.ariaSort)")

    assert click(0) == ["ascending", "none", "none"] and column(0) == ["a", "b", "c"]
    assert click(1) == ["none", "ascending", "none"] and column(1) == ["9", "10", "1,000"]
    assert click(1) == ["none", "descending", "none"] and column(1) == ["1,000", "10", "9"]
    click(2)
    assert column(2) == ["−2", "1.5 ± .1", "–"]
    click(2)
    assert column(2) == ["1.5 ± .1", "−2", "–"]  # what is not known stays last


def test_a_sentence_is_explored(page):
    said = "document.querySelector('.said').textContent"
    assert page.run(said).startswith("OSN, layer 1, head 1: token 4 “d” listens to 1 of 3: 3 “c” 1.000")
    page.run("document.querySelector('.token.picked').focus()")
    page.key("ArrowLeft")
    assert "token 3 “c” listens to 2 of 2: 2 “b” 0.750, 1 “a” 0.250" in page.run(said)
    page.run("document.querySelectorAll('.heads button')[2].click()")
    assert page.run(said).startswith("other, layer 1, head 1: token 3 “c” listens to 3 of 3: 3 “c” 0.500")
    page.point(".token:nth-child(2)")
    assert "token 2 “b” listens to 2 of 2" in page.run(said)
    shares = page.run("[...document.querySelectorAll('.heads button')].map((one) => one.textContent)")
    assert shares == ["head 1 · 67 % above 0", "head 2 · 100 % above 0", "head 1 · 100 % above 0"]


def test_without_scripts_the_tables_remain(browser, path):
    browser.open(path, scripts=False)
    assert browser.run("1") == 1
    tables = "[...document.querySelectorAll('details')].map((one) => one.open)"
    assert browser.run(tables) == [True, True]
    assert "runs no scripts" in browser.run("document.body.innerText")
    assert "1.250" in browser.run("document.querySelector('figure table').innerText")
