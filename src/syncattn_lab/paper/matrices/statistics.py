"""Statistics of a layer's weight matrices: how sparse, how uniform, and how different its heads are.

All take weights P (H, N, N), row-normalised, P[h, i, j] what token i reads from token j in head h, and
allowed (N, N) bool, the pairs that may exchange information. "Others" are the allowed pairs of two different
tokens: that a token reads itself tells nothing about attention.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def others(allowed: Tensor) -> Tensor:
    """allowed (N, N) bool without the diagonal."""
    return allowed & ~torch.eye(allowed.shape[-1], dtype=torch.bool)


def density(weight: Tensor, allowed: Tensor) -> Tensor:
    """(H,): the fraction of the allowed pairs of different tokens that weigh more than 0."""
    among = others(allowed)
    return ((weight > 0) & among).sum((-2, -1)).double() / among.sum()


def off_diagonal_mass(weight: Tensor, allowed: Tensor) -> Tensor:
    """(H,): the share of a row's weight that lies on others, averaged over the rows that have others."""
    among = others(allowed)
    return (weight * among).sum(-1)[:, among.any(-1)].mean(-1)


def isolated_rows(weight: Tensor, allowed: Tensor) -> Tensor:
    """(H,): the fraction of the tokens with others to hear that hear none of them."""
    among = others(allowed)
    heard = ((weight > 0) & among).any(-1)
    return 1 - heard[:, among.any(-1)].double().mean(-1)


def effective_share(weight: Tensor, allowed: Tensor) -> Tensor:
    """(H,): N_eff / N = 1 / (n_i sum_j P_ij^2), n_i the row's allowed senders, over rows that read anything.

    1 if every allowed sender weighs the same, 1 / n_i if one has it all. 0 if no row reads anything.
    """
    return _mean_of_rows(_effective(weight) / allowed.sum(-1).clamp(min=1), weight)


def effective_of_locked(weight: Tensor, allowed: Tensor) -> Tensor:
    """(H,): 1 / (l_i sum_j P_ij^2), l_i the senders that weigh more than 0: how even the locked ones are."""
    return _mean_of_rows(_effective(weight) / (weight > 0).sum(-1).clamp(min=1), weight)


def total_variation(weight: Tensor, allowed: Tensor) -> Tensor:
    """(H,): half of sum_j |P_ij - 1 / n_i| over the row's n_i allowed senders, averaged over the rows.

    0 if every row is uniform, 1 - 1 / n_i if it is on one sender; a row that reads nothing counts 1/2.
    """
    count = allowed.sum(-1)
    uniform = allowed.double() / count.clamp(min=1)[:, None]
    return (0.5 * (weight - uniform).abs().sum(-1))[:, count > 0].mean(-1)


def variation_among_others(weight: Tensor, allowed: Tensor) -> Tensor:
    """(H,): `total_variation` of what is read from others alone, each row normalised to 1.

    A heavy diagonal on uniform rows makes it no larger. An isolated row has no distribution: it counts 0.
    """
    among = others(allowed)
    row, heard = _of_others(weight, among)
    uniform = among.double() / among.sum(-1).clamp(min=1)[:, None]
    variation = 0.5 * (row - uniform).abs().sum(-1) * heard
    return variation[:, among.any(-1)].mean(-1)


PER_HEAD = {
    "density": density,
    "off_diagonal_mass": off_diagonal_mass,
    "isolated_rows": isolated_rows,
    "effective_share": effective_share,
    "effective_of_locked": effective_of_locked,
    "total_variation": total_variation,
    "variation_among_others": variation_among_others,
}


def head_divergence(weight: Tensor, among: Tensor) -> float | None:
    """Jensen-Shannon divergence between the heads, 0 (the same) to 1 (nobody heard by two), over the rows.

    Of token i's k heads that hear others: (entropy of their mean - mean of their entropies) / ln k, on what
    they read from others, normalised; averaged over the tokens with k >= 2. None if there is no such token.

    Args:
        weight: (H, R, N), any R rows of the matrices.
        among: (R, N) bool, the pairs that count: those rows of `others`.
    """
    row, heard = _of_others(weight, among)
    heads = heard.sum(0)  # (R,) the k of each token
    mean = row.sum(0) / heads.clamp(min=1)[:, None]
    within = (_entropy(row) * heard).sum(0) / heads.clamp(min=1)
    several = heads >= 2
    if not bool(several.any()):
        return None
    return float(((_entropy(mean) - within)[several] / heads[several].double().log()).mean())


def random_masks(weight: Tensor, among: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform rows on independent random masks, heads as dense as in weight; shapes: `head_divergence`."""
    locked = ((weight > 0) & among).sum((-2, -1)) / among.sum()
    mask = (torch.rand(weight.shape, generator=generator) < locked[:, None, None]) & among
    return mask.double() / mask.sum(-1, keepdim=True).clamp(min=1)


def shuffled_rows(weight: Tensor, among: Tensor, generator: torch.Generator) -> Tensor:
    """Every row's weights on others in a random order of their own; shapes as in `head_divergence`.

    Keeps how many senders each row hears and how unevenly; only who they are is left to chance.
    """
    place = (~among).byte().argsort(dim=-1, stable=True).expand_as(weight)  # others first, in order
    chance = torch.rand(weight.shape, generator=generator).masked_fill(~among, 2.0)
    picked = chance.argsort(dim=-1)  # others first, at random
    return torch.zeros_like(weight).scatter(-1, place, weight.gather(-1, picked)) * among


def spreads(values: Tensor) -> tuple[float, float]:
    """(sd over heads, sd over seeds) of a statistic (seeds, H): root mean squares of unbiased deviations.

    Equal, but for chance, if heads are draws from one distribution.
    """
    over_heads = values.var(dim=1).mean().sqrt()
    over_seeds = values.var(dim=0).mean().sqrt()
    return float(over_heads), float(over_seeds)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """(mean, standard error of the mean) of one number per seed, (seeds,)."""
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


def _effective(weight: Tensor) -> Tensor:
    """1 / sum_j P_ij^2 (H, N), 0 for a row that reads nothing."""
    square = weight.square().sum(-1)
    return torch.where(square > 0, 1 / square, 0.0)


def _mean_of_rows(values: Tensor, weight: Tensor) -> Tensor:
    """(H,): the mean of values (H, N) over the rows that read anything, 0 if there is none."""
    reads = (weight > 0).any(-1)
    return (values * reads).sum(-1) / reads.sum(-1).clamp(min=1)


def _of_others(weight: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """What is read from others, rows normalised (H, N, N); whether there is any (H, N)."""
    row = weight * among
    mass = row.sum(-1)
    return row / torch.where(mass > 0, mass, 1.0)[..., None], mass > 0


def _entropy(row: Tensor) -> Tensor:
    """In nats, over the last dimension."""
    return torch.special.entr(row).sum(-1)
