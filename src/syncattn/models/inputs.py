"""What a model's `forward` is given: token ids, the padding mask, positions, and keywords of other models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from syncattn.models.cache import DecoderCache
from syncattn.nn.fixed import FixedState
from syncattn.nn.state import IncrementalState
from syncattn.nn.tokens import positions, shift_by_one
from syncattn.values import readable, unwrapped

# How others than transformers' own collators say that a row holds several texts; see packing.py for those.
_PACKING = (
    *("cu_seqlens", "cu_seqlens_q", "cu_seqlens_k", "max_seqlen", "max_seqlen_q", "max_seqlen_k"),
    *("seq_lengths", "packed_seq_lengths", "packed_seq_params", "block_sequence_ids"),
)
_WAY_OUT = (
    "several texts in one row are told apart by sequence_ids, seq_idx, cu_seq_lens_q and cu_seq_lens_k, or "
    "position_ids that begin anew"
)
# Of an assertion: where positions cannot be read, and one text is taken for granted.
UNREAD = "here several texts in one row are told apart by sequence_ids, not by position_ids"


def check_ids(input_ids: Tensor, vocab_size: int) -> None:
    """Make sure that token ids are (B, N) integers, and below `vocab_size` where their values can be read.

    Raises:
        ValueError: they are not.
    """
    dense = not input_ids.is_nested and input_ids.ndim == 2
    if not dense or input_ids.shape[1] == 0 or input_ids.is_floating_point():
        raise ValueError(
            f"input_ids must be integer token ids (B, N) of at least one token, got {kind_of(input_ids)}"
        )
    ids = _readable(input_ids)
    if ids is not None and ids.numel():
        low, high = (int(x) for x in ids.aminmax())
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"input_ids must be below vocab_size = {vocab_size} and not negative, got {low} "
                f"to {high}: was the text encoded with this model's tokenizer?"
            )


def check_embeddings(inputs_embeds: Tensor, hidden_size: int) -> None:
    """Make sure that embeddings are (B, N, D), of at least one token.

    Raises:
        ValueError: they are not.
    """
    dense = not inputs_embeds.is_nested and inputs_embeds.ndim == 3
    if not dense or inputs_embeds.shape[1] == 0 or inputs_embeds.shape[2] != hidden_size:
        raise ValueError(
            f"inputs_embeds must be (B, N, {hidden_size}), of at least one token, got "
            f"{kind_of(inputs_embeds)}"
        )


def check_keywords(given: Mapping[str, Any], is_causal: bool) -> None:
    """Refuse keywords that would change which tokens see each other; pass others by, as transformers does.

    Raises:
        ValueError: one that describes packed texts, or another is_causal than the model's.
    """
    for name in _PACKING:
        if given.get(name) is not None:
            raise ValueError(f"{name} must be left out, got {type(given[name]).__name__}: {_WAY_OUT}")
    if given.get("is_causal") not in (None, is_causal):
        raise ValueError(f"is_causal must be {is_causal} or left out, got {given['is_causal']!r}")


def kept_states(asked: bool | Sequence[int], states: int) -> set[int]:
    """Which of a model's hidden states are returned: all, none, or those at the indices asked for.

    Raises:
        ValueError: there is no state of an index.
    """
    if not isinstance(asked, Sequence):
        return set(range(states)) if asked else set()
    for index in asked:
        if not -states <= index < states:
            raise ValueError(
                f"output_hidden_states must hold indices from {-states} to {states - 1}, got {index!r}"
            )
    return {index % states for index in asked}


def padding(attention_mask: Any, hidden: Tensor, cache: DecoderCache | None) -> Tensor | None:
    """The new tokens' part of `attention_mask` as a key padding mask: True = padding, (B, N).

    None where there is no padding, as far as that can be known without waiting for a device.

    Raises:
        TypeError: the mask is no tensor.
        ValueError: it has another shape than (B, past + N), holds anything but 0 and 1, or disagrees with
            the cache. For values, on CUDA devices and in compilation, an assertion on the device fails in
            its place.
    """
    if attention_mask is None:
        return None
    if not isinstance(attention_mask, Tensor):
        raise TypeError(
            f"attention_mask must be a tensor (B, past + N) of 0 and 1, got {type(attention_mask).__name__}"
        )
    batch, tokens, _ = hidden.shape
    past = 0 if cache is None else cache.get_seq_length()
    if attention_mask.is_nested or attention_mask.shape != (batch, past + tokens):
        raise ValueError(
            f"attention_mask must have shape (B, past + N) = ({batch}, {past + tokens}), 1 for real tokens "
            f"and 0 for padding, got {kind_of(attention_mask)}: who sees whom among real tokens is not for "
            "the mask to say"
        )
    real = as_boolean(attention_mask)
    if past > 0:
        cached = None if cache is None else cache.states[0].mask
        before = real.narrow(1, 0, past)  # a slice would clamp: exported, it has a size of its own
        check_cached(before if cached is None else before == cached)
    # Without padding the faster kernels apply.
    known = _readable(real)
    return None if known is not None and known.all() else ~real.narrow(1, past, tokens)


def check_cached(alike: Tensor) -> None:
    """Make sure that a mask says what a cache holds of its tokens; `alike` (B, past) bool, where it does.

    Raises:
        ValueError: it does not.
    """
    rule = "attention_mask must say what past_key_values holds of the cached tokens: which are padding"
    wrong = failing(alike, rule, wait=True)
    if wrong is not None:
        raise ValueError(f"{rule}, got another mask of {int(wrong.any(-1).sum())} sequences")


def texts_of_positions(
    position_ids: Any,
    hidden: Tensor,
    is_padding: Tensor | None,
    cache: DecoderCache | None,
    unread: bool = False,
) -> Tensor | None:
    """The ids (B, N) of the texts that `position_ids` tell apart by beginning anew; None where they do not.

    A text begins where a real token's position is not above the real token's before. After cached tokens
    none does. The values are read as `check_positions` reads them; where they cannot be, there is one text.

    Args:
        position_ids, hidden, is_padding, cache: as `check_positions`.
        unread: have ids where the values cannot be read, too, whether positions begin anew or not.

    Raises:
        TypeError, ValueError: they are no integers (B, N), or begin anew at several numbers.
    """
    given = _integers(position_ids, hidden).to(torch.int64)
    if cache is not None and cache.is_initialized:
        return None
    begins = restarts(given, None if is_padding is None else ~is_padding)
    known = _readable(begins, wait=True)
    rule = "position_ids must rise within a text and begin anew at one number"
    if known is None and unread:
        lowest = torch.where(begins, given, torch.iinfo(torch.int64).max).amin()
        failing(~begins | (given == lowest), rule)
        return begins.cumsum(1)
    if known is None or known.shape != given.shape or not known.any():
        return None
    low, high = (int(x) for x in given[begins].aminmax())
    if low != high:
        raise ValueError(
            f"{rule}, got texts that begin at {low} and at {high}. `positions` may come in any order"
        )
    return begins.cumsum(1)


def restarts(position_ids: Tensor, real: Tensor | None) -> Tensor:
    """(B, N) bool: whether a real token's position is not above the real token's before it.

    Args:
        position_ids: (B, N) int64.
        real: (B, N) bool; None: all are.
    """
    begins = position_ids <= _real_before(position_ids, torch.iinfo(torch.int64).min, real)
    return begins if real is None else begins & real


def _real_before(x: Tensor, first: int | Tensor, real: Tensor | None) -> Tensor:
    """Of x (B, N) what the real token before each has; `first`, a number or (B, 1), where none is."""
    first = first if isinstance(first, Tensor) else torch.full_like(x[:, :1], first)
    return shift_by_one(x[:, None, :, None], first[:, None], real)[:, 0, :, 0]


def check_positions(
    position_ids: Any,
    hidden: Tensor,
    is_padding: Tensor | None,
    cache: DecoderCache | None,
    texts: Tensor | None = None,
) -> None:
    """Make sure that given positions are those that layers count themselves, for layers that can do no other.

    Position enters through differences alone, so the first may be any number. From each real token to the
    next they must rise by 1; padding may have any. After cached tokens they must go on from these, counted
    with or without the padding before the first.

    The values are read, on any device: who passes positions waits for the device, as with transformers' own
    models. In compilation and in the capture of a CUDA graph an assertion on the device takes the reading's
    place.

    Args:
        position_ids: (B or 1, N), integer, or None.
        hidden: (B, N, D).
        is_padding: (B, N) or None.
        cache: before this call's tokens are added.
        texts: ids (B, N) of several texts in a row, each of which may begin at any number; None: one.

    Raises:
        TypeError, ValueError: they are not.
    """
    if position_ids is None:
        return
    given = _integers(position_ids, hidden)
    tokens = given.shape[1]
    real = None if is_padding is None else ~is_padding
    state = None if cache is None or not cache.is_initialized else cache.states[0]
    own = positions(real, tokens, None if state is None else state.count, hidden.device)
    shift = given - own  # (B, N): one number for all real tokens of a row
    start = shift[:, :1] if real is None else shift.gather(1, real.int().argmax(1, keepdim=True))
    if state is not None:
        start = torch.where(start == _leading(state, real), start, 0)
    if texts is not None:
        real = texts >= 0 if real is None else real & (texts >= 0)
        begins = texts != _real_before(texts, -1, real)
        start = torch.where(begins, shift, _real_before(shift, 0, real))
    right = shift == start
    right = right if real is None else right | ~real
    rule = "position_ids must rise by 1 from each real token of a row to the next, after those in the cache"
    wrong = failing(right, f"{rule}; {UNREAD}", wait=True)
    if wrong is not None:
        detail = ""
        if wrong.shape == given.shape:  # not under vmap
            row, column = (int(x) for x in wrong.nonzero()[0])
            expected = int((own + start)[row, column])
            detail = f", got {int(given[row, column])} in place of {expected} in row {row}, column {column}"
        raise ValueError(f"{rule}{detail}; {_WAY_OUT}")


def rising_positions(
    position_ids: Any,
    hidden: Tensor,
    is_padding: Tensor | None,
    cache: DecoderCache | None,
    texts: Tensor | None = None,
) -> Tensor | None:
    """`position_ids` as the layers take positions, (B, N, 1).

    They may start anywhere and have gaps, but must rise from each real token of a text to the next, and after
    the last one in the cache. After cached tokens for which none were given they are numbers of tokens,
    counted with or without the padding before the first.

    The values are read as `check_positions` reads them.

    Args:
        position_ids, hidden, is_padding, cache, texts: as `check_positions`.

    Raises:
        TypeError, ValueError: they are no integers (B, N), or do not rise.
    """
    if position_ids is None:
        return None
    given = _integers(position_ids, hidden).to(torch.int64)
    real = None if is_padding is None else ~is_padding
    last = torch.full_like(given[:, :1], torch.iinfo(torch.int64).min)
    state = None if cache is None or not cache.is_initialized else cache.states[0]
    if state is not None and state.count is not None:
        if state.origin is not None and state.last_place is not None:
            before = (state.origin + state.last_place).to(torch.int64)
        else:
            before = state.count - 1
            first = given[:, :1] if real is None else given.gather(1, real.int().argmax(1, keepdim=True))
            leading = _leading(state, real)
            given = torch.where(first - state.count == leading, given - leading, given)
        last = torch.where(state.count > 0, before, last)
    if texts is not None:
        real = texts >= 0 if real is None else real & (texts >= 0)
    previous = _real_before(given, last, real)
    right = given > previous
    right = right if texts is None else right | (texts != _real_before(texts, -1, real))
    right = right if real is None else right | ~real
    rule = "position_ids must rise from each real token of a row to the next, after those in the cache"
    wrong = failing(right, f"{rule}; {UNREAD}", wait=True)
    if wrong is not None:
        detail = ""
        if wrong.shape == given.shape:  # not under vmap
            row, column = (int(x) for x in wrong.nonzero()[0])
            found, after = int(given[row, column]), int(previous[row, column])
            detail = f", got {found} after {after} in row {row}, column {column}"
        raise ValueError(f"{rule}{detail}; {_WAY_OUT}")
    return given[..., None]


def _integers(position_ids: Any, hidden: Tensor) -> Tensor:
    """`position_ids` (B, N) of hidden states (B, N, D), on their device; refused where they are none."""
    if not isinstance(position_ids, Tensor):
        raise TypeError(f"position_ids must be a tensor (B, N), got {type(position_ids).__name__}")
    batch, tokens = hidden.shape[:2]
    dtype = position_ids.dtype
    integers = not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)
    if position_ids.is_nested or not integers or position_ids.shape not in ((batch, tokens), (1, tokens)):
        raise ValueError(
            f"position_ids must be integers of shape (B, N) = ({batch}, {tokens}) or (1, {tokens}), got "
            f"{kind_of(position_ids)}"
        )
    return position_ids.to(hidden.device).expand(batch, tokens)


def _leading(state: IncrementalState, real: Tensor | None) -> Tensor | int:
    """How many tokens of padding stand before a row's first real token, (B, 1).

    Args:
        state: of the cached tokens.
        real: (B, N) bool, False = padding, of these tokens.
    """
    if state.mask is None:
        return 0
    every = state.mask if real is None else torch.cat((state.mask, real), 1)
    before = every.cumsum(1) == 0
    if isinstance(state, FixedState) and state.filled is not None:  # what is not filled is no padding
        place = torch.arange(before.shape[1], dtype=torch.int64, device=before.device)
        before = before & ((place < state.filled) | (place >= state.capacity))
    return before.sum(1, keepdim=True)


def kind_of(tensor: Tensor) -> str:
    """A tensor's dtype and shape, for messages."""
    return "a nested tensor" if tensor.is_nested else f"{tensor.dtype} {tuple(tensor.shape)}"


def as_boolean(mask: Tensor) -> Tensor:
    """A mask of 0 and 1 as a boolean one."""
    if mask.dtype == torch.bool:
        return mask
    real = mask == 1
    known = real | (mask == 0)
    if mask.is_floating_point():  # an additive mask that hides nothing is 0 everywhere
        known = known & real.any()
    rule = "attention_mask must hold 1 for real tokens and 0 for padding"
    if failing(known, rule) is not None:
        low, high = (x.item() for x in unwrapped(mask).aminmax())
        raise ValueError(
            f"{rule}, got {mask.dtype} from {low:g} to {high:g}: it is not additive (0 and -inf), and "
            "numbers no texts in one row, which sequence_ids do"
        )
    return real


def failing(condition: Tensor, rule: str, wait: bool = False) -> Tensor | None:
    """Where a condition does not hold, or None; an assertion on the device where that cannot be read.

    Args:
        wait: for a CUDA device. For others it waits anyway: not all have the assertion.
    """
    held = _readable(condition, wait or condition.device.type != "cuda")
    if held is not None:
        return None if held.all() else ~held
    held = condition if torch.compiler.is_compiling() else unwrapped(condition)
    torch._assert_async(held.all(), rule)
    return None


def _readable(tensor: Tensor, wait: bool = False) -> Tensor | None:
    """`readable` where that waits for no device, or, told to wait, wherever the device can be waited for."""
    if wait and tensor.is_cuda and not torch.compiler.is_compiling():
        wait = not torch.cuda.is_current_stream_capturing()
    return readable(tensor, any_device=wait)
