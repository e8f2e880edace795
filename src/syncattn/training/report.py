"""A comparison as one HTML page that needs nothing else: no network and no other file."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from syncattn.page import MOST_BYTES, Cell, Chart, Line, Weights, chart, download, report, sentence, table
from syncattn.page.heads import share
from syncattn.page.tables import mark
from syncattn.training.curves import TOKENS, density_charts, loss_lines, loss_span, training_lines
from syncattn.training.figures import COLOURS
from syncattn.training.files import write_text

_MOST_HEADS = 48
"""Of a model, whose weights are on the page."""


def write_report(results: dict[str, Any], path: Path) -> None:
    """Write the page for what `compare.compare` returned (or for its results.json), whole or not at all."""
    write_text(path, render(results))


def render(results: dict[str, Any]) -> str:
    """The page's HTML."""
    models = results["models"]
    losses = [one for one in (loss_chart(results),) if one.lines]
    layers = density_charts(models[0]["runs"][0]["history"], _per_step(results))
    weights, left_out = _weights(results)
    parts = [
        f'<p class="soft">{escape(_what_was_compared(results))}</p>',
        "<h2>Result</h2>",
        f'<div class="card">{table("Loss in nats per token", *_table(models), sorts=True)}</div>',
        f'<p class="soft">{escape(_reading(results))}</p>',
        _grid(results),
        *(f"<h2>Loss</h2><p>{escape(_two_losses(results))}</p>{chart(one, 0)}" for one in losses),
    ]
    if layers:
        parts += [
            "<h2>Density during training</h2>",
            "<p>How many of the tokens that a head may attend to lock with the one that listens. The others "
            "have weight exactly 0. Measured on the same validation windows each time; OSN, seed "
            f"{results['seeds'][0]}.</p>",
            '<div class="cards">',
            *(chart(layer, place) for place, layer in enumerate(layers, len(losses))),
            "</div>",
        ]
    parts += [
        "<h2>A sentence to explore</h2>",
        f"<p>A line of the validation text, <code>{escape(results['sentence'])}</code>, and the weights of "
        "every head on it. Point at a token, or go from one to the next with the arrow keys, to see whom it "
        "listens to; a click or Enter holds it. A click on a head shows that one. In the matrices a row "
        "listens and its columns are whom it hears; grey is an exact zero, the colour is the weight's square "
        "root. "
        f"{escape(left_out)}</p>",
        _to_the_explorer(results),
        f"<p>{escape(short_sentences(results))}</p>" if models[0]["density"] is not None else "",
        sentence(weights, 0),
        "<h2>Text</h2>",
        f"<p>The same beginning (grey, from the validation text), continued; seed {results['seeds'][0]}.</p>",
        '<div class="cards">' + "".join(_sample(model, results["prompt"]) for model in models) + "</div>",
        "<h2>What was run</h2>",
        f'<div class="card">{_facts(results)}</div>',
    ]
    body = "\n".join(part for part in parts if part)

    def page(record: str) -> str:
        return report(
            "Synchronization and softmax, side by side",
            f"{body}\n<p>{record}</p>",
            charts=[one.data for one in losses + layers],
            sentences=[weights.data],
        )

    link = "Download every number of this page and of all runs (results.json)"
    whole = page(download("results.json", json.dumps(results, allow_nan=False), link))
    if len(whole.encode()) <= MOST_BYTES:
        return whole
    return page("Every number is in results.json beside this page: they are too many for one page.")


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


def loss_chart(results: dict[str, Any]) -> Chart:
    """Every model's losses against tokens read; with several seeds their mean and a band."""
    pale: list[Line] = []
    lines: list[Line] = []
    for model in results["models"]:
        histories = [run["history"] for run in model["runs"]]
        colour = COLOURS[model["name"]]
        pale += training_lines(model["title"], histories, _per_step(results), colour)
        lines += loss_lines(model["title"], histories, _per_step(results), colour)
    ends = "; ".join(f"{line.name} from {line.y[0]:.3f} to {line.y[-1]:.3f}" for line in lines if line.y)
    several = len(results["seeds"]) > 1
    how = "mean of the seeds, with a band from the lowest to the highest" if several else "points"
    return Chart(
        f"Validation loss ({how}) and, pale, training loss",
        f"Validation loss against tokens read: {ends}.",
        TOKENS,
        "loss, nats per token",
        pale + lines,
        loss_span(pale + lines),
    )


def short_sentences(results: dict[str, Any]) -> str:
    """Why an OSN's densities on the sentence are larger than those in the table, with both numbers."""
    osn = results["models"][0]
    heads = [share(head, _hears_itself(osn)) for layer in osn["weights"] for head in layer]
    size, context = len(results["labels"]), results["options"]["context"]
    low, high = min(density for density, _ in heads), max(density for density, _ in heads)
    partners = "" if osn.get("partners") is None else f", of which it locks with {osn['partners']:.1f}"
    config, own = osn["runs"][0]["config"], int(_hears_itself(osn))
    why = ""
    if "drift" in str(config.get("position", "drift")):
        why = " Whom a token locks with is mostly near it, however long the text is"
        if config.get("frame", "nearest") == "nearest":
            why += ", and every token locks with the one nearest to it"
        why += ": so the shorter the text, the larger their share of it."
    return (
        f"On this sentence the OSN's heads lock {100 * low:.0f} to {100 * high:.0f} % of the pairs, and the "
        f"table says {osn['density']:.2f}. Both are right. The table counts whole windows of {context} "
        f"tokens, in which a token may listen to {(context - 1) / 2 + own:.0f} on average{partners}. In "
        f"{size} tokens it may listen to {(size - 1) / 2 + own:.0f} on average and locks with "
        f"{fmean(n for _, n in heads):.1f}.{why}"
    )


def _per_step(results: dict[str, Any]) -> int:
    return int(results["options"]["batch_size"] * results["options"]["context"])


def _hears_itself(model: dict[str, Any]) -> bool:
    """Softmax does; an OSN if its config says so."""
    return model["density"] is None or bool(model["runs"][0]["config"].get("self_coupling", False))


def _partners(model: dict[str, Any]) -> str:
    """How many senders a receiver locks with; nothing of a run of an earlier version."""
    if model["density"] is None:
        return "all"
    return "" if model.get("partners") is None else f"{model['partners']:.1f}"


def _loss(mean: float, spread: float | None) -> str:
    return f"{mean:.3f}" + ("" if spread is None else f" ± {spread:.3f}")


def _table(models: list[dict[str, Any]]) -> tuple[list[str], list[list[str | Cell]]]:
    header, *rows = table_rows(models)
    marked: list[list[str | Cell]] = []
    for model, (title, *others) in zip(models, rows, strict=True):
        marked.append([Cell(title, mark=COLOURS[model["name"]]), *others])
    return header, marked


def _weights(results: dict[str, Any]) -> tuple[Weights, str]:
    """What of the weights is on the page, and what is not, in words."""
    models = results["models"]
    heads = max(len(layer) for model in models for layer in model["weights"])
    layers = max(1, _MOST_HEADS // heads)
    most = max(len(model["weights"]) for model in models)
    return Weights(
        results["labels"],
        [model["title"] for model in models],
        [COLOURS[model["name"]] for model in models],
        [model["weights"][:layers] for model in models],
        [_hears_itself(model) for model in models],
    ), ("" if most <= layers else f"Shown: the first {layers} of {most} layers.")


def _to_the_explorer(results: dict[str, Any]) -> str:
    """The way to the explorer's page; a comparison of an earlier version has none."""
    name = results.get("explorer")
    if not name:
        return ""
    return (
        f'<p>More of the validation text is in <a href="{escape(name, quote=True)}">{escape(name)}</a>, '
        "beside this page: the OSN reads it there while two sliders change coupling and bandwidth.</p>"
    )


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
        "run includes evaluation and checkpoints. A click on a column's name sorts by it."
    )


def _two_losses(results: dict[str, Any]) -> str:
    """Why the curves end elsewhere than the table."""
    during, at_end = results["options"]["eval_tokens"], results["models"][0]["runs"][0]["result"]
    if during >= at_end["validation_tokens"]:
        return "Losses while training."
    return (
        f"While training, validation loss is that of {during:,} tokens; the table's, at the end, is that of "
        f"{at_end['validation_tokens']:,}, so the two differ."
    )


def _grid(results: dict[str, Any]) -> str:
    tried = results["learning_rate_grid"]
    if not tried:
        return ""
    rows: list[list[str | Cell]] = []
    for model in results["models"]:
        for entry in tried.get(model["name"], []):
            loss = entry["validation_loss"]
            chosen = "yes" if entry["learning_rate"] == model["learning_rate"] else "no"
            shown = "diverged" if loss is None else f"{loss:.3f}"
            title = Cell(model["title"], mark=COLOURS[model["name"]])
            rows.append([title, f"{entry['learning_rate']:g}", shown, chosen])
    header = ["model", "learning rate", "validation loss", "chosen"]
    caption = f"Validation loss with seed {results['seeds'][0]}; the lowest was chosen for each model"
    return f'<h3>Learning rates tried</h3><div class="card">{table(caption, header, rows, sorts=True)}</div>'


def _sample(model: dict[str, Any], prompt: str) -> str:
    return (
        f'<div class="card"><h3>{mark(COLOURS[model["name"]])}{escape(model["title"])}</h3>'
        f'<pre><span class="prompt">{escape(prompt)}</span>{escape(model["sample"])}</pre></div>'
    )


def _facts(results: dict[str, Any]) -> str:
    machine, data, options = results["machine"], results["data"], results["options"]
    optimizer = "Muon and AdamW" if options.get("optimizer") == "muon" else "AdamW"
    gpus = ", ".join(machine["gpus"]) or "none"
    facts = {
        "command": results["command"],
        "text": "; ".join(data["notes"]) + f" (sha256 {data['sha256'][:16]}…)",
        "characters": ", ".join(f"{name} {count:,}" for name, count in data["characters"].items()),
        "vocabulary": f"{data['vocabulary']:,} tokens",
        "training": f"{options['steps']:,} steps of {options['batch_size']} windows of {options['context']} "
        f"tokens, {optimizer} (weight decay {options['weight_decay']:g}), cosine schedule, gradient norm "
        f"clipped at {options['max_grad_norm']:g}, {options['precision']}",
        "machine": f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['memory_gb']} GB, {machine['system']}; GPUs: {gpus}; trained on "
        f"{results['models'][0]['runs'][0]['device']}",
        "versions": ", ".join(f"{name} {version}" for name, version in results["versions"].items()),
        "models": "; ".join(f"{model['title']} in {model['folder']}" for model in results["models"]),
    }
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items()) + "</dl>"
