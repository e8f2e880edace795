"""What an option may be. Errors name it, what is expected and what was given, always in the same words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def check_count(name: str, value: Any) -> None:
    """Make sure that an option is an integer, at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {short(value)}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def check_flag(name: str, value: Any) -> None:
    """Make sure that an option is a boolean."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {short(value)}")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Make sure that an option is one of these names."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {short(value)}")


def check_real(name: str, value: Any, expected: str, accept: Any) -> None:
    """Make sure that an option is a number, and one that `accept` takes; `expected` says which those are."""
    if not _is_number(value):
        raise TypeError(f"{name} must be a number, got {short(value)}")
    if not accept(value):
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def check_range(name: str, value: Any, highest: float) -> None:
    """Make sure that an option is a pair of finite numbers, 0 < low <= high <= highest."""
    expected = "two numbers, 0 < low <= high" + (f" <= {highest:g}" if highest < math.inf else "")
    if not isinstance(value, (tuple, list)) or len(value) != 2 or not all(_is_number(end) for end in value):
        raise TypeError(f"{name} must be {expected}, got {short(value)}")
    low, high = value
    if not (0 < low <= high <= highest and high < math.inf):
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def short(value: Any) -> str:
    """A value for an error message, at most 100 characters of it."""
    shown = repr(value)
    return shown if len(shown) <= 100 else f"{shown[:97]}..."


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, float) or abs(value) < 2**1023  # as JSON has them, integers have any length
