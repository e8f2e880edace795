"""The page of a comparison: alone, and in a browser, where its numbers are the record's."""

import base64
import json
import re
from html.parser import HTMLParser

import pytest

from syncattn.models import OSNConfig
from syncattn.training import report as report_module
from syncattn.training.compare import compare
from syncattn.training.contenders import contenders
from syncattn.training.options import Sampling, TrainingOptions
from syncattn.training.report import loss_chart, render, short_sentences, table_rows, write_report


@pytest.fixture(scope="module")
def results(tmp_path_factory, corpus, tokenizer):
    """Of an OSN and a Transformer, two seeds."""
    config = OSNConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    options = TrainingOptions(
        context=16,
        batch_size=4,
        steps=4,
        log_every=1,
        eval_every=2,
        eval_tokens=64,
        final_eval_tokens=128,
        device="cpu",
        threads=1,
    )
    out = tmp_path_factory.mktemp("compare") / "out"
    entrants = contenders(config, ("rotary",), (0.01, 0.001))
    return compare(entrants, corpus, tokenizer, out, options, seeds=(0, 1), sampling=Sampling(8))


@pytest.fixture(scope="module")
def path(results, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(results, path)
    return path


class Page(HTMLParser):
    """Collects links, and complains about tags that do not match."""

    def __init__(self):
        super().__init__()
        self.open, self.links = [], []

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset")]
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_needs_nothing_else(results, path):
    page = path.read_text()
    parser = Page()
    parser.feed(page)
    assert not parser.open
    # its icon, the explorer's page beside it, and the record that it gives away
    assert parser.links[:2] == ["data:,", "explorer.html"] and len(parser.links) == 3
    record = base64.b64decode(parser.links[2].partition("base64,")[2])
    assert json.loads(record) == results
    for cell in (cell for row in table_rows(results["models"]) for cell in row):
        assert cell in page
    assert results["command"].split()[0] in page and results["data"]["sha256"][:16] in page


def test_what_is_too_much_for_a_page_is_left_out_and_said(results, monkeypatch):
    whole = render(results)
    monkeypatch.setattr(report_module, "MOST_BYTES", len(whole.encode()) - 1)
    page = render(results)
    assert len(page) < len(whole) and "results.json beside this page" in page
    monkeypatch.setattr(report_module, "_MOST_HEADS", 2)
    assert "Shown: the first 1 of 2 layers." in render(results)


def test_text_from_outside_is_escaped(results):
    evil = "<script>alert('&')</script>"
    changed = {**results, "prompt": evil, "sentence": evil, "command": evil, "explorer": evil}
    changed["models"] = [{**model, "sample": evil, "title": evil} for model in results["models"]]
    page = render(changed)
    assert "<script>alert" not in page and "&lt;script&gt;" in page


def test_a_report_of_an_earlier_version_can_still_be_made(results):
    old = {name: value for name, value in results.items() if name != "explorer"}
    old["models"] = [{**model, "partners": None} for model in results["models"]]
    page = render(old)
    assert "explorer.html" not in page and "of which it locks with" not in page


def test_runs_without_a_history_have_no_charts(results):
    models = []
    for model in results["models"]:
        models.append({**model, "runs": [{**run, "history": []} for run in model["runs"]]})
    page = render({**results, "models": models})
    assert 'data-chart="' not in page and "A sentence to explore" in page


def test_the_densities_of_a_short_sentence_are_explained(results):
    said, osn = short_sentences(results), results["models"][0]
    shares = []
    for head in (head for layer in osn["weights"] for head in layer):
        size = len(head)
        shares.append(sum(w > 0 for row in head for w in row) / (size * (size - 1) / 2))
    assert f"lock {100 * min(shares):.0f} to {100 * max(shares):.0f} %" in said
    assert f"the table says {osn['density']:.2f}" in said and "windows of 16 tokens" in said
    assert said in render(results).replace("&#x27;", "'")


def test_the_chart_has_the_record_s_losses(results):
    lines = [line for line in loss_chart(results).lines if not line.pale]
    assert [line.name for line in lines] == [model["title"] for model in results["models"]]
    runs = results["models"][0]["runs"]
    losses = [[e["validation_loss"] for e in run["history"] if "validation_loss" in e] for run in runs]
    assert lines[0].x == [0 * 64, 2 * 64, 4 * 64][-len(lines[0].x) :]
    assert lines[0].low == [min(pair) for pair in zip(*losses)]
    assert lines[0].high == [max(pair) for pair in zip(*losses)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 800, 1280])
def test_it_is_silent_asks_for_nothing_and_fits(width, scheme, browser, path):
    browser.check(path, width, scheme)


def test_the_browser_shows_the_record_s_numbers(results, browser, path):
    browser.open(path)
    browser.run("document.querySelector('.plot').focus()")
    browser.key("End")
    read = browser.run("document.querySelector('.read').textContent")
    for model in results["models"]:
        ends = [run["history"][-1]["validation_loss"] for run in model["runs"]]
        assert f"{model['title']} {sum(ends) / 2:.3f}" in read
    osn = results["models"][0]
    browser.run("document.querySelectorAll('.plot')[1].focus()")
    browser.key("End")
    density = osn["runs"][0]["history"][-1]["density"][0]
    read = browser.run("document.querySelectorAll('.read')[1].textContent")
    assert [f"{float(x):.3f}" for x in re.findall(r"head \d ([\d.]+)", read)] == [f"{x:.3f}" for x in density]
    table = "document.querySelector('.sorts').tBodies[0].rows"
    cells = browser.run(f"[...{table}].map((row) => row.cells[4].textContent)")
    assert cells == [row[4] for row in table_rows(results["models"])[1:]]
    assert browser.console == []
