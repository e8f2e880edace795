"""The part of a model card that a run on text knows: the text, the losses, what locks, and where and how."""

from __future__ import annotations

import math
from typing import Any

from syncattn.training.record import Record
from syncattn.training.texts import BUILT_IN

_PYTHON = "Python's own, the PSF License Version 2"


def sections(record: Record) -> list[str]:
    """Markdown for `syncattn.models.sharing.card`: the text, its licence as far as it is known, numbers."""
    return [_text(record.data, record.tokens), _numbers(record), _how(record)]


def _text(data: dict[str, Any], tokens: dict[str, int]) -> str:
    sources = [
        *data["sources"],
        *(data[name] for name in ("validation_source", "test_source") if data.get(name)),
    ]
    known = all(source in BUILT_IN for source in sources)
    licence = _PYTHON if known else "not known to syncattn: say it here before you share the model"
    # Where files lie on the machine that trained is not for a card; what they are called is.
    names = ", ".join(source if source in BUILT_IN else source.rpartition("/")[2] for source in sources)
    what = f" ({'; '.join(data['notes'])})" if known and data.get("notes") else ""
    counts = ", ".join(f"{tokens[part]:,} for {part}" for part in ("train", "validation", "test"))
    return "\n".join(
        [
            "## Training text",
            "",
            f"- {names}{what}.",
            f"- Tokens: {counts}. SHA-256 of the three parts: `{data['sha256']}`.",
            f"- Licence of the text: {licence}.",
        ]
    )


def _numbers(record: Record) -> str:
    result, seen = (
        record.result,
        record.options["steps"] * record.options["batch_size"] * record.options["context"],
    )
    lines = [
        "## Numbers",
        "",
        "| | nats per token | perplexity | tokens |",
        "| --- | --- | --- | --- |",
    ]
    for name in ("validation", "test"):
        loss, tokens = getattr(result, f"{name}_loss"), getattr(result, f"{name}_tokens")
        lines.append(f"| {name} | {loss:.4f} | {math.exp(loss):.3f} | {tokens:,} |")
    lines += ["", f"Trained on {seen:,} tokens in windows of {record.options['context']}."]
    heads = [head for layer in result.density for head in layer]
    if heads:
        layers = ", ".join(f"{sum(layer) / len(layer):.3f}" for layer in result.density)
        lines[-1] += (
            f" Of the pairs that may lock {sum(heads) / len(heads):.3f} do (by layer {layers}): all others "
            "weigh exactly 0."
        )
    return "\n".join(lines)


def _how(record: Record) -> str:
    used = ", ".join(
        f"{name} {record.versions[name]}" for name in ("syncattn", "torch") if name in record.versions
    )
    minutes = record.result.wall_seconds / 60
    processor = record.machine.get("processor", "an unknown processor")
    return "\n".join(
        [
            "## How it was made",
            "",
            f"`syncattn train`, {minutes:,.0f} minutes on {processor}; {used}. "
            f"training.json has the command, all options and the course of the losses.",
        ]
    )
