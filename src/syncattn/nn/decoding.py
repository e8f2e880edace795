"""One more token after a cached past: what does not change from token to token is looked at and made once.

A layer's `forward` takes many kinds of call, and for a single token to decide which one it is costs more than
to compute. Here stands one kind alone, that of generation on a CPU without padding. It does the same
operations in the same order, so the same bits come out; any other kind is left to `forward`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from syncattn.backends.call import HIGHEST, STRONGEST, WEAKEST, check
from syncattn.backends.select import asked_for, choose
from syncattn.nn.frequency import Frequency, turn_values
from syncattn.nn.groups import BLOCK, Heads, may_look, pick, put_together
from syncattn.nn.residual import mix_first_value
from syncattn.nn.state import IncrementalState

_Kernel = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Decoding(NamedTuple):
    """What a layer's later tokens have in common."""

    known: tuple[Any, ...]  # what it was made of, see `_known`
    heads: tuple[Heads, ...]  # the groups' at that time
    kernels: tuple[_Kernel, ...]  # of each group; none: `forward` has to compute
    coupling: Tensor  # K (H, 1)
    delayed: Tensor | None  # (H, 1, 1) bool; None: no head is
    drift: tuple[Tensor, Tensor] | None  # slopes and directions (H, 1, 1), (H, 1, m); None: of other forms


def next_token(layer: Any, x: Tensor, state: IncrementalState, first_value: Tensor | None) -> Tensor | None:
    """What `layer.forward` gives for one token after the state's, which then holds it, too.

    None, and the state is as it was, where the call is of another kind, or an error has to be raised.

    Args:
        layer: a `SelectiveSynchronizationAttention`.
        x: (B, 1, E), real tokens.
        first_value: as `forward` takes it.
    """
    if torch.compiler.is_compiling() or not (_is_usual(layer, x, state, first_value) and may_look(x)):
        return None
    ready = state.decoding
    if ready is None or ready.known != _known(layer) or not _are_same(ready.heads, state):
        ready = state.decoding = _prepared(layer, state)
    if not ready.kernels:
        return None
    batch, place = len(x), state.length
    key = value = x
    if layer.shift is not None:
        before = state.last_input[:, None]  # type: ignore[index]
        key, value = x + layer.shift[0] * before, x + layer.shift[1] * before
    if ready.drift is None:
        at = torch.full((1, 1, 1), place, dtype=torch.int64, device=x.device)
        receive, emitted, *_ = layer.frequency(None, key, at, at, None)
    else:
        slopes, directions = ready.drift
        content = layer.frequency.receive_proj(key).view(batch, layer.num_heads, 1, -1)
        receive = emitted = content + slopes * place * directions
    send = emitted
    if ready.delayed is not None:
        send = torch.where(ready.delayed, state.last_emitted[:, :, None], emitted)  # type: ignore[index]
    value = layer.value_proj(value)
    if first_value is not None:
        value = mix_first_value(value, first_value, layer.value_mix)
    value = value.view(batch, layer.num_heads, 1, -1)
    if layer.value_rotation is not None:
        at = torch.full((1, 1, 1), place, dtype=torch.int64, device=x.device)
        value = turn_values(value, at, layer.value_rotation)
    coupling, sums = _coupling_of(layer, key, state, ready, place + 1)
    finite = _is_finite(receive) and (receive is emitted or _is_finite(emitted))
    if not (finite and coupling.min().item() > 0):
        return None
    out = _mixed(ready, state, receive.contiguous(), send, value, coupling)
    if layer.value_rotation is not None:
        out = turn_values(out, -at, layer.value_rotation)
    out = layer.out_proj(out.view(batch, 1, -1))
    # From here on nothing fails: whatever did, the past is as it was.
    state.groups = tuple(group.with_next() for group in state.groups)
    state.last_emitted, state.phase_sum = emitted[:, :, 0], sums
    state.last_input = None if layer.shift is None else x[:, 0].clone()
    state.count = state.count.add(1)  # type: ignore[union-attr]
    return out


def _is_usual(layer: Any, x: Tensor, state: IncrementalState, first_value: Tensor | None) -> bool:
    """Whether the call is of the kind that this file knows, by what costs next to nothing to look at."""
    if x.ndim != 3 or x.shape[1:] != (1, layer.embed_dim) or not layer.batch_first or not len(x):
        return False
    if x.dtype != torch.float32 or not x.is_cpu or torch.is_autocast_enabled("cpu"):
        return False
    if not state.groups or state.mask is not None or state.origin is not None or state.steps is not None:
        return False
    if layer.frequency.axes > 1 or (layer.training and layer.dropout):
        return False
    if (layer.shift is not None) != (layer.looks_back == 1 and state.last_input is not None):
        return False
    if (first_value is None) != (layer.value_mix is None):
        return False
    if first_value is not None and (first_value.shape != x.shape or first_value.dtype != x.dtype):
        return False
    if state.groups[0].value.shape[0] != len(x) or state.last_emitted is None or state.count is None:
        return False
    if (state.phase_sum is None) != (layer.phase_proj is None):
        return False
    if state.windows is not None and (state.length + 1) // BLOCK * BLOCK > state.looked:
        return False  # it is time to look what can be forgotten
    return all(group.has_room for group in state.groups)


def _known(layer: Any) -> tuple[Any, ...]:
    """What `_prepared` reads of a layer, as far as it is cheap to compare: a tensor by its version."""
    frequency = layer.frequency
    made_of = layer.raw_coupling, layer.raw_bandwidth, frequency.log_slope, frequency.direction
    tensors = [None if x is None else (id(x), x.data_ptr(), _version(x)) for x in made_of]
    hooked = frequency._forward_hooks or frequency._forward_pre_hooks or "forward" in vars(frequency)
    options = layer.self_coupling, layer.top_k, layer.frame, layer.power, layer.edge, layer.eps
    return (id(layer), asked_for(), bool(hooked), *options, *tensors)


def _version(x: Tensor) -> int:
    return -1 if x.is_inference() else x._version


def _prepared(layer: Any, state: IncrementalState) -> Decoding:
    """All that later tokens have in common, of a layer and a state that `_is_usual` passed."""
    frequency, coupling, kernels = layer.frequency, layer.coupling.detach(), []
    bandwidth = layer.bandwidth.detach()
    options = {name: getattr(layer, name) for name in ("top_k", "frame", "power", "edge", "eps")}
    for group in state.groups:
        receive = group.send.new_zeros(*group.send.shape[:2], 1, group.send.shape[3])
        tensors = receive, group.send, group.value, pick(coupling, group.heads, 0)
        call = check(
            *tensors,
            pick(bandwidth, group.heads, 0),
            is_causal=True,
            self_coupling=layer.self_coupling,
            checked_senders=group.checked,
            **options,
        )
        decoding = choose(call).decoding
        kernel = None if decoding is None else decoding(call)
        if kernel is not None:
            kernels.append(kernel)
    inside = bool((coupling >= WEAKEST).all() and (coupling <= STRONGEST).all())
    if len(kernels) < len(state.groups) or not inside:
        kernels = []
    known, drift = _known(layer), None
    hooked = known[2]
    plain = type(frequency) is Frequency and frequency.position == "drift" and frequency.symmetric
    if plain and not hooked:
        drift = frequency.drifts()
    return Decoding(
        known=known,
        heads=tuple(group.heads for group in state.groups),
        kernels=tuple(kernels),
        coupling=coupling[:, None],
        delayed=frequency.delayed[:, None, None] if frequency.has_delay else None,
        drift=drift,
    )


def _are_same(heads: tuple[Heads, ...], state: IncrementalState) -> bool:
    """Whether a state's groups are still of these heads."""
    return len(heads) == len(state.groups) and all(
        own is group.heads for own, group in zip(heads, state.groups, strict=True)
    )


def _coupling_of(
    layer: Any, key: Tensor, state: IncrementalState, ready: Decoding, count: int
) -> tuple[Tensor, Tensor | None]:
    """kappa = K r (B, H, 1) of token number `count`, and the phases' sums (B, H, p, 2) with it."""
    if state.phase_sum is None:
        return ready.coupling.expand(len(key), -1, -1), None
    phase = layer.phase_proj(key).view(len(key), layer.num_heads, -1)
    sums = torch.stack((phase.cos(), phase.sin()), dim=-1) + state.phase_sum
    r = (torch.linalg.vector_norm(sums, dim=-1).mean(-1, keepdim=True) / count).clamp(max=1.0)
    return (r * ready.coupling).clamp(min=1e-6), sums


def _mixed(
    ready: Decoding, state: IncrementalState, receive: Tensor, send: Tensor, value: Tensor, coupling: Tensor
) -> Tensor:
    """The operator's result (B, H, 1, d), each group of heads over what is to be read of its tokens."""
    results = []
    for number, (group, kernel) in enumerate(zip(state.groups, ready.kernels, strict=True)):
        own, start = group.heads, state.starts[number] if state.starts else 0
        held = group.next_to_read(pick(send, own), pick(value, own), start)
        results.append(kernel(pick(receive, own).contiguous(), *held, pick(coupling, own)))
    return results[0] if state.windows is None else put_together(results, state.windows)


def _is_finite(frequency: Tensor) -> bool:
    low, high = torch.aminmax(frequency)
    return low.item() >= -HIGHEST and high.item() <= HIGHEST  # NaN fails both
