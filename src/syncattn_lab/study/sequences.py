"""Windows of the tasks that the literature on recall and longer inputs uses; `synthetic` names them.

Each function takes a task's options, all given and positive, and returns what its windows are made of.

- mqar: multi-query associative recall as published (Arora et al. 2023, "Zoology", arXiv 2312.04927).
- selective: selective copying (Gu and Dao 2023, "Mamba", arXiv 2312.00752, section 4.1.1).
- reverse, sort, count, words: after Vasylenko et al. 2025 ("Long-Context Generalization with Sparse
  Attention", arXiv 2506.16640): a sequence reversed; sorted; how often each token has come in a row;
  multi-query multi-token recall.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from syncattn.training.errors import UserError

IGNORED = -100
"""The label of a token that is no answer."""

_POWER = 0.01  # Zoology's exponent: small is many short gaps, 1 is uniform

Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
"""rows, generator -> token ids and labels, (rows, N) each; label t is what those before t should tell."""


class Windows(NamedTuple):
    """What a kind comes to with its options: number of token ids, tokens in a window, how they are drawn."""

    vocab_size: int
    length: int
    draw: Draw


def mqar(options: dict[str, Any]) -> Windows:
    """Keys with values, then the keys among random tokens: at each the value is asked for, not written."""
    vocabulary, pairs, length = (options[name] for name in ("vocabulary", "pairs", "length"))
    weights = check_pairs("mqar", vocabulary, pairs, length)
    middle = vocabulary // 2

    def draw(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        keys = 1 + choose(torch.ones(middle - 1), pairs, rows, generator)
        values = middle + choose(torch.ones(middle), pairs, rows, generator)
        queries = 2 * pairs + 2 * choose(weights, pairs, rows, generator)
        ids = torch.randint(vocabulary, (rows, length), generator=generator)
        ids[:, 0 : 2 * pairs : 2] = keys
        ids[:, 1 : 2 * pairs : 2] = values
        ids.scatter_(1, queries, keys)
        return ids, torch.full_like(ids, IGNORED).scatter_(1, queries + 1, values)

    return Windows(vocabulary, length, draw)


def selective(options: dict[str, Any]) -> Windows:
    """Symbols in order, at random places among blanks; a marker; the symbols without the blanks."""
    vocabulary, symbols, length = (options[name] for name in ("vocabulary", "symbols", "length"))
    check_vocabulary("selective", vocabulary)
    if length < symbols:
        raise UserError(f"length of the task 'selective' must be at least symbols = {symbols}, got {length}")
    blank, marker = vocabulary, vocabulary + 1

    def draw(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        given = torch.randint(vocabulary, (rows, symbols), generator=generator)
        places = choose(torch.ones(length), symbols, rows, generator).sort(1).values
        field = torch.full((rows, length), blank).scatter_(1, places, given)
        return answered(field, marker, given)

    return Windows(vocabulary + 2, length + 1 + symbols, draw)


def reverse(options: dict[str, Any]) -> Windows:
    """Symbols, a marker, the symbols from the last to the first."""
    return _rewritten("reverse", options, lambda given: given.flip(1))


def sort(options: dict[str, Any]) -> Windows:
    """Symbols, a marker, the symbols from the smallest to the largest."""
    return _rewritten("sort", options, lambda given: given.sort(1).values)


def count(options: dict[str, Any]) -> Windows:
    """Runs of 2 to `most` equal tokens; at each token, how many of its run came before it."""
    vocabulary, length, most = (options[name] for name in ("vocabulary", "length", "most"))
    check_vocabulary("count", vocabulary)
    if most < 2 or length < 2:
        name, value = ("most", most) if most < 2 else ("length", length)
        raise UserError(f"{name} of the task 'count' must be at least 2, got {value}")

    def draw(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        runs = length // 2 + 1
        sizes = torch.randint(2, most + 1, (rows, runs), generator=generator)
        # Each run's token differs from that of the run before it by 1 to vocabulary - 1, round a circle.
        steps = torch.randint(1, vocabulary, (rows, runs), generator=generator)
        tokens = steps.cumsum(1) % vocabulary
        ends = sizes.cumsum(1)
        where = torch.arange(length).expand(rows, length).contiguous()
        run = torch.searchsorted(ends, where, right=True)
        so_far = where - (ends - sizes).gather(1, run)
        labels = torch.full((rows, length), IGNORED)
        labels[:, 1:] = vocabulary + so_far[:, :-1]
        return tokens.gather(1, run), labels

    return Windows(vocabulary + most, length, draw)


def words(options: dict[str, Any]) -> Windows:
    """Words with words: `pairs` different keys of `letters` letters, each with its value; then some again.

    A pair is: key, colon, value, blank. A query is: question mark, key, colon, and the value, the answer.
    """
    vocabulary, pairs, letters = (options[name] for name in ("vocabulary", "pairs", "letters"))
    queries = options["queries"]
    most = vocabulary**letters
    if pairs > most:
        raise UserError(
            f"pairs of the task 'words' must be at most vocabulary ** letters = {most}, got {pairs}"
        )
    if queries > pairs:
        raise UserError(f"queries of the task 'words' must be at most pairs = {pairs}, got {queries}")
    blank, colon, question = vocabulary, vocabulary + 1, vocabulary + 2
    powers = vocabulary ** torch.arange(letters)

    def spelled(numbers: Tensor) -> Tensor:
        return numbers[..., None] // powers % vocabulary

    def draw(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        keys = spelled(distinct(most, pairs, rows, generator))  # (rows, pairs, letters)
        values = torch.randint(vocabulary, (rows, pairs, letters), generator=generator)
        asked = choose(torch.ones(pairs), queries, rows, generator)[..., None].expand(-1, -1, letters)
        chosen = keys.gather(1, asked), values.gather(1, asked)
        told = [keys, torch.full((rows, pairs, 1), colon), values, torch.full((rows, pairs, 1), blank)]
        again = [torch.full((rows, queries, 1), question), chosen[0], torch.full((rows, queries, 1), colon)]
        context = torch.cat(told, 2).flatten(1)
        ids = torch.cat([context, torch.cat([*again, chosen[1]], 2).flatten(1)], 1)
        labels = torch.full_like(ids, IGNORED)
        unknown = torch.full((rows, queries, letters + 2), IGNORED)
        labels[:, context.shape[1] :] = torch.cat([unknown, chosen[1]], 2).flatten(1)
        return ids, labels

    return Windows(vocabulary + 3, (2 * pairs + 2 * queries) * (letters + 1), draw)


def answered(context: Tensor, marker: int, answers: Tensor) -> tuple[Tensor, Tensor]:
    """Windows of a context (rows, C), a marker and answers (rows, n), which are to be told one by one."""
    rows = len(context)
    ids = torch.cat([context, torch.full((rows, 1), marker), answers], 1)
    labels = torch.full_like(ids, IGNORED)
    labels[:, -answers.shape[1] :] = answers
    return ids, labels


def choose(weights: Tensor, count: int, rows: int, generator: torch.Generator) -> Tensor:
    """`count` different indices per row (rows, count), each drawn in proportion to its weight (n,).

    The first arrivals of independent exponential clocks: `torch.multinomial`'s numbers could differ between
    builds of PyTorch.
    """
    uniform = torch.rand(rows, len(weights), dtype=torch.float64, generator=generator)
    arrival = -torch.log1p(-uniform) / weights
    return arrival.argsort(dim=1, stable=True)[:, :count]


def distinct(most: int, count: int, rows: int, generator: torch.Generator) -> Tensor:
    """`count` different numbers below `most` per row (rows, count): all are shuffled, or some drawn again.

    Which of two equal numbers is drawn again does not depend on the numbers, so that all are equally likely.
    """
    if most <= 4096:
        return choose(torch.ones(most), count, rows, generator)
    numbers = torch.randint(most, (rows, count), generator=generator)
    while True:
        order = numbers.argsort(dim=1, stable=True)
        ranked = numbers.gather(1, order)
        twice = torch.zeros_like(numbers, dtype=torch.bool)
        twice.scatter_(1, order[:, 1:], ranked[:, 1:] == ranked[:, :-1])
        if not twice.any():
            return numbers
        again = torch.randint(most, (int(twice.sum()),), generator=generator)
        numbers = numbers.masked_scatter(twice, again)


def check_pairs(kind: str, vocabulary: int, pairs: int, length: int) -> Tensor:
    """The weights of the places that a query can have, (slots,), if all fits.

    Raises:
        UserError: it does not.
    """
    # Token 0 is the blank, so there is one key less than values.
    if vocabulary % 2 or pairs > vocabulary // 2 - 1:
        raise UserError(
            f"vocabulary of the task {kind!r} must be even and at least 2 * pairs + 2 = {2 * pairs + 2}, "
            f"got {vocabulary}"
        )
    if length % 2 or length < 4 * pairs:
        raise UserError(
            f"length of the task {kind!r} must be even and at least 4 * pairs = {4 * pairs}, got {length}"
        )
    return torch.arange(1, length // 2 - pairs + 1, dtype=torch.float64) ** (_POWER - 1)


def check_vocabulary(kind: str, vocabulary: int) -> None:
    """Two tokens at least.

    Raises:
        UserError: there are fewer.
    """
    if vocabulary < 2:
        raise UserError(f"vocabulary of the task {kind!r} must be at least 2, got {vocabulary}")


def _rewritten(kind: str, options: dict[str, Any], change: Callable[[Tensor], Tensor]) -> Windows:
    vocabulary, symbols = options["vocabulary"], options["symbols"]
    check_vocabulary(kind, vocabulary)

    def draw(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        given = torch.randint(vocabulary, (rows, symbols), generator=generator)
        return answered(given, vocabulary, change(given))

    return Windows(vocabulary + 1, 2 * symbols + 1, draw)
