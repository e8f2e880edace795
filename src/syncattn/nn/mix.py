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


def check_helix_scales(
    helix_scales: Sequence[float] | Sequence[Sequence[float] | None], forms: Sequence[str]
) -> None:
    """Make sure that helices have scales, of all heads or of each that has a helix.

    Raises:
        TypeError, ValueError: they have not.
    """
    if not isinstance(helix_scales, (tuple, list)) or not helix_scales:
        raise TypeError(f"helix_scales must be a list of at least one number, got {short(helix_scales)}")
    lists = [helix_scales]
    if by_head(helix_scales):
        lists = [scales for scales in helix_scales if scales is not None]
        if len(helix_scales) != len(forms) or len(set(map(len, lists))) > 1 or (lists and not lists[0]):
            raise ValueError(
                "helix_scales must be a list of numbers, or a list with one such list, all as long as each "
                f"other, or None, for each of the {len(forms)} heads, got {short(helix_scales)}"
            )
        for head, (scales, form) in enumerate(zip(helix_scales, forms)):
            if scales is None and form in HELICES:
                raise ValueError(
                    f"helix_scales must have a list for head {head}, whose position is {form!r}, got None"
                )
    for scales in lists:
        for scale in scales:
            check_real("helix_scales", scale, "positive and finite", lambda x: 0 < x < math.inf)


def by_head(helix_scales: Sequence[float] | Sequence[Sequence[float] | None]) -> bool:
    """Whether each head is given scales of its own, or None."""
    return all(each is None or isinstance(each, (tuple, list)) for each in helix_scales)


def scales_of_heads(
    helix_scales: Sequence[float] | Sequence[Sequence[float] | None], forms: Sequence[str]
) -> tuple[tuple[float, ...], ...]:
    """Each head's scales, of checked ones: of one list for all of them, or a list for each; () for None."""
    if by_head(helix_scales):
        return tuple(tuple(scales or ()) for scales in helix_scales)  # type: ignore[arg-type]
    return (tuple(helix_scales),) * len(forms)  # type: ignore[return-value]


def frozen_scales(
    helix_scales: Sequence[float] | Sequence[Sequence[float] | None],
) -> tuple[float, ...] | tuple[tuple[float, ...] | None, ...]:
    """The same as tuples: JSON makes lists of them."""
    return tuple(tuple(each) if isinstance(each, list) else each for each in helix_scales)  # type: ignore


def check_frequency(
    freq_dim: int,
    position: str | Sequence[str],
    window_range: Sequence[float],
    delay: float | Sequence[bool],
    *,
    num_heads: int,
    axes: int,
    helix_scales: Sequence[float] | Sequence[Sequence[float] | None],
    directed: bool | Sequence[bool],
    directed_rank: int | None,
    windows: Sequence[float | None] | None,
) -> None:
    """Make sure that the options of a `Frequency` are in range, and fit the heads.

    Raises:
        TypeError, ValueError: they are not, or do not.
    """
    check_count("freq_dim", freq_dim)
    check_count("axes", axes)
    forms = forms_of_heads(position, num_heads)
    check_helix_scales(helix_scales, forms)
    kept = kept_coordinates(axes, max(len(scales) for scales in scales_of_heads(helix_scales, forms)))
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
    if directed_rank is not None:
        check_count("directed_rank", directed_rank)


def kept_coordinates(axes: int, scales: int) -> dict[str, int]:
    """How many of a frequency's coordinates are position's alone, in the forms that keep some."""
    circles = 2 * axes * scales
    return {"own_drift": axes, "own_helix": circles, "own_screw": circles + axes}


class Run(NamedTuple):
    """Heads side by side that are alike: one form of position, all directed or none, helices of one kind."""

    form: str
    heads: slice  # among all heads
    slopes: slice  # among the heads that drift: so their slopes are numbered
    directions: slice  # among those that drift in the content's coordinates
    amplitudes: slice  # among the heads with a helix
    sent: slice | None  # among the directed heads; None: these are symmetric
    scales: tuple[float, ...]  # of their helices


class Counts(NamedTuple):
    """How many heads have each kind of parameter."""

    slopes: int
    directions: int
    amplitudes: int
    sent: int


def runs_of(
    forms: Sequence[str], directed: Sequence[bool], scales: Sequence[tuple[float, ...]]
) -> tuple[list[Run], Counts]:
    """Runs of heads that are alike, in order; and how many heads have which parameters."""
    runs, start, seen = [], 0, Counts(0, 0, 0, 0)
    told = (own if form in HELICES else () for form, own in zip(forms, scales))
    for (form, sends, circles), heads in groupby(zip(forms, directed, told)):
        number = len(list(heads))
        has = (form in DRIFTS, form in ("drift", "screw"), form in HELICES, sends)
        after = Counts(*(count + number * own for count, own in zip(seen, has)))
        slopes, directions, amplitudes, sent = (slice(a, b) for a, b in zip(seen, after))
        here = slice(start, start + number)
        runs.append(Run(form, here, slopes, directions, amplitudes, sent if sends else None, circles))
        start, seen = start + number, after
    return runs, seen
