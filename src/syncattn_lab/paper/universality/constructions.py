"""Networks of the library's blocks with weights that are written down: what Theorem 1 can and cannot mean.

Everything is float64, so that what is measured on them is the construction's error and not rounding's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from syncattn.nn import OSNBlock, SelectiveSynchronizationAttention
from syncattn.nn.published import published
from syncattn_lab.paper.random_blocks import make_blocks

ROW_SUM_TERM = 1e-8  # what the layer adds to the sum of a row, as the published code does


class ExactBlock(OSNBlock):
    """A block without the 1e-8 in its row sums: weights that sum to 1 to the last bits."""

    def make_attention(self, embed_dim: int, num_heads: int, **arguments: Any) -> nn.Module:
        return super().make_attention(embed_dim, num_heads, **arguments | {"eps": 0.0})


def run_with_weights(blocks: list[OSNBlock], x: Tensor) -> tuple[Tensor, Tensor]:
    """As `run_blocks` for blocks of one head: the output, and every block's weights P (depth, B, N, N)."""
    weights = []
    for block in blocks:
        x, weight = block(x, need_weights=True)
        weights.append(weight[:, 0])
    return x, torch.stack(weights)


def deviation_network(hinges: int) -> list[OSNBlock]:
    """Two blocks that compute f(X)_i = (x_i - mean)^2 - variance of N numbers in [-1, 1], to (4 / hinges)^2
    / 4.

    Deep Sets (Zaheer et al. 2017): zero frequency weights make every S = 1, so that attention is the
    uniform mean. The first block takes the mean and squares the difference, by a feed-forward that joins
    the parabola's points at equal steps; the second takes the mean of the squares and subtracts it.

    Coordinates of the stream: x_i, the mean, the square, the variance, the result. Feed (x_i, 0, 0, 0, 0).
    """
    number, mean, square, variance, result = range(5)
    first, second = _blank_blocks(2, 5, hinges)
    _average(first, {mean: number}, scale=1.0)
    points = torch.linspace(-2.0, 2.0, hinges + 1, dtype=torch.float64)
    slopes = points.square().diff() / points.diff()
    first.linear1.weight[:, number], first.linear1.weight[:, mean] = 1.0, -1.0
    first.linear1.bias.copy_(-points[:-1])
    first.linear2.weight[square] = torch.cat((slopes[:1], slopes.diff()))
    first.linear2.bias[square] = points[0].square()

    _average(second, {variance: square}, scale=1.0)
    for unit, sign in enumerate((1.0, -1.0)):  # relu(u) - relu(-u) = u
        second.linear1.weight[unit, square], second.linear1.weight[unit, variance] = sign, -sign
        second.linear2.weight[result, unit] = sign
    return [first, second]


def deviation_input(numbers: Tensor) -> Tensor:
    """Numbers (B, N) as `deviation_network` takes them, (B, N, 5); its result is the last coordinate."""
    return nn.functional.pad(numbers[..., None], (0, 4))


class SequenceNetwork:
    """Two blocks that give every token the whole sequence, and from it the token before its own (cyclically).

    For one N, on a compact set (no coordinate beyond `largest`), with a stream of 2 N d + N + 2 d numbers and
    blocks without LayerNorm (`_blank_blocks`); the token before token 0 is the last one.

    Position is in the residual stream: token j carries the unit vector e_j besides its x_j. The first
    block's feed-forward forms e_j (x) x_j; in the second, uniform attention (zero frequency weights, every
    S = 1) adds these up over the tokens, which is the whole sequence, and the feed-forward picks out what
    it wants.

    Args:
        tokens, size: N and d of the sequences.
        largest: no coordinate exceeds it.
    """

    def __init__(self, tokens: int, size: int, largest: float) -> None:
        self.tokens, self.size = tokens, size
        slots = tokens * size
        starts = [0, size, size + tokens, size + tokens + slots, size + tokens + 2 * slots]
        self.token, self.place, self.own, self.stored, self.result = starts
        self.width = self.result + size
        first, second = _blank_blocks(2, self.width, 2 * slots)
        pairs = [(p, c) for p in range(tokens) for c in range(size)]
        for n, (p, c) in enumerate(pairs):
            self._gate(first, n, self.token + c, p, self.own + n, largest)
            before = (p - 1) % tokens
            self._gate(second, n, self.stored + before * size + c, p, self.result + c, largest)
        # The mean times N is the sum; the layer's small term in the row sum is known, so it is undone.
        copied = {self.stored + n: self.own + n for n in range(slots)}
        _average(second, copied, scale=tokens + ROW_SUM_TERM)
        self.blocks = [first, second]

    def run(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, N, d) -> the sequence that each token holds (B, N, N, d), the token before each (B, N, d),
        and both blocks' weights P (2, B, N, N)."""
        batch = x.shape[0]
        place = torch.eye(self.tokens, dtype=x.dtype).expand(batch, -1, -1)
        stream = nn.functional.pad(torch.cat((x, place), -1), (0, self.width - self.own))
        stream, weights = run_with_weights(self.blocks, stream)
        stored = stream[..., self.stored : self.result].unflatten(-1, (self.tokens, self.size))
        return stored, stream[..., self.result :], weights

    def _gate(self, block: OSNBlock, n: int, source: int, place: int, target: int, largest: float) -> None:
        """Add `source` to `target` in tokens at `place` only: relu(+-x + B (e - 1)) is 0 where e = 0."""
        for unit, sign in ((2 * n, 1.0), (2 * n + 1, -1.0)):
            block.linear1.weight[unit, source] = sign
            block.linear1.weight[unit, self.place + place] = largest
            block.linear1.bias[unit] = -largest
            block.linear2.weight[target, unit] = sign


def _blank_blocks(depth: int, width: int, hidden: int) -> list[OSNBlock]:
    """Blocks of the published form, one head, ReLU, no LayerNorm, every weight 0: they change nothing yet."""
    blocks = make_blocks(
        OSNBlock, depth, width, 1, 0, feed_forward=hidden, activation="relu", **published(width)
    )
    for block in blocks:
        block.norm1, block.norm2 = nn.Identity(), nn.Identity()  # type: ignore[assignment]
        for module in block.modules():
            if isinstance(module, nn.Linear):
                module.weight.zero_()
                module.bias.zero_()
    return blocks


def _average(block: OSNBlock, copied: dict[int, int], scale: float) -> None:
    """Let the attention write scale times the mean of coordinate `source` to `target`, for target: source."""
    attention = block.self_attn
    assert isinstance(attention, SelectiveSynchronizationAttention)
    for target, source in copied.items():
        attention.value_proj.weight[source, source] = 1.0
        attention.out_proj.weight[target, source] = scale
