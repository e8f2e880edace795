"""What the integrated Kuramoto model says of the closed form."""

from __future__ import annotations

import math
from typing import NamedTuple

from syncattn_lab.paper import judge
from syncattn_lab.paper.ode import figure
from syncattn_lab.paper.ode.measure import measure
from syncattn_lab.paper.section import Drawing, Numbers, Section

SOURCE = "Abstract, Kuramoto steady state"


def claims(numbers: Numbers) -> list[judge.Claim]:
    """The five verdicts."""
    return [
        _two_oscillators(numbers),
        _unlocked(numbers),
        _order_parameter(numbers),
        _vector(numbers),
        _network(numbers),
    ]


def _two_oscillators(numbers: Numbers) -> judge.Claim:
    locked, drifting = numbers["pairs"]["locked"], numbers["pairs"]["drifting"]
    count = len(locked["ratio"])
    return judge.Claim(
        "two-oscillators",
        SOURCE,
        "Two coupled oscillators lock when their detuning is at most K J, and then cos psi* = sqrt(1 - x^2), "
        "x = detuning / (K J), is their exact steady state.",
        judge.HOLDS,
        f"Of {count} pairs with |x| up to .99 all settle, at a cos psi that is {locked['error']:.1e} from "
        f"the closed form by scipy and {locked['error_torch']:.1e} in torch; of {len(drifting['ratio'])} "
        f"pairs with |x| from {min(abs(x) for x in drifting['ratio']):.2f} none does: they beat with the "
        f"frequency K J sqrt(x^2 - 1), to {drifting['error_frequency']:.1e} of it.",
        (
            judge.below("largest error of cos psi*, scipy", locked["error"], 1e-6),
            judge.below("largest error of cos psi*, torch", locked["error_torch"], 1e-6),
            judge.below("largest error of psi* = arcsin x, radians", locked["error_phase"], 1e-6),
            judge.above("turns made by the unlocked pair that made fewest", drifting["beats"], 200.0),
            judge.below("largest relative error of the beat frequency", drifting["error_frequency"], 5e-3),
        ),
    )


def _unlocked(numbers: Numbers) -> judge.Claim:
    drifting = numbers["pairs"]["drifting"]
    return judge.Claim(
        "unlocked-pairs-are-zero",
        SOURCE,
        "A pair that does not lock has a long-time mean cosine of 0, which is the weight it gets.",
        judge.HOLDS,
        f"Over {drifting['beats']:.0f} beats the mean of cos psi is at most "
        f"{drifting['largest_cosine']:.1e} for every unlocked pair. What the operator leaves out is the "
        "quadrature part: the mean of exp(i psi) is i (x - sqrt(x^2 - 1)), found to "
        f"{drifting['error_sine']:.1e}; it is as large as 1 at the locking edge, "
        f"{drifting['largest_sine']:.2f} for the nearest pair here, and falls as 1 / (2x).",
        (
            judge.above("turns made by the unlocked pair that made fewest", drifting["beats"], 200.0),
            judge.below("largest mean of cos psi, scipy", drifting["largest_cosine"], 1e-2),
            judge.below("largest mean of cos psi, torch", drifting["largest_cosine_torch"], 1e-2),
            judge.below("largest error of the mean of sin psi", drifting["error_sine"], 1e-2),
        ),
    )


def _order_parameter(numbers: Numbers) -> judge.Claim:
    order = numbers["order"]
    low, high = order["ratio"][order["below"]], order["ratio"][-1]
    noise = 2.0 / math.sqrt(order["count"])
    checks: list[judge.Check] = []
    for name in ("lorentzian", "gaussian"):
        one = order[name]
        checks += [
            judge.below(f"{name}: largest error of r, K/Kc from {low:g} to {high:g}", one["error"], 5e-3),
            judge.below(f"{name}: largest r below Kc; the limit is 2 / sqrt(N)", one["largest_below"], noise),
            judge.below(f"{name}: change of r when the step is halved", one["half_step"], 1e-3),
        ]
    checks += [
        judge.below("gaussian: change of r with the Runge-Kutta method", order["runge_kutta"], 1e-3),
        judge.between("r of projected phases at the published init", order["projected"], 0.8, 0.9),
    ]
    return judge.Claim(
        "order-parameter-selfconsistent",
        SOURCE,
        "In the Kuramoto model the order parameter r is 0 up to a critical coupling and above it solves the "
        "self-consistency equation.",
        judge.HOLDS,
        f"{order['count']:,} oscillators (quantiles of the distribution, so that sampling adds no noise) "
        f"that start from random phases reach the r of the equation to {order['lorentzian']['error']:.1e} "
        f"(Lorentzian) and {order['gaussian']['error']:.1e} (Gaussian), and stay below {noise:.3f} under "
        "Kc. This is a statement on the model: the operator's own r is taken from phases that are a linear "
        f"map of the tokens, not from the dynamics; at the published init it is {order['projected']:.2f} "
        "whatever K is.",
        tuple(checks),
    )


def _vector(numbers: Numbers) -> judge.Claim:
    vector = numbers["vector"]
    components = vector["components"]
    most = components[-1]

    def surprise(one: Numbers, kind: str, expected: float) -> float:
        # One pair's worth is added, for shares so near to 1 that the deviation would be 0.
        deviation = math.sqrt(expected * (1.0 - expected) / one["pairs"]) + 1.0 / one["pairs"]
        return abs(one[f"{kind}_density"] - expected) / deviation

    return judge.Claim(
        "vector-frequencies",
        SOURCE,
        "With frequencies of m coordinates, the closed form with their Euclidean distance is the pair's "
        "steady state.",
        judge.HOLDS_IF,
        "It is the stable state of one oscillator pair with an isotropic vector phase, "
        "psi' = delta - K J (psi / |psi|) sin |psi|: "
        f"reached to {vector['error']:.1e} for m up to {max(vector['sizes'])}, with all eigenvalues below "
        f"{vector['largest_eigenvalue']:.2f}. It is not that of m Kuramoto pairs, one per coordinate, "
        "which lock when the largest coordinate does: where the Euclidean rule locks "
        f"{most['vector_density']:.0%} of the pairs at m = {most['freq_dim']}, those lock "
        f"{most['component_density']:.0%}.",
        (
            judge.below("largest distance from psi*", vector["error"], 1e-4),
            judge.below(
                "largest eigenvalue of the Jacobian at psi*, in units of K J",
                vector["largest_eigenvalue"],
                0.0,
            ),
            judge.below("largest error of the eigenvalues' closed form", vector["error_eigenvalue"], 1e-4),
            judge.above(
                "vector form: share of pairs that lock as the Euclidean rule says, least over m",
                min(one["vector_agreement"] for one in components),
                0.98,
            ),
            judge.above(
                "m Kuramoto pairs: share that lock as the largest coordinate says, least over m",
                min(one["component_agreement"] for one in components),
                0.98,
            ),
            judge.below(
                "their locked share against its closed form, in standard deviations, most over m",
                max(surprise(one, "component", one["component_theory"]) for one in components),
                4.0,
            ),
            judge.below(
                "the vector form's against .05, in standard deviations, most over m",
                max(surprise(one, "vector", 0.05) for one in components),
                4.0,
            ),
            judge.above(
                f"their locked share less the vector form's, m = {most['freq_dim']}",
                most["component_density"] - most["vector_density"],
                0.2,
            ),
        ),
    )


class _Networks(NamedTuple):
    """The integrated networks as the claim sorts them.

    Attributes:
        narrow: narrow clusters, far apart.
        flat: the mean field.
        strong: one broad cluster at the strongest coupling that was tried, for each of two bandwidths.
        partly: one broad cluster, less than .9 of whose pairs lock.
    """

    narrow: Numbers
    flat: Numbers
    strong: list[Numbers]
    partly: list[Numbers]

    def of_partly(self, name: str) -> list[float]:
        """A number of those that are partly locked, the least first."""
        return sorted(one[name] for one in self.partly)


def _sorted(networks: Numbers) -> _Networks:
    flat = networks["mean field"]
    broad = [one for name, one in networks.items() if not name.startswith("separated")]
    strong = [
        max((one for one in broad if one["bandwidth"] == alpha), key=lambda one: one["coupling"])
        for alpha in (flat["bandwidth"], networks["broad, alpha 0.1, K 18"]["bandwidth"])
    ]
    partly = [one for one in broad if one["locked_density"] < 0.9]
    return _Networks(networks["separated"], flat, strong, partly)


def _network(numbers: Numbers) -> judge.Claim:
    found, twice = _sorted(numbers["networks"]), numbers["double_count"]
    return judge.Claim(
        "network-steady-state",
        SOURCE,
        "The synchronization of every pair of tokens is the steady state of the Kuramoto model that they "
        "form.",
        judge.HOLDS_IF,
        _network_finding(found, numbers["networks"], twice),
        (*_network_checks(found), *_pair_checks(twice)),
    )


def _network_finding(found: _Networks, networks: Numbers, twice: Numbers) -> str:
    narrow, flat, strong = found.narrow, found.flat, found.strong
    scanned = " and ".join(f"{one['coupling']:g} (alpha {figure.alpha_text(one)})" for one in strong)
    shares, agreements, errors = map(found.of_partly, ("locked_density", "agreement", "error"))
    rescaled = found.of_partly("error_best_kappa")[0]
    fields = [
        one[key]
        for one in (*found.partly, *(networks[name] for name in networks if name.startswith("separated")))
        for key in ("error_local_field", "error_local_field_drawn")
    ]
    wide = networks.get("separated, wide")
    but = (
        f" Wider clusters, {wide['spread_over_radius']:.2f} of the locking radius, are already less: "
        f"{wide['agreement_within']:.2f} within a cluster."
        if wide
        else ""
    )
    middle = networks.get("mean field, K 3")
    late = (
        " On the way the network locks before the rule does: at K = 3 (alpha 0) "
        f"{middle['locked_density']:.3f} of the pairs lock, {middle['rule_density']:.3f} by the rule."
        if middle
        else ""
    )
    return (
        "It holds if the frequencies form clusters that are narrow "
        f"({narrow['spread_over_radius']:.2f} locking radii) and far apart "
        f"({narrow['gap_over_radius']:.1f}): the rule agrees with the integrated network on "
        f"{narrow['agreement']:.4f} of the pairs, mean absolute error of cos psi "
        f"{narrow['error']:.4f}, {narrow['error_within']:.4f} within the clusters.{but} It also holds if the "
        "coupling is so strong that nearly all pairs lock, by the rule as well: one broad cluster at "
        f"K = {scanned} agrees on {min(one['agreement'] for one in strong):.3f} at least, error at most "
        f"{max(one['error'] for one in strong):.3f}.{late} It fails while a broad cluster is partly locked "
        f"({shares[0]:.2f} to {shares[-1]:.2f} of the pairs): there it agrees on {agreements[0]:.2f} to "
        f"{agreements[-1]:.2f} with errors of {errors[0]:.2f} to {errors[-1]:.2f} ({rescaled:.2f} at least "
        "with the best of all kappa). Oscillators lock to the field that they share, so true locking is "
        "transitive and the pair rule is not. What is right there is the mean of cos of two oscillators "
        f"that each follow that field, of rank 2: error {flat['error_local_field']:.4f} for "
        f"the mean field, {min(fields):.4f} to {max(fields):.4f} over the networks that are not locked as a "
        "whole. Two oscillators "
        "alone count r twice: kappa = K r with their own r loses the lock at x = "
        f"{twice['last_locked_with_r']:.3f} instead of 1, and gives {twice['cosine_at_0.8_with_r']:.3f} "
        f"for {twice['cosine_at_0.8']:.3f} at x = .8."
    )


def _network_checks(found: _Networks) -> tuple[judge.Check, ...]:
    narrow, flat, strong = found.narrow, found.flat, found.strong
    return (
        judge.above("separated clusters: lock agreement", narrow["agreement"], 0.99),
        judge.above("separated clusters: lock agreement within clusters", narrow["agreement_within"], 0.99),
        judge.below("separated clusters: mean absolute error of cos psi", narrow["error"], 0.02),
        judge.above(
            "separated clusters: gap between one deviation and the next, in locking radii",
            narrow["gap_over_radius"],
            5.0,
        ),
        judge.below(
            "separated clusters: standard deviation in locking radii", narrow["spread_over_radius"], 0.25
        ),
        judge.below(
            "separated clusters: mean absolute error of cos psi within clusters",
            narrow["error_within"],
            0.02,
        ),
        judge.above(
            "broad cluster, strong coupling: smallest lock agreement",
            min(one["agreement"] for one in strong),
            0.99,
        ),
        judge.below(
            "broad cluster, strong coupling: largest mean absolute error of cos psi",
            max(one["error"] for one in strong),
            0.02,
        ),
        judge.above(
            "broad cluster, strong coupling: smallest locked share of the pairs",
            min(one["locked_density"] for one in strong),
            0.99,
        ),
        judge.below(
            "broad cluster, partly locked: largest lock agreement", found.of_partly("agreement")[-1], 0.9
        ),
        judge.above(
            "broad cluster, partly locked: smallest mean absolute error of cos psi",
            found.of_partly("error")[0],
            0.03,
        ),
        judge.above(
            "broad cluster, partly locked: the same with the best of all kappa",
            found.of_partly("error_best_kappa")[0],
            0.03,
        ),
        judge.above(
            "broad cluster, partly locked: smallest transitivity of the true locking",
            found.of_partly("transitivity")[0],
            0.99,
        ),
        judge.below(
            "broad cluster, partly locked: largest transitivity of the pair rule",
            found.of_partly("transitivity_rule")[-1],
            0.95,
        ),
        judge.below(
            "mean field: error of the rank-2 form; the limit is 1 / N",
            flat["error_local_field"],
            1.0 / flat["size"],
        ),
    )


def _pair_checks(twice: Numbers) -> tuple[judge.Check, ...]:
    return (
        judge.between(
            "x at which kappa = K r loses a pair's lock; in theory .866",
            twice["last_locked_with_r"],
            0.855,
            0.867,
        ),
        judge.between(
            "cos psi* with kappa = K r at x = .8; in theory .447",
            twice["cosine_at_0.8_with_r"],
            0.446,
            0.449,
        ),
        judge.between("cos psi* of the pair at x = .8", twice["cosine_at_0.8"], 0.599, 0.601),
    )


SECTION = Section(
    "ode",
    "The Kuramoto model, integrated",
    measure,
    claims,
    (
        Drawing(
            "ode-trajectories",
            "Pairs and a network on their way to lock or to drift",
            figure.trajectories,
        ),
        Drawing("ode-order-parameter", "The order parameter against the coupling", figure.order_parameter),
        Drawing("ode-network", "The pair formula against the integrated network", figure.network),
    ),
    figure.table,
)
