"""What the options of a layer may be: the layer asks, and so do the configurations of models."""

from __future__ import annotations

import math
from collections.abc import Sequence

from syncattn.backends.call import FRAMES
from syncattn.checks import check_choice, check_count, check_flag, check_range, check_real, short

PARAMETRISATIONS = ("log", "softplus")
WIDEST_CONVOLUTION = 64  # tokens; each is a walk over the sequence


def check_delay(delay: float | Sequence[bool], num_heads: int | None = None) -> None:
    """Make sure that a delay is a fraction of the heads, or says of each head whether it is delayed.

    Args:
        num_heads: H; None where heads cannot be told apart, and only a fraction is expected.

    Raises:
        TypeError, ValueError: it is neither.
    """
    if num_heads is not None and isinstance(delay, (tuple, list)):
        _check_by_head("delay", delay, num_heads, "a fraction of the heads")
        return
    check_real("delay", delay, "a fraction of the heads, in [0, 1]", lambda x: 0 <= x <= 1)


def check_looking_back(token_shift: bool, short_convolution: int | None) -> None:
    """Make sure that a layer has a token shift, a short convolution, or neither.

    Raises:
        TypeError, ValueError: it has not.
    """
    check_flag("token_shift", token_shift)
    if short_convolution is None:
        return
    check_count("short_convolution", short_convolution)
    if not 2 <= short_convolution <= WIDEST_CONVOLUTION:
        raise ValueError(
            f"short_convolution must be None or a width from 2 to {WIDEST_CONVOLUTION} tokens, got "
            f"{short_convolution!r}"
        )
    if token_shift:
        raise ValueError(
            f"short_convolution={short_convolution!r} stands in place of the token shift: "
            "token_shift must be False with it, got True"
        )


def check_directed(directed: bool | Sequence[bool], num_heads: int) -> None:
    """Make sure that `directed` is one flag, or one for each head.

    Raises:
        TypeError, ValueError: it is neither.
    """
    if isinstance(directed, (tuple, list)):
        _check_by_head("directed", directed, num_heads, "True or False")
    else:
        check_flag("directed", directed)


def _check_by_head(name: str, given: Sequence[bool], num_heads: int, otherwise: str) -> None:
    if len(given) != num_heads or not all(isinstance(flag, bool) for flag in given):
        raise ValueError(
            f"{name} must be {otherwise}, or a list of True or False with one for each of the {num_heads} "
            f"heads, got {short(given)}"
        )


def check_value_rotation(
    value_rotation: float | Sequence[float | bool | None] | None, num_heads: int, head_dim: int, axes: int
) -> None:
    """Make sure that values can be turned with this base, or each head's with its own, or not at all.

    Raises:
        TypeError, ValueError: they cannot.
    """
    given = value_rotation if isinstance(value_rotation, (tuple, list)) else (value_rotation,)
    if given is value_rotation and len(given) != num_heads:
        raise ValueError(
            f"value_rotation must be a number, None, or a list with one of them for each of the {num_heads} "
            f"heads, got {short(value_rotation)}"
        )
    # In a list, False is None: a plan in TOML has no other word for it.
    bases = [b for b in given if b is not None and not (b is False and given is value_rotation)]
    for base in bases:
        check_real("value_rotation", base, "above 1 and finite, or None", lambda x: 1 < x < math.inf)
    if bases and (head_dim % 2 or head_dim < 2 * axes):
        raise ValueError(
            f"value_rotation={short(value_rotation)} needs an even head_dim (embed_dim / num_heads), of at "
            f"least 2 * axes = {2 * axes}, got {head_dim}"
        )


def check_synchronization(frame: str, power: float, edge: float, eps: float, top_k: int | None) -> None:
    """Make sure that the options which a layer passes to the operator are in range.

    Raises:
        TypeError, ValueError: they are not.
    """
    check_choice("frame", frame, FRAMES)
    check_real("power", power, "positive and finite", lambda x: 0 < x < math.inf)
    for name, value in (("edge", edge), ("eps", eps)):
        check_real(name, value, "at least 0 and finite", lambda x: 0 <= x < math.inf)
    if top_k is not None:
        check_count("top_k", top_k)


def check_start(density_range: Sequence[float] | None, sharpness: float, parametrisation: str) -> None:
    """Make sure that the options which say how a layer starts are in range.

    Raises:
        TypeError, ValueError: they are not.
    """
    check_choice("parametrisation", parametrisation, PARAMETRISATIONS)
    check_real("sharpness", sharpness, "positive and finite", lambda x: 0 < x < math.inf)
    if density_range is not None:
        check_range("density_range", density_range, 1.0)
