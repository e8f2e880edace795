"""Selective Synchronization Attention as a layer, call-compatible with `nn.MultiheadAttention`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from syncattn.backends.call import Call, prepare
from syncattn.checks import check_count, check_flag, check_real
from syncattn.functional import go_on, selective_synchronization_attention
from syncattn.nn.coupled_heads import CoupledHeads
from syncattn.nn.coupling import coherence_of_seen, effective_coupling, running_coherence
from syncattn.nn.decoding import next_token
from syncattn.nn.frequency import Frequency, turn_values
from syncattn.nn.gate import new_gate, openness
from syncattn.nn.hosts import NeverFused
from syncattn.nn.inputs import Inputs, batch_first, checked_inputs, go_on_from, with_texts
from syncattn.nn.operands import as_they_are, by_groups, in_every_form, remember_
from syncattn.nn.options import check_looking_back, check_synchronization, check_value_rotation
from syncattn.nn.places import find_places, lattice, with_positions
from syncattn.nn.published import published, renamed_parameters
from syncattn.nn.residual import check_first_value, mix_first_value, new_value_mix
from syncattn.nn.shift import Mixed, mix_tokens
from syncattn.nn.sight import fold, who_sees_whom
from syncattn.nn.state import IncrementalState


class SelectiveSynchronizationAttention(NeverFused, CoupledHeads):
    """Multi-head attention among oscillators: pairs that phase-lock exchange values, others weigh exactly 0.

    The defaults are the trainable form. `from_reference` builds the published one (Hays, arXiv 2602.14445).

    Args:
        embed_dim: E, size of the hidden states.
        num_heads: H, a divisor of E.
        dropout: on the weights, in training.
        bias: of the value and output projections.
        batch_first: inputs are (B, N, E) if True, (N, B, E) if False. The default differs from
            `nn.MultiheadAttention`, where it is False.
        freq_dim: m, coordinates of a frequency; None for the smaller of 16 and E / H.
        phase_dim: phases per token and head, seen only by the order parameter.
        directed, directed_rank, position, window_range, windows, delay, detuning, freq_bias, bounded_content,
            axes, helix_scales: see `syncattn.nn.Frequency`. `syncattn.nn.preset` has mixes of heads by name.
        token_shift: frequencies are made of x_j + a * x_(j-1), values of x_j + b * x_(j-1), with learned a
            and b (E,) that start at 0: tokens mix with the ones before them (compare Peng et al. 2023). The
            models of `syncattn.models` have it by default, a layer, which may stand anywhere, does not.
        short_convolution: None, or the width L + 1 of a causal convolution in place of the token shift:
            frequencies are made of x_j + sum of a_l * x_(j-l) over l = 1 ... L, values likewise, with learned
            a and b (L, E) that start at 0. Width 2 is the token shift.
        value_residual: values are c * v + c1 * v1, with v1 what the network's first layer made of the same
            tokens (Zhou et al. 2024), given as `first_value`; c and c1 are learned and start at 1/2.
        nearest_gate: each head's result is multiplied by 2 sigmoid(a - b D / m), D the squared detuning of
            the receiver's nearest sender, with a learned a and b per head that start at 0: a head that finds
            no match can be silent, which the nearest frame alone does not let it be. In that frame it costs
            next to nothing; in the absolute one the nearest sender is looked for. With self_coupling a
            symmetric head's nearest sender is the token itself, at D = 0: b then has no effect.
        self_coupling: whether a token may listen to itself. In the Kuramoto sum the self term is sin 0 = 0.
        value_rotation: None, or the base of co-rotating values: v_j is turned by R(x_j), pairs of coordinates
            by angles proportional to its position, as "rotary" turns frequencies, with this number in place
            of 10,000; the result is turned back by R(-x_i). What arrives then says how far away it came from.
            No parameters; needs an even E / H. Or a list with one of them for each head; None, or False,
            for one whose values stay as they are.
        frame, power, edge, top_k, eps: see `syncattn.selective_synchronization_attention`. An eps near 1
            weighs as much as a locked sender whose value is 0: a head can then be nearly silent.
        order_parameter: scale the coupling by the phases' coherence r; False sets r = 1.
        density_range: the densities of the first and the last head at initialisation, between them in
            geometric progression, for 128 causal tokens (with drift, longer texts lock more sparsely). None
            leaves `parametrisation`'s plain initialisation.
        sharpness: c = 2 alpha kappa^2 at initialisation. Large: strengths fade before the locking edge comes.
        parametrisation: how coupling and bandwidth are made of parameters: "log" (one of each per head; their
            gradients do not fade), or "softplus" of raw parameters that start at 1, the coupling shared by
            all heads: the published form, which at this initialisation is the identity and does not train.

    Shape: see `forward`.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        batch_first: bool = True,
        *,
        freq_dim: int | None = None,
        phase_dim: int = 1,
        directed: bool | Sequence[bool] = False,
        directed_rank: int | None = None,
        position: str | Sequence[str] = "drift",
        window_range: tuple[float, float] = (4.0, 64.0),
        windows: Sequence[float | None] | None = None,
        delay: float | Sequence[bool] = 0.5,
        detuning: bool = False,
        token_shift: bool = False,
        self_coupling: bool = False,
        frame: str = "nearest",
        power: float = 2,
        edge: float = 0.0,
        eps: float = 1e-8,
        top_k: int | None = None,
        order_parameter: bool = True,
        density_range: tuple[float, float] | None = (0.05, 0.5),
        sharpness: float = 100.0,
        parametrisation: str = "log",
        freq_bias: bool = False,
        bounded_content: bool = False,
        axes: int = 1,
        helix_scales: Sequence[float] | Sequence[Sequence[float] | None] = (4.0, 16.0, 64.0),
        value_rotation: float | Sequence[float | bool | None] | None = None,
        short_convolution: int | None = None,
        value_residual: bool = False,
        nearest_gate: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_heads, density_range, sharpness, parametrisation)
        if embed_dim < 1 or num_heads < 1 or embed_dim % num_heads:
            raise ValueError(
                f"num_heads must divide embed_dim, got embed_dim={embed_dim}, num_heads={num_heads}"
            )
        self.head_dim = embed_dim // num_heads
        freq_dim = min(16, self.head_dim) if freq_dim is None else freq_dim
        check_count("phase_dim", phase_dim)
        check_real("dropout", dropout, "in [0, 1)", lambda x: 0 <= x < 1)
        check_synchronization(frame, power, edge, eps, top_k)
        check_looking_back(token_shift, short_convolution)
        check_flag("value_residual", value_residual)
        check_flag("nearest_gate", nearest_gate)
        check_flag("self_coupling", self_coupling)
        check_flag("order_parameter", order_parameter)
        check_flag("freq_bias", freq_bias)
        check_flag("bounded_content", bounded_content)
        check_count("axes", axes)
        check_value_rotation(value_rotation, num_heads, self.head_dim, axes)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embed_dim, self.freq_dim = embed_dim, freq_dim
        self.dropout, self.batch_first = dropout, batch_first
        self.self_coupling, self.frame, self.power, self.edge = self_coupling, frame, power, edge
        self.eps, self.top_k = eps, top_k
        self.value_rotation = tuple(value_rotation) if isinstance(value_rotation, list) else value_rotation
        self.frequency = Frequency(
            embed_dim,
            num_heads,
            freq_dim,
            directed=directed,
            directed_rank=directed_rank,
            position=position,
            window_range=window_range,
            windows=windows,
            delay=delay,
            detuning=detuning,
            bias=freq_bias,
            bounded_content=bounded_content,
            axes=axes,
            helix_scales=helix_scales,
            **factory,
        )
        self.phase_proj = nn.Linear(embed_dim, num_heads * phase_dim, **factory) if order_parameter else None
        self.value_proj = nn.Linear(embed_dim, embed_dim, bias, **factory)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias, **factory)
        # (2, E) or (2, L, E): the shares of tokens before in what frequencies, and what values, are made of
        self.looks_back = 1 if token_shift else (short_convolution or 1) - 1
        self.shift = None
        if self.looks_back:
            shape = (2, embed_dim) if token_shift else (2, self.looks_back, embed_dim)
            self.shift = nn.Parameter(torch.empty(shape, **factory))
        self.value_mix = new_value_mix(**factory) if value_residual else None
        self.gate = new_gate(num_heads, **factory) if nearest_gate else None
        self._add_coupling(**factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise; in the form "log", calibrate the densities on synthetic layer-normalised tokens.

        On real data, `syncattn.nn.calibrate` does it better: real tokens repeat, so more of them lock.
        """
        if self.raw_coupling.is_meta:  # there is nothing to fill
            return
        if self.shift is not None:
            nn.init.zeros_(self.shift)
        if self.value_mix is not None:
            nn.init.constant_(self.value_mix, 0.5)
        if self.gate is not None:
            nn.init.zeros_(self.gate)
        self._reset_coupling(self.freq_dim)
        if self.parametrisation == "softplus":
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    module.reset_parameters()
            return
        self.frequency.reset_parameters()
        if self.phase_proj is not None:
            self.phase_proj.reset_parameters()
        for projection in (self.value_proj, self.out_proj):
            nn.init.xavier_uniform_(projection.weight)
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)
        if self.density_range is not None:
            # a private generator: nobody's random numbers change
            generator = torch.Generator(device="cpu").manual_seed(0)
            x = torch.randn(2, 128, self.embed_dim, generator=generator, dtype=torch.float32, device="cpu")
            x = x.to(self.raw_coupling)
            axes, x = self.frequency.axes, x if self.batch_first else x.transpose(0, 1)
            self.calibrate_(x, is_causal=True, positions=None if axes == 1 else lattice(128, axes))

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
        self_attention: bool | None = None,
        positions: Tensor | None = None,
        key_positions: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        first_value: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend: self-attention if only query is given.

        Masks follow `nn.MultiheadAttention`: in boolean masks True means may NOT attend (the operator
        itself follows SDPA, where True means may). Float masks must hold only 0 and -inf.

        Args:
            query: receivers (B, N, E), or (N, E) without a batch; (N, B, E) if not batch_first.
            key: senders (B, M, E); None for query. See `self_attention`.
            value: what is read from the senders (B, M, E); None for key.
            key_padding_mask: (B, M), True = padding. Neither drift, delay nor the order parameter sees it:
                positions count from each sequence's first real token.
            need_weights: also return the weights P (through the eager backend).
            attn_mask: (N, M), (B * H, N, M), or broadcastable to (B, H, N, M). No output depends on a token
                that the mask hides from its query, not through the order parameter, delay or token shift
                either: to a query that may not see the token before a sender, that sender is a first one.
                Refused with a token shift in cross-attention, unless `is_causal`.
            average_attn_weights: average the returned weights over the heads.
            is_causal: each query sees the keys up to its own; with M > N queries sit at the end, in mask and
                position.
            state: for incremental decoding, which is causal self-attention: appends these tokens to the past
                that it holds, in place, and attends to all of it. Needs is_causal=True.
            self_attention: whether key and query are the same tokens: it decides about positions, the token
                before, and who is "itself". None: they are if key is left out, is query, or is another view
                of its memory (as autograd wrappers pass). An equal copy is not: `layer(x + p, x + p, x)` is
                cross-attention. True: they are, key and value have query's shape, and key, which must be
                equal to query, is not read. False: they are not.
            positions: where the queries stand, real numbers (B or 1, N, A), also if not batch_first; B = 1
                without a batch. Only differences count, and what padding has does not. None: each token's
                number in its sequence; after a `state` with positions, the last token's and on by 1. With
                several axes they must be given.
            key_positions: where the keys stand, (B or 1, M, A), in cross-attention with positions.
            sequence_ids: of self-attention, which of several texts packed into a row each token belongs to:
                integers (B or 1, N), also if not batch_first, or (N,) without a batch. They rise from text to
                text; negative ones are padding. Each text comes out as if it stood alone: weights, order
                parameter, positions (which begin anew), delay and token shift see no other. Not with an
                attn_mask or a state. `syncattn.sequence_ids_of` makes them of cumulative lengths.
            first_value: with value_residual, and only then: what the first layer's `first_values` gave for
                the senders, (B, M, E), also if not batch_first.

        Returns:
            (out, weights): out like query; weights None, or (B, N, M), or (B, H, N, M) if not averaged.

        Raises:
            ValueError: an input is nested, a shape or mask is not as documented, positions are NaN or
                infinite (where to look makes no device wait), an argument does not go with `state`, key is
                not query although `self_attention` says so, or a mask does not go with a token shift.
        """
        others = key, value, key_padding_mask, attn_mask, positions, key_positions, sequence_ids
        if state is not None and is_causal is True and all(x is None for x in others):
            known = type(self) is SelectiveSynchronizationAttention and self_attention is not False
            if known and not need_weights:
                out = next_token(self, query, state, first_value)
                if out is not None:
                    return out, None
        given = self._inputs(
            *(query, key, value, key_padding_mask, attn_mask, is_causal, self_attention),
            positions=positions,
            key_positions=key_positions,
            sequence_ids=sequence_ids,
        )
        if state is not None:
            given = go_on_from(state, given)
        check_first_value(first_value, given.key, self.value_mix is not None)
        arguments, after, own = self._operator_arguments(given, state, first_value)
        arguments |= {"dropout_p": self.dropout if self.training else 0.0}
        arguments |= {"return_weights": need_weights, "return_nearest": self.gate is not None}
        if after is not None and not after.reads_all:
            result = by_groups(after, arguments)
        elif state is not None and state.checked:
            tensors = (arguments.pop(n) for n in ("receive", "send", "value", "coupling", "bandwidth"))
            result = go_on(state.checked, *tensors, **arguments)
        else:
            result = selective_synchronization_attention(**arguments)
        out, *more = result if isinstance(result, tuple) else (result,)
        opened = None if self.gate is None else openness(self.gate, more.pop(), self.freq_dim)
        weights = None
        if need_weights:
            weights = more[1]
            weights = weights if attn_mask is None else fold(weights, given.keys)
            weights = weights.mean(1) if average_attn_weights else weights
        if self.value_rotation is not None:
            out = turn_values(out, -own, self.value_rotation)
        if opened is not None:
            out = out * opened.to(out.dtype)
        out = self.out_proj(out.transpose(1, 2).flatten(-2))
        if state is not None and after is not None:
            after.was_checked_()
            after.look_ahead_()
            state.become_(after)  # the last step: whatever fails, the past is as it was
        if query.ndim == 2:
            return out[0], None if weights is None else weights[0]
        return (out if self.batch_first else out.transpose(0, 1)), weights

    @property
    def kept_before(self) -> int:
        """How many numbers an `IncrementalState` keeps of the tokens that the next one is mixed with."""
        return self.looks_back * self.embed_dim

    def first_values(self, x: Tensor) -> Tensor:
        """Of this layer's input (B, N, E), or of its part that is `value`: the values (B, N, E), each of its
        own token alone, that later layers with a value_residual take as `first_value`."""
        return self.value_proj(x)

    def operator_call(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        self_attention: bool | None = None,
        positions: Tensor | None = None,
        key_positions: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        first_value: Tensor | None = None,
    ) -> Call:
        """The operator's checked call that `forward` would make of these arguments, for counting its pairs.

        Without first_value, which decides about no pair, values are the layer's own alone.
        Without the pairs of receivers that are padding, which nobody reads. With an attn_mask, senders may
        stand there in several forms, of which each receiver may see one.

        Raises:
            ValueError: as `forward`.
        """
        call, receivers = self._counted_call(
            *(query, key, value, key_padding_mask, attn_mask, is_causal),
            self_attention=self_attention,
            positions=positions,
            key_positions=key_positions,
            sequence_ids=sequence_ids,
            first_value=first_value,
        )
        if receivers is None:
            return call
        real = receivers[:, None, :, None]
        return call._replace(mask=real if call.mask is None else call.mask & real)

    def _counted_call(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        self_attention: bool | None = None,
        positions: Tensor | None = None,
        key_positions: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        first_value: Tensor | None = None,
    ) -> tuple[Call, Tensor | None]:
        given = self._inputs(
            *(query, key, value, key_padding_mask, attn_mask, is_causal, self_attention),
            positions=positions,
            key_positions=key_positions,
            sequence_ids=sequence_ids,
        )
        arguments, *_ = self._operator_arguments(given, None, first_value)
        return prepare(**arguments), given.real if given.itself else None

    @classmethod
    def from_reference(
        cls, state_dict: Mapping[str, Tensor], num_heads: int, top_k: int | None = None
    ) -> SelectiveSynchronizationAttention:
        """The published formulation from its own parameters, exact up to the 1e-8 that it adds to the locking
        threshold.

        Symmetric frequencies of head_dim coordinates without position, self kept, absolute frame, power 1,
        one coupling for all heads through softplus, and the global order parameter.

        Args:
            state_dict: K (), alpha (H,), and weight (E, E) and bias (E,) of W_omega, W_theta, W_v and W_o.
            num_heads: H.
            top_k: senders kept per row, None for all.

        Raises:
            ValueError: a parameter is missing, unknown, or of another shape.
        """
        parameters = renamed_parameters(state_dict, num_heads)
        weight = parameters["value_proj.weight"]
        options: dict[str, Any] = {"top_k": top_k, "device": weight.device, "dtype": weight.dtype}
        layer = cls(len(weight), num_heads, **published(len(weight) // num_heads), **options)
        with torch.no_grad():
            for name, tensor in parameters.items():
                layer.get_parameter(name).copy_(tensor)
        return layer

    def _inputs(
        self,
        query: Tensor,
        key: Any,
        value: Any,
        key_padding_mask: Tensor | None,
        *masks: Any,
        positions: Tensor | None,
        key_positions: Tensor | None,
        sequence_ids: Tensor | None,
    ) -> Inputs:
        """The arguments of `forward`, batch first: who is real, and who may see whom by attn_mask."""
        tokens = batch_first(query, key, value, self.embed_dim, self.batch_first)
        if query.ndim == 2 and key_padding_mask is not None and key_padding_mask.ndim == 1:
            key_padding_mask = key_padding_mask[None]
        given = checked_inputs(self.num_heads, tokens, key_padding_mask, *masks)
        given = with_texts(given, sequence_ids, query.ndim == 2)
        return with_positions(given, positions, key_positions, self.frequency.axes)

    def _operator_arguments(
        self, given: Inputs, past: IncrementalState | None, first_value: Tensor | None = None
    ) -> tuple[dict[str, Any], IncrementalState | None, Tensor]:
        """What the operator is called with, by name, all but dropout_p, backend and what to return; the past
        that a next call goes on from, if these tokens go on from one; and where the receivers stand."""
        has_shift, has_delay = self.shift is not None, self.frequency.has_delay
        seen = who_sees_whom(given, has_shift, has_delay)
        places = find_places(given, seen, past, has_delay)
        tokens = mix_tokens(given, seen, places, self.shift, past)
        made = self.frequency(
            None if given.itself and tokens.key is tokens.query else tokens.query,
            *(tokens.key, tokens.places.own, tokens.places.position, tokens.places.first),
        )
        value = self.value_proj(tokens.value)
        if first_value is not None and self.value_mix is not None:
            value = mix_first_value(value, first_value, self.value_mix)
        value = self._of_heads(value)
        if self.value_rotation is not None:
            value = turn_values(value, tokens.places.position, self.value_rotation)
        coupling, sums = self._effective_coupling(given, tokens, past)
        self_coupling, after = self.self_coupling or not given.itself, None
        if seen.sight is not None and seen.in_forms:
            operands = in_every_form(seen.sight, made, value, given, self_coupling)
        else:
            operands, after = as_they_are(made, value, given, seen, past, self_coupling)
        if past is not None and after is not None:
            remember_(after, past, given, places, made, sums, self.looks_back)
        options = {name: getattr(self, name) for name in ("top_k", "frame", "power", "edge", "eps")}
        return (
            {**operands._asdict(), "coupling": coupling, "bandwidth": self.bandwidth, **options},
            after,
            places.own,
        )

    def _effective_coupling(
        self, given: Inputs, tokens: Mixed, past: IncrementalState | None
    ) -> tuple[Tensor, Tensor | None]:
        """kappa = K r: (H,), (B, H) or (B, H, N); and with a past, the phases' sums up to each token."""
        if self.phase_proj is None:
            return self.coupling, None
        phase = self._of_heads(self.phase_proj(tokens.key))
        if past is not None:
            r, sums = running_coherence(phase, given.real, past.phase_sum, past.count)
        else:
            r, sums = coherence_of_seen(phase, given, tokens.pairs, tokens.heard), None
        return effective_coupling(self.coupling, r), sums

    def _of_heads(self, x: Tensor) -> Tensor:
        """(B, N, H c) to (B, H, N, c)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def extra_repr(self) -> str:
        f = self.frequency
        convolution = None if self.shift is None or self.shift.ndim == 2 else self.looks_back + 1
        phases = 0 if self.phase_proj is None else self.phase_proj.out_features // self.num_heads
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, freq_dim={self.freq_dim}, "
            f"phase_dim={phases}, directed={f.directed if len({*f.directed}) > 1 else all(f.directed)}, "
            f"directed_rank={f.directed_rank}, "
            f"position={f.position!r}, windows={f.windows}, "
            f"axes={f.axes}, value_rotation={self.value_rotation}, "
            f"delay={f.delay}, detuning={f.detuning is not None}, "
            f"token_shift={self.shift is not None and convolution is None}, "
            f"short_convolution={convolution}, "
            f"value_residual={self.value_mix is not None}, "
            f"nearest_gate={self.gate is not None}, "
            f"self_coupling={self.self_coupling}, "
            f"frame={self.frame!r}, power={self.power}, edge={self.edge}, eps={self.eps}, "
            f"top_k={self.top_k}, parametrisation={self.parametrisation!r}"
        )
