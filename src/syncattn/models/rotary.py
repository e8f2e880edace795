"""Rotary position beyond the length of the training: YaRN (Peng et al. 2023).

A pair of coordinates that turns often within the length of the training has seen all of its angles: it
tells near tokens apart, and keeps its rate. One that has not turned once would meet angles it never saw:
its rate is divided by the factor, so that the longer text has the angles of the shorter one. Between them
the two rates are mixed, in a ramp over the pairs. Longer texts make softmax flatter, so logits are sharpened.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FAST, SLOW = 32.0, 1.0
"""Turns within the length of the training: with more a rate stays, with fewer it is divided by the factor."""


def scaled_rates(
    pairs: int, factor: float, trained_length: int, device: torch.device, base: float = 10_000.0
) -> Tensor:
    """Radians per token of each pair of coordinates, (pairs,) float32, for texts `factor` times as long.

    As in the authors' code and in transformers: the ramp is linear in the number of the pair, from the one
    that turns `FAST` times in `trained_length` tokens, rounded down, to the one that turns `SLOW` times,
    rounded up.
    """

    def pair_of(turns: float) -> float:
        return pairs * math.log(trained_length / (2 * math.pi * turns)) / math.log(base)

    first = max(math.floor(pair_of(FAST)), 0)
    last = min(math.ceil(pair_of(SLOW)), 2 * pairs - 1)
    pair = torch.arange(pairs, device=device, dtype=torch.float32)
    stretched = ((pair - first) / max(last - first, 1e-3)).clamp(0, 1)
    rates = base ** (-pair / pairs)
    return rates * (1 - stretched) + rates / factor * stretched


def sharpening(factor: float) -> float:
    """What logits are multiplied by in texts `factor` >= 1 times as long as those of the training."""
    return (0.1 * math.log(factor) + 1) ** 2
