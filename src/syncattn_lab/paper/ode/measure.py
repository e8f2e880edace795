"""All that is integrated: pairs, vector pairs, populations and networks."""

from __future__ import annotations

from collections.abc import Callable

from syncattn_lab.paper.ode import networks, oscillators
from syncattn_lab.paper.section import Extent, Numbers


def measure(extent: Extent, tell: Callable[[str], None]) -> Numbers:
    """Integrate pairs, vector pairs, populations and networks."""
    parts = {
        "pairs": ("two oscillators, 200 beats", oscillators.pairs),
        "double_count": ("r in the pair equation", oscillators.double_count),
        "vector": ("frequencies of several coordinates", oscillators.vector),
        "order": ("the order parameter of 2,000 oscillators", oscillators.order),
        "networks": ("networks of one broad cluster and of separated clusters", networks.networks),
        "trajectories": ("trajectories", oscillators.trajectories),
    }
    numbers: Numbers = {}
    for name, (line, part) in parts.items():
        tell(f"ode: {line}")
        numbers[name] = part(extent)
    return numbers
