"""One call as the kernel reads it: plain float32 tensors, in an order in which most tiles can be left out."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
from torch import Tensor

from syncattn.backends.call import Call
from syncattn.backends.cpu import library
from syncattn.backends.cpu.library import buffer, pointer

COLUMNS = 16  # the kernel wants the value's columns in multiples of this
SENDERS = 64  # of one of its tiles, as `KEYS` in plan.h
# Pairs for each token that has to be put in order and back, from which on even looking for an order can pay.
_PAIRS_WORTH_ORDERING = 512


class Order(NamedTuple):
    """Where the tokens that the kernel sees stand among the caller's, int32; None: they stand as given."""

    receive: Tensor | None  # (B, H, N)
    send: Tensor | None  # (B, H, M)


AS_GIVEN = Order(None, None)


class Inputs(NamedTuple):
    """A call's tensors, float32, and what points to their memory: keep both alive together.

    All are contiguous, but for the heads of send and value, which may lie apart, as in a cache with room for
    more tokens."""

    problem: library.KernelProblem
    receive: Tensor  # (B, H, N, m)
    send: Tensor  # (B, Hs, M, m)
    value: Tensor  # (B, Hv, M, d filled up to a multiple of 16)
    coupling: Tensor
    bandwidth: Tensor
    mask: Tensor | None
    text: Tensor | None  # (B or 1, M) int32
    order: Order
    own_place: Tensor | None  # (B, H, N) int32: where the senders, in their order, have each receiver's token


def describe(call: Call, order: Order | None) -> Inputs:
    """The call in this order of its tokens; None: in the one that suits it best."""
    receive, send, value, coupling, bandwidth, mask, seed = call[:7]
    nearest = call.frame == "nearest"
    batch, heads, queries, freq_dim = receive.shape
    keys = value.shape[2]
    if order is None:
        order = AS_GIVEN
        if may_be_ordered(call) and _is_worth_a_look(queries, keys):
            as_given = describe(call, AS_GIVEN)
            order = _choose(as_given.problem) if as_given.text is None else _choose_within_texts(as_given)
            if order.receive is None:
                return as_given
    coupling = coupling.float().expand(batch, heads, queries)
    receive, plain_value = plain(receive, freq_dim), by_head(value, rounded(value.shape[-1]))
    send = receive if call.symmetric else by_head(send, freq_dim)
    if order.receive is not None and order.send is not None:
        same = send is receive
        receive, plain_value = arrange(receive, order.receive), arrange(plain_value, order.send)
        send = receive if same else arrange(send, order.send)
        if coupling.stride(2):
            coupling = coupling.gather(2, order.receive.long())
    own_place = None if call.self_coupling else _own_places(order)
    bandwidth = bandwidth.float().contiguous()
    problem = library.KernelProblem(
        batch=batch,
        heads=heads,
        send_heads=send.shape[1],
        value_heads=plain_value.shape[1],
        queries=queries,
        keys=keys,
        freq_dim=freq_dim,
        value_dim=plain_value.shape[-1],
        receive=pointer(receive),
        send=pointer(send),
        send_strides=send.stride()[:2],
        value=pointer(plain_value),
        value_strides=plain_value.stride()[:2],
        coupling=pointer(coupling),
        coupling_strides=coupling.stride(),
        bandwidth=pointer(bandwidth),
        receive_index=pointer(order.receive, torch.int32),
        send_index=pointer(order.send, torch.int32),
        receive_place=pointer(own_place, torch.int32),
        is_causal=call.is_causal,
        self_coupling=call.self_coupling,
        nearest=nearest,
        power=int(call.power),
        edge=call.edge,
        eps=call.eps,
    )
    if mask is not None:
        mask = mask.expand(batch, heads, queries, keys)
        problem.mask = pointer(mask, torch.bool)
        problem.mask_strides = mask.stride()
    text = None
    if call.sequence_ids is not None:
        text = numbered(call.sequence_ids)
        problem.text = pointer(text, torch.int32)
        problem.text_stride = 0 if len(text) == 1 else text.stride(0)
    if seed is not None:
        problem.dropout = 1
        problem.dropout_threshold = int(call.dropout_p * 2**32)
        problem.dropout_scale = 1 / (1 - call.dropout_p)
        problem.seed = int(seed)
    # S_ij = S_ji halves the work of finding and weighing the pairs, but makes a head one task: for as many
    # heads as the machine has cores. (Not as there are threads in use: the result must not depend on these.)
    simple = mask is None and seed is None and not call.is_causal and not nearest
    alike = call.symmetric and simple and coupling.stride(2) == 0
    problem.symmetric = alike and batch * heads >= (os.cpu_count() or 1)  # to count takes time
    return Inputs(problem, receive, send, plain_value, coupling, bandwidth, mask, text, order, own_place)


def _own_places(order: Order) -> Tensor | None:
    """Where the senders, in their order, have the receivers' own tokens, (B, H, N); None without an order."""
    if order.receive is None or order.send is None:
        return None
    standing = torch.arange(order.send.shape[-1], dtype=torch.int32, device="cpu").expand_as(order.send)
    places = torch.empty_like(order.send).scatter_(2, order.send.long(), standing)
    offset = order.send.shape[-1] - order.receive.shape[-1]  # receivers are the last of the tokens
    return places.gather(2, order.receive.long() + offset)


def may_be_ordered(call: Call) -> bool:
    """Whether another order of the tokens could help: not where it decides who sees whom. Of several texts
    in a row each keeps its place."""
    return not call.is_causal and (call.mask is None or call.mask.shape[2] == 1)


def _is_worth_a_look(queries: int, keys: int) -> bool:
    return queries * keys > 0 and queries * keys >= _PAIRS_WORTH_ORDERING * (queries + keys)


def _choose(problem: library.KernelProblem) -> Order:
    """The order in which the kernel would rather have the tokens of a problem that has them as given."""
    receive_order = buffer(problem.batch, problem.heads, problem.queries, dtype=torch.int32)
    send_order = buffer(problem.batch, problem.heads, problem.keys, dtype=torch.int32)
    chosen = library.order(problem, receive_order, send_order)
    return Order(receive_order, send_order) if chosen else AS_GIVEN


def _choose_within_texts(given: Inputs) -> Order:
    """As `_choose`, for each long text by itself: its tokens keep to the places that it has, so that each
    place's text is what it was."""
    problem, text = given.problem, given.text
    assert text is not None
    offset = problem.keys - problem.queries  # receivers are the last of the tokens
    order = [
        torch.arange(tokens, dtype=torch.int32, device="cpu").repeat(problem.batch, problem.heads, 1)
        for tokens in (problem.queries, problem.keys)
    ]
    ordered = False
    for row, ids in enumerate(text):
        rows = slice(None) if len(text) == 1 else slice(row, row + 1)
        numbers, lengths = ids.unique_consecutive(return_counts=True)
        end = 0
        for number, length in zip(numbers.tolist(), lengths.tolist(), strict=True):
            start, end = end, end + length
            own = slice(max(start - offset, 0), max(end - offset, 0))
            if number < 0 or not _is_worth_a_look(own.stop - own.start, length):
                continue
            found = _choose_within(given, rows, own, slice(start, end))
            for of_row, of_text, at in zip(order, found, (own, slice(start, end)), strict=True):
                if of_text is not None:
                    of_row[rows, :, at], ordered = of_text + at.start, True
    return Order(*order) if ordered else AS_GIVEN


def _choose_within(given: Inputs, rows: slice, receivers: slice, senders: slice) -> Order:
    """As `_choose`, of these rows of the batch and tokens alone, numbered from 0."""
    receive = given.receive[rows, :, receivers].contiguous()
    send = receive if given.send is given.receive else given.send[rows, :, senders].contiguous()
    coupling = given.coupling[rows, :, receivers]
    found = _choose(
        library.KernelProblem(
            batch=receive.shape[0],
            heads=receive.shape[1],
            send_heads=send.shape[1],
            queries=receive.shape[2],
            keys=send.shape[2],
            freq_dim=receive.shape[3],
            receive=pointer(receive),
            send=pointer(send),
            send_strides=send.stride()[:2],
            coupling=pointer(coupling),
            coupling_strides=coupling.stride(),
            bandwidth=pointer(given.bandwidth),
        )
    )
    # The tree's pieces are as long as the kernel's tiles: what comes last fills up the text's first tile.
    ahead = -senders.start % SENDERS
    return Order(*(None if order is None else order.roll(ahead, -1) for order in found))


def numbered(ids: Tensor) -> Tensor:
    """Ids of texts (B or 1, M) as the kernel has them: int32, contiguous; large ones by their order."""
    if ids.numel() and int(ids.max()) > torch.iinfo(torch.int32).max:
        found = ids.clamp(min=-1)
        known = found.unique()  # sorted; -1 may be the first
        ids = torch.searchsorted(known, found) - int(known[0] < 0)
    return ids.clamp(min=-1).int().contiguous()


def rounded(columns: int) -> int:
    """The number of columns that the kernel wants for a value with these."""
    return -(-columns // COLUMNS) * COLUMNS


def plain(x: Tensor, columns: int) -> Tensor:
    """x in float32, contiguous, its last dimension filled up with zeros to `columns`."""
    x = x.float()
    if x.shape[-1] != columns:
        x = torch.nn.functional.pad(x, (0, columns - x.shape[-1]))
    return x.contiguous().resolve_neg()  # native code does not see the bit of a negated view


def by_head(x: Tensor, columns: int) -> Tensor:
    """x (B, H, M, c) as `plain` has it, or as it is where each head's tokens are that already."""
    dense = x.shape[-1] == columns and x.stride()[2:] == (columns, 1)
    return x if dense and x.dtype == torch.float32 and not x.is_neg() else plain(x, columns)


def arrange(x: Tensor, order: Tensor) -> Tensor:
    """The tokens of x (B, H or a divisor, N, c) in each head's order (B, H, N): (B, H, N, c)."""
    batch, heads, tokens = order.shape
    first = _numbers(batch, heads).div(heads // x.shape[1], rounding_mode="floor") * tokens
    return x.reshape(-1, x.shape[-1]).index_select(0, (order + first).flatten()).view(*order.shape, -1)


def put_back(x: Tensor, order: Tensor | None) -> Tensor:
    """The inverse of `arrange`, of x (B, H, N, c) or (B, H, N)."""
    if order is None:
        return x
    batch, heads, tokens = order.shape
    places = (order + _numbers(batch, heads) * tokens).flatten()
    shape = batch * heads * tokens, -1
    back = torch.empty_like(x, memory_format=torch.contiguous_format)
    back.view(shape).index_copy_(0, places, x.reshape(shape))
    return back


def _numbers(batch: int, heads: int) -> Tensor:
    """(B, H, 1) int64: each head's number."""
    return torch.arange(batch * heads, dtype=torch.int64, device="cpu").view(batch, heads, 1)
