"""A comparison as one HTML page that needs nothing else: no network, no scripts, pictures inside."""

from __future__ import annotations

import base64
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from syncattn.training import figures
from syncattn.training.files import write_text

_STYLE = """
:root { color-scheme: light dark; --ink: #26292e; --soft: #5c636e; --line: #d9dce1; --paper: #fff;
  --back: #f5f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #d6d9de; --soft: #9aa1ab; --line: #343941; --paper: #1b1e23; --back: #131519; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.6rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p { margin: .4rem 0; max-width: 75ch; } .soft { color: var(--soft); }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 8px; padding: .8rem;
  margin: .8rem 0; overflow-x: auto; }
.card img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .4rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; } th:first-child, td:first-child { text-align: left; }
tr:last-child td { border-bottom: 0; }
.mark { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .5em; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.5 ui-monospace, monospace; }
pre .prompt { color: var(--soft); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: .8rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: 0; font-size: .93rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
"""


def write_report(results: dict[str, Any], path: Path) -> None:
    """Write the page for what `compare.compare` returned (or for its results.json), whole or not at all."""
    write_text(path, render(results))


def render(results: dict[str, Any]) -> str:
    """The page's HTML."""
    models = results["models"]
    osn = models[0]
    per_step = results["options"]["batch_size"] * results["options"]["context"]
    first_seed = results["seeds"][0]
    parts = [
        "<h1>Synchronization and softmax, side by side</h1>",
        f'<p class="soft">{escape(_what_was_compared(results))}</p>',
        "<h2>Result</h2>",
        f'<div class="card">{_table(models)}</div>',
        f'<p class="soft">{escape(_reading(results))}</p>',
        _grid(results),
        "<h2>Loss</h2>",
        _picture(
            lambda page: figures.loss_curves(models, per_step, page), "Loss of every run against tokens read"
        ),
    ]
    if any("density" in entry for entry in osn["runs"][0]["history"]):
        parts += [
            "<h2>Density during training</h2>",
            "<p>How many of the tokens that a head may attend to lock with the one that listens. The others "
            "have weight exactly 0. Measured on the same validation windows each time; seed "
            f"{first_seed}.</p>",
            _picture(
                lambda page: figures.densities(osn["runs"][0], per_step, page),
                "Density of each head, per layer",
            ),
        ]
    parts += [
        "<h2>Who listens to whom</h2>",
        "<p>The weights of every head on a line of the validation text, "
        f"<code>{escape(results['sentence'])}</code>: each row is a token that listens, and its columns are "
        "the tokens it reads. Grey inside the triangle is an exact zero; the percentage is the share of the "
        "triangle that is not.</p>",
    ]
    for model in models:
        parts.append(f"<h3>{_mark(model)}{escape(model['title'])}</h3>")
        for number, layer in enumerate(model["weights"], 1):
            parts.append(f'<p class="soft">layer {number}</p>')
            parts.append(_matrices(layer, results["labels"], model, number))
    parts += [
        "<h2>Text</h2>",
        f"<p>The same beginning (grey, from the validation text), continued; seed {first_seed}.</p>",
    ]
    parts.append(
        '<div class="pair">' + "".join(_sample(model, results["prompt"]) for model in models) + "</div>"
    )
    parts += ["<h2>What was run</h2>", f'<div class="card">{_facts(results)}</div>']
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<title>syncattn "
        f"compare</title>\n<style>{_STYLE}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def table_rows(models: list[dict[str, Any]]) -> list[list[str]]:
    """The table's cells as text, its header first: what the terminal and the page both show."""
    rows = [["model", "parameters", "lr", "validation", "test", "density", "partners", "tokens/s", "time"]]
    for model in models:
        rows.append(
            [
                model["title"],
                f"{model['parameters']:,}",
                f"{model['learning_rate']:g}",
                _loss(model["validation_loss"], model["validation_spread"]),
                _loss(model["test_loss"], model["test_spread"]),
                "1" if model["density"] is None else f"{model['density']:.2f}",
                _partners(model),
                f"{model['tokens_per_second']:,.0f}",
                f"{model['wall_seconds']:.0f} s",
            ]
        )
    return rows


def _partners(model: dict[str, Any]) -> str:
    """How many senders a receiver locks with; nothing of a run of an earlier version."""
    if model["density"] is None:
        return "all"
    return "" if model.get("partners") is None else f"{model['partners']:.1f}"


def _loss(mean: float, spread: float | None) -> str:
    return f"{mean:.3f}" + ("" if spread is None else f" ± {spread:.3f}")


def _table(models: list[dict[str, Any]]) -> str:
    header, *rows = table_rows(models)
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = ""
    for model, cells in zip(models, rows, strict=True):
        first, *others = map(escape, cells)
        body += (
            f"<tr><td>{_mark(model)}{first}</td>" + "".join(f"<td>{cell}</td>" for cell in others) + "</tr>"
        )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _mark(model: dict[str, Any]) -> str:
    return f'<span class="mark" style="background:{figures.COLOURS[model["name"]]}"></span>'


def _what_was_compared(results: dict[str, Any]) -> str:
    seeds = results["seeds"]
    return (
        f"{results['tokens']:,} tokens of {', '.join(Path(s).name for s in results['data']['sources'])} "
        f"each, in windows of {results['options']['context']}; the same windows in the same order for every "
        "model; " + (f"seeds {', '.join(map(str, seeds))}." if len(seeds) > 1 else f"seed {seeds[0]}.")
    )


def _reading(results: dict[str, Any]) -> str:
    run = results["models"][0]["runs"][0]["result"]
    spread = (
        "mean and standard deviation over the seeds"
        if len(results["seeds"]) > 1
        else "one seed only, no spread"
    )
    return (
        f"Validation and test loss in nats per token, lower is better ({spread}), on "
        f"{run['validation_tokens']:,} tokens of validation text and {run['test_tokens']:,} of test text "
        "that no model was trained on. Density: mean over layers and heads of the fraction of earlier tokens "
        "that lock, at the end. Tokens per second: training steps alone, on the machine below; the time of a "
        "run includes evaluation and checkpoints."
    )


def _grid(results: dict[str, Any]) -> str:
    if not results["learning_rate_grid"]:
        return ""
    rows = ""
    for model in results["models"]:
        tried = results["learning_rate_grid"].get(model["name"], [])
        cells = "; ".join(
            f"{entry['learning_rate']:g}: "
            + ("diverged" if entry["validation_loss"] is None else f"{entry['validation_loss']:.3f}")
            for entry in tried
        )
        rows += f"<dt>{escape(model['title'])}</dt><dd>{escape(cells)}</dd>"
    return (
        f"<h3>Learning rates tried</h3><p>Validation loss with seed {results['seeds'][0]}; the lowest was "
        "chosen "
        f'for each model.</p><div class="card"><dl>{rows}</dl></div>'
    )


def _matrices(layer: list[list[list[float]]], labels: list[str], model: dict[str, Any], number: int) -> str:
    colour = figures.COLOURS[model["name"]]
    return _picture(
        lambda page: figures.weight_matrices(layer, labels, colour, page),
        f"{model['title']}, weights of layer {number}",
    )


def _picture(draw: Callable[[str], bytes], description: str) -> str:
    light, dark = (
        "data:image/png;base64," + base64.b64encode(png).decode("ascii") for png in figures.both_pages(draw)
    )
    return (
        f'<div class="card"><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(description, quote=True)}"></picture></div>'
    )


def _sample(model: dict[str, Any], prompt: str) -> str:
    return (
        f'<div><h3>{_mark(model)}{escape(model["title"])}</h3><div class="card"><pre><span class="prompt">'
        f"{escape(prompt)}</span>{escape(model['sample'])}</pre></div></div>"
    )


def _facts(results: dict[str, Any]) -> str:
    machine, data, options = results["machine"], results["data"], results["options"]
    gpus = ", ".join(machine["gpus"]) or "none"
    facts = {
        "command": results["command"],
        "text": "; ".join(data["notes"]) + f" (sha256 {data['sha256'][:16]}…)",
        "characters": ", ".join(f"{name} {count:,}" for name, count in data["characters"].items()),
        "vocabulary": f"{data['vocabulary']:,} tokens",
        "training": f"{options['steps']:,} steps of {options['batch_size']} windows of {options['context']} "
        f"tokens, AdamW (weight decay {options['weight_decay']:g}), cosine schedule, gradient norm clipped "
        f"at {options['max_grad_norm']:g}, {options['precision']}",
        "machine": f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['memory_gb']} GB, {machine['system']}; GPUs: {gpus}; trained on "
        f"{results['models'][0]['runs'][0]['device']}",
        "versions": ", ".join(f"{name} {version}" for name, version in results["versions"].items()),
        "models": "; ".join(f"{model['title']} in {model['folder']}" for model in results["models"]),
    }
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items()) + "</dl>"
