"""Which tokens are real, where they stand in their sequence, and who came before: padding is never seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from syncattn.backends.call import boolean_mask, is_plain, is_transformed


def check_dense(name: str, x: Tensor) -> None:
    """Raise ValueError for a nested (jagged) or sparse tensor."""
    if x.is_nested or x.layout != torch.strided:
        raise ValueError(
            f"{name} must be a dense tensor (torch.nested.to_padded_tensor pads a nested one; a padding mask "
            f"says what is padding), got {'a nested one' if x.is_nested else x.layout}"
        )


def attend_themselves(query: Tensor, key: Tensor, self_attention: bool | None) -> bool:
    """Whether the queries are the keys: as `self_attention` says, or, for None, as far as that is known.

    Raises:
        ValueError: the caller says so, and key is not query, by its shape or, where that is free to see, by
            its values.
    """
    if self_attention is None:
        return same_tokens(query, key)
    if self_attention and key is not query:
        if key.shape != query.shape:
            raise ValueError(
                "self_attention=True needs key and value of query's shape, got query "
                f"{tuple(query.shape)} and key {tuple(key.shape)}"
            )
        free = is_plain(query) and is_plain(key)
        if free and (query.dtype != key.dtype or not torch.equal(query, key)):
            raise ValueError(
                "self_attention=True needs key to be query, or equal to it (leave one of the two out), got "
                f"{key.dtype} that differs by up to {(query - key).abs().max().item():.3g}"
            )
    return self_attention


def same_tokens(query: Tensor, key: Tensor) -> bool:
    """Whether key is query: the same object, or the same memory (a detached alias) where that is known."""
    if key is query:
        return True
    if torch.compiler.is_compiling() or type(key) not in (Tensor, torch.nn.Parameter) or key.is_meta:
        return False
    if is_transformed() or key.device != query.device or key.dtype != query.dtype or key.numel() == 0:
        return False
    alike = key.shape == query.shape and key.stride() == query.stride()
    return alike and key.data_ptr() == query.data_ptr()


def real_tokens(key_padding_mask: Tensor | None, batch: int, keys: int) -> Tensor | None:
    """(B, M) bool, True = a real token."""
    if key_padding_mask is None:
        return None
    if key_padding_mask.shape != (batch, keys):
        raise ValueError(
            f"key_padding_mask must have shape (B, M) = {(batch, keys)}, got {tuple(key_padding_mask.shape)}"
        )
    if key_padding_mask.is_floating_point():
        return boolean_mask(key_padding_mask, "key_padding_mask")
    if key_padding_mask.dtype != torch.bool:
        raise ValueError(
            "key_padding_mask must be boolean (True = padding) or hold 0 and -inf, "
            f"got {key_padding_mask.dtype}"
        )
    return ~key_padding_mask


def allowed_by_mask(
    attn_mask: Tensor | None, batch: int, heads: int, queries: int, keys: int
) -> Tensor | None:
    """`nn.MultiheadAttention`'s attn_mask as a 4-D boolean one, True = may attend."""
    if attn_mask is None:
        return None
    if attn_mask.is_floating_point():
        allowed = boolean_mask(attn_mask)
    elif attn_mask.dtype == torch.bool:
        allowed = ~attn_mask
    else:
        raise ValueError(
            f"attn_mask must be boolean (True = may not attend) or hold 0 and -inf, got {attn_mask.dtype}"
        )
    if allowed.ndim == 3 and allowed.shape[0] == batch * heads:
        allowed = allowed.unflatten(0, (batch, heads))
    shape = (batch, heads, queries, keys)
    if allowed.ndim not in (2, 4) or any(a not in (1, b) for a, b in zip(allowed.shape[::-1], shape[::-1])):
        raise ValueError(
            f"attn_mask must have shape (N, M) = {shape[2:]}, (B * H, N, M) = {(batch * heads, *shape[2:])} "
            f"or be 4-D and broadcastable to (B, H, N, M) = {shape}, got {tuple(attn_mask.shape)}"
        )
    return allowed.reshape((1,) * (4 - allowed.ndim) + allowed.shape)


def positions(real: Tensor | None, tokens: int, count: Tensor | None, device: torch.device) -> Tensor:
    """(B or 1, N) int64: each token's number among its sequence's real tokens, from 0."""
    if real is None:
        position = torch.arange(tokens, dtype=torch.int64, device=device)[None]
    else:
        position = real.cumsum(-1) - 1
    return position if count is None else position + count


def last_real(emitted: Tensor, real: Tensor | None, last: Tensor | None) -> Tensor | None:
    """What the last real token emitted (B, H, m); where there is none, what was remembered, or 0."""
    if emitted.shape[2] == 0:
        return last
    if real is None:
        return emitted[:, :, -1]
    number = torch.arange(1, real.shape[-1] + 1, dtype=torch.int64, device=real.device)
    latest = torch.where(real, number, 0).amax(-1)  # (B,), 0 = none
    before = torch.zeros_like(emitted[:, :, 0]) if last is None else last
    candidates = torch.cat((before[:, :, None], emitted), dim=2)
    index = latest[:, None, None, None].expand(-1, emitted.shape[1], 1, emitted.shape[-1])
    return candidates.gather(2, index)[:, :, 0]


def number_before(real: Tensor) -> Tensor:
    """(B, N) int64: the number, from 1, of the real token before each one; 0 where there is none."""
    tokens = real.shape[-1]
    number = torch.arange(1, tokens + 1, dtype=torch.int64, device=real.device).expand_as(real)
    count = real.cumsum(-1)
    # The c-th real token's number at place c. A running maximum would say it in one line, which ONNX has not.
    ordered = number.new_zeros(real.shape[0], tokens + 1).scatter(
        1, torch.where(real, count, 0), torch.where(real, number, 0)
    )
    return ordered.gather(1, count - real.to(count.dtype))


def shift_by_one(x: Tensor, first: Tensor, real: Tensor | None) -> Tensor:
    """To each token of x (B, H, N, m) what the real token before it has; first (B, H, m) to the first."""
    shifted = torch.cat((first[:, :, None], x), dim=2)  # (B, H, N + 1, m)
    if real is None:
        return shifted[:, :, : x.shape[2]]
    return shifted.gather(2, number_before(real)[:, None, :, None].expand_as(x))


def last_real_input(x: Tensor, real: Tensor | None, before: Tensor | None) -> Tensor | None:
    """The last real token of x (B, N, E), (B, E); where there is none, `before`, or 0."""
    latest = last_real(x[:, None], real, None if before is None else before[:, None])
    return None if latest is None else latest[:, 0].clone()  # a view would keep all of x alive


def mix_previous(
    x: Tensor, amount: Tensor, before: Tensor | None, real: Tensor | None, follows: Tensor | None = None
) -> Tensor:
    """x_i + amount * x_(i - 1), channel by channel: x (B, N, E), amount (E,), before (B, E) or None for 0.

    The token before is the real one before; `amount` scales each channel of it. Where `follows` (B or 1, N)
    bool is False there is none. With an amount (L, E) for each of the L tokens before, the last one first, it
    is a causal convolution of width L + 1, and before is (B, L E), as `with_before` makes it.
    """
    if before is None and real is None and follows is None and _is_trained(x, amount):
        return _MixedPrevious.apply(x, amount)
    amounts = amount if amount.ndim == 2 else amount[None]
    out = x
    for each, previous in zip(amounts, tokens_before(x, len(amounts), before, real, follows), strict=True):
        out = out + each * previous
    return out


def _is_trained(x: Tensor, amount: Tensor) -> bool:
    """Whether `_MixedPrevious` pays and can: nothing but autograd looks on."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return False
    alike = amount.ndim == 1 and x.dtype == amount.dtype and x.shape[1] > 1
    return alike and not (is_transformed() or torch.jit.is_tracing())


class _MixedPrevious(torch.autograd.Function):
    """`mix_previous` of whole rows of text, which passes over x and the gradient once each: in autograd's own
    steps shift, product and sum, and the gradient of each, are several times the memory traffic."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, amount: Tensor) -> Tensor:
        ctx.save_for_backward(x, amount)
        out = torch.empty_like(x)
        out[:, :1] = x[:, :1]
        torch.addcmul(x[:, 1:], x[:, :-1], amount, out=out[:, 1:])
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, amount = ctx.saved_tensors
        of_amount = (grad[:, 1:] * x[:, :-1]).sum((0, 1))
        # Neither second derivatives nor a batch of gradients (is_grads_batched) allow writing into a tensor.
        if torch.is_grad_enabled() or torch._C._functorch.is_legacy_batchedtensor(grad):
            return grad + amount * torch.nn.functional.pad(grad, (0, 0, -1, 1)), of_amount
        of_x = torch.empty_like(grad)
        of_x[:, -1:] = grad[:, -1:]
        torch.addcmul(grad[:, :-1], grad[:, 1:], amount, out=of_x[:, :-1])
        return of_x, of_amount


def tokens_before(
    x: Tensor, count: int, before: Tensor | None, real: Tensor | None, follows: Tensor | None = None
) -> list[Tensor]:
    """The real token before each one of x (B, N, E), the one before that, and so on, `count` of them.

    Args:
        before: what stood before the first, (B, count E), the last one first; None for 0.
        real: (B, N) bool, False = padding; None if there is none.
        follows: (B or 1, N) bool, False where no token is before; None: everywhere one is.
    """
    batch, _, width = x.shape
    firsts = x.new_zeros(batch, count * width) if before is None else before
    found = [x]
    for first in firsts.split(width, dim=-1):
        previous = shift_by_one(found[-1][:, None], first[:, None], real)[:, 0]
        found.append(previous if follows is None else torch.where(follows[..., None], previous, 0))
    return found[1:]


def with_before(x: Tensor, count: int, before: Tensor | None, real: Tensor | None) -> Tensor:
    """Each token of x (B, N, E) and the count - 1 before it side by side, (B, N, count E): what
    `mix_previous` takes as `before` if it stood last. `before` as there."""
    if count == 1:
        return x
    earlier = None if before is None else before[:, : (count - 1) * x.shape[2]]
    return torch.cat((x, *tokens_before(x, count - 1, earlier, real)), dim=-1)


def delayed_heads(num_heads: int, delay: float | Sequence[bool], device: torch.device | str | None) -> Tensor:
    """(H,) bool: which heads a delay on this fraction delays, spread evenly over the heads; or as it says."""
    if isinstance(delay, (tuple, list)):
        pattern = list(delay)
    else:
        assert isinstance(delay, (int, float))
        pattern = [math.floor((h + 1) * delay) > math.floor(h * delay) for h in range(num_heads)]
    return torch.tensor(pattern, dtype=torch.bool, device=device)
