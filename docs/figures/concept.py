"""Draw concept.png: Selective Synchronization Attention on one sentence, one head, in four panels.

Nothing is placed by hand: an untrained layer of the library gives the frequencies, its calibration gives the
locking radius, the operator gives S, and the phases are integrated from the Kuramoto equation.

    python docs/figures/concept.py            # writes docs/figures/concept.png; needs matplotlib
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Circle
from torch import Tensor

from syncattn import selective_synchronization_attention
from syncattn.locking import coupling_kernel, locking_radius
from syncattn.nn import SelectiveSynchronizationAttention

WORDS = ["the", "cat", "sat", "on", "the", "mat", "while", "the", "dog", "slept"]
FOCUS = 5  # the token that the circle is drawn around
SEED = 3230  # one for which no two words overlap

INK, FAINT, LINE = "#1d2733", "#6b7682", "#c9d0d6"
LOCKED, DRIFTING = "#0b6e8f", "#cf5c2b"
# Positive values start at a visible tint, so that white is exactly 0 and nothing else.
SHADES = LinearSegmentedColormap.from_list("sync", ["#d3e8ef", "#66b0c8", "#0b6e8f", "#083a52"])
SHADES.set_bad("white")


class Head(NamedTuple):
    """One head on the sentence."""

    frequency: Tensor  # w (N, 2): content, position
    coupling: Tensor  # kappa (1,)
    bandwidth: Tensor  # alpha (1,)
    sync: Tensor  # S (N, N)

    @property
    def detuning(self) -> Tensor:
        """sqrt(D), (N, N)."""
        return torch.cdist(self.frequency, self.frequency)

    @property
    def radius(self) -> float:
        return float(locking_radius(self.coupling, self.bandwidth))


def make_head() -> Head:
    """An untrained head, random embeddings; equal words have equal embeddings."""
    torch.manual_seed(SEED)
    layer = SelectiveSynchronizationAttention(
        16,
        1,
        freq_dim=2,
        position="own_drift",  # the first coordinate is the content's, the second the position's
        window_range=(2.7, 2.7),
        delay=0.0,
        self_coupling=True,
        frame="absolute",
        power=1,
        order_parameter=False,
        sharpness=10.0,
    )
    vocabulary = sorted(set(WORDS))
    embedding = torch.randn(len(vocabulary), 16)
    x = embedding[[vocabulary.index(word) for word in WORDS]][None]  # (1, N, E)
    layer.calibrate_(x, density_range=(0.32, 0.32))
    with torch.no_grad():
        w = layer.frequency.emit(x, torch.arange(len(WORDS))[None])  # (1, 1, N, 2)
        value = torch.eye(len(WORDS))[None, None]
        _, sync, _ = selective_synchronization_attention(
            w, w, value, layer.coupling, layer.bandwidth, return_weights=True
        )
    return Head(w[0, 0], layer.coupling.detach(), layer.bandwidth.detach(), sync[0, 0])


def integrate(detuning: float, pull: float, span: float, step: float = 0.005) -> tuple[Tensor, Tensor]:
    """(t, psi / 2 pi) of two oscillators, psi' = dw - K J sin psi, by Euler's rule from psi = 0."""
    t = torch.arange(0.0, span, step)
    psi = torch.zeros(len(t))
    for n in range(1, len(t)):
        psi[n] = psi[n - 1] + step * (detuning - pull * torch.sin(psi[n - 1]))
    return t, psi / (2 * torch.pi)


def pairs_of_focus(head: Head) -> tuple[int, int]:
    """(the farthest token that locks to the focus, the nearest that does not)."""
    distance = head.detuning[FOCUS]
    locked = head.sync[FOCUS] > 0
    return int(distance.where(locked, -1.0).argmax()), int(distance.where(~locked, torch.inf).argmin())


def draw_plane(axes: Axes, head: Head) -> None:
    """Tokens in the plane of their frequencies, the focus' locking radius, lines between locked pairs."""
    content, position = head.frequency.unbind(-1)
    for i in range(len(WORDS)):
        for j in range(i):
            if head.sync[i, j] > 0:
                s, own = float(head.sync[i, j]), FOCUS in (i, j)
                axes.plot(
                    position[[i, j]],
                    content[[i, j]],
                    color=LOCKED if own else "#8fb9c8",
                    linewidth=0.6 + 2.6 * s,
                    zorder=2 if own else 1,
                    solid_capstyle="round",
                )
    centre = (float(position[FOCUS]), float(content[FOCUS]))
    axes.add_patch(Circle(centre, head.radius, facecolor="#e9f4f7", edgecolor="none", zorder=0))
    axes.add_patch(
        Circle(centre, head.radius, facecolor="none", edgecolor=LOCKED, linestyle=(0, (4, 3)), zorder=1.5)
    )
    _, drifting = pairs_of_focus(head)
    for i, word in enumerate(WORDS):
        edge = LOCKED if head.sync[FOCUS, i] > 0 else DRIFTING if i == drifting else FAINT
        axes.text(
            float(position[i]),
            float(content[i]),
            word,
            ha="center",
            va="center",
            fontsize=9.5,
            color="white" if i == FOCUS else DRIFTING if i == drifting else INK,
            bbox={
                "boxstyle": "round,pad=0.3",
                "facecolor": LOCKED if i == FOCUS else "white",
                "edgecolor": edge,
                "linewidth": 1.0,
            },
            zorder=3,
        )
    axes.annotate(
        r"locking radius $\rho$",
        (centre[0] - 0.643 * head.radius, centre[1] - 0.766 * head.radius),
        xytext=(-6, 0),
        textcoords="offset points",
        color=LOCKED,
        fontsize=9,
        ha="right",
        va="top",
    )
    axes.margins(0.07)
    axes.set_aspect("equal", adjustable="datalim")
    axes.text(
        0.985,
        0.06,
        r"$S = \sqrt{\max(e^{-2 \alpha D} - D / \kappa^2,\ 0)}$",
        transform=axes.transAxes,
        ha="right",
        color=INK,
        fontsize=10,
    )
    axes.set_xlabel("position's part of the frequency", color=FAINT)
    axes.set_ylabel("content's part", color=FAINT)
    axes.set_xticks([])
    axes.set_yticks([])


def draw_phases(axes: Axes, head: Head) -> None:
    """The phase difference of a locked and of an unlocked pair over time."""
    locked, drifting = pairs_of_focus(head)
    distance = head.detuning[FOCUS]
    pull = head.coupling * coupling_kernel(distance.square(), head.bandwidth)  # K J
    beat = float((distance[drifting] ** 2 - pull[drifting] ** 2).sqrt())
    span = 3.4 * 2 * torch.pi / beat
    for other, colour in ((drifting, DRIFTING), (locked, LOCKED)):
        t, turns = integrate(float(distance[other]), float(pull[other]), span)
        axes.plot(t, turns, color=colour, linewidth=2)
    focus = WORDS[FOCUS]
    axes.text(0.06 * span, 2.35, f"{focus}, {WORDS[drifting]}:\nnot locked", color=DRIFTING, fontsize=9)
    axes.text(0.97 * span, 0.32, f"{focus}, {WORDS[locked]}: locked", color=LOCKED, ha="right", fontsize=9)
    axes.set_box_aspect(1)
    axes.set_xlim(0, span)
    axes.set_ylim(-0.15, 3.6)
    axes.set_yticks([0, 1, 2, 3])
    axes.set_xticks([])
    axes.set_xlabel("time", color=FAINT)
    axes.set_ylabel("phase difference (turns)", color=FAINT)


def draw_matrix(axes: Axes, matrix: Tensor, row_labels: bool) -> None:
    """A matrix of weights: white is exactly 0, darker is larger."""
    axes.imshow(matrix.where(matrix > 0, torch.nan), cmap=SHADES, vmin=0, vmax=float(matrix.max()))
    ticks = range(len(WORDS))
    axes.set_xticks(ticks, WORDS, rotation=90)
    axes.set_yticks(ticks, WORDS if row_labels else [])
    axes.set_xticks([t - 0.5 for t in range(1, len(WORDS))], minor=True)
    axes.set_yticks([t - 0.5 for t in range(1, len(WORDS))], minor=True)
    axes.grid(which="minor", color="#e6eaed", linewidth=0.5)
    axes.tick_params(which="both", length=0, pad=3, labelcolor=INK)


def main() -> None:
    plt.rcParams.update(
        {
            "font.family": "DejaVu Sans",
            "font.size": 8.5,
            "axes.titlesize": 10,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.edgecolor": LINE,
            "axes.titlecolor": INK,
            "xtick.color": FAINT,
            "ytick.color": FAINT,
        }
    )
    head = make_head()
    softmax = torch.softmax(-2 * head.bandwidth * head.detuning.square(), dim=-1)

    figure = plt.figure(figsize=(8, 6.1), dpi=200, layout="constrained")
    panels = figure.subplot_mosaic([["plane"] * 3, ["phases", "sync", "softmax"]], height_ratios=[1, 1])
    draw_plane(panels["plane"], head)
    draw_phases(panels["phases"], head)
    draw_matrix(panels["sync"], head.sync, row_labels=True)
    draw_matrix(panels["softmax"], softmax, row_labels=False)
    zeros = int((head.sync == 0).sum())
    panels["plane"].set_title("a  Tokens within the locking radius lock")
    panels["phases"].set_title("b  Phases settle or drift")
    panels["sync"].set_title("c  Synchronization S")
    panels["softmax"].set_title("d  Softmax")
    panels["sync"].set_xlabel(f"{zeros} of {head.sync.numel()} are exactly 0", color=FAINT)
    panels["softmax"].set_xlabel(f"{int((softmax > 0).sum())} of {softmax.numel()} are positive", color=FAINT)
    figure.savefig(Path(__file__).with_name("concept.png"), pil_kwargs={"optimize": True})


if __name__ == "__main__":
    main()
