"""The explorer: one HTML page that needs nothing else, no network and no other file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from syncattn.explorer import payload
from syncattn.explorer.gather import adopted, find_layers, listen, of_gates, without_heads
from syncattn.explorer.payload import layer_payload, next_payload, switched_off, tokens_that_fit
from syncattn.explorer.tables import head_table, token_table
from syncattn.page.document import document, own_file

_OWN = "syncattn.explorer"
_VISIBLE = {" ": "\u2423", "\n": "\u21b5", "\t": "\u21e5", "\r": "\u240d"}


class Page(NamedTuple):
    """What `explore` made.

    Attributes:
        html: the whole page.
        tokens: how many tokens it shows.
    """

    html: str
    tokens: int

    def write(self, path: str | Path) -> None:
        """Write the page to a file, in place of what is there."""
        Path(path).write_text(self.html, encoding="utf-8")

    def _repr_html_(self) -> str:
        """The page in a frame, as notebooks show it."""
        style = "width:100%;height:900px;border:1px solid #8888;border-radius:8px"
        inside = escape(self.html, quote=True)
        frame = 'title="Which tokens lock" sandbox="allow-scripts"'
        return f'<iframe {frame} style="{style}" srcdoc="{inside}"></iframe>'


def explore(
    model: nn.Module,
    inputs: Tensor | Mapping[str, Any],
    *,
    tokens: Sequence[str] | None = None,
    decode: Callable[[int], str] | None = None,
    title: str = "Which tokens lock",
    note: str = "",
    switch_off: bool = True,
    history: Sequence[Mapping[str, Any]] = (),
) -> Page:
    """A page that shows who locks to whom in every synchronization layer of a model, for one text.

    In the page, two sliders multiply coupling and bandwidth, and the synchronization is computed anew from
    the frequencies, as the library does: zeros come and go. The model runs once in evaluation, and is left as
    it was.

    Args:
        model: any module with `SelectiveSynchronizationAttention` layers, or a model of transformers with
            `attn_implementation="ssa"`, whose heads are not switched off.
        inputs: what the model is called with: token numbers (1, N), hidden states (1, N, E), or a mapping of
            keyword arguments.
        tokens: the N tokens as text; None for what `decode` gives, or their numbers.
        decode: the text of a token's number, for `tokens` and for the next tokens.
        title: of the page.
        note: a sentence below the title, such as what was left out.
        switch_off: also run the model once for every head without it, where it has `logits` of next tokens.
        history: entries with "step" and "density" (a list of heads for each layer), as a run records them.

    Raises:
        TypeError: model is no module.
        ValueError: it has no such layers or weights that are not finite; inputs are not one text, or are more
            than one page can hold (`tokens_that_fit`); tokens are not as many as the model read.

    Example:
        >>> layer = SelectiveSynchronizationAttention(32, 4)
        >>> page = syncattn.explore(layer, {"query": torch.randn(1, 20, 32), "is_causal": True})
        >>> page.write("page.html")
    """
    most, kind = tokens_that_fit(model), adopted(model)
    heard, logits = listen(model, inputs)
    count = heard[0].call.receive.shape[2]
    if count > most:
        raise ValueError(f"inputs must be at most {most} tokens, so that they fit on a page, got {count}")
    ids = _token_numbers(inputs, count)
    decode = decode or str
    if tokens is None:
        tokens = [decode(token) for token in ids] if ids is not None else [str(i + 1) for i in range(count)]
    if len(tokens) != count:
        raise ValueError(f"tokens must be as many as the model read, {count}, got {len(tokens)}")

    after, rises = None, None
    if logits is not None:
        if not bool(torch.isfinite(logits).all()):
            raise ValueError("model must give finite logits on these inputs, got nan or infinity")
        after = next_payload(logits, ids, lambda token: label(decode(token)))
        own = None if kind else list(find_layers(model))
        if switch_off and ids is not None and [one.name for one in heard] == own:
            rises = switched_off(logits, without_heads(model, inputs, count), ids)
    found = [payload.weights(one) for one in heard]
    labels = [label(token) for token in tokens]
    data = {
        "tokens": list(tokens),
        "labels": labels,
        "layers": [layer_payload(one) for one in heard],
        "next": after,
        "off": rises,
        "history": [{"step": entry["step"], "density": entry["density"]} for entry in history],
    }
    tables = head_table(heard, found) + token_table(labels, found, after)
    notes = filter(None, (note, kind.remark(model) if kind else of_gates(model)))
    return Page(_render(title, " ".join(notes), data, tables), count)


def label(token: str) -> str:
    """A short visible name of a token."""
    shown = "".join(_VISIBLE.get(c, c if c.isprintable() else "\u00b7") for c in token)
    return shown[:15] + "\u2026" if len(shown) > 16 else shown or "\u00b7"


def _token_numbers(inputs: Tensor | Mapping[str, Any], count: int) -> list[int] | None:
    """The tokens' numbers, if the model was called with them."""
    ids = inputs.get("input_ids") if isinstance(inputs, Mapping) else inputs
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.numel() != count:
        return None
    return [int(token) for token in ids.flatten().tolist()]


def _render(title: str, note: str, data: dict[str, Any], tables: str) -> str:
    arithmetic, pictures, page = (own_file(_OWN, f"{name}.js") for name in ("arithmetic", "pictures", "page"))
    before, after = own_file(_OWN, "body.html").split("{{tables}}")
    return document(
        title,
        before + tables + after,
        note=note,
        style=[own_file(_OWN, "page.css")],
        scripts=[arithmetic, own_file("syncattn.page", "drawing.js"), pictures, page],
        data=data,
    )
