"""A mix of heads: which of them has which form of position, which window, and whether it is directed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from syncattn.checks import check_choice, check_count, check_range, check_real, short
from syncattn.nn.options import check_delay, check_directed

POSITIONS = ("drift", "own_drift", "rotary", "helix", "own_helix", "screw", "own_screw", "none")
DRIFTS = ("drift", "own_drift", "screw", "own_screw")
"""The forms with a slope, and so with a window."""
HELICES = ("helix", "own_helix", "screw", "own_screw")
"""The forms with circles, and so with an amplitude."""


def forms_of_heads(position: str | Sequence[str], num_heads: int) -> tuple[str, ...]:
    """Each head's form of position, of one for all of them or a list with one for each.

    Raises:
        ValueError: it is neither.
    """
    forms = (position,) * num_heads if isinstance(position, str) else position
    if not isinstance(forms, (tuple, list)) or len(forms) != num_heads:
        raise ValueError(
            f"position must be one of {', '.join(map(repr, POSITIONS))}, or a list with one for each of the "
            f"{num_heads} heads, got {short(position)}"
        )
    for form in forms:
        check_choice("position", form, POSITIONS)
    return tuple(forms)


def directed_heads(directed: bool | Sequence[bool], num_heads: int) -> tuple[bool, ...]:
    """Each head's flag, of checked ones."""
    return (directed,) * num_heads if isinstance(directed, bool) else tuple(directed)


def check_windows(windows: Sequence[float | None] | None, forms: Sequence[str]) -> None:
    """Make sure that every head that drifts has a window, if they are listed.

    Raises:
        TypeError, ValueError: they do not fit the heads, whose forms of position these are.
    """
    if windows is None:
        return
    if not isinstance(windows, (tuple, list)) or len(windows) != len(forms):
        raise ValueError(
            f"windows must be None or a list with one for each of the {len(forms)} heads, got "
            f"{short(windows)}"
        )
    for head, (window, form) in enumerate(zip(windows, forms)):
        if window is not None:
            check_real("windows", window, "positive and finite", lambda x: 0 < x < math.inf)
        elif form in DRIFTS:
            raise ValueError(
                f"windows must have a number for head {head}, whose position is {form!r}, got None: a head "
                "without a window has another form of position, as 'helix' or 'none'"
            )


def check_frequency(
    freq_dim: int,
    position: str | Sequence[str],
    window_range: Sequence[float],
    delay: float | Sequence[bool],
    *,
    num_heads: int,
    axes: int,
    helix_scales: Sequence[float],
    directed: bool | Sequence[bool],
    windows: Sequence[float | None] | None,
) -> None:
    """Make sure that the options of a `Frequency` are in range, and fit the heads.

    Raises:
        TypeError, ValueError: they are not, or do not.
    """
    check_count("freq_dim", freq_dim)
    check_count("axes", axes)
    forms = forms_of_heads(position, num_heads)
    if not isinstance(helix_scales, (tuple, list)) or not helix_scales:
        raise TypeError(f"helix_scales must be a list of at least one number, got {short(helix_scales)}")
    for scale in helix_scales:
        check_real("helix_scales", scale, "positive and finite", lambda x: 0 < x < math.inf)
    kept = kept_coordinates(axes, len(helix_scales))
    circles = kept["own_helix"]
    needs = {form: own + 1 for form, own in kept.items()} | {"helix": circles, "screw": circles}
    for form, least in needs.items():
        if form in forms and freq_dim < least:
            detail = " (2 * axes * len(helix_scales) for the helix)" if form in HELICES else ""
            raise ValueError(f"position={form!r} needs freq_dim of at least {least}{detail}, got {freq_dim}")
    if "rotary" in forms and freq_dim % 2:
        raise ValueError(f"position='rotary' needs an even freq_dim, got {freq_dim}")
    if "rotary" in forms and freq_dim < 2 * axes:
        raise ValueError(
            f"position='rotary' needs freq_dim of at least 2 * axes = {2 * axes}, got {freq_dim}"
        )
    check_range("window_range", window_range, math.inf)
    check_windows(windows, forms)
    check_delay(delay, num_heads)
    check_directed(directed, num_heads)


def kept_coordinates(axes: int, scales: int) -> dict[str, int]:
    """How many of a frequency's coordinates are position's alone, in the forms that keep some."""
    circles = 2 * axes * scales
    return {"own_drift": axes, "own_helix": circles, "own_screw": circles + axes}


class Run(NamedTuple):
    """Heads side by side that are alike: one form of position, all directed or none."""

    form: str
    heads: slice  # among all heads
    slopes: slice  # among the heads that drift: so their slopes are numbered
    directions: slice  # among those that drift in the content's coordinates
    amplitudes: slice  # among the heads with a helix
    sent: slice | None  # among the directed heads; None: these are symmetric


class Counts(NamedTuple):
    """How many heads have each kind of parameter."""

    slopes: int
    directions: int
    amplitudes: int
    sent: int


def runs_of(forms: Sequence[str], directed: Sequence[bool]) -> tuple[list[Run], Counts]:
    """Runs of heads that are alike, in order; and how many heads have which parameters."""
    runs, start, seen = [], 0, Counts(0, 0, 0, 0)
    for (form, sends), heads in groupby(zip(forms, directed)):
        number = len(list(heads))
        has = (form in DRIFTS, form in ("drift", "screw"), form in HELICES, sends)
        after = Counts(*(count + number * own for count, own in zip(seen, has)))
        slopes, directions, amplitudes, sent = (slice(a, b) for a, b in zip(seen, after))
        runs.append(
            Run(form, slice(start, start + number), slopes, directions, amplitudes, sent if sends else None)
        )
        start, seen = start + number, after
    return runs, seen
