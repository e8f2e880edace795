"""The cache of fixed size: what a compiled or exported step reads and writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import Cache, PreTrainedConfig

from syncattn.checks import check_count
from syncattn.models.cache import DecoderCache, DecoderCacheLayer
from syncattn.nn.fixed import FixedState


class StaticDecoderCacheLayer(DecoderCacheLayer):
    """The cache of one attention layer, of fixed size.

    Attributes:
        state: the past, in memory that is made once.
    """

    is_compileable = True
    is_croppable = False
    state: FixedState

    def __init__(self, max_cache_len: int) -> None:
        super().__init__()
        self.max_cache_len = max_cache_len
        self.state = FixedState(capacity=max_cache_len)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(places that queries can see at most, offset of the first)."""
        return self.max_cache_len, 0

    def get_max_length(self) -> int:
        """max_cache_len."""
        return self.max_cache_len

    @property
    def record_past(self) -> bool:
        """False: tokens cannot be taken back."""
        return False

    @record_past.setter
    def record_past(self, record: bool) -> None:
        if record:
            _cannot_go_back()

    def reset(self) -> None:
        """Forget the past; the memory stays where it is."""
        self.state.reset_()

    def batch_repeat_interleave(self, repeats: int) -> NoReturn:
        """Refused: the batch has a fixed size, too.

        Raises:
            ValueError: always.
        """
        self._keeps_its_batch()

    def batch_select_indices(self, indices: Tensor) -> NoReturn:
        """Refused, as `batch_repeat_interleave`.

        Raises:
            ValueError: always.
        """
        self._keeps_its_batch()

    def kept_by(self, tokens_to_remove: int) -> NoReturn:
        """Refused: tokens cannot be taken back.

        Raises:
            ValueError: always.
        """
        _cannot_go_back()

    def _keeps_its_batch(self) -> NoReturn:
        raise ValueError(
            "StaticDecoderCache keeps its number of sequences: make another one, or a DecoderCache, which "
            "can repeat and select"
        )


class StaticDecoderCache(DecoderCache):
    """A `DecoderCache` of a fixed size, for `torch.compile` and `torch.export`; as transformers' StaticCache.

    Its memory is made by the first tokens, on their device and in their dtypes, or by `start`, and then
    written over: no later call depends on how many tokens came, so one compiled step serves all of them.
    Padding, positions and all forms of the layers are as in a `DecoderCache`; the results are equal up to
    the order of sums. `nbytes` is the same at all times: per layer what is said at `DecoderCache`, of
    M = max_cache_len tokens with a padding mask, and 8 bytes.

    An attention_mask is (B, past + N), or, so that all steps have one of one shape, (B, max_cache_len),
    with 0 or anything where no tokens stand yet.

    It is for decoding: called where gradients would be recorded it is refused, and so are `crop`, assisted
    decoding, and what changes the number of sequences. All places are read at each step, whatever the
    heads' windows, and nothing is forgotten.

    Args:
        config: the model's configuration; only `num_hidden_layers` is read.
        max_cache_len: how many tokens there is room for, padding included.

    Raises:
        TypeError, ValueError: max_cache_len is no integer of at least 1.

    Example:
        >>> cache = StaticDecoderCache(model.config, max_cache_len=512)
        >>> step = torch.compile(model, fullgraph=True)
        >>> with torch.no_grad():
        ...     logits = model(prompt, past_key_values=cache).logits
        ...     for _ in range(100):
        ...         logits = step(logits[:, -1:].argmax(-1), past_key_values=cache).logits
    """

    def __init__(self, config: PreTrainedConfig, max_cache_len: int) -> None:
        check_count("max_cache_len", max_cache_len)
        self.max_cache_len = max_cache_len
        self.evict, self._has_windows = False, False
        Cache.__init__(
            self, layers=[StaticDecoderCacheLayer(max_cache_len) for _ in range(config.num_hidden_layers)]
        )

    @property
    def fixed(self) -> list[FixedState]:
        """The layers' states, first layer first."""
        return [layer.state for layer in self.layers if isinstance(layer, StaticDecoderCacheLayer)]

    @property
    def is_initialized(self) -> bool:
        """Whether tokens came since the cache was made or reset; or `start` was called."""
        return self.fixed[0].filled is not None

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Within it a model's layers append to their states; if one fails, nothing was appended to any."""
        try:
            yield
        except BaseException:
            for state in self.fixed:
                state.give_up_()
            raise
        for state in self.fixed:
            state.settle_()

    def use_windows_of(self, model: Any, new: Tensor) -> None:
        """Nothing: all places are read."""

    @torch.no_grad()
    def start(self, model: Any, batch_size: int) -> None:
        """Have the memory for so many sequences of a model made, and hold nothing.

        Without it the first tokens do that, and their call is another than those that follow. After it the
        first token can come through the same compiled or exported step as all others.

        Args:
            model: a model of `syncattn.models`, whose cache it is.
            batch_size: B.

        Raises:
            TypeError, ValueError: batch_size is no integer of at least 1.
        """
        check_count("batch_size", batch_size)
        self.reset()
        base: Any = model.base_model
        # One token of padding, which nobody sees, leaves everything as the first real one has to find it.
        nothing = torch.zeros(batch_size, 1, model.config.hidden_size, dtype=base.dtype, device=base.device)
        unseen = torch.zeros(batch_size, 1, dtype=torch.int64, device=base.device)
        base(inputs_embeds=nothing, attention_mask=unseen, past_key_values=self)
        for state in self.fixed:
            state.start_()

    def early_initialization(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: what is held depends on more than heads and their width.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "StaticDecoderCache has no early_initialization(): its memory is made by the first tokens, or by "
            "start(model, batch_size)"
        )


def _cannot_go_back() -> NoReturn:
    raise ValueError(
        "StaticDecoderCache cannot take tokens back: use a DecoderCache for crop() and assisted decoding, or "
        "reset() to forget all of them"
    )
