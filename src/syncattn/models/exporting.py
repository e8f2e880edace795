"""Cached decoding as a function of tensors alone, which is all that ONNX and other exporters know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from syncattn.models.cache import DecoderCache
from syncattn.models.causal import DecoderForCausalLM
from syncattn.models.static import StaticDecoderCache

# What a layer's state holds besides the tokens' mask and number, which attention_mask says for all layers.
_OF_A_LAYER = ("send", "value", "phase_sum", "last_input", "last_emitted")
_GROWING = ("send", "value")  # with the tokens: (B, H, P, m) and (B, H, P, d)


class _WholeCache(DecoderCache):
    """A cache whose heads are all read from the first token on, as a past of one tensor for all must be."""

    def use_windows_of(self, model: Any, new: Tensor) -> None:
        """Nothing: no head is known to reach less far than another."""


class CachedStep(nn.Module):
    """One step of a causal language model's cached decoding, from tensors to tensors.

    A `DecoderCache` holds Python objects, which no exporter can record. Here the past is a list of tensors,
    given and returned: `start` makes one without tokens, `names` says what is what. A step takes one token
    or many, so that one program reads the prompt and generates.

    Args:
        model: in evaluation mode; it is used, not copied.

    Raises:
        TypeError: model is no causal language model of `syncattn.models`.
        ValueError: it is in training mode, is bidirectional, or needs positions on several axes.

    Example:
        >>> step = CachedStep(model.eval())
        >>> past = step.start(batch=1)
        >>> logits, past = step(prompt, torch.ones_like(prompt), past)
    """

    def __init__(self, model: DecoderForCausalLM) -> None:
        super().__init__()
        _check_model(model)
        self.model = model
        self.eval()
        self._fields: tuple[str, ...] = ()
        self.start(1)  # which fields this kind of model has

    @property
    def names(self) -> list[str]:
        """What the tensors of a past are, in order: "0.send" is what the first layer's tokens emit."""
        return [f"{i}.{field}" for i in range(len(self.model.model.layers)) for field in self._fields]

    @torch.no_grad()
    def start(self, batch: int) -> list[Tensor]:
        """The past of so many sequences before their first token, on the model's device."""
        cache = _WholeCache(self.model.config)
        # After one token of padding, which nobody sees, all that does not grow is as it is at the start.
        nothing = torch.zeros(batch, 1, dtype=torch.int64, device=self.model.device)
        self.model(nothing, nothing, past_key_values=cache)
        self._fields = tuple(name for name in _OF_A_LAYER if getattr(cache.states[0], name) is not None)
        past = []
        for state in cache.states:
            for name in self._fields:
                held = getattr(state, name)
                past.append((held[:, :, :0] if name in _GROWING else held).clone())
        return past

    def dynamic_shapes(self) -> tuple[dict, dict, list[dict]]:
        """The dynamic_shapes of `torch.onnx.export` and `torch.export.export`: of `forward`'s arguments,
        the sequences B, the new tokens N, and the past ones P are free."""
        free = torch.export.Dim.DYNAMIC
        past = [{0: free, 2: free} if n.endswith(_GROWING) else {0: free} for n in self.names]
        return {0: free, 1: free}, {0: free, 1: free}, past

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, N, vocab_size) of the new tokens' successors, and the past with these tokens in it.

        Args:
            input_ids: the new tokens (B, N), int64.
            attention_mask: (B, P + N), 1 for real tokens, 0 for padding, those of the past too: always as it
                was given when they came.
            past: from `start` or the step before, in the order of `names`; P tokens.
        """
        cache = _WholeCache(self.model.config)
        real = attention_mask.narrow(1, 0, past[0].shape[2]) == 1  # a slice would clamp its end, of any size
        per_layer = len(self._fields)
        for i, state in enumerate(cache.states):
            held = dict(zip(self._fields, past[i * per_layer :], strict=False))
            state.hold_(held.pop("send"), held.pop("value"))
            for name, tensor in held.items():
                setattr(state, name, tensor)
            state.mask, state.count = real, real.sum(-1, keepdim=True)
        logits = self.model(input_ids, attention_mask, past_key_values=cache).logits
        return logits, [getattr(state, name) for state in cache.states for name in self._fields]


class StaticStep(nn.Module):
    """One step of cached decoding with a cache of fixed size, whose tensors are the module's buffers.

    For `torch.export` and what lowers its programs: every step has the same shapes, and the program writes
    the past into its own buffers. It is called as ExecuTorch's runner calls a language model, with tokens
    and their places. `CachedStep` has the past among its arguments and results.

    Args:
        model: in evaluation mode; it is used, not copied.
        batch_size: B.
        max_cache_len: L, the number of tokens there is room for.

    Raises:
        TypeError: model is no causal language model of `syncattn.models`.
        TypeError, ValueError: it is in training mode, is bidirectional, or needs positions on several axes;
            a size is no integer of at least 1.

    Example:
        >>> step = StaticStep(model.eval(), batch_size=1, max_cache_len=512)
        >>> first = torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
        >>> program = torch.export.export(step, first, strict=False).module()
        >>> for place, token in enumerate(tokens):
        ...     logits = program(token.view(1, 1), torch.tensor([place]))
    """

    def __init__(self, model: DecoderForCausalLM, batch_size: int, max_cache_len: int) -> None:
        super().__init__()
        _check_model(model)
        self.model = model
        self.eval()
        cache = StaticDecoderCache(model.config, max_cache_len)
        cache.start(model, batch_size)
        self.max_cache_len = max_cache_len
        self._names: tuple[tuple[str, ...], ...] = tuple(tuple(state.memory) for state in cache.fixed)
        for i, state in enumerate(cache.fixed):
            for name, held in state.memory.items():
                self.register_buffer(f"{name}_{i}", held, persistent=False)
            # Of what is not 0 before the first token: what stands before that.
            if state.last_emitted is not None:
                self.register_buffer(f"nobody_{i}", state.last_emitted.clone(), persistent=False)

    def forward(
        self, input_ids: Tensor, cache_position: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Logits (B, N, vocab_size) of the tokens' successors; the tokens are held from now on.

        Args:
            input_ids: the new tokens (B, N), int64.
            cache_position: (N,) int64, their places: from 0 a text begins, else they go on from the last.
            attention_mask: (B, max_cache_len), 1 for real tokens, 0 for padding, those of the past too; what
                it says of places to come is not read. None: all are real.

        Raises:
            RuntimeError: places that neither begin a text nor go on, or for which there is no room; the past
                is then as it was.
        """
        if torch.compiler.is_exporting():  # a mode that a program sets stays when it fails
            return self._step(input_ids, cache_position, attention_mask)
        with torch.no_grad():
            return self._step(input_ids, cache_position, attention_mask)

    def _step(self, input_ids: Tensor, cache_position: Tensor, attention_mask: Tensor | None) -> Tensor:
        begins, cache = cache_position[0] == 0, StaticDecoderCache(self.model.config, self.max_cache_len)
        goes_on = begins | (cache_position[0] == self.get_buffer("filled_0"))
        torch._assert_async(goes_on, "cache_position must begin at 0, or go on from the last token's")
        for i, (state, names) in enumerate(zip(cache.fixed, self._names, strict=True)):
            state.hold_in_({name: self.get_buffer(f"{name}_{i}") for name in names})
            for name in names:
                if name in _GROWING:  # whose places count as empty, whatever they hold
                    continue
                before = getattr(state, name).masked_fill(begins, 0)
                if name == "last_emitted":
                    before = torch.where(begins, self.get_buffer(f"nobody_{i}"), before)
                setattr(state, name, before)
        return self.model(input_ids, attention_mask, past_key_values=cache).logits


def _check_model(model: Any) -> None:
    """Make sure that a step can be made of a model."""
    if not isinstance(model, DecoderForCausalLM):
        raise TypeError(
            "model must be a causal language model of syncattn.models (OSNForCausalLM, "
            f"TransformerForCausalLM), got {type(model).__name__}"
        )
    if model.training:
        raise ValueError("model must be in evaluation mode, got one in training: call model.eval()")
    if getattr(model.config, "axes", 1) > 1:
        raise ValueError(
            f"model must have axes=1, got axes={model.config.axes}: a step counts its tokens, and says "
            "nothing of other positions"
        )
