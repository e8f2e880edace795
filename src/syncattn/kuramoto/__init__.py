"""The Kuramoto model itself, integrated: what the closed forms are checked against.

`simulate` integrates many networks at once in PyTorch, `solve` one system to a wanted accuracy by scipy. The
modules: `pair` (two oscillators), `meanfield` (all to all: the order parameter), `network` (coupling that
decays with the detuning), `vector` (frequencies of several coordinates). Needs scipy: the extra `paper`.

    >>> import torch
    >>> from syncattn import kuramoto
    >>> frequency = kuramoto.midpoint_quantiles(kuramoto.lorentzian(half_width=0.5), 200)
    >>> run = kuramoto.simulate(torch.zeros(200), frequency, coupling=2.0, settle=40.0, duration=40.0)
    >>> print(f"{run.order_parameter:.2f}, in theory {(1 - 2 * 0.5 / 2.0) ** 0.5:.2f}")
    0.71, in theory 0.71
"""

try:
    import scipy  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"syncattn.kuramoto needs {error.name}: install syncattn with its 'paper' extra", name=error.name
    ) from error

from syncattn.kuramoto.integrate import Simulation, derivative, order_parameter, simulate
from syncattn.kuramoto.meanfield import (
    Distribution,
    critical_coupling,
    gaussian,
    lorentzian,
    midpoint_quantiles,
    self_consistent,
    simulate_order_parameter,
)
from syncattn.kuramoto.network import (
    local_field,
    locked_pairs,
    network_kernel,
    pair_formula,
    transitivity,
)
from syncattn.kuramoto.pair import beat_frequency, mean_phasor, solve_pair
from syncattn.kuramoto.solve import solve
from syncattn.kuramoto.vector import simulate_vector, vector_eigenvalues, vector_fixed_point

__all__ = [
    "Distribution",
    "Simulation",
    "beat_frequency",
    "critical_coupling",
    "derivative",
    "gaussian",
    "local_field",
    "locked_pairs",
    "lorentzian",
    "mean_phasor",
    "midpoint_quantiles",
    "network_kernel",
    "order_parameter",
    "pair_formula",
    "self_consistent",
    "simulate",
    "simulate_order_parameter",
    "simulate_vector",
    "solve",
    "solve_pair",
    "transitivity",
    "vector_eigenvalues",
    "vector_fixed_point",
]
