"""The page in a real browser: it is silent, asks for nothing, fits, and its numbers are the library's."""

import re

import pytest
import torch

import syncattn
from syncattn.backends import eager
from syncattn.explorer.gather import listen
from syncattn.nn import SelectiveSynchronizationAttention

TOKENS = 40


@pytest.fixture(scope="module")
def layer():
    return SelectiveSynchronizationAttention(32, 4, density_range=(0.1, 0.5))


@pytest.fixture(scope="module")
def given():
    return {"query": torch.randn(1, TOKENS, 32), "is_causal": True}


@pytest.fixture(scope="module")
def path(layer, given, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    syncattn.explore(layer, given, tokens=[f"word{i}" for i in range(TOKENS)]).write(path)
    return path


@pytest.fixture
def page(browser, path):
    """The page in the browser; what it says on the console fails the test."""
    browser.open(path)
    yield browser
    assert browser.console == []


def locked(layer, given, head, row, coupling=1.0, bandwidth=1.0):
    """What the page says of a row and its head, as the library counts in float64."""
    call = listen(layer, given)[0][0].call
    double = {name: getattr(call, name).double() for name in ("receive", "send", "value")}
    double |= {
        "coupling": call.coupling.double() * coupling,
        "bandwidth": call.bandwidth.double() * bandwidth,
    }
    _, sync, weight = eager.run(call._replace(**double, return_weights=True))
    count = sync[0, head] > 0
    share, j = weight[0, head, row].max(-1)
    return (
        f"Token {row + 1} “word{row}” locks with {int(count[row].sum())} of {row}",
        f": {int(j) + 1} “word{int(j)}” {float(share):.3f}",
        f"density {int(count.sum()) / (TOKENS * (TOKENS - 1) / 2):.4f}",
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 800, 1280])
def test_it_is_silent_asks_for_nothing_and_fits(width, scheme, browser, path):
    browser.check(path, width, scheme)


def test_sliders_move_what_they_should(layer, given, browser, path):
    browser.open(path, anchor="#layer=1&head=3&token=31")
    shown = [browser.text("said")]
    for name, value in (("k", "-2"), ("alpha", "1")):
        browser.run(
            f"k = document.getElementById('{name}'); k.value = {value}; k.dispatchEvent(new Event('input'))"
        )
        shown.append(browser.text("said"))
    browser.run("document.getElementById('reset').click()")
    shown.append(browser.text("said"))
    for text, factors in zip(shown, [(1, 1), (0.25, 1), (0.25, 2), (1, 1)], strict=True):
        for expected in locked(layer, given, 2, 30, *map(float, factors)):
            assert expected in text
    assert len(set(shown)) == 3 and browser.console == []
    assert "k=0" in browser.run("location.hash")


def test_an_address_shows_what_it_says(layer, given, browser, path):
    browser.open(path, anchor="#layer=1&head=4&token=12&k=1.5&alpha=-0.5")
    for expected in locked(layer, given, 3, 11, 2**1.5, 2**-0.5):
        assert expected in browser.text("said")
    browser.open(path, anchor="#layer=9&head=x&token=-3&k=nan")
    assert "Token 40 " in browser.text("said") and browser.console == []


def test_a_weaker_coupling_shows_in_the_pictures(browser, path):
    count = "document.querySelectorAll('#text path').length"
    browser.open(path, anchor="#layer=1&head=4&token=40&k=3")
    many, pixels = browser.run(count), browser.run("document.getElementById('matrix').toDataURL()")
    browser.open(path, anchor="#layer=1&head=4&token=40&k=-3")
    assert many > browser.run(count) >= 1
    assert pixels != browser.run("document.getElementById('matrix').toDataURL()")


def test_keys_and_clicks_choose_tokens_and_heads(page):
    page.run("document.querySelector('.token.picked').focus()")
    seen = []
    for key in ("ArrowLeft", "Home", "ArrowRight", "End", "Enter"):
        page.key(key)
        seen.append(int(re.match(r"Token (\d+)", page.text("said"))[1]))
    assert seen == [39, 1, 2, 40, 40]
    picked = "document.querySelector('.token.picked')"
    assert page.run(f"{picked}.classList.contains('held') && document.activeElement === {picked}")
    page.call("Input.dispatchKeyEvent", type="keyDown", key="Escape")
    assert not page.run(f"{picked}.classList.contains('held')")
    page.run("document.querySelectorAll('.token')[5].click()")
    assert page.text("said").startswith("Token 6 ")
    page.run("document.querySelectorAll('#heads button')[2].click()")
    assert page.run("document.getElementById('head').value") == "2"


def test_moving_over_a_token_shows_it_until_one_is_held(page):
    def move(token):
        x, y = page.run(
            f"r = document.querySelectorAll('.token')[{token}].getBoundingClientRect(); "
            "[r.x + r.width / 2, r.y + r.height / 2]"
        )
        page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        return x, y

    move(3)
    assert page.text("said").startswith("Token 4 ")
    x, y = move(8)
    for kind in ("mousePressed", "mouseReleased"):
        page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    move(2)
    assert page.text("said").startswith("Token 9 ")


def test_pairs_run_in_time(page):
    page.run("document.getElementById('run').click()")
    page.run("new Promise((done) => setTimeout(done, 300))")
    assert float(re.search(r"time ([\d.]+) / kappa", page.text("pairs"))[1]) > 0.5
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    page.run("document.getElementById('run').click(); document.getElementById('run').click()")
    assert "time 60.0 / kappa" in page.text("pairs")  # at once, where motion is not wanted


def test_everything_that_is_drawn_or_used_has_a_name(page):
    for name in ("matrix", "plane", "margin", "phases", "pairs", "distance"):
        assert page.run(f"document.getElementById('{name}').getAttribute('aria-label')"), name
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    used = {"button", "combobox", "slider", "checkbox", "image", "region"}
    unnamed = [
        node["role"]["value"]
        for node in tree
        if not node["ignored"] and node["role"]["value"] in used and not node.get("name", {}).get("value")
    ]
    assert unnamed == []


def test_without_scripts_the_tables_remain(browser, path):
    browser.open(path, scripts=False)
    browser.call("Emulation.setScriptExecutionDisabled", value=False)
    assert "This browser runs no scripts" in browser.run("document.body.innerText")
    assert browser.run("document.getElementById('explorer').offsetParent") is None
    assert browser.run("document.querySelectorAll('#tables tr').length") == 1 + 4 + 1 + TOKENS
    assert browser.run("document.querySelector('#tables table').offsetHeight") > 50


def test_a_frame_in_a_notebook_is_silent_too(layer, given, browser, tmp_path):
    path = tmp_path / "notebook.html"
    path.write_text(syncattn.explore(layer, given)._repr_html_(), encoding="utf-8")
    browser.open(path)
    assert browser.run("document.querySelector('iframe').offsetHeight") > 800
    (frame,) = browser.call("Page.getFrameTree")["frameTree"]["childFrames"]
    world = browser.call("Page.createIsolatedWorld", frameId=frame["frame"]["id"])["executionContextId"]
    said = browser.call(
        "Runtime.evaluate", contextId=world, expression="document.getElementById('said').textContent"
    )
    assert said["result"]["value"].startswith("Token 40 ")
    assert browser.console == [] and not [url for url in browser.requests if url.startswith("http")]
