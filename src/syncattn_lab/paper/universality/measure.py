"""Which maps of sequences are within reach, by counterexamples and constructions that run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from syncattn.nn import OSNBlock, SelectiveSynchronizationAttention
from syncattn_lab.paper.random_blocks import (
    make_blocks,
    permutation_gap,
    published_blocks,
    random_tokens,
    run_blocks,
    seeded,
)
from syncattn_lab.paper.section import Extent, Numbers
from syncattn_lab.paper.universality.constructions import (
    ExactBlock,
    SequenceNetwork,
    deviation_input,
    deviation_network,
    run_with_weights,
)
from syncattn_lab.paper.universality.heads import (
    previous_token,
    softmax_limit,
    symmetric_heads,
    what_followed,
)

WIDTH, HEADS = 16, 4


def measure(extent: Extent, tell: Callable[[str], None]) -> Numbers:
    tokens, depth = extent.size(64, 32), extent.size(4, 2)
    couplings = [10.0**k for k in range(2, 9)]
    return {
        "tokens": tokens,
        "depth": depth,
        "without_position": _without_position(tokens, depth, extent.seed),
        "constant": _constant_sequences(tokens, depth, extent.seed),
        "deviation": [
            _deviation(hinges, tokens, extent.seed) for hinges in extent.size((16, 64, 256, 1024), (16, 64))
        ],
        "sequence": _whole_sequence(extent.size(16, 8), 3, extent.seed),
        "softmax_limit": softmax_limit(couplings, tokens, 8, extent.seed),
        "symmetric": symmetric_heads(extent.size(4, 1), extent.size(64, 32), 4, extent.seed),
        "previous_token": previous_token(12),
        "what_followed": what_followed(tokens, extent.seed),
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
