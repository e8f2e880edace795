"""What the explorer shows, as plain HTML tables: for browsers without scripts, and for who reads numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from syncattn.backends import eager
from syncattn.explorer.gather import Heard
from syncattn.page.tables import table


def head_table(heard: Sequence[Heard], found: Sequence[tuple[Tensor, Tensor]]) -> str:
    """Density, partners, K and alpha of every head.

    Args:
        heard: the layers' calls.
        found: their (S, P), each (H, N, N).
    """
    rows = []
    for number, (one, (sync, _)) in enumerate(zip(heard, found, strict=True), 1):
        allowed = eager.allowed_pairs(one.call)[0].expand_as(sync)
        for head in range(sync.shape[0]):
            locked = int((sync[head] > 0).sum())
            rows.append(
                [
                    f"layer {number} ({one.name})",
                    str(head + 1),
                    f"{locked / max(int(allowed[head].sum()), 1):.3f}",
                    f"{locked / sync.shape[1]:.1f}",
                    f"{float(one.coupling[head]):.4g}",
                    f"{float(one.call.bandwidth[head]):.4g}",
                ]
            )
    header = ["layer", "head", "density", "partners", "coupling K", "bandwidth alpha"]
    return table(
        "Every head: the share of allowed pairs that lock, and how many senders a row locks with",
        header,
        rows,
    )


def token_table(
    labels: Sequence[str], found: Sequence[tuple[Tensor, Tensor]], after: dict[str, Any] | None
) -> str:
    """To whom each token listens most in each layer, the mean over its heads, and what is likeliest next."""
    means = [weight.mean(0) for _, weight in found]
    counts = [(sync > 0).sum(-1).float().mean(0) for sync, _ in found]
    rows = []
    for i, label in enumerate(labels):
        cells = [str(i + 1), label]
        for mean, count in zip(means, counts):
            share, j = mean[i].max(-1)
            strongest = (
                f"{int(j) + 1} {labels[int(j)]} ({float(share):.2f})" if float(share) > 0 else "nobody"
            )
            cells.append(f"{strongest}; {float(count[i]):.1f} partners")
        if after is not None:
            name, chance = after["top"][i][0]
            cells.append(f"{name} ({chance:.2f})")
        rows.append(cells)
    header = ["", "token", *(f"layer {n} listens most to" for n in range(1, len(found) + 1))]
    header += ["likeliest next"] if after is not None else []
    return table("Every token: its strongest partner (the mean weight over the layer's heads)", header, rows)
