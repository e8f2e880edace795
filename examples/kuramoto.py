"""The Kuramoto network beside the closed form, with sliders for the coupling, the detuning and the density.

Without a display, or with --save FILE, it draws the sliders' first values into a file. Needs the extra
'paper'.
"""

import os
import sys

import matplotlib.pyplot as plt
import torch
from matplotlib.widgets import Slider

from syncattn import kuramoto, locking

TIME = float(os.environ.get("SYNCATTN_EXAMPLE_STEPS", "200"))  # over which means are taken, after half of it
torch.manual_seed(0)
START, UNIT = torch.rand(40) * 6.283, kuramoto.midpoint_quantiles(kuramoto.gaussian(), 40)
figure, (turning, formula_axes, network_axes) = plt.subplots(1, 3, figsize=(12, 4.6), layout="constrained")
figure.get_layout_engine().set(rect=(0, 0.25, 1, 0.75))
sliders = [
    Slider(figure.add_axes((0.2, 0.04 + 0.06 * row, 0.6, 0.04)), name, low, high, valinit=first)
    for row, (name, low, high, first) in enumerate(
        [("density at r = 1", 0.05, 1, 0.8), ("detuning", 0.1, 2, 1), ("coupling K", 0.5, 8, 4)]
    )
]


def draw(_: float = 0.0) -> str:
    density, deviation, coupling = (slider.val for slider in sliders)
    frequency = deviation * UNIT
    radius = min(float(locking.gaussian_radius(density, 1, deviation**2)), 0.999 * coupling)
    bandwidth = torch.log(torch.tensor(coupling / radius)) / radius**2  # K exp(-alpha rho^2) = rho
    kernel = kuramoto.network_kernel(frequency, bandwidth)
    run = kuramoto.simulate(
        START, frequency, coupling, kernel, settle=TIME / 2, duration=TIME, trajectory=True
    )
    formula = kuramoto.pair_formula(frequency, coupling * float(run.order_parameter), bandwidth)
    locked = kuramoto.locked_pairs(run.mean_frequency, torch.pi / TIME)
    for axes in (turning, formula_axes, network_axes):
        axes.clear()
    shift = run.trajectory - run.trajectory[0]
    turning.plot(run.times, shift / 6.283, linewidth=0.7)
    turning.set(title=f"turns of each oscillator: r = {float(run.order_parameter):.2f}", xlabel="time")
    formula_axes.imshow(formula, vmin=0, vmax=1, cmap="cividis")
    formula_axes.set(title=f"closed form: {float((formula > 0).float().mean()):.2f} of the pairs lock")
    network_axes.imshow(locked, cmap="cividis")
    network_axes.set(title=f"integrated: {float(locked.float().mean()):.2f} turn together")
    figure.canvas.draw_idle()
    return f"they agree on {float(((formula > 0) == locked).float().mean()):.2f} of the pairs"


print(draw())
for slider in sliders:
    slider.on_changed(draw)
if "--save" in sys.argv or plt.get_backend() == "agg":
    figure.savefig(sys.argv[-1] if "--save" in sys.argv else "kuramoto.png", dpi=110)
else:
    plt.show()
