"""What the heads of a trained model listen to: weights by distance on real text, and on a text said twice.

    python benchmarks/draw_heads.py MODEL TEXT.txt --out docs/results/heads.png

MODEL is a folder of `syncattn train`, `compare` or `study` (runs/quality/runs/...), with the byte tokenizer;
TEXT is a file, or "stdlib" or "pydoc" for the test part of that corpus. The upper panels show how much weight
each head puts on average on the token so many places back (and its density); the lower ones its weights on 32
random letters that come twice: a diagonal of the second half over the first is a head that finds the earlier
occurrence (at 32 places) or what followed it (at 31).
"""

from __future__ import annotations

import argparse
import random
import string
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import PowerNorm

from syncattn.drawing import PAGES, canvas, png
from syncattn.training.checkpoints import load_model
from syncattn.training.data import load_corpus
from syncattn.training.settings import quiet
from syncattn.training.texts import BUILT_IN, read_text

WINDOWS, LENGTH, TWICE = 8, 256, 32


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("text")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with quiet():
        model, _ = load_model(arguments.model)
    text = (
        load_corpus([arguments.text]).test if arguments.text in BUILT_IN else read_text(Path(arguments.text))
    )
    data = text.encode()[: WINDOWS * LENGTH]
    real = weights(model, torch.tensor(list(data)).view(-1, LENGTH))
    letters = "".join(random.Random(0).choices(string.ascii_lowercase, k=TWICE))
    repeated = weights(model, torch.tensor([list((letters * 2).encode())]))
    arguments.out.write_bytes(draw(real, repeated[:, :, 0]))


@torch.no_grad()
def weights(model: torch.nn.Module, ids: torch.Tensor) -> np.ndarray:
    """(layers, heads, B, N, N)."""
    found = model(input_ids=ids, output_attentions=True, use_cache=False).attentions
    return np.stack([layer.transpose(0, 1).numpy() for layer in found])


def draw(real: np.ndarray, repeated: np.ndarray) -> bytes:
    """Two rows of panels for each layer: profiles over distance, and matrices on the repeated letters."""
    layers, heads = real.shape[:2]
    distances = np.arange(1, LENGTH // 2)
    receivers = np.arange(LENGTH // 2, LENGTH)
    colours = PAGES["light"]
    with canvas("light", 2.3 * heads + 0.6, 4.1 * layers, layout="constrained") as figure:
        panels = figure.subplots(2 * layers, heads, squeeze=False)
        for layer in range(layers):
            for head in range(heads):
                found = real[layer, head]  # (B, N, N)
                profile = [found[:, receivers, receivers - d].mean() for d in distances]
                density = (found > 0).sum() / (len(found) * LENGTH * (LENGTH - 1) / 2)
                above, below = panels[2 * layer][head], panels[2 * layer + 1][head]
                above.fill_between(distances, profile, step="mid", color="#4477aa", linewidth=0)
                above.set(xscale="log", yscale="log", ylim=(1e-4, 1), xlim=(0.7, LENGTH // 2))
                above.set_xticks([1, 2, 4, 8, 16, 32, 64], ["1", "2", "4", "8", "16", "32", "64"])
                above.minorticks_off()
                above.set_title(f"layer {layer + 1}, head {head + 1}: density {density:.2f}", fontsize=9)
                shown = np.ma.masked_equal(repeated[layer, head], 0)
                below.set_facecolor(colours["zero"])
                below.imshow(shown, norm=PowerNorm(0.5, 0, 1), cmap="Blues", interpolation="nearest")
                below.axhline(TWICE - 0.5, color=colours["faint"], linewidth=0.8)
                below.axvline(TWICE - 0.5, color=colours["faint"], linewidth=0.8)
                below.set(xticks=[], yticks=[])
            panels[2 * layer][0].set_ylabel("mean weight")
            panels[2 * layer + 1][0].set_ylabel(f"{TWICE} letters, twice")
        figure.supxlabel("upper: tokens back · lower: token that is read", fontsize=9)
        return png(figure)


if __name__ == "__main__":
    main()
