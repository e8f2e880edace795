"""The operator: one public function, and the order parameter that scales its coupling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from syncattn.backends.call import check, require_dense, within_bounds, without_autocast
from syncattn.backends.nearest import nearest_detuning
from syncattn.backends.select import asked_for, choose


def selective_synchronization_attention(
    receive: Tensor,
    send: Tensor,
    value: Tensor,
    coupling: Tensor,
    bandwidth: Tensor,
    *,
    attn_mask: Tensor | None = None,
    sequence_ids: Tensor | None = None,
    is_causal: bool = False,
    self_coupling: bool = True,
    top_k: int | None = None,
    dropout_p: float = 0.0,
    frame: str = "absolute",
    power: float = 1,
    edge: float = 0.0,
    eps: float = 1e-8,
    backend: str | None = None,
    return_weights: bool = False,
    return_nearest: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    r"""Selective Synchronization Attention (Hays 2026, arXiv 2602.14445).

    Receiver i and sender j with squared detuning :math:`D_{ij} = |w^r_i - w^s_j|^2` lock when
    :math:`F_{ij} = e^{-2 \alpha D_{ij}} - D_{ij} / \kappa^2 > 0`; their synchronization is
    :math:`S_{ij} = \sqrt{\max(F_{ij}, 0)}`, the paper's :math:`J \cos \arcsin(\sqrt D / (\kappa J))`,
    and :math:`out_i = \sum_j S_{ij} v_j / (\sum_j S_{ij} + eps)`. Pairs that do not lock weigh exactly 0;
    a row that locks to nobody is exactly 0.

    Tensors are dense: nested and sparse ones are refused. B, N, M and d may be 0: no sequences, no tokens.

    Args:
        receive: receive frequencies (B, H, N, m): float32, bfloat16, float16 or float64.
        send: send frequencies (B, H, M, m), receive's dtype. Pass the same tensor for the symmetric form.
        value: values (B, H, M, d), of any of these dtypes. `send` and `value` may have fewer heads than
            `receive`, a divisor of H (grouped heads, as `enable_gqa` in SDPA).
        coupling: effective coupling kappa = K r > 0: (H,), (B, H) or, per query, (B, H, N).
        bandwidth: alpha > 0, (H,): the coupling's decay with squared detuning.
        attn_mask: boolean, broadcastable to (B, H, N, M), True = may attend, as in SDPA. A float mask is
            accepted only if it holds nothing but 0 and -inf.
        sequence_ids: which of several texts in one row each sender belongs to, integers (B or 1, M); the
            receivers are the last N of these tokens. Pairs of different ids are not allowed, nor are those of
            negative ones, which are padding. Where a text's tokens stand side by side, with ids that rise
            from text to text, pairs of other texts cost nothing. `syncattn.sequence_ids_of` makes them of
            flash-attention's cu_seqlens.
        is_causal: query i attends to keys j <= i + (M - N): queries sit at the end. Needs M >= N. May be
            combined with `attn_mask`.
        self_coupling: False leaves out the pair of a token with itself, j = i + (M - N). Needs M >= N.
        top_k: keep, of the allowed senders, the k nearest in frequency (those of largest S); on a tie the
            earlier. More than M keeps all.
        dropout_p: dropout of the normalised weights, always applied when > 0 (as in SDPA: pass 0 in eval).
        frame: "absolute" as in the paper, or "nearest": D is counted from the row's smallest allowed D, so
            that every row with an allowed sender locks at least once.
        power: the strength is S**power. 1 is the paper, 2 needs no square root and has no singular gradient.
        edge: e >= 0 regularises the gradient at the locking edge: S = sqrt(max(F, 0) + e^2) - e. It keeps
            the exact zeros; S is low by at most e.
        eps: added to the row sum.
        backend: None for the best that can take the call, or a name; see `syncattn.backends.explain`.
        return_weights: also return S and P.
        return_nearest: also return how far each receiver's nearest allowed sender is, its D. In the nearest
            frame it is at hand (but for values of no columns); in the absolute one it is looked for.

    Returns:
        out (B, H, N, d) in value's dtype. With `return_weights`: (out, S, P), S the synchronization before
        `power` and P the normalised weights before dropout, both (B, H, N, M) in the compute dtype, which is
        float32, or float64 if receive or value is. With `return_nearest` one more at the end: the smallest D
        of the allowed senders, whatever the frame (B, H, N), in the compute dtype, 0 where there is none. Its
        gradient is that of this one pair; of senders equally near, the earliest.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it, what was given and what is
            expected. Values are checked on the CPU outside of compilation; elsewhere bad values give NaN.

    Example:
        >>> w = torch.randn(1, 4, 128, 8)
        >>> v = torch.randn(1, 4, 128, 64)
        >>> out = selective_synchronization_attention(w, w, v, torch.full((4,), 8.0), torch.full((4,), 0.05))
        >>> out.shape
        torch.Size([1, 4, 128, 64])
    """
    return go_on(
        0,
        receive,
        send,
        value,
        coupling,
        bandwidth,
        backend=backend,
        attn_mask=attn_mask,
        sequence_ids=sequence_ids,
        is_causal=is_causal,
        self_coupling=self_coupling,
        top_k=top_k,
        dropout_p=dropout_p,
        frame=frame,
        power=power,
        edge=edge,
        eps=eps,
        return_weights=return_weights,
        return_nearest=return_nearest,
    )


def go_on(
    checked_senders: int, *tensors: Tensor, backend: str | None = None, **options: Any
) -> Tensor | tuple[Tensor, ...]:
    """`selective_synchronization_attention` of the other arguments, where the first so many senders are known
    to be finite: those of a cache, whose values were looked at when they came."""
    call = check(*tensors, checked_senders=checked_senders, **options)
    chosen = choose(call, backend)
    if call.dropout_p > 0:
        seed = torch.randint(0, 2**62, (), dtype=torch.int64, device=call.receive.device)
        call = call._replace(seed=seed)
    if not chosen.keeps_bounds:
        call = within_bounds(call)
    with without_autocast(call.receive.device):  # D and F are float32 at least
        if not call.return_nearest or chosen.gives_nearest(call, (backend or asked_for()) is not None):
            return chosen.run(call)
        found = chosen.run(call._replace(return_nearest=False))
        return *(found if isinstance(found, tuple) else (found,)), nearest_detuning(call)


def order_parameter(phase: Tensor, mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    r"""The Kuramoto order parameter: how coherent the phases are, from 0 (incoherent) to 1 (in phase).

    :math:`r = \frac1p \sum_k |\frac1n \sum_j e^{i t_{jk}}|`, the mean over the p phases of each token.

    Args:
        phase: phases in radians, (B, H, N, p), any floating dtype.
        mask: which tokens count. (B, N) bool: real tokens, the others are padding. Or 4-D, broadcastable to
            (B, H, Q, N) with one row per query: r per query, over the tokens that this query may see.
        is_causal: the running form: r of query i is over the tokens up to i only. With a mask of Q rows, the
            queries are the last Q tokens.

    Returns:
        (B, H); (B, H, N) if `is_causal`; (B, H, Q) with a mask per query; float32, or float64 if phase is.
        Where nobody counts (the padding before a sequence), r = 1, that of a lone oscillator.

    Raises:
        TypeError, ValueError: phase or mask is not as documented.

    Example:
        >>> order_parameter(torch.zeros(1, 2, 5, 3))
        tensor([[1., 1.]])
    """
    require_dense("phase", phase)
    if phase.ndim != 4 or not phase.is_floating_point():
        raise ValueError(
            f"phase must be a floating tensor (B, H, N, p), got {phase.dtype} {tuple(phase.shape)}"
        )
    if phase.shape[-1] == 0:
        raise ValueError("phase must have at least one phase per token, got p = 0")
    batch, heads, tokens, _ = phase.shape
    if mask is not None:
        require_dense("mask", mask)
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"mask must be boolean (True = the token counts), got {mask.dtype}")

    if mask is not None and mask.ndim == 4:
        if any(a not in (1, b) for a, b in zip(mask.shape, (batch, heads, mask.shape[2], tokens))):
            raise ValueError(
                f"mask must be broadcastable to (B, H, Q, N) = ({batch}, {heads}, Q, {tokens}), "
                f"got {tuple(mask.shape)}"
            )
        if is_causal:
            queries = mask.shape[2]
            if queries > tokens:
                raise ValueError(
                    f"is_causal=True needs at most as many queries as tokens (queries sit at the end), got a "
                    f"mask of {queries} queries for {tokens} tokens"
                )
            j = torch.arange(tokens, dtype=torch.int64, device=phase.device)
            mask = mask & (j <= j[tokens - queries :, None])
        parts, _ = phase_parts(phase, None)
        seen = mask.to(parts.dtype).expand(-1, -1, -1, tokens)
        with without_autocast(phase.device):
            sums = (seen @ parts.flatten(-2)).unflatten(-1, parts.shape[-2:])  # (B, H, Q, p, 2)
        return coherence(sums, seen.sum(-1))

    if mask is not None and mask.shape != (batch, tokens):
        raise ValueError(
            f"mask must have shape (B, N) = {(batch, tokens)} or be 4-D, broadcastable to (B, H, Q, N), "
            f"got {tuple(mask.shape)}"
        )
    parts, counts = phase_parts(phase, mask)
    if is_causal:
        return coherence(parts.cumsum(2), counts.cumsum(2))
    return coherence(parts.sum(2), counts.sum(2))


def phase_parts(phase: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
    """What the order parameter sums, of phases (B, H, N, p): (cos, sin) (B, H, N, p, 2); counts (B, 1, N).

    Both are 0 for tokens that are not real, (B, N) bool; float32 at least.
    """
    phase = phase.to(torch.promote_types(phase.dtype, torch.float32))
    parts = torch.stack((phase.cos(), phase.sin()), dim=-1)
    if real is None:
        return parts, torch.ones_like(parts[:, :1, :, 0, 0])
    return torch.where(real[:, None, :, None, None], parts, 0.0), real[:, None].to(phase.dtype)


def coherence(sums: Tensor, counts: Tensor) -> Tensor:
    """r from sums of (cos, sin): sums (..., p, 2), counts broadcasting to (...); 1 where the count is 0."""
    r = torch.linalg.vector_norm(sums, dim=-1).mean(-1) / counts.clamp(min=1)
    return torch.where(counts > 0, r, 1.0).clamp(max=1.0)
