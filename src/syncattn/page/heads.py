"""Who listens to whom in a sentence: every head of every model, as small matrices and in the text itself."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from syncattn.page.tables import mark, table


class Weights(NamedTuple):
    """Some models' weights on one sentence of N tokens.

    Attributes:
        labels: the N tokens as text.
        models: their names.
        colours: of each, as CSS has it.
        weights: of each, (layer, head, N, N) as nested lists; a row listens, its columns are whom it hears.
        hears_itself: of each, whether a token may hear itself too.
        causal: whether a token may hear only those before it.
    """

    labels: Sequence[str]
    models: Sequence[str]
    colours: Sequence[str]
    weights: Sequence[Sequence[Sequence[Sequence[Sequence[float]]]]]
    hears_itself: Sequence[bool]
    causal: bool = True

    @property
    def data(self) -> dict[str, Any]:
        """What the page's script draws."""
        return {
            "labels": list(self.labels),
            "models": list(self.models),
            "hearsItself": list(self.hears_itself),
            "causal": self.causal,
            "weights": self.weights,
        }


def share(head: Sequence[Sequence[float]], hears_itself: bool, causal: bool = True) -> tuple[float, float]:
    """Of one head's weights (N, N): the share of the allowed pairs that is not 0, and how many a row has."""
    size = len(head)
    allowed = size * (size - 1) // (2 if causal else 1) + size * hears_itself
    above = sum(weight > 0 for row in head for weight in row)
    return above / max(allowed, 1), above / max(size, 1)


def sentence(shown: Weights, place: int) -> str:
    """A sentence's place in the page, and its tables.

    Args:
        shown: the weights; their `data` is number `place` of what `report` is given.
        place: counted from 0.
    """
    parts = [f'<div data-sentence="{place}"></div>']
    rows = []
    for number, model in enumerate(shown.models):
        parts.append(f"<h3>{mark(shown.colours[number])}{escape(model)}</h3>")
        for layer, heads in enumerate(shown.weights[number]):
            parts.append(f'<p class="soft">layer {layer + 1}</p>')
            parts.append(f'<div class="heads" data-model="{number}" data-layer="{layer}"></div>')
            for head, weights in enumerate(heads):
                density, partners = share(weights, shown.hears_itself[number], shown.causal)
                place_of = [model, str(layer + 1), str(head + 1)]
                rows.append([*place_of, f"{100 * density:.0f} %", f"{partners:.1f}"])
    header = ["model", "layer", "head", "weights above 0", "partners"]
    counted = table(
        "Every head on this sentence: the share of the weights above 0, and how many a token has",
        header,
        rows,
    )
    return (
        f'<section class="card">{"".join(parts)}<details class="fallback" open><summary>As a table</summary>'
        f"{counted}</details></section>"
    )
