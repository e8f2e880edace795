"""The claims on the order parameter: its value, its meaning, its cost."""

from __future__ import annotations

from syncattn_lab.paper import judge
from syncattn_lab.paper.operations import exponent
from syncattn_lab.paper.order.figure import draw
from syncattn_lab.paper.order.measure import measure
from syncattn_lab.paper.section import Drawing, Numbers, Section


def claims(numbers: Numbers) -> list[judge.Claim]:
    return [_value(numbers), _meaning(numbers), _linear(numbers)]


def _value(numbers: Numbers) -> judge.Claim:
    value, running = numbers["value"], numbers["running"]
    sd = value["sd"]
    at = running["mean"]
    finding = (
        f"Measured {value['mean']:.4f} over {value['inputs']} inputs, with a standard deviation of "
        f"{sd['all heads and inputs']:.4f} over all heads and inputs and of {sd['inputs, one head']:.4f} "
        f"over the inputs of one head: both round to the published .002; that of the mean over heads, "
        f"{sd['inputs, mean over heads']:.4f}, does not. The default initialisation of a linear layer gives "
        f"phases of variance 1/3, hence exp(-1/6) = {value['limit']:.4f} and, for {numbers['tokens']} "
        f"tokens, {value['predicted']:.4f}. The running form that a causal layer needs starts at 1 and is "
        f"{at[1]:.3f}, {at[3]:.3f} and {at[15]:.3f} at positions 2, 4 and 16; it is within .01 of exp(-1/6) "
        f"beyond position {running['last_above_limit']}."
    )
    apart = abs(value["mean"] - value["predicted_from_weights"]) / value["standard_error"]
    return judge.Claim(
        "order-parameter-value",
        "Figure 5",
        "At initialisation the order parameter over random inputs is .847 with a standard deviation of .002.",
        judge.HOLDS,
        finding,
        (
            judge.between("mean r", value["mean"], 0.8455, 0.8485),
            judge.between("sd of r over all heads and inputs", sd["all heads and inputs"], 0.0015, 0.0025),
            judge.between("sd of r over the inputs, one head", sd["inputs, one head"], 0.0014, 0.002),
            judge.between("phase variance, from the weights", value["phase_variance"], 0.33, 0.3367),
            judge.below("mean r against theory with these weights, in standard errors", apart, 5),
            judge.exactly("running r at position 1", round(at[0], 5), 1),
            judge.below(
                "running r against theory, largest difference from position 2", running["largest_gap"], 0.004
            ),
        ),
    )


def _meaning(numbers: Numbers) -> judge.Claim:
    alike = numbers["alike"]
    middle = alike["correlation"].index(0.5)
    differences = [abs(a - b) for a, b in zip(alike["r_default"], alike["r_figure"])]
    gaps = [abs(a - b) for a, b in zip(alike["r"], alike["theory"])]
    finding = (
        f"It does not see frequencies, coupling or locking: on the same random input r is "
        f"{alike['r_default'][0]:.3f} with the published defaults, where {alike['density_default'][0]:.0%} "
        f"of the pairs lock, and {alike['r_figure'][0]:.3f} with the published figure's setting, where "
        f"{alike['density_figure'][0]:.0%} of them do. What it reads at initialisation is how alike the "
        f"tokens are: with a mutual correlation q it is exp(-(1 - q)/6), {alike['r'][0]:.3f} for unrelated "
        f"tokens, {alike['r'][middle]:.3f} for q = .5 and {alike['r'][-1]:.3f} for equal ones. For unrelated "
        f"tokens it is a constant, so that K r is a slightly smaller K."
    )
    return judge.Claim(
        "order-parameter-meaning",
        "Figure 5",
        "The order parameter measures how far the tokens have synchronized.",
        judge.FAILS,
        finding,
        (
            judge.exactly("density of locking pairs, published defaults", alike["density_default"][0], 0),
            judge.exactly(
                "density of locking pairs, published figure's setting", alike["density_figure"][0], 1
            ),
            judge.below("r between the two settings, largest difference", max(differences), 1e-6),
            judge.above("r where no pair locks", alike["r_default"][0], 0.84),
            judge.below(
                "r against exp(-(1 - q)/6) and its finite-size term, largest difference", max(gaps), 0.003
            ),
            judge.between(
                "sd of r over random inputs, one head", numbers["value"]["sd"]["inputs, one head"], 0, 0.002
            ),
        ),
    )


def _linear(numbers: Numbers) -> judge.Claim:
    counted = numbers["counted"]
    sizes, pairs = counted["sizes"], counted["pairs_sizes"]
    slopes = {name: exponent(sizes[-2:], counted[name][-2:]) for name in ("global", "causal")}
    quadratic = exponent(pairs[-2:], counted["pairs"][-2:])
    used = numbers["memory"]
    peaks: list[judge.Check] = []
    text = "Memory was not measured here."
    if "no_memory" not in used:
        grown = {name: exponent(used["sizes"], used[name]) for name in ("global", "causal")}
        peaks = [
            judge.between("exponent of the peak memory, r", grown["global"], 0.85, 1.15),
            judge.between("exponent of the peak memory, running r", grown["causal"], 0.85, 1.15),
        ]
        text = (
            f"Peak memory, phases included, grows with exponent {grown['global']:.2f} and "
            f"{grown['causal']:.2f} from {used['sizes'][0]:,} to {used['sizes'][-1]:,} tokens."
        )
    per_token = counted["global"][-1] / sizes[-1] / numbers["heads"] / numbers["phases"]
    causal = counted["causal"][-1] / sizes[-1] / numbers["heads"] / numbers["phases"]
    finding = (
        f"Computing r takes {per_token:.1f} operations for each phase of each token at every length up to "
        f"{sizes[-1]:,} tokens, {causal:.1f} in the running form: exponent {slopes['global']:.4f} and "
        f"{slopes['causal']:.4f} in the number of tokens. {text} This is of r "
        f"alone; the published arithmetic of S has exponent {quadratic:.2f} already between {pairs[-2]} and "
        f"{pairs[-1]} tokens."
    )
    return judge.Claim(
        "linear-phases",
        "Complexity",
        "Phases take memory, and the order parameter time, in proportion to the number of tokens.",
        judge.HOLDS,
        finding,
        (
            judge.between("exponent of the operations, r", slopes["global"], 0.995, 1.005),
            judge.between("exponent of the operations, running r", slopes["causal"], 0.995, 1.005),
            judge.above("exponent of the operations, published S", quadratic, 1.7),
            *peaks,
        ),
    )


SECTION = Section(
    "order",
    "Figure 5: the order parameter at initialisation",
    measure,
    claims,
    (
        Drawing(
            "figure-5-order-parameter", "The order parameter: distribution, running form, what it reads", draw
        ),
    ),
)
