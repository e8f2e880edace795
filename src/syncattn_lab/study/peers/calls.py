"""How the runner calls an attention layer, of which a peer without cache or masks takes one form."""

from __future__ import annotations

from collections.abc import Mapping


def check_plain_call(what: str, is_causal: bool, state: object, options: Mapping[str, object]) -> None:
    """Make sure that a layer is called as in training: causal texts, no padding, no masks, no cache.

    Args:
        what: whose call it is, in words, for the message.
        is_causal, state: the call's own.
        options: its other keyword arguments; those that are None or False ask for nothing.

    Raises:
        ValueError: anything else is wanted.
    """
    refused = [name for name, given in options.items() if given is not None and given is not False]
    refused = [name for name in refused if name != "average_attn_weights"]
    if not is_causal or state is not None or refused:
        named = ", ".join([*refused, *(["state"] if state is not None else [])]) or "is_causal=False"
        raise ValueError(f"{what} here takes causal texts without padding or cache, got {named}")
