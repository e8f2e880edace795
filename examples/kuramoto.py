"""The Kuramoto network beside the closed form, with sliders for the coupling, the detuning and the density.

It opens a window, and leaves kuramoto.png with the sliders' first values. Needs the extra 'paper'.
"""

import os

import matplotlib.pyplot as plt
import torch
from matplotlib.widgets import Slider

from syncattn import kuramoto, locking

TIME = float(os.environ.get("SYNCATTN_EXAMPLE_STEPS", "100"))  # means are over it, after as much before
torch.manual_seed(0)
START, UNIT = torch.rand(40) * 2 * torch.pi, kuramoto.midpoint_quantiles(kuramoto.gaussian(), 40)
figure, axes = plt.subplots(1, 3, figsize=(12, 4.8), gridspec_kw={"bottom": 0.37})
sliders = []
options = [("density at r = 1", 0.05, 0.99, 0.8), ("detuning", 0.1, 2, 1), ("coupling K", 0.5, 8, 4)]
for row, (name, low, high, first) in enumerate(options):
    place = figure.add_axes((0.2, 0.04 + 0.06 * row, 0.6, 0.04))
    sliders.append(Slider(place, name, low, high, valinit=first))


def draw(_: float = 0.0) -> str:
    density, spread, coupling = (slider.val for slider in sliders)
    w = spread * UNIT  # natural frequencies
    radius = min(float(locking.gaussian_radius(density, 1, spread**2)), 0.999 * coupling)
    bandwidth = torch.log(torch.tensor(coupling / radius)) / radius**2  # K exp(-alpha rho^2) = rho
    kernel = kuramoto.network_kernel(w, bandwidth)
    times = {"settle": TIME, "duration": TIME, "step": 0.1}
    run = kuramoto.simulate(START, w, coupling, kernel, **times, trajectory=True)
    formula = kuramoto.pair_formula(w, coupling * float(run.order_parameter), bandwidth)
    locked, says = kuramoto.locked_pairs(run.mean_frequency, torch.pi / TIME), formula > 0
    for panel in axes:
        panel.clear()
    axes[0].plot(run.times, (run.trajectory - START) / (2 * torch.pi), linewidth=0.7)
    axes[0].set(title=f"turns of each oscillator, r = {float(run.order_parameter):.2f}", xlabel="time")
    for panel, pairs, title in zip(axes[1:], (formula, locked), ("closed form", "integrated")):
        panel.imshow(pairs, vmin=0, vmax=1, cmap="cividis")
        panel.set(title=f"{title}: {float((pairs > 0).double().mean()):.2f} lock", xlabel="by frequency")
    return f"closed form and network agree on {float((says == locked).double().mean()):.2f} of the pairs"


print(draw())
for slider in sliders:
    slider.on_changed(draw)
figure.savefig("kuramoto.png", dpi=110)
if plt.get_backend() != "agg":
    plt.show()
