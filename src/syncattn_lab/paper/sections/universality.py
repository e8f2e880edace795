"""Theorem 1, universality: what is true of it, by counterexamples and constructions that run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from syncattn.nn import OSNBlock, SelectiveSynchronizationAttention
from syncattn_lab.paper.figures.universality import draw
from syncattn_lab.paper.measures.universality_constructions import (
    ExactBlock,
    SequenceNetwork,
    deviation_input,
    deviation_network,
    make_blocks,
    permutation_gap,
    published_blocks,
    random_tokens,
    run_blocks,
    run_with_weights,
    seeded,
)
from syncattn_lab.paper.measures.universality_heads import (
    previous_token,
    softmax_limit,
    symmetric_heads,
    what_followed,
)
from syncattn_lab.paper.section import (
    HOLDS,
    HOLDS_IF,
    Claim,
    Drawing,
    Numbers,
    Plan,
    Section,
    above,
    below,
    between,
)

WIDTH, HEADS = 16, 4


def measure(plan: Plan, tell: Callable[[str], None]) -> Numbers:
    tokens, depth = plan.size(64, 32), plan.size(4, 2)
    couplings = [10.0**k for k in range(2, 9)]
    return {
        "tokens": tokens,
        "depth": depth,
        "without_position": _without_position(tokens, depth, plan.seed),
        "constant": _constant_sequences(tokens, depth, plan.seed),
        "deviation": [
            _deviation(hinges, tokens, plan.seed) for hinges in plan.size((16, 64, 256, 1024), (16, 64))
        ],
        "sequence": _whole_sequence(plan.size(16, 8), 3, plan.seed),
        "softmax_limit": softmax_limit(couplings, tokens, 8, plan.seed),
        "symmetric": symmetric_heads(plan.size(4, 1), plan.size(64, 32), 4, plan.seed),
        "previous_token": previous_token(12),
        "what_followed": what_followed(tokens, plan.seed),
    }


def _without_position(tokens: int, depth: int, seed: int) -> dict[str, float]:
    """The published form against permutations and doubling.

    `least_error`: token 0 stays and the others turn through all N - 1 places, so that every one of them is
    once the token before it. Whoever answers the same each time is off by their variance at least, in mean
    square."""
    blocks = published_blocks(OSNBlock, depth, WIDTH, HEADS, seed)
    exact = published_blocks(ExactBlock, depth, WIDTH, HEADS, seed)
    x = random_tokens(seed, 1, tokens, WIDTH)
    first, others = x[:, :1], x[:, 1:]
    orders = torch.cat([torch.cat((first, others.roll(n, 1)), 1) for n in range(tokens - 1)])
    answers = run_blocks(blocks, orders)[:, 0]  # (N - 1, E), of token 0
    wanted = orders[:, -1, 0]
    twice = torch.cat((x, x), 1)

    def doubling(network: list[OSNBlock]) -> float:
        once = run_blocks(network, x)
        return float((run_blocks(network, twice) - torch.cat((once, once), 1)).abs().max())

    attention = blocks[0].self_attn
    assert isinstance(attention, SelectiveSynchronizationAttention)
    return {
        "density": float(attention.locked_density(blocks[0].norm1(x)).mean()),
        "permutation_gap": permutation_gap(blocks, x, seed),
        "answers_spread": float((answers - answers[:1]).abs().max()),
        "least_error": float(wanted.var(correction=0)),
        "doubling_gap": doubling(exact),
        "doubling_gap_layer": doubling(blocks),
    }


def _constant_sequences(tokens: int, depth: int, seed: int) -> dict[str, float]:
    """How much the outputs of one repeated token differ from place to place, position in the frequency only.

    `gap`: over every position, delayed or not, causal or not, of `ExactBlock`; `gap_layer`: of the
    library's block, with its 1e-8 in the row sums; `gap_self_left_out`: causal and without self, where the
    first token hears nobody."""
    x = random_tokens(seed, 1, 1, WIDTH).expand(1, tokens, WIDTH)

    def gap(kind: type[OSNBlock], is_causal: bool, **options: Any) -> float:
        blocks = make_blocks(kind, depth, WIDTH, HEADS, seed, **options)
        out = run_blocks(blocks, x, is_causal=is_causal)
        return float((out - out[:, -1:]).abs().max())

    def largest(kind: type[OSNBlock]) -> float:
        return max(
            gap(kind, is_causal, position=position, delay=delay, self_coupling=True)
            for position in ("drift", "own_drift", "rotary")
            for delay in (0.0, 0.5)
            for is_causal in (False, True)
        )

    return {
        "gap": largest(ExactBlock),
        "gap_layer": largest(OSNBlock),
        "gap_self_left_out": gap(ExactBlock, True, position="drift", self_coupling=False),
        "least_error": float(torch.arange(tokens, dtype=torch.float64).var(correction=0)),
    }


def _deviation(hinges: int, tokens: int, seed: int) -> dict[str, float]:
    """The largest error of `deviation_network`, the bound that its steps give, and how far the weights of its
    blocks are from 1 / N."""
    numbers = 2 * torch.rand(16, tokens, generator=seeded(seed), dtype=torch.float64) - 1
    stream, weight = run_with_weights(deviation_network(hinges), deviation_input(numbers))
    found = stream[..., -1]
    wanted = (numbers - numbers.mean(-1, keepdim=True)).square() - numbers.var(-1, correction=0, keepdim=True)
    return {
        "hinges": hinges,
        "error": float((found - wanted).abs().max()),
        "bound": (4 / hinges) ** 2 / 4,
        "from_uniform": float((weight - 1 / tokens).abs().max()),
    }


def _whole_sequence(tokens: int, size: int, seed: int) -> dict[str, float]:
    """`SequenceNetwork` on random sequences: its size, largest errors, and how far its weights are from
    1 / N."""
    x = 2 * torch.rand(16, tokens, size, generator=seeded(seed), dtype=torch.float64) - 1
    network = SequenceNetwork(tokens, size, 1.0)
    stored, before, weight = network.run(x)
    return {
        "tokens": tokens,
        "size": size,
        "width": network.width,
        "hidden": network.blocks[0].linear1.out_features,
        "stored_error": float((stored - x[:, None]).abs().max()),
        "previous_error": float((before - x.roll(1, 1)).abs().max()),
        "from_uniform": float((weight - 1 / tokens).abs().max()),
    }


def claims(numbers: Numbers) -> list[Claim]:
    return [_universality(numbers), _softmax_limit(numbers), _one_head_limits(numbers)]


def _universality(numbers: Numbers) -> Claim:
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
        below("published form, largest |f(P x) - P f(x)|", plain["permutation_gap"], 1e-12),
        between("density of that network's first layer", plain["density"], 0.05, 0.8),
        below("its answer for one token, the others in N - 1 orders: spread", plain["answers_spread"], 1e-12),
        above("mean squared error that no network without position avoids", plain["least_error"], 0.3),
        below("doubled sequence, row sums without the 1e-8: difference", plain["doubling_gap"], 1e-12),
        below("the same, the layer with its 1e-8", plain["doubling_gap_layer"], 1e-6),
        below(
            "constant sequence, position in the frequency, row sums without the 1e-8", constant["gap"], 1e-12
        ),
        below("the same, the layer with its 1e-8", constant["gap_layer"], 1e-5),
        above("the same, causal and self left out", constant["gap_self_left_out"], 1e-2),
        below(
            f"squared deviation minus variance, {finest['hinges']} hinges", finest["error"], finest["bound"]
        ),
        between(
            "its error with a quarter of the hinges, over this", coarser["error"] / finest["error"], 8, 32
        ),
        below(
            "position in the stream: error of the sequence in every token", sequence["stored_error"], 1e-12
        ),
        below(
            "position in the stream: error of the token before (of token 0: the last)",
            sequence["previous_error"],
            1e-12,
        ),
        below("weights P of both constructions' blocks, from 1 / N", uniform, 1e-8),
    )
    return Claim(
        "universality",
        "Theorem 1",
        "An oscillatory synchronization network approximates every continuous map of sequences.",
        HOLDS_IF,
        finding,
        checks,
    )


def _softmax_limit(numbers: Numbers) -> Claim:
    rows = numbers["softmax_limit"]
    last, before, first = rows[-1], rows[-2], rows[0]
    return Claim(
        "softmax-limit",
        "Theorem 1 (our addition)",
        "Softmax attention is a limit of selective synchronization.",
        HOLDS,
        "With receive frequency (q, 0), send frequency (k, sqrt(R^2 - |k|^2)) and growing coupling, the "
        "normalised rows become softmax(2 alpha q.k). The largest difference of a weight is "
        f"{before['weights']:.1e} at kappa = {before['coupling']:.0e} and {last['weights']:.1e} at "
        f"{last['coupling']:.0e}: it falls as 1 / kappa^2. This needs the directed form, which the paper "
        f"has not, and a large coupling: at {first['coupling']:.0f}, {first['lonely']:.0%} of the rows "
        "lock to nobody. So what is proved of softmax attention on a compact set carries over to directed "
        "SSA (inferred, not measured).",
        (
            below("largest difference of a weight from softmax's", last["weights"], 1e-6),
            below("largest difference of the output from PyTorch's attention", last["output"], 1e-6),
            between(
                "error at a tenth of that coupling, over this", before["weights"] / last["weights"], 80, 125
            ),
            above("difference of a weight at the smallest coupling", first["weights"], 1e-2),
        ),
    )


def _one_head_limits(numbers: Numbers) -> Claim:
    symmetric, followed = numbers["symmetric"], numbers["what_followed"]
    before = {name: one["weight"] for name, one in numbers["previous_token"].items()}
    return Claim(
        "one-head-limits",
        "Theorem 1 (our addition)",
        "A head of the paper's form gives another token at most half of its weight: what the theorem "
        "leaves open.",
        HOLDS,
        f"S is symmetric with S_ii = 1, the largest of its row: in {symmetric['heads']} heads the largest "
        f"weight on another token is {symmetric['largest_weight']:.4f}, on a copy of the token. P has "
        'real eigenvalues, while the matrix of "attend to the token before" has complex ones. So the '
        f"best head puts {before['symmetric']:.2f} on the token before. What lifts the limit: a detuning "
        f"({before['detuned']:.4f}), send frequencies of their own ({before['directed']:.4f}, position in "
        f"the stream), or leaving self out under a causal mask ({before['self_left_out']:.4f}); and, for "
        "what followed the token's earlier copy, a delay "
        f"({followed['delayed']:.4f}; {followed['symmetric']:.2f} without it and with random frequencies).",
        (
            between(
                "largest weight on another token, symmetric, self kept",
                symmetric["largest_weight"],
                0.49,
                0.5,
            ),
            below(
                "most by which S_ii falls short of its row's largest", symmetric["self_below_largest"], 1e-15
            ),
            below("largest imaginary part of an eigenvalue of P", symmetric["imaginary"], 1e-6),
            above("the same with send frequencies of their own", symmetric["imaginary_directed"], 1e-2),
            above('the same of "attend to the token before"', symmetric["imaginary_wanted"], 0.9),
            below("best weight on the token before, symmetric", before["symmetric"], 0.5),
            above("the same with a detuning", before["detuned"], 0.999),
            above("the same, send frequencies of their own, self kept", before["directed"], 0.999),
            above("the same with self left out, causal", before["self_left_out"], 0.999),
            below("mean weight on what followed the earlier copy, no delay", followed["symmetric"], 0.5),
            above("the same with a delay", followed["delayed"], 0.999),
        ),
    )


SECTION = Section(
    "universality",
    "Theorem 1: which maps of sequences are within reach",
    measure,
    claims,
    (Drawing("universality", "Softmax as a limit, one head's limits, and a construction's error", draw),),
)
