"""A trained model's text as a page of the explorer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from syncattn.explorer import Page, explore, tokens_that_fit
from syncattn.training.errors import UserError


def explore_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    title: str,
    max_tokens: int,
    whole: bool = True,
    switch_off: bool = True,
    history: Sequence[dict[str, Any]] = (),
) -> tuple[Page, str]:
    """The page on which a model reads a text, and what is left out of it in words, empty if nothing is.

    Args:
        model: a causal language model with synchronization layers.
        text: what it reads; its first `max_tokens` tokens, or fewer if a page holds fewer.
        whole: whether `text` is all there is.
        switch_off, history, title: as in `syncattn.explorer.explore`.

    Raises:
        UserError: the text has no tokens, or the model cannot be shown.
    """
    try:
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt", verbose=False)[
            "input_ids"
        ].long()
        if ids.numel() == 0:
            raise UserError("the text has no tokens: there is nothing to read")
        shown = ids[:, : min(max_tokens, tokens_that_fit(model))]
        left_out = _left_out(shown.shape[1], ids.shape[1], whole)
        page = explore(
            model,
            shown.to(model.device),
            decode=lambda token: str(tokenizer.decode([token])),
            title=title,
            note=left_out,
            switch_off=switch_off,
            history=[entry for entry in history if entry.get("density") and "step" in entry],
        )
    except UserError:
        raise
    except ValueError as error:  # of a model or a text that cannot be shown
        raise UserError(str(error)) from error
    return page, left_out


def _left_out(shown: int, tokens: int, whole: bool) -> str:
    if shown == tokens and whole:
        return ""
    of = f"{'' if whole else 'more than '}{tokens:,}"
    return f"The text is too long for a page: its first {shown:,} tokens of {of} are shown."
