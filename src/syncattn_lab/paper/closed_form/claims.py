"""The claims on the closed form: a single pass, and the identity behind it."""

from __future__ import annotations

from syncattn.bench.timing import ratios, spread
from syncattn_lab.paper import judge
from syncattn_lab.paper.closed_form.figure import draw
from syncattn_lab.paper.closed_form.measure import measure
from syncattn_lab.paper.section import Drawing, Numbers, Section


def claims(numbers: Numbers) -> list[judge.Claim]:
    return [_single_pass_claim(numbers), _identity_claim(numbers)]


def _single_pass_claim(numbers: Numbers) -> judge.Claim:
    one, pairs, slowing = numbers["pass"], numbers["pairs"], numbers["slowing"]
    faster = spread(ratios(one["seconds"]["integrated"], one["seconds"]["closed form"]))
    rates = [row["rate"] / row["cosine"] for row in slowing]
    nearest = slowing[-1]
    coarse, middle, fine = (row["kernels"] for row in one["integration"])
    return judge.Claim(
        "single-pass",
        "Abstract",
        "The weights come from a closed form in a single pass, without integrating an ODE.",
        judge.HOLDS,
        f"After one sum over the tokens for the order parameter, the operator is {one['kernels']} "
        "operations, argument checks included, whatever the frequencies, at the edge too, with the same "
        f"bits every time; integrating the pair equations takes {coarse:,} operations to 1e-3 and "
        f"{fine:,} to 1e-9, and {faster['median']:,.0f} times the closed form's time to 1e-6. Of "
        f"{pairs['locked']:,} locked pairs the closed form differs from the integrated pair by "
        f"{pairs['difference']:.1e} at most away from the edge, and of {pairs['drifting']:,} unlocked "
        f"pairs cos psi has mean 0 to {pairs['mean_when_drifting']:.0e}, so that the zeros are right. "
        "Near the edge pairs settle at rate kappa J cos psi*, ever more slowly (at cos psi* = "
        f"{nearest['cosine']:g} after {nearest['time']:,.0f} / (kappa J)): there the closed form is the "
        "limit of a process that a finite time does not reach. This is the pair; how far a network of "
        "many is from it, the section on the ODE measures.",
        (
            judge.exactly(
                "operations at the edge, beyond those elsewhere", one["kernels_at_edge"] - one["kernels"], 0
            ),
            judge.exactly("whether a second call gives the same bits", float(one["repeats_alike"]), 1),
            judge.above("operations of an integration to 1e-9, over those to 1e-3", fine / coarse, 1.5),
            judge.above(
                "operations of an integration to 1e-6, over the operator's", middle / one["kernels"], 10
            ),
            judge.below("largest |S - J cos psi(T)| of pairs away from the edge", pairs["difference"], 1e-6),
            judge.above("share of locked pairs that this covers", pairs["inner"] / pairs["locked"], 0.9),
            judge.below("unlocked pairs: largest |mean of cos psi|", pairs["mean_when_drifting"], 1e-6),
            judge.between("rate of settling over kappa J cos psi*, least", min(rates), 0.998, 1.002),
            judge.between("rate of settling over kappa J cos psi*, largest", max(rates), 0.998, 1.002),
        ),
        (judge.timing("time to integrate to 1e-6, over the closed form's", faster),),
    )


def _identity_claim(numbers: Numbers) -> judge.Claim:
    same, radius = numbers["identity"], numbers["radius"]
    return judge.Claim(
        "closed-form-identity",
        "Closed form of S, locking threshold",
        "S = J cos(arcsin(sqrt(D) / (kappa J))), and a pair locks iff sqrt(D) <= kappa J.",
        judge.HOLDS,
        "It is sqrt(max(exp(-2 alpha D) - D / kappa^2, 0)), with no division, no arcsin and no NaN: over "
        f"{same['count']:,} random D, kappa and alpha, {same['locked']:.0%} of them locked, the two "
        f"differ by {same['difference']:.1e} at most, by {same['difference_at_edge']:.1e} at the very "
        "edge, where the square root magnifies rounding, and agree on who locks. As this falls with D, "
        "the threshold is one radius, rho^2 = W(2 alpha kappa^2) / (2 alpha): Lambert's W and a "
        f"bracketing root finder agree to {radius['difference']:.1e}.",
        (
            judge.below("largest difference of S, S > .01 J", same["difference"], 1e-12),
            judge.below("largest difference of S^2, everywhere", same["difference_of_squares"], 1e-13),
            judge.exactly("pairs on whose locking the two disagree", same["disagree"], 0),
            judge.between("share of pairs that lock", same["locked"], 0.4, 0.6),
            judge.below("largest relative difference of rho^2", radius["difference"], 1e-12),
        ),
    )


SECTION = Section(
    "closed_form",
    "The closed form: one pass, no ODE",
    measure,
    claims,
    (Drawing("closed_form", "Pairs settle on the closed form, more slowly towards the edge", draw),),
)
