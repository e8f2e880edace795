"""One more token after a cached past: what does not change from token to token is looked at and made once.

A layer's `forward` takes many kinds of call, and for a single token to decide which one it is costs more than
to compute. Here stands one kind alone, that of generation on a CPU without padding. It does the same
operations in the same order, so the same bits come out; any other kind is left to `forward`.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from syncattn.backends.backend import Decoding, DecodingLayer
from syncattn.backends.call import STRONGEST, WEAKEST, check
from syncattn.backends.select import asked_for, choose
from syncattn.nn.frequency import Frequency, shortened, turn_values
from syncattn.nn.gate import openness
from syncattn.nn.groups import BLOCK, Heads, may_look, pick
from syncattn.nn.hooks import applied, is_plain, nobody_listens
from syncattn.nn.residual import mix_first_value
from syncattn.nn.state import IncrementalState


class Prepared(NamedTuple):
    """What a layer's later tokens have in common."""

    known: tuple[Any, ...]  # what it was made of, see `_known`
    watched: tuple[Tensor, ...]  # the tensors that it was made of
    heads: tuple[Heads, ...]  # the groups' at that time
    drifts: bool  # whether the kernel moves contents along; else the frequency module is called
    has_delay: bool
    kernel: Decoding | None  # None: `forward` has to compute


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
    if ready is None or not _still_fits(ready, layer, state):
        ready = state.decoding = _prepared(layer, state)
    if ready.kernel is None:
        return None
    batch, heads, frequency, alone = x.shape[0], layer.num_heads, layer.frequency, nobody_listens()
    key = value = x
    if layer.shift is not None:
        before = state.last_input[:, None]  # type: ignore[index]
        # a token shift's (2, E), or (2, 1, E) of a convolution of width 2
        key, value = (x + layer.shift.view(2, 1, 1, -1) * before).unbind()  # each (B, 1, E)
    at: Any = None
    sent: Tensor | None = None
    if not ready.drifts or layer.value_rotation is not None:
        at = torch.full((1, 1, 1), state.length, dtype=torch.int64, device=x.device)
    if ready.drifts:
        content, sent = _contents(frequency, key, alone)
    else:
        content, sent, *_ = frequency(None, key, at, at, None)
    value = applied(layer.value_proj, value, alone)
    if first_value is not None:
        value = mix_first_value(value, first_value, layer.value_mix)
    value = value.view(batch, heads, 1, -1)
    if layer.value_rotation is not None:
        value = turn_values(value, at, layer.value_rotation)
    length: Tensor | None = None
    sums: Tensor | None = None
    if layer.phase_proj is not None and state.phase_sum is not None:
        phase = applied(layer.phase_proj, key, alone).view(batch, heads, -1)
        sums = torch.stack((phase.cos(), phase.sin()), dim=-1) + state.phase_sum
        length = torch.linalg.vector_norm(sums, dim=-1)
        length = length if length.shape[-1] == 1 else length.mean(-1)
    nearest = None if layer.gate is None else value.new_empty(batch, heads)
    given = [x if x is None else x.contiguous() for x in (content, sent, value, length, nearest)]
    if any(x is not None and x.dtype != torch.float32 for x in given):
        return None  # a projection was given another dtype, which `forward` brings to one
    made = _computed(ready.kernel, state, ready.has_delay, *given)
    if made is None:
        # Numbers were changed by ways that leave no trace, as by `.data`, or cannot be computed with.
        ready = state.decoding = _prepared(layer, state)
        made = None if ready.kernel is None else _computed(ready.kernel, state, ready.has_delay, *given)
        if made is None:
            return None
    out, emitted = made
    if layer.value_rotation is not None:
        out = turn_values(out.view(batch, heads, 1, -1), -at, layer.value_rotation).view(batch, 1, -1)
    if nearest is not None:
        opened = openness(layer.gate, nearest[..., None], layer.freq_dim)
        out = (out.view(batch, heads, 1, -1) * opened).view(batch, 1, -1)
    out = applied(layer.out_proj, out, alone)
    # From here on nothing fails: whatever did, the past is as it was.
    state.groups = tuple(group.with_next() for group in state.groups)
    state.last_emitted, state.phase_sum = emitted.view(batch, heads, -1), sums
    state.last_input = None if layer.shift is None else x[:, 0].clone()
    state.count = state.count.add(1)  # type: ignore[union-attr]
    return out


def _contents(frequency: Frequency, x: Tensor, alone: bool) -> tuple[Tensor, Tensor | None]:
    """What one token x (B, 1, E) listens with, (B, H, 1, c), and what it emits; None: the same."""
    shape = len(x), frequency.num_heads, 1, -1
    content, sent = applied(frequency.receive_proj, x, alone).reshape(shape), None
    radius = sent_radius = frequency.log_radius
    if frequency.ask_proj is not None:
        content, sent = content + frequency.asked(x), content
    elif frequency.send_proj is not None:
        sent, sent_radius = applied(frequency.send_proj, x, alone).reshape(shape), frequency.log_sent_radius
    if radius is not None:
        content = shortened(content, radius)
    if sent is not None and sent_radius is not None:
        sent = shortened(sent, sent_radius)
    return content, sent


def _computed(
    kernel: Decoding, state: IncrementalState, has_delay: bool, *given: Any
) -> tuple[Tensor, Tensor] | None:
    """The kernel's result for one token behind the state's groups."""
    assert state.count is not None
    for number, group in enumerate(state.groups):
        room, start = group.room, state.starts[number] if state.starts else 0
        assert room is not None
        kernel.show(number, room.send, room.value, room.filled, group.skip + max(0, start - group.first))
    before = state.last_emitted.contiguous() if has_delay and state.last_emitted is not None else None
    content, sent, value, length, nearest = given
    return kernel(content, sent, before, value, length, state.count, nearest)


def _is_usual(layer: Any, x: Tensor, state: IncrementalState, first_value: Tensor | None) -> bool:
    """Whether the call is of the kind that this file knows, by what costs next to nothing to look at."""
    if x.ndim != 3 or x.shape[1:] != (1, layer.embed_dim) or not layer.batch_first or not x.shape[0]:
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
    if layer.gate is not None and (layer.frame != "nearest" or layer.gate.dtype != x.dtype):
        return False
    if first_value is not None and (first_value.shape != x.shape or first_value.dtype != x.dtype):
        return False
    if state.last_emitted is None or state.count is None or state.count.shape[0] != x.shape[0]:
        return False
    if (state.phase_sum is None) != (layer.phase_proj is None):
        return False
    if state.windows is not None and (state.length + 1) // BLOCK * BLOCK > state.looked:
        return False  # it is time to look what can be forgotten
    return all(group.has_room for group in state.groups)


def _known(layer: Any) -> tuple[Any, ...]:
    """What `_prepared` reads of a layer besides tensors."""
    frequency = layer.frequency
    plain = type(frequency) is Frequency and is_plain(frequency)
    options = layer.self_coupling, layer.top_k, layer.frame, layer.power, layer.edge, layer.eps
    return (id(layer), asked_for(), plain, plain and frequency.detuning is None, *options)


def _watched(layer: Any) -> tuple[Tensor, ...]:
    """The tensors that it reads, from the modules' own books: by attribute it takes longer."""
    own, frequency = layer._parameters, layer.frequency
    of_frequency = frequency._parameters
    found = (
        *(own.get("raw_coupling"), own.get("raw_bandwidth")),
        *(of_frequency.get("log_slope"), of_frequency.get("direction"), frequency._buffers.get("delayed")),
    )
    return tuple(x for x in found if x is not None)


def _still_fits(ready: Prepared, layer: Any, state: IncrementalState) -> bool:
    if ready.known != _known(layer) or len(ready.heads) != len(state.groups):
        return False
    if any(own is not group.heads for own, group in zip(ready.heads, state.groups, strict=True)):
        return False
    watched = _watched(layer)
    if len(watched) != len(ready.watched) or not all(map(operator.is_, watched, ready.watched)):
        return False
    return ready.kernel is None or ready.kernel.stands()


def _prepared(layer: Any, state: IncrementalState) -> Prepared:
    """All that later tokens have in common, of a layer and a state that `_is_usual` passed."""
    frequency, known, watched = layer.frequency, _known(layer), _watched(layer)
    alike = frequency.detuning is None and len({*frequency.directed}) == 1
    plain = known[2] and frequency.position == "drift" and alike
    heads = tuple(group.heads for group in state.groups)
    kernel = None
    if all(map(_has_memory, watched)):
        kernel = _kernel(layer, state, frequency.drifts() if plain else None, watched)
    return Prepared(known, watched, heads, plain, frequency.has_delay, kernel)


def _has_memory(x: Tensor) -> bool:
    """Whether a kernel can read and compare a tensor's numbers where they stand: not where a hook brings them
    for a call of the module, as offloading does, nor where a type of its own holds them."""
    if type(x) not in (Tensor, torch.nn.Parameter) or not x.is_cpu or not x.is_contiguous():
        return False
    return x.dtype in (torch.float32, torch.bool) and x.data_ptr() != 0


def _kernel(
    layer: Any, state: IncrementalState, drift: tuple[Tensor, Tensor] | None, watched: tuple[Tensor, ...]
) -> Decoding | None:
    """What computes the tokens, of the backend that takes the layer's calls; None: it has no such thing."""
    if len({"raw_coupling", "raw_bandwidth"} & layer._parameters.keys()) < 2:
        return None  # reparametrised: what they are made of is not watched
    coupling, bandwidth = layer.coupling.detach().contiguous(), layer.bandwidth.detach()
    if not bool((coupling >= WEAKEST).all() and (coupling <= STRONGEST).all()):
        return None
    options = {name: getattr(layer, name) for name in ("top_k", "frame", "power", "edge", "eps")}
    calls = []
    for group in state.groups:
        receive = group.send.new_zeros(*group.send.shape[:2], 1, group.send.shape[3])
        call = check(
            *(receive, group.send, group.value),
            *(pick(coupling, group.heads, 0), pick(bandwidth, group.heads, 0)),
            is_causal=True,
            self_coupling=layer.self_coupling,
            checked_senders=group.checked,
            **options,
        )
        calls.append(call)
    chosen = {choose(call).decoding for call in calls}
    decoding = chosen.pop()
    if chosen or decoding is None:
        return None
    if drift is not None:
        drift = drift[0].flatten().contiguous(), drift[1].flatten(0, 1).contiguous()
    delayed = layer.frequency.delayed if layer.frequency.has_delay else None
    every = torch.arange(len(coupling), dtype=torch.int64, device=coupling.device)
    heads = tuple(None if group.heads is None else pick(every, group.heads, 0) for group in state.groups)
    return decoding(calls, DecodingLayer(heads, coupling, drift, delayed, watched))
