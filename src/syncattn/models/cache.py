"""The cache of incremental decoding: a transformers `Cache` of one `IncrementalState` per layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from torch import Tensor
from transformers import Cache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin

from syncattn.nn import IncrementalState


class DecoderCacheLayer(CacheLayerMixin):
    """The cache of one attention layer. The layer itself appends to `state`; transformers only manages it.

    Attributes:
        state: the past: frequencies, values, which tokens are padding, the order parameter's sums.
    """

    is_compileable = False
    is_croppable = False
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

    def reset(self) -> None:
        """Forget the past."""
        self.state = IncrementalState()

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

    def crop(self, tokens_to_remove: int) -> NoReturn:
        """Refused, see `DecoderCache.crop`.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"tokens_to_remove must be 0, got {tokens_to_remove}: a DecoderCache cannot be cropped, since "
            "the running order parameter is a sum over the whole past. Before adding tokens that may have to "
            "be taken back, copy the cache with copy.deepcopy()"
        )

    def offload(self) -> NoReturn:
        """Refused: the state stays on the model's device.

        Raises:
            ValueError: always.
        """
        raise ValueError("DecoderCache cannot be offloaded: it stays on the device of its model")


class DecoderCache(Cache):
    """Everything that cached decoding needs of the past, for every layer. Grows with the text.

    Pass it as `past_key_values`; `generate()` makes one by itself. Its size in bytes is `nbytes`: per layer

        B * M * H * (freq_dim * f + head_dim * v)      frequencies and values
        B * H * (freq_dim + 2 * phase_dim) * f         the last frequency; the order parameter's running sums
        B * H * head_dim * v                           the last hidden state, with a token shift
        B * 8                                          the number of real tokens
        B * A * 16                                     with given positions: the first and the last
        B * M                                          which tokens are padding, if any are

    for B sequences of M tokens, H heads, v bytes per number of the model's dtype and f = max(v, 4):
    frequencies and sums are kept in float32 at least. Without an order parameter there are no sums. A
    `TransformerModel` keeps keys in place of frequencies: freq_dim = head_dim, f = v, and no sums.

    It cannot be cropped (the order parameter's sums cannot be un-summed), so assisted and prompt-lookup
    decoding are refused; `copy.deepcopy` keeps a state to come back to.

    Args:
        config: the model's configuration; only `num_hidden_layers` is read.

    Example:
        >>> cache = DecoderCache(model.config)
        >>> first = model(prompt, past_key_values=cache)
        >>> then = model(next_token, past_key_values=cache)      # sees the whole prompt
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        own = [DecoderCacheLayer() for _ in range(config.num_hidden_layers)]
        super().__init__(layers=list(own))

    @property
    def states(self) -> list[IncrementalState]:
        """The layers' states, first layer first."""
        return [layer.state for layer in self.layers if isinstance(layer, DecoderCacheLayer)]

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Within it a model's layers append to their states; if one fails, nothing was appended to any."""
        marks = [state.mark() for state in self.states]
        try:
            yield
        except BaseException:
            for state, mark in zip(self.states, marks, strict=True):
                state.rewind_(mark)
            raise

    @property
    def nbytes(self) -> int:
        """Bytes that the cached tensors take, over all layers."""
        return sum(state.nbytes for state in self.states)

    @property
    def batch_size(self) -> int:
        """Number of cached sequences, -1 while nothing is cached."""
        value = self.states[0].value
        return -1 if value is None else value.shape[0]

    @property
    def is_initialized(self) -> bool:
        """Whether anything is cached."""
        return self.get_seq_length() > 0

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: see the class. Removing nothing is allowed.

        Raises:
            ValueError: `tokens_to_remove` is not 0.
        """
        if tokens_to_remove != 0:
            super().crop(tokens_to_remove)
