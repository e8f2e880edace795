"""Draw what each kind of head does, at its start: how position detunes it, and whom it hears.

    python docs/figures/heads.py                     # a few seconds; needs matplotlib

Writes docs/figures/heads.png. One head of each kind, 64 wide, 16 coordinates; contents are random, of 24
different symbols, which come twice. Couplings are set so that a tenth of the pairs lock.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap

from syncattn import locking
from syncattn.nn import SelectiveSynchronizationAttention

HERE = Path(__file__).parent
INK, FAINT, LINE = "#1d2733", "#6b7682", "#c9d0d6"
LOCKED, OTHER = "#0b6e8f", "#cf5c2b"
SHADES = LinearSegmentedColormap.from_list("sync", ["#bfe0ea", "#66b0c8", "#0b6e8f", "#083a52"])
SYMBOLS, FAR, WIDTH = 24, 160, 64
KINDS: dict[str, dict[str, Any]] = {
    "drift": {"position": "own_drift", "windows": [12.0]},
    "helix": {"position": "own_helix"},
    "screw": {"position": "own_screw", "windows": [96.0], "helix_scales": [4.0]},
    "rotary": {"position": "rotary"},
    "none": {"position": "none"},
    "helix, delayed": {"position": "own_helix", "delay": [True]},
}
REMARKS = (
    "a window",
    "near first, far in reach",
    "seasons in a window",
    "bound to content",
    "content alone",
    "what followed my like",
)


@torch.no_grad()
def main() -> None:
    figure, axes = plt.subplots(2, len(KINDS), figsize=(13.2, 5.0), height_ratios=(1, 1.25))
    generator = torch.Generator().manual_seed(4)
    symbols = torch.randn(1, SYMBOLS, WIDTH, generator=generator)
    text = torch.nn.functional.layer_norm(torch.cat((symbols, symbols), 1), (WIDTH,))
    many = torch.nn.functional.layer_norm(torch.randn(400, FAR, WIDTH, generator=generator), (WIDTH,))
    for (title, options), remark, (above, below) in zip(KINDS.items(), REMARKS, axes.T):
        torch.manual_seed(0)
        layer = SelectiveSynchronizationAttention(
            *(WIDTH, 1), **{"freq_dim": 16, "delay": 0.0, "order_parameter": False} | options
        )
        layer.calibrate_(text, is_causal=True, density_range=(0.1, 0.1))
        radius = locking.locking_radius(layer.coupling, layer.bandwidth).square().item()
        alike = many[:1, :1].expand(1, FAR, WIDTH)
        distance = np.arange(FAR)
        low, high = np.quantile(squared(layer, many), (0.05, 0.95), axis=0)
        above.fill_between(distance, low, high, color=LINE, linewidth=0)
        above.plot(distance, squared(layer, alike)[0], color=LOCKED, linewidth=1.6)
        above.axhline(radius, color=OTHER, linewidth=1.0, linestyle=(0, (4, 3)))
        above.set(ylim=(-2, 90), xlim=(0, FAR), xlabel="tokens back")
        above.set_title(f"{title}\n{remark}", fontsize=10, color=INK)
        _, weights = layer(text, is_causal=True, need_weights=True)
        shown = np.ma.masked_less_equal(weights[0].numpy(), 0)
        below.imshow(shown, cmap=SHADES, vmin=0, vmax=1, interpolation="nearest")
        for line in (below.axhline, below.axvline):
            line(SYMBOLS - 0.5, color=FAINT, linewidth=0.6)
        below.set(xticks=[], yticks=[], xlabel="who is heard")
    axes[0][0].set_ylabel("D, squared detuning")
    axes[1][0].set_ylabel(f"{SYMBOLS} symbols, twice")
    figure.tight_layout()
    figure.savefig(HERE / "heads.png", dpi=110)


def squared(layer: SelectiveSynchronizationAttention, x: torch.Tensor) -> np.ndarray:
    """(B, N): D of each text's last token and the one so many tokens before it, for what they emit."""
    w = layer.frequency.emit(x, torch.arange(x.shape[1])[None])[:, 0]
    return (w[:, -1:] - w).square().sum(-1).flip(1).numpy()


if __name__ == "__main__":
    main()
