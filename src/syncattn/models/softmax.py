"""Multi-head softmax attention with the interface of `SelectiveSynchronizationAttention`."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syncattn.checks import check_choice, check_count, check_flag, check_real
from syncattn.models.rotary import scaled_rates, sharpening
from syncattn.nn import IncrementalState
from syncattn.nn.frequency import rotate
from syncattn.nn.options import check_delay, check_looking_back
from syncattn.nn.packing import counted_from_first, find_texts, places_of_texts
from syncattn.nn.places import checked_positions, locate
from syncattn.nn.residual import check_first_value, mix_first_value, new_value_mix
from syncattn.nn.state import Step
from syncattn.nn.tokens import (
    allowed_by_mask,
    check_dense,
    delayed_heads,
    last_real,
    last_real_input,
    mix_previous,
    real_tokens,
    shift_by_one,
    with_before,
)
from syncattn.nn.tokens import positions as count_positions

POSITIONS = ("rotary", "alibi", "none")

_STRETCH = 256  # queries whose scores are looked at at a time


class SoftmaxAttention(nn.Module):
    """Multi-head softmax self-attention with the interface of `SelectiveSynchronizationAttention`.

    Args:
        embed_dim: E, size of the hidden states.
        num_heads: H, a divisor of E.
        dropout: on the weights, in training.
        bias: of all projections.
        batch_first: inputs are (B, N, E) if True, (N, B, E) if False.
        position: "rotary" (Su et al. 2021), "alibi" (Press et al. 2022) with slopes 2^(-8 (h + 1) / H), or
            "none": order is seen through the causal mask, a delay, shift or convolution alone.
        delay: fraction of the heads in which a token is found by the key of the token before it, and its own
            value is read. Before the first token stands a key of zeros.
        token_shift: as in `SelectiveSynchronizationAttention`; queries and keys take the frequencies' part.
        short_convolution: None, or the width L + 1 of a causal convolution over tokens, channel by channel,
            of queries, keys and values (So et al. 2021), in place of the token shift: of what is projected,
            p_j + sum of a_l * p_(j-l) over l = 1 ... L, with a learned a (L, 3 E) that starts at 0.
        qk_norm: queries and keys of each head are divided by their root mean square and multiplied by
            learned gains (E / H,) of their own, before they turn with position (Henry et al. 2020).
        value_residual: as in `SelectiveSynchronizationAttention`; a short convolution comes after it.
        score_gate: each head's result is multiplied by 2 sigmoid(a + b s), s = q k / sqrt(d) of the key that
            gets the most weight, with a learned a and b per head that start at 0: the counterpart of
            `SelectiveSynchronizationAttention`'s nearest_gate. Fused attention does not name that key, so a
            second product of queries and keys finds it; the gradients of s are those of this one pair.
        rotary_scaling: s, for texts s times as long as those of the training: rates of rotary position as
            YaRN has them (`syncattn.models.rotary`), and logits times (0.1 ln s + 1)^2; 1 changes nothing.
        trained_length: tokens in the texts of the training, which rotary_scaling goes out from.

    Raises:
        TypeError, ValueError: an argument is out of range.
    """

    delayed: Tensor

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        batch_first: bool = True,
        *,
        position: str = "rotary",
        delay: float = 0.0,
        token_shift: bool = False,
        short_convolution: int | None = None,
        qk_norm: bool = False,
        value_residual: bool = False,
        score_gate: bool = False,
        rotary_scaling: float = 1.0,
        trained_length: int = 1024,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if embed_dim < 1 or num_heads < 1 or embed_dim % num_heads:
            raise ValueError(
                f"num_heads must divide embed_dim, got embed_dim={embed_dim}, num_heads={num_heads}"
            )
        check_real("dropout", dropout, "in [0, 1)", lambda x: 0 <= x < 1)
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        options = (position, delay, token_shift, short_convolution, qk_norm, value_residual, score_gate)
        check_options(self.head_dim, *options, rotary_scaling, trained_length)
        self.dropout, self.batch_first, self.position, self.delay = dropout, batch_first, position, delay
        self.rotary_scaling, self.trained_length = rotary_scaling, trained_length
        self.in_proj = nn.Linear(embed_dim, 3 * embed_dim, bias, device=device, dtype=dtype)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias, device=device, dtype=dtype)
        self.shift = None
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        if token_shift:
            self.shift = nn.Parameter(torch.zeros(2, embed_dim, **factory))
        self.looks_back = 1 if token_shift else (short_convolution or 1) - 1
        self.convolution = self.gains = self.value_mix = None
        if short_convolution is not None:
            self.convolution = nn.Parameter(torch.zeros(self.looks_back, 3 * embed_dim, **factory))
        if qk_norm:
            self.gains = nn.Parameter(torch.ones(2, self.head_dim, **factory))
        if value_residual:
            self.value_mix = new_value_mix(**factory)
            nn.init.constant_(self.value_mix, 0.5)
        self.gate = nn.Parameter(torch.zeros(2, num_heads, **factory)) if score_gate else None
        # The heads that an OSN with this delay would delay.
        self.register_buffer("delayed", delayed_heads(num_heads, delay, device))

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        *,
        state: IncrementalState | None = None,
        positions: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        first_value: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Self-attention of query (B, N, E); arguments and result as in `SelectiveSynchronizationAttention`.

        `state` holds rotated keys where that layer's holds frequencies: 2 * head_dim numbers per token and
        head. A row whose keys are all masked gives exactly 0. With a delay, a token shift or a short
        convolution there is no attn_mask: key_padding_mask and is_causal say who sees whom. `positions` have
        one axis, (B or 1, N, 1), and go with position="rotary" only. `sequence_ids`, which go with neither
        attn_mask nor state, are read, so that each text is attended to by itself: off the CPU the host waits.
        Where they cannot be (in compilation), or with need_weights, they become a mask of N x N.
        `first_value`: see `value_residual`.

        Raises:
            ValueError: key or value is not query, a shape or mask is not as documented, or positions are
                given with another position than "rotary".
        """
        self._check(query, key, value, attn_mask, is_causal, state)
        x = query if self.batch_first else query.transpose(0, 1)
        batch, tokens, _ = x.shape
        check_first_value(first_value, x, self.value_mix is not None)
        real = real_tokens(key_padding_mask, batch, tokens)
        texts = follows = None
        if sequence_ids is not None:
            if state is not None or attn_mask is not None:
                other = "an attn_mask" if state is None else "a state"
                raise ValueError(f"sequence_ids must be left out with an attn_mask or a state, got {other}")
            texts = find_texts(sequence_ids, real, x, is_single=False)
            real, follows = texts.ids >= 0, texts.follows
        allowed = allowed_by_mask(attn_mask, batch, self.num_heads, tokens, tokens)
        if positions is not None and self.position != "rotary":
            reason = "numbers tokens" if self.position == "alibi" else "has none"
            raise ValueError(f"positions must be left out with position={self.position!r}, which {reason}")
        given = checked_positions("positions", positions, x, real, 1)
        position, origin, last = locate(real, (batch, tokens), given, state, x.device)  # (B or 1, N, 1)
        if texts is not None:
            position = counted_from_first(position, texts)

        q, k, v, mixed_in = self._project(x, real, state, follows, first_value)  # (B, H, N, d) each
        if self.position == "rotary":
            q, k = self._turn(q, k, position)
        emitted, k = k, self._delay_by_one(k, real, None if state is None else state.last_emitted, follows)
        after = None
        if state is not None:
            after = state.extended(k, v, real, last_emitted=last_real(emitted, real, state.last_emitted))
            if mixed_in is not None:
                after.last_input = last_real_input(mixed_in, real, state.last_input)
            after.origin, after.last_place = origin, last
            if state.steps is not None:
                step = Step(state.mark(), real, emitted, state.last_emitted, mixed_in, None)
                after.record_(state, step._replace(origin=origin, place=position))
            k, v, real = after.held
            allowed = after.seen(tokens, self_coupling=True)
            is_causal = allowed is None  # else the places say it

        places = None if texts is None or need_weights else places_of_texts(texts.ids)
        if places is not None:
            out = self._attend_within(q, k, v, position, places, is_causal)
            out = self.out_proj(out.transpose(1, 2).flatten(-2))
            return (out if self.batch_first else out.transpose(0, 1)), None
        if texts is not None:
            allowed = (texts.ids[:, :, None] == texts.ids[:, None])[:, None]

        keys = k.shape[2]
        # SDPA's own causal mask, the fastest, takes neither another mask nor a bias, and needs a square.
        square = is_causal and tokens == keys and real is None and allowed is None
        square = bool(square) and self.position != "alibi" and not need_weights  # a number, if exported
        mask = None if square else _visible(tokens, keys, real, allowed, is_causal, x.device)
        seen = None
        if mask is not None and (real is not None or allowed is not None):
            # Softmax over no key is NaN: rows that see nobody see all here, and are dropped below.
            seen = mask.any(-1, keepdim=True)
            mask = mask | ~seen
        if self.position == "alibi":
            held = real if after is None or allowed is None else after.mask
            counted = count_positions(held, keys, None, x.device)
            of_keys = counted if texts is None else position[..., 0]
            mask = self._penalty(position[..., 0], of_keys, mask).to(q.dtype)
        out, weights = self._attend(q, k, v, mask, seen, square, need_weights)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        out = self.out_proj(out.transpose(1, 2).flatten(-2))
        if state is not None and after is not None:
            state.become_(after)  # the last step: whatever fails, the past is as it was
        return (out if self.batch_first else out.transpose(0, 1)), weights

    @property
    def kept_before(self) -> int:
        """How many numbers an `IncrementalState` keeps of the tokens that the next one is mixed with."""
        return self.embed_dim * self.looks_back * (1 if self.convolution is None else 3)

    def first_values(self, x: Tensor) -> Tensor:
        """As in `SelectiveSynchronizationAttention`."""
        size = self.embed_dim
        return F.linear(x, self.in_proj.weight[2 * size :], self._bias(slice(2 * size, None)))

    def extra_repr(self) -> str:
        convolution = None if self.convolution is None else self.looks_back + 1
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, position={self.position!r}, "
            f"delay={self.delay}, token_shift={self.shift is not None}, "
            f"short_convolution={convolution}, qk_norm={self.gains is not None}, "
            f"value_residual={self.value_mix is not None}, score_gate={self.gate is not None}, "
            f"rotary_scaling={self.rotary_scaling}"
        )

    def _check(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        attn_mask: Tensor | None,
        is_causal: bool,
        state: IncrementalState | None,
    ) -> None:
        if any(x is not None and x is not query for x in (key, value)):
            raise ValueError(
                "key and value must be None or query itself, got another tensor: this is self-attention"
            )
        check_dense("query", query)
        if query.ndim != 3 or query.shape[-1] != self.embed_dim:
            raise ValueError(f"query must have shape (B, N, {self.embed_dim}), got {tuple(query.shape)}")
        if state is not None and (not is_causal or attn_mask is not None):
            masked = "no attn_mask" if attn_mask is None else "an attn_mask"
            raise ValueError(
                f"state must come with is_causal=True and no attn_mask, got is_causal={is_causal}, {masked}"
            )
        if attn_mask is not None and (self.delay or self.looks_back):
            kind = "short convolution" if self.convolution is not None else "token shift"
            raise ValueError(
                f"attn_mask must be None with a delay or a {kind}, got a mask: what it hides would reach "
                "other rows through the token after"
            )
        batch = query.shape[0 if self.batch_first else 1]
        if state is not None and state.value is not None and state.value.shape[0] != batch:
            raise ValueError(f"state must hold a batch of {batch} sequences, got {state.value.shape[0]}")

    def _project(
        self,
        x: Tensor,
        real: Tensor | None,
        state: IncrementalState | None,
        follows: Tensor | None,
        first_value: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries, keys and values (B, H, N, d) of x (B, N, E), and what of each token and those before it
        the next one is mixed with, (B, N, kept_before), None for nothing."""
        size, mixed_in = self.embed_dim, None
        before = None if state is None else state.last_input
        if self.shift is None:
            projected = self.in_proj(x)
        else:
            mixed_in = x
            for_keys, for_values = (mix_previous(x, amount, before, real, follows) for amount in self.shift)
            parts = ((for_keys, slice(2 * size)), (for_values, slice(2 * size, None)))
            projected = torch.cat(
                [F.linear(given, self.in_proj.weight[rows], self._bias(rows)) for given, rows in parts], -1
            )
        if first_value is not None and self.value_mix is not None:
            keys, values = projected.split((2 * size, size), -1)
            projected = torch.cat((keys, mix_first_value(values, first_value, self.value_mix)), -1)
        if self.convolution is not None:
            if state is not None:
                mixed_in = with_before(projected, self.looks_back, before, real)
            projected = mix_previous(projected, self.convolution, before, real, follows)
        q, k, v = projected.unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        if self.gains is not None:
            q, k = (F.rms_norm(part, (self.head_dim,), gain) for part, gain in zip((q, k), self.gains))
        return q, k, v, mixed_in

    def _bias(self, rows: slice) -> Tensor | None:
        """The projection's biases of these rows."""
        return None if self.in_proj.bias is None else self.in_proj.bias[rows]

    def _turn(self, q: Tensor, k: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys (B, H, N, d) turned with position (B or 1, N, 1); queries sharpened, if scaled."""
        if self.rotary_scaling == 1:
            return rotate(q, position), rotate(k, position)
        rates = scaled_rates(self.head_dim // 2, self.rotary_scaling, self.trained_length, q.device)
        q = q * sharpening(self.rotary_scaling)
        return rotate(q, position, rates=rates), rotate(k, position, rates=rates)

    def _delay_by_one(
        self, keys: Tensor, real: Tensor | None, last: Tensor | None, follows: Tensor | None
    ) -> Tensor:
        """Keys (B, H, N, d); in delayed heads that of the real token before, at first `last` or 0."""
        if self.delay == 0:
            return keys
        first = keys.new_zeros(*keys.shape[:2], keys.shape[3]) if last is None else last
        previous = shift_by_one(keys, first, real)
        previous = previous if follows is None else torch.where(follows[:, None, :, None], previous, 0)
        return torch.where(self.delayed[:, None, None], previous, keys)

    def _penalty(self, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        """ALiBi's additive mask (B or 1, H, N, M) float32; positions (B or 1, N) and (B or 1, M)."""
        rank = torch.arange(1, self.num_heads + 1, device=query.device, dtype=torch.float32)
        slopes = torch.exp2(-8.0 / self.num_heads * rank)
        distance = (query[:, :, None] - key[:, None, :]).abs()  # (B or 1, N, M)
        penalty = -slopes[:, None, None] * distance[:, None]
        return penalty if mask is None else penalty.masked_fill(~mask, -torch.inf)

    def _attend_within(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        position: Tensor,
        places: list[Tensor],
        is_causal: bool,
    ) -> Tensor:
        """Values (B, H, N, d) where each text sees itself alone; `places` as `places_of_texts` has them, of
        positions (B, N, 1). Texts of one length are a batch. Rows of padding are 0."""
        batch, heads, tokens, width = q.shape
        by_token = [x.transpose(1, 2).reshape(batch * tokens, heads, width) for x in (q, k, v)]
        found = []
        for texts in places:
            queries, keys, values = (x[texts].transpose(1, 2) for x in by_token)  # (T, H, n, d) each
            mask, length = None, texts.shape[1]
            if self.position == "alibi":
                at = position.reshape(batch * tokens)[texts]
                mask = _visible(length, length, None, None, is_causal, q.device)
                mask = self._penalty(at, at, mask).to(q.dtype)
            part, _ = self._attend(queries, keys, values, mask, None, is_causal and mask is None, False)
            found.append(part.transpose(1, 2).flatten(0, 1))
        out = v.new_zeros(batch * tokens, heads, width)
        if places:
            everywhere = torch.cat([texts.flatten() for texts in places])
            out = out.index_copy(0, everywhere, torch.cat(found).to(out.dtype))
        return out.view(batch, tokens, heads, width).transpose(1, 2)

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        seen: Tensor | None,
        is_causal: bool,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Values (B, H, N, d), and the weights (B, H, N, M) if they are wanted; rows not `seen` are 0."""
        dropout_p = self.dropout if self.training else 0.0
        gate = None
        if self.gate is not None:
            shift, slope = self.gate.to(torch.promote_types(q.dtype, torch.float32))[:, :, None, None]
            gate = 2 * torch.sigmoid(shift + slope * _highest_score(q, k, mask, is_causal))
        if need_weights:
            weights = _softmax_weights(q, k, mask)
            # What is returned is what the values are summed with, so that it gets the loss's gradient.
            weights = weights if seen is None else weights * seen
            out = F.dropout(weights, dropout_p).to(v.dtype) @ v
            return (out if gate is None else (out * gate).to(out.dtype)), weights
        out = F.scaled_dot_product_attention(q, k, v, mask, dropout_p, is_causal=is_causal)
        out = out if gate is None else (out * gate).to(out.dtype)
        return (out if seen is None else out * seen), None


def _visible(
    queries: int,
    keys: int,
    real: Tensor | None,
    allowed: Tensor | None,
    is_causal: bool,
    device: torch.device,
) -> Tensor | None:
    """The boolean mask, True = may attend, broadcastable to (B, H, N, M); None if everyone sees everyone."""
    parts = [] if allowed is None else [allowed]
    if real is not None:
        parts.append(real[:, None, None])
    if is_causal and queries > 1:
        number = torch.arange(keys, device=device)
        parts.append((number <= number[keys - queries :, None])[None, None])
    mask = None
    for part in parts:
        mask = part if mask is None else mask & part
    return mask


def _highest_score(q: Tensor, k: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    """q k / sqrt(d) of each query and the key that gets the most weight, (B, H, N, 1), float32 at least.

    `mask` is boolean (True = may attend) or additive; with `is_causal` there is none, and N = M.
    """
    if k.shape[2] == 0:
        return q.new_zeros(*q.shape[:3], 1)
    dtype, root = torch.promote_types(q.dtype, torch.float32), math.sqrt(q.shape[-1])
    with torch.no_grad():
        best = torch.cat([_best_keys(q, k, mask, is_causal, rows) for rows in _stretches(q.shape[2])], 2)
    found = k.gather(2, best.expand(-1, -1, -1, k.shape[-1]))
    return (q.to(dtype) * found.to(dtype)).sum(-1, keepdim=True) / root


def _stretches(queries: int) -> list[slice]:
    """The queries, some at a time; in a compiled program, whose length may be any, all at once."""
    if torch.compiler.is_compiling():
        return [slice(0, queries)]
    return [slice(first, min(first + _STRETCH, queries)) for first in range(0, queries, _STRETCH)] or [
        slice(0)
    ]


def _best_keys(q: Tensor, k: Tensor, mask: Tensor | None, is_causal: bool, rows: slice) -> Tensor:
    """The key of the highest score of these queries, (B, H, rows, 1)."""
    k = k[:, :, : rows.stop] if is_causal else k
    scores = q[:, :, rows] @ k.mT
    if is_causal:
        number = torch.arange(rows.stop, device=q.device)
        return scores.masked_fill(number > number[rows, None], -torch.inf).argmax(-1, keepdim=True)
    if mask is not None:
        mask = mask if mask.shape[2] == 1 else mask[:, :, rows]
        additive = mask.dtype != torch.bool
        # the scores here are not divided by sqrt(d)
        scores = scores + mask * math.sqrt(q.shape[-1]) if additive else scores.masked_fill(~mask, -torch.inf)
    return scores.argmax(-1, keepdim=True)


def _softmax_weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d)) under a boolean (True = may attend) or additive mask; float32 at least."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(dtype) @ k.to(dtype).transpose(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1)


def check_options(
    head_dim: int,
    position: Any,
    delay: Any,
    token_shift: Any,
    short_convolution: Any = None,
    qk_norm: Any = False,
    value_residual: Any = False,
    score_gate: Any = False,
    rotary_scaling: Any = 1.0,
    trained_length: Any = 1024,
) -> None:
    """Make sure that the options of the layer, or of a configuration, are in range.

    Raises:
        TypeError, ValueError: they are not.
    """
    check_choice("position", position, POSITIONS)
    if position == "rotary" and head_dim % 2:
        raise ValueError(f"position='rotary' needs an even head_dim (embed_dim / num_heads), got {head_dim}")
    check_delay(delay)
    check_looking_back(token_shift, short_convolution)
    check_flag("qk_norm", qk_norm)
    check_flag("value_residual", value_residual)
    check_flag("score_gate", score_gate)
    check_real("rotary_scaling", rotary_scaling, "at least 1 and finite", lambda x: 1 <= x < math.inf)
    if position != "rotary" and rotary_scaling != 1:
        raise ValueError(f"rotary_scaling must be 1 with position={position!r}, got {rotary_scaling}")
    check_count("trained_length", trained_length)
