"""What a model is given beside a cache of fixed size: is there room, and which tokens are padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from syncattn.models.cache import DecoderCache
from syncattn.models.inputs import as_boolean, check_cached, failing, kind_of, padding
from syncattn.models.static import StaticDecoderCache
from syncattn.values import readable


def check_room(cache: DecoderCache | None, tokens: int) -> None:
    """Make sure that a cache takes so many tokens more.

    Raises:
        ValueError: it is of fixed size, and full. Where its length cannot be read without waiting for a
            device, an assertion on the device fails in its place.
    """
    if not isinstance(cache, StaticDecoderCache):
        return
    places, filled = cache.max_cache_len, cache.fixed[0].filled
    rule = "past_key_values, a StaticDecoderCache, must have room for the new tokens"
    if tokens > places or (filled is not None and failing(filled <= places - tokens, rule) is not None):
        raise ValueError(
            f"{rule}, {tokens}, got one of {places} places that holds {cache.get_seq_length()}: make one of "
            "a larger max_cache_len, or reset() it"
        )


def padding_of_places(attention_mask: Any, hidden: Tensor, cache: StaticDecoderCache) -> Tensor | None:
    """As `syncattn.models.inputs.padding`; the mask may also have all the cache's places, (B, L).

    Raises:
        TypeError, ValueError: as there.
    """
    if not isinstance(attention_mask, Tensor):
        return padding(attention_mask, hidden, cache)  # there is none, or it is none
    batch, tokens, _ = hidden.shape
    places, state = cache.max_cache_len, cache.fixed[0]
    filled = state.filled
    known: Tensor | int | None = 0 if filled is None else readable(filled)
    past, width, fits = None if known is None else int(known), 0, False
    if not attention_mask.is_nested and attention_mask.ndim == 2 and len(attention_mask) == batch:
        width = attention_mask.shape[1]
        fits = width == places or (tokens <= width < places and past in (None, width - tokens))
    if not fits:
        held = "past" if past is None else str(past)
        raise ValueError(
            f"attention_mask must have shape (B, past + N) = ({batch}, {held} + {tokens}) or "
            f"(B, max_cache_len) = ({batch}, {places}), 1 for real tokens and 0 for padding, got "
            f"{kind_of(attention_mask)}"
        )
    real = as_boolean(attention_mask)
    if filled is None:
        real = real.narrow(1, 0, tokens)
    else:
        if width < places:
            rule = "attention_mask must have shape (B, past + N), or be as wide as the cache"
            failing(filled + tokens == width, rule)  # where it could not be read
            real = torch.nn.functional.pad(real, (0, places - width))
        place = torch.arange(places, dtype=torch.int64, device=real.device)
        assert state.mask is not None
        check_cached((real == state.mask) | (place >= filled))
        real = real.index_select(1, filled + place.narrow(0, 0, tokens))
    values = readable(real)
    return None if values is not None and values.all() else ~real
