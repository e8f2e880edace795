"""Theorem 1 and what we add to it: softmax as a limit, and the limits of one head."""

from __future__ import annotations

from syncattn_lab.paper import judge
from syncattn_lab.paper.section import Drawing, Numbers, Section
from syncattn_lab.paper.universality.figure import draw
from syncattn_lab.paper.universality.measure import measure


def claims(numbers: Numbers) -> list[judge.Claim]:
    return [_universality(numbers), _softmax_limit(numbers), _one_head_limits(numbers)]


def _universality(numbers: Numbers) -> judge.Claim:
    plain, constant = numbers["without_position"], numbers["constant"]
    deviation, sequence = numbers["deviation"], numbers["sequence"]
    finest, coarser = deviation[-1], deviation[-2]
    uniform = max(sequence["from_uniform"], *(row["from_uniform"] for row in deviation))
    finding = (
        "It holds for fixed N on a compact set if position is in the residual stream and the width "
        "exceeds N d. As published, without position, the network "
        f"turns a permuted sequence into the permuted output (difference {plain['permutation_gap']:.1e}), "
        "so that for the token before a given one no weights can be off by less than "
        f"{plain['least_error']:.2f} in mean square, the variance of the tokens; and it cannot count, for "
        "a doubled sequence gives the doubled output. With position in the frequency alone, "
        f"self kept, a constant sequence stays constant ({constant['gap']:.1e}), so f(X)_i = i is out of "
        "reach; a causal mask with self left out gives the first token away "
        f"({constant['gap_self_left_out']:.1f}). Shown here by weights that are written down, in blocks "
        "with ReLU whose LayerNorms are the identity: with position in the residual stream, for "
        f"{sequence['tokens']} tokens of {sequence['size']} numbers, two blocks of width "
        f"2 N d + N + 2 d = {sequence['width']} and {sequence['hidden']} hidden units hold the whole "
        f"sequence in every token (error {sequence['stored_error']:.2g}) and read one map from it, "
        "the token before, which for "
        f"token 0 is the last one ({sequence['previous_error']:.2g}); and without position, as one example "
        "of a permutation-equivariant map, two blocks compute each number's squared deviation minus the "
        f"variance to {finest['error']:.1e}. That a feed-forward network approximates any continuous map "
        "of the sequence that it is given is the classical theorem, and that averages and feed-forward "
        "networks reach every permutation-equivariant map is Deep Sets' (Zaheer et al. 2017): neither is "
        "measured. Both of our constructions set the frequency weights to 0, so that every pair locks with "
        "S = 1: this proof does not use synchronization. We do not have the paper's own proof."
    )
    checks = (
        judge.below("published form, largest |f(P x) - P f(x)|", plain["permutation_gap"], 1e-12),
        judge.between("density of that network's first layer", plain["density"], 0.05, 0.8),
        judge.below(
            "its answer for one token, the others in N - 1 orders: spread", plain["answers_spread"], 1e-12
        ),
        judge.above("mean squared error that no network without position avoids", plain["least_error"], 0.3),
        judge.below("doubled sequence, row sums without the 1e-8: difference", plain["doubling_gap"], 1e-12),
        judge.below("the same, the layer with its 1e-8", plain["doubling_gap_layer"], 1e-6),
        judge.below(
            "constant sequence, position in the frequency, row sums without the 1e-8", constant["gap"], 1e-12
        ),
        judge.below("the same, the layer with its 1e-8", constant["gap_layer"], 1e-5),
        judge.above("the same, causal and self left out", constant["gap_self_left_out"], 1e-2),
        judge.below(
            f"squared deviation minus variance, {finest['hinges']} hinges", finest["error"], finest["bound"]
        ),
        judge.between(
            "its error with a quarter of the hinges, over this", coarser["error"] / finest["error"], 8, 32
        ),
        judge.below(
            "position in the stream: error of the sequence in every token", sequence["stored_error"], 1e-12
        ),
        judge.below(
            "position in the stream: error of the token before (of token 0: the last)",
            sequence["previous_error"],
            1e-12,
        ),
        judge.below("weights P of both constructions' blocks, from 1 / N", uniform, 1e-8),
    )
    return judge.Claim(
        "universality",
        "Theorem 1",
        "An oscillatory synchronization network approximates every continuous map of sequences.",
        judge.HOLDS_IF,
        finding,
        checks,
    )


def _softmax_limit(numbers: Numbers) -> judge.Claim:
    rows = numbers["softmax_limit"]
    last, before, first = rows[-1], rows[-2], rows[0]
    return judge.Claim(
        "softmax-limit",
        "Theorem 1 (our addition)",
        "Softmax attention is a limit of selective synchronization.",
        judge.HOLDS,
        "With receive frequency (q, 0), send frequency (k, sqrt(R^2 - |k|^2)) and growing coupling, the "
        "normalised rows become softmax(2 alpha q.k). The largest difference of a weight is "
        f"{before['weights']:.1e} at kappa = {before['coupling']:.0e} and {last['weights']:.1e} at "
        f"{last['coupling']:.0e}: it falls as 1 / kappa^2. This needs the directed form, which the paper "
        f"has not, and a large coupling: at {first['coupling']:.0f}, {first['lonely']:.0%} of the rows "
        "lock to nobody. So what is proved of softmax attention on a compact set carries over to directed "
        "SSA (inferred, not measured).",
        (
            judge.below("largest difference of a weight from softmax's", last["weights"], 1e-6),
            judge.below("largest difference of the output from PyTorch's attention", last["output"], 1e-6),
            judge.between(
                "error at a tenth of that coupling, over this", before["weights"] / last["weights"], 80, 125
            ),
            judge.above("difference of a weight at the smallest coupling", first["weights"], 1e-2),
        ),
    )


def _one_head_limits(numbers: Numbers) -> judge.Claim:
    symmetric, followed = numbers["symmetric"], numbers["what_followed"]
    before = {name: one["weight"] for name, one in numbers["previous_token"].items()}
    return judge.Claim(
        "one-head-limits",
        "Theorem 1 (our addition)",
        "A head of the paper's form gives another token at most half of its weight: what the theorem "
        "leaves open.",
        judge.HOLDS,
        f"S is symmetric with S_ii = 1, the largest of its row: in {symmetric['heads']} heads the largest "
        f"weight on another token is {symmetric['largest_weight']:.4f}, on a copy of the token. P has "
        'real eigenvalues, while the matrix of "attend to the token before" has complex ones. So the '
        f"best head puts {before['symmetric']:.2f} on the token before. What lifts the limit: a detuning "
        f"({before['detuned']:.4f}), send frequencies of their own ({before['directed']:.4f}, position in "
        f"the stream), or leaving self out under a causal mask ({before['self_left_out']:.4f}); and, for "
        "what followed the token's earlier copy, a delay "
        f"({followed['delayed']:.4f}; {followed['symmetric']:.2f} without it and with random frequencies).",
        (
            judge.between(
                "largest weight on another token, symmetric, self kept",
                symmetric["largest_weight"],
                0.49,
                0.5,
            ),
            judge.below(
                "most by which S_ii falls short of its row's largest", symmetric["self_below_largest"], 1e-15
            ),
            judge.below("largest imaginary part of an eigenvalue of P", symmetric["imaginary"], 1e-6),
            judge.above("the same with send frequencies of their own", symmetric["imaginary_directed"], 1e-2),
            judge.above('the same of "attend to the token before"', symmetric["imaginary_wanted"], 0.9),
            judge.below("best weight on the token before, symmetric", before["symmetric"], 0.5),
            judge.above("the same with a detuning", before["detuned"], 0.999),
            judge.above("the same, send frequencies of their own, self kept", before["directed"], 0.999),
            judge.above("the same with self left out, causal", before["self_left_out"], 0.999),
            judge.below(
                "mean weight on what followed the earlier copy, no delay", followed["symmetric"], 0.5
            ),
            judge.above("the same with a delay", followed["delayed"], 0.999),
        ),
    )


SECTION = Section(
    "universality",
    "Theorem 1: which maps of sequences are within reach",
    measure,
    claims,
    (Drawing("universality", "Softmax as a limit, one head's limits, and a construction's error", draw),),
)
