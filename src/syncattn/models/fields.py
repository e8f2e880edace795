"""What the fields of a configuration may hold: sizes, numbers, flags and names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

# What a stored size may be at most, so that a damaged file is refused before anything is built of it. No
# model comes near: the widest of today have some 2^16, and a depth of 1,000 layers has been reached once.
LARGEST = {
    "vocab_size": 2**31 - 1,  # token ids are int32 in many tools
    "hidden_size": 2**20,  # one matrix of this width and height would take 4 TB
    "intermediate_size": 2**24,
    "num_hidden_layers": 2**11,  # which take a quarter of a minute to build, however narrow
    "freq_dim": 2**16,
    "phase_dim": 2**16,
    "top_k": 2**31 - 1,
    "num_labels": 2**20,  # each has a name in the configuration
    "max_position_embeddings": 2**53,  # JSON's largest exact integer; nothing is built of it
}


def check_count(name: str, value: Any) -> None:
    """Make sure that a field is an integer, at least 1 and at most `LARGEST`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {short(value)}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    if value > LARGEST.get(name, value):
        raise ValueError(f"{name} must be at most {LARGEST[name]}, got {short(value)}")


def check_heads(hidden_size: Any, num_attention_heads: Any) -> None:
    """Make sure that the width can be divided among the heads."""
    check_count("hidden_size", hidden_size)
    check_count("num_attention_heads", num_attention_heads)
    if hidden_size % num_attention_heads:
        raise ValueError(
            "num_attention_heads must divide hidden_size, got num_attention_heads = "
            f"{num_attention_heads} and hidden_size = {hidden_size}"
        )


def check_token(name: str, value: Any, vocab_size: int) -> None:
    """Make sure that a field is a token's id, or None."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < vocab_size:
        raise ValueError(f"{name} must be None or an id below vocab_size = {vocab_size}, got {short(value)}")


def check_flag(name: str, value: Any) -> None:
    """Make sure that a field is a boolean."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {short(value)}")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Make sure that a field is one of these names."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {short(value)}")


def check_real(name: str, value: Any, expected: str, accept: Any) -> None:
    """Make sure that a field is a number, and one that `accept` takes; `expected` says which those are."""
    if not _is_number(value):
        raise TypeError(f"{name} must be a number, got {short(value)}")
    if not accept(value):
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def checked_range(name: str, value: Any, highest: float) -> tuple[float, float]:
    """A pair of numbers, 0 < low <= high <= highest, as floats."""
    expected = "two numbers, 0 < low <= high" + (f" <= {highest:g}" if highest < math.inf else "")
    if not isinstance(value, (tuple, list)) or len(value) != 2 or not all(_is_number(end) for end in value):
        raise TypeError(f"{name} must be {expected}, got {short(value)}")
    low, high = value
    if not (0 < low <= high <= highest and high < math.inf):
        raise ValueError(f"{name} must be {expected}, got {value!r}")
    return (float(low), float(high))


def short(value: Any) -> str:
    """A value for an error message, at most 100 characters of it."""
    shown = repr(value)
    return shown if len(shown) <= 100 else f"{shown[:97]}..."


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, float) or abs(value) < 2**1023  # as JSON has them, integers have any length
