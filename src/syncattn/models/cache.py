"""The cache of incremental decoding: a transformers `Cache` of one `IncrementalState` per layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from torch import Tensor
from transformers import Cache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin

from syncattn.checks import check_flag
from syncattn.nn import IncrementalState
from syncattn.nn.groups import BLOCK, in_groups, may_look


class DecoderCacheLayer(CacheLayerMixin):
    """The cache of one attention layer. The layer itself appends to `state`; transformers only manages it.

    Attributes:
        state: the past: frequencies, values, which tokens are padding, the order parameter's sums.
    """

    is_compileable = False
    is_croppable = True
    is_sliding = False
    supports_early_init = False

    def __init__(self) -> None:
        super().__init__()
        self.state = IncrementalState()

    def get_seq_length(self) -> int:
        """Number of cached tokens, padding included."""
        return self.state.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(keys that `query_length` new queries can see at most, offset of the first key)."""
        return self.state.length + query_length, 0

    def get_max_length(self) -> int:
        """-1: the cache grows without a limit."""
        return -1

    @property
    def record_past(self) -> bool:
        """Whether it is recorded how to forget the tokens that come, see `DecoderCache.crop`."""
        return self.state.steps is not None

    @record_past.setter
    def record_past(self, record: bool) -> None:
        if record != self.record_past:
            self.state.steps = [] if record else None

    def activate_past_recording(self) -> None:
        """From now on record how to forget the tokens that come."""
        self.record_past = True

    def reset(self) -> None:
        """Forget the past."""
        self.state = IncrementalState(steps=[] if self.record_past else None)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the sequences that beam search goes on with: new sequence b is old sequence `beam_idx[b]`."""
        self.state.select_(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence `repeats` times, in place."""
        self.state.repeat_(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences at `indices` only."""
        self.state.select_(indices)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to prepare: the state takes its shapes from the first tokens that the layer appends."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: the attention layer appends to `state` itself.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "DecoderCache has no update(): the attention layer appends frequencies and values to its state; "
            "pass the cache to a model of syncattn.models as past_key_values"
        )

    def crop(self, tokens_to_remove: int) -> None:
        """Forget tokens of this layer alone, see `DecoderCache.crop`."""
        self.state.crop_(self.kept_by(tokens_to_remove))

    def kept_by(self, tokens_to_remove: int) -> int:
        """How many tokens a crop would leave.

        Raises:
            TypeError, ValueError: as `DecoderCache.crop`.
        """
        held = self.state.length
        if isinstance(tokens_to_remove, bool) or not isinstance(tokens_to_remove, int):
            raise TypeError(f"tokens_to_remove must be an integer, got {type(tokens_to_remove).__name__}")
        if not -held <= tokens_to_remove <= 0:
            raise ValueError(
                f"tokens_to_remove must be from {-held} to 0 (-n removes the last n of {held} tokens), "
                f"got {tokens_to_remove}"
            )
        if not self.state.reaches(held + tokens_to_remove):
            first = self.state.steps[0].mark.length if self.state.steps else held
            raise ValueError(
                f"tokens_to_remove must be {-held}, or from {first - held} to 0, got {tokens_to_remove}: how "
                "to forget the other tokens was not recorded. Call the cache's activate_past_recording() "
                "before tokens come that may have to be taken back, no more than 1,024 or one call's"
            )
        return held + tokens_to_remove

    def offload(self) -> NoReturn:
        """Refused: the state stays on the model's device.

        Raises:
            ValueError: always.
        """
        raise ValueError("DecoderCache cannot be offloaded: it stays on the device of its model")


class DecoderCache(Cache):
    """Everything that cached decoding needs of the past, for every layer.

    Pass it as `past_key_values`; `generate()` makes one by itself. Its size in bytes is `nbytes`: per layer

        B * M * H * (freq_dim * f + head_dim * v)      frequencies and values
        B * H * (freq_dim + 2 * phase_dim) * f         the last frequency; the order parameter's running sums
        B * H * head_dim * v                           the last hidden state, with a token shift; of L tokens
                                                       with a short convolution of width L + 1 (in a
                                                       Transformer their queries, keys and values)
        B * 8                                          the number of real tokens
        B * A * 16                                     with given positions: the first and the last
        B * N                                          which of all N tokens are padding, if any are

    for B sequences of M tokens, H heads, v bytes per number of the model's dtype and f = max(v, 4):
    frequencies and sums are kept in float32 at least. Without an order parameter there are no sums. A
    `TransformerModel` keeps keys in place of frequencies: freq_dim = head_dim, f = v, and no sums.

    From the second call on, tokens are written into memory with room for as many again (`spare_nbytes`, which
    `nbytes` does not count); where gradients are recorded, each call concatenates.

    `StaticDecoderCache` is one of a fixed size, for compiled and exported steps.

    Tokens can be taken back (`crop`) if they came after `activate_past_recording`: assisted and prompt-lookup
    decoding call both. While it records, the cache holds, of the last 1,024 tokens or of the last call's,
    E + H (freq_dim + 2 * phase_dim) numbers more.

    Heads that cannot reach farther than their windows (`model.windows()`) are not read farther, and with
    `evict` what lies behind is forgotten, in blocks of 512 tokens: what such a head holds does not grow with
    the text. The outputs are the same bits with it and without. Then M above is, per head, the number of
    tokens that it holds. While a cache records how to go back it keeps what the earliest of these moments
    would read. Tokens with positions of their own are kept, since they may leave gaps.

    Args:
        config: the model's configuration; only `num_hidden_layers` is read.
        evict: forget tokens that no later one can lock to. False keeps all, for calls with `position_ids` or
            `positions` that leave out numbers after a cache has grown without them.

    Raises:
        TypeError: evict is no bool.

    Example:
        >>> cache = DecoderCache(model.config)
        >>> first = model(prompt, past_key_values=cache)
        >>> then = model(next_token, past_key_values=cache)      # sees the whole prompt
    """

    def __init__(self, config: PreTrainedConfig, evict: bool = True) -> None:
        check_flag("evict", evict)
        self.evict, self._has_windows = evict, False
        own = [DecoderCacheLayer() for _ in range(config.num_hidden_layers)]
        super().__init__(layers=list(own))

    @property
    def states(self) -> list[IncrementalState]:
        """The layers' states, first layer first."""
        return [layer.state for layer in self.layers if isinstance(layer, DecoderCacheLayer)]

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Within it a model's layers append to their states; if one fails, nothing was appended to any."""
        before = [(state, vars(state).copy()) for state in self.states]
        try:
            yield
        except BaseException:
            for state, past in before:
                vars(state).update(past)
            raise

    def use_windows_of(self, model: Any, new: Tensor) -> None:
        """Learn how far a model's heads reach, once there are so many tokens that any could be out of reach.

        Args:
            model: whose `windows()` says it.
            new: hidden states (B, N, D) that come.
        """
        length = self.get_seq_length()
        if length == 0:
            self._has_windows = False
        if self._has_windows or length + new.shape[1] < BLOCK or not may_look(new):
            return
        for state, windows in zip(self.states, model.windows(), strict=True):
            state.windows = in_groups(windows, self.evict)
        self._has_windows = True

    def check_made_by(self, attention: Any) -> None:
        """Make sure that layers like this one made what is cached, as far as kinds and sizes tell.

        Raises:
            ValueError: another model's did.
        """
        held = self.states[0]
        if held.sizes is None:
            return
        own = attention.num_heads, getattr(attention, "freq_dim", attention.head_dim), attention.head_dim
        found = held.sizes[1:]
        kept = 0 if held.last_input is None else held.last_input.shape[1]
        alike = kept == attention.kept_before
        alike &= (held.phase_sum is not None) == (getattr(attention, "phase_proj", None) is not None)
        if own != found or not alike:
            sizes = "{} heads of {} + {} numbers a token".format
            raise ValueError(
                f"past_key_values must be a cache of this model, which holds {sizes(*own)}, got one that "
                f"another model made, with {sizes(*found)}"
            )

    @property
    def nbytes(self) -> int:
        """Bytes that the cached tensors take, over all layers."""
        return sum(state.nbytes for state in self.states)

    @property
    def spare_nbytes(self) -> int:
        """Bytes of the memory that is kept for tokens to come, over all layers."""
        return sum(state.spare_nbytes for state in self.states)

    @property
    def batch_size(self) -> int:
        """Number of cached sequences, -1 while nothing is cached."""
        sizes = self.states[0].sizes
        return -1 if sizes is None else sizes[0]

    @property
    def is_initialized(self) -> bool:
        """Whether anything is cached."""
        return self.get_seq_length() > 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens: the cache is what it was before they came.

        Args:
            tokens_to_remove: -n removes n tokens, padding included; 0 none. All can be removed at any time,
                some if they came after `activate_past_recording`: of these the last 1,024 at least, or those
                of one call.

        Raises:
            TypeError: it is no integer.
            ValueError: it is positive, there are fewer tokens, or it was not recorded how to forget them; the
                cache is then as it was.
        """
        own = [layer for layer in self.layers if isinstance(layer, DecoderCacheLayer)]
        for layer, kept in [(layer, layer.kept_by(tokens_to_remove)) for layer in own]:
            layer.state.crop_(kept)
