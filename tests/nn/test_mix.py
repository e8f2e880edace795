"""Heads of several kinds in one layer: each is what it is alone, and costs what it costs alone."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syncattn import locking
from syncattn.nn import Frequency, IncrementalState, OSNBlock, SelectiveSynchronizationAttention
from syncattn.nn.mix import DRIFTS, HELICES, POSITIONS, runs_of

E, M, D = 24, 8, 6
SCALES = (3.0,)


def mixed(kinds, axes=1, value_rotation=None, dtype=torch.float64, **options):
    """A layer of heads that are each (form, directed, delayed), unlike what it starts as."""
    forms, directed, delayed = ([kind[i] for kind in kinds] for i in range(3))
    torch.manual_seed(0)
    layer = SelectiveSynchronizationAttention(
        *(E, E // D),
        **{"freq_dim": M, "helix_scales": SCALES, "density_range": (0.3, 0.8), "token_shift": True},
        **{"position": forms, "directed": directed, "delay": delayed},
        **{"axes": axes, "value_rotation": value_rotation},
        **options,
    ).to(dtype)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            ends = "bias", "shift", "log_slope", "log_amplitude", "raw_coupling", "send_proj.weight"
            if name.endswith(ends):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return layer.eval()


def alone(layer, head, kind):
    """A layer of this one head: the value of a head that is wider here, its other coordinates 0."""
    form, directed, delayed = kind
    f = layer.frequency
    single = SelectiveSynchronizationAttention(
        *(E, 1),
        **{
            "freq_dim": M,
            "helix_scales": SCALES,
            "position": form,
            "directed": directed,
            "token_shift": True,
        },
        **{"delay": float(delayed), "axes": f.axes, "frame": layer.frame, "density_range": None},
        **{"detuning": f.detuning is not None, "freq_bias": f.receive_proj.bias is not None},
        value_rotation=layer.value_rotation,
    ).to(layer.shift.dtype)
    g = single.frequency
    # The pairs of a head of D coordinates turn as these of E coordinates do.
    half, step = D // 2, E // D
    places = torch.tensor([c * step + part * E // 2 for part in (0, 1) for c in range(half)])
    if f.axes > 1:
        places = torch.arange(D)
    rows = torch.arange(head * D, (head + 1) * D)
    kinds = layer.kinds_of_heads
    with torch.no_grad():
        single.shift.copy_(layer.shift)
        for ours, theirs in ((single.value_proj, layer.value_proj), (single.out_proj, layer.out_proj)):
            ours.weight.zero_()
            ours.bias.zero_()
            if ours is single.value_proj:
                ours.weight[places] = theirs.weight[rows]
                ours.bias[places] = theirs.bias[rows]
            else:
                ours.weight[:, places] = theirs.weight[:, rows]
        single.phase_proj.weight.copy_(layer.phase_proj.weight[head : head + 1])
        single.phase_proj.bias.copy_(layer.phase_proj.bias[head : head + 1])
        single.raw_coupling.copy_(layer.raw_coupling[head])
        single.raw_bandwidth.copy_(layer.raw_bandwidth[head])
        # Where all heads keep coordinates the content has none there; in a mix they go unused.
        first, last = 0, M
        if g.content_dim < f.content_dim:
            first = 2 * f.axes * len(SCALES) if form in HELICES else 0
            last = M - (f.axes if form in DRIFTS else 0)
        sent = sum(other[1] for other in kinds[:head])
        pairs = [(g.receive_proj, f.receive_proj, head)]
        pairs += [(g.send_proj, f.send_proj, sent)] if directed else []
        for ours, theirs, number in pairs:
            for name, parameter in ours.named_parameters():
                held = theirs.get_parameter(name)
                held = held.view(-1, f.content_dim, *held.shape[1:])[number]
                parameter.copy_(held[first:last])
        for name, has in (
            ("log_slope", DRIFTS),
            ("log_amplitude", HELICES),
            ("direction", ("drift", "screw")),
        ):
            if form in has:
                number = sum(other[0] in has for other in kinds[:head])
                own, all_of_them = g.get_parameter(name), f.get_parameter(name)
                own.copy_(all_of_them.narrow(0 if f.axes == 1 else 1, number, 1))
        if g.detuning is not None:
            g.detuning.copy_(f.detuning[head : head + 1])
    return single.eval()


def sum_of_heads(layer, kinds, *inputs, **masks):
    layer.kinds_of_heads = kinds
    parts = [alone(layer, h, kind)(*inputs, **masks)[0] for h, kind in enumerate(kinds)]
    return sum(parts) + layer.out_proj.bias


def tokens(batch, length, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, E, generator=generator, dtype=torch.float64)


KINDS = st.tuples(st.sampled_from(POSITIONS), st.booleans(), st.booleans())


@settings(max_examples=10, deadline=None)
@given(
    kinds=st.lists(KINDS, min_size=4, max_size=4),
    axes=st.sampled_from([1, 1, 2]),
    turned=st.sampled_from([None, 50.0]),
    options=st.sampled_from([{}, {"detuning": True, "freq_bias": True}, {"frame": "absolute"}]),
    causal=st.booleans(),
    padded=st.booleans(),
)
def test_each_head_is_what_it_is_alone(kinds, axes, turned, options, causal, padded):
    layer = mixed(kinds, axes, turned if axes == 1 else None, **options)
    x = tokens(2, 9)
    given = {"is_causal": causal}
    if axes > 1:
        given["positions"] = torch.rand(2, 9, axes, dtype=torch.float64) * 6
    if padded:
        padding = torch.zeros(2, 9, dtype=torch.bool)
        padding[0, :3], padding[1, [2, 6]] = True, True
        given["key_padding_mask"] = padding
    with torch.no_grad():
        out, _ = layer(x, **given)
        want = sum_of_heads(layer, kinds, x, **given)
    if padded:
        out, want = out[~padding], want[~padding]
    torch.testing.assert_close(out, want, rtol=0, atol=1e-9)
    if causal:  # a cache gives what the whole text gives
        state, at, parts = IncrementalState(), 0, []
        for n in (4, 1, 4):
            part = {k: v[:, at : at + n] for k, v in given.items() if k != "is_causal"}
            with torch.no_grad():
                parts.append(layer(x[:, at : at + n], is_causal=True, state=state, **part)[0])
            at += n
        cached = torch.cat(parts, 1)
        torch.testing.assert_close(
            cached[~padding] if padded else cached, out.reshape_as(out), rtol=0, atol=1e-9
        )


MIX = [
    ("drift", False, False),
    ("own_screw", True, True),
    ("none", False, True),
    ("rotary", True, False),
]


def test_cross_attention_and_packed_texts_of_a_mix():
    layer, x, y = mixed(MIX), tokens(2, 7), tokens(2, 11, seed=2)
    with torch.no_grad():
        out, want = layer(x, y, y)[0], sum_of_heads(layer, MIX, x, y, y)
        torch.testing.assert_close(out, want, rtol=0, atol=1e-9)
        packed, _ = layer(y, is_causal=True, sequence_ids=torch.tensor([[0] * 4 + [1] * 7]))
        apart = [layer(y[:, part], is_causal=True)[0] for part in (slice(4), slice(4, 11))]
        torch.testing.assert_close(packed, torch.cat(apart, 1), rtol=0, atol=1e-9)


def test_only_directed_heads_have_send_frequencies():
    def count(directed):
        f = Frequency(E, 4, M, directed=directed, bias=True)
        return sum(p.numel() for p in f.parameters())

    none = count(False)
    assert count([False] * 4) == none
    assert count([False, True, False, False]) == none + E * M + M
    assert count([True] * 4) == count(True) == none + 4 * (E * M + M)


@pytest.mark.parametrize("flag", [False, True])
def test_one_flag_for_all_is_that_flag_for_each(flag):
    made = []
    for directed, delay in ((flag, float(flag)), ([flag] * 4, [flag] * 4)):
        torch.manual_seed(0)
        layer = SelectiveSynchronizationAttention(E, 4, directed=directed, delay=delay)
        made.append((layer, layer(tokens(1, 9).float(), is_causal=True)[0]))
    (one, out), (each, same) = made
    assert torch.equal(out, same)
    assert one.frequency.symmetric == each.frequency.symmetric == (not flag)
    assert one.state_dict().keys() == each.state_dict().keys()


def test_symmetric_heads_beside_a_directed_one_hear_just_what_they_emit():
    f, x, at = mixed(MIX).frequency, tokens(2, 9), torch.arange(9)[None]
    made = f(None, x, at, at, None)
    assert torch.equal(made.receive[:, [0, 2]], made.emitted[:, [0, 2]])
    assert not torch.isclose(made.receive[:, [1, 3]], made.emitted[:, [1, 3]]).all()
    torch.testing.assert_close(made.receive, f.receive(x, at), rtol=0, atol=0)
    torch.testing.assert_close(made.emitted, f.emit(x, at), rtol=0, atol=0)
    assert not f.symmetric


def test_windows_of_their_own():
    f = Frequency(E, 4, M, position=["drift", "none", "own_drift", "helix"], windows=[3, None, 40.5, None])
    found = math.sqrt(2 * M) / f.log_slope.exp()
    torch.testing.assert_close(found, torch.tensor([3.0, 40.5]), rtol=1e-5, atol=0)
    axes = Frequency(E, 2, M, windows=[5.0, 2.0], axes=3)
    found = math.sqrt(2 * M) / axes.log_slope.exp()
    torch.testing.assert_close(found, torch.tensor([5.0, 2.0]).expand(3, 2), rtol=1e-5, atol=0)


@pytest.mark.parametrize("axes", [1, 2])
def test_a_screw_is_drift_and_helix(axes):
    """D of "own_screw" is the contents' and, of each axis, (slope d)^2 + sum 4 r^2 sin^2(d / 2 w)."""
    torch.manual_seed(0)
    f = Frequency(E, 3, 14, position="own_screw", helix_scales=(2.0, 9.0), axes=axes).double()
    with torch.no_grad():
        f.log_amplitude.add_(torch.randn_like(f.log_amplitude) / 2)
    assert f.content_dim == 14 - axes * 5 and f.direction is None
    x, at = tokens(2, 8), torch.rand(2, 8, axes, dtype=torch.float64) * 30
    w = f.emit(x, at)
    squared = (w[:, :, :, None] - w[:, :, None]).square().sum(-1)
    content = f.receive_proj(x).unflatten(-1, (3, -1)).transpose(1, 2)
    want = (content[:, :, :, None] - content[:, :, None]).square().sum(-1)
    for a in range(axes):
        slope, amplitude = (p.exp().view(axes, 3)[a, :, None, None] for p in (f.log_slope, f.log_amplitude))
        apart = (at[:, :, None, a] - at[:, None, :, a])[:, None]
        want = want + (slope * apart).square()
        radius = amplitude * math.sqrt(14 / 2 / 4)
        for scale in (2.0, 9.0):
            want = want + 4 * radius**2 * torch.sin(apart / 2 / scale).square()
    torch.testing.assert_close(squared, want, rtol=0, atol=1e-9)


def test_a_screw_is_the_orbit_of_one_rigid_motion():
    """Position acts as T^x, T a rotation and a translation along what it leaves alone: all places of a
    constant text lie on a screw, and a step along it, the same at each place, keeps every distance."""
    torch.manual_seed(0)
    f = Frequency(E, 1, 8, position="own_screw", helix_scales=(2.0, 9.0)).double()
    x = tokens(1, 1).expand(1, 30, E)
    step, w = 1.7, f.emit(x, torch.arange(30)[None].double())[0, 0]
    moved = f.emit(x, torch.arange(30)[None].double() + step)[0, 0]
    turned = w.clone()
    for n, scale in enumerate((2.0, 9.0)):
        cos, sin = math.cos(step / scale), math.sin(step / scale)
        turned[:, n] = cos * w[:, n] - sin * w[:, 2 + n]
        turned[:, 2 + n] = sin * w[:, n] + cos * w[:, 2 + n]
    turned[:, -1] += step * f.log_slope.exp()
    torch.testing.assert_close(moved, turned, rtol=0, atol=1e-9)


def test_a_screw_among_contents_adds_what_drift_and_helix_add():
    parts = {}
    for form in ("screw", "drift", "helix"):
        torch.manual_seed(0)
        parts[form] = Frequency(E, 2, M, position=form, helix_scales=(2.0, 9.0)).double()
    screw, drift, helix = parts.values()
    with torch.no_grad():
        helix.receive_proj.weight.zero_()
        helix.log_amplitude.copy_(screw.log_amplitude)
        drift.direction.copy_(screw.direction)
        drift.receive_proj.weight.copy_(screw.receive_proj.weight)
    x, at = tokens(2, 9), torch.arange(9)[None]
    torch.testing.assert_close(screw.emit(x, at), drift.emit(x, at) + helix.emit(x, at), rtol=0, atol=1e-12)


def test_a_screw_has_the_window_of_its_drift(build):
    layer = build(**{"position": "own_screw", "helix_scales": (2.0,), "frame": "absolute", "delay": 0.0})
    layer.phase_proj = None
    with torch.no_grad():
        layer.frequency.log_slope.copy_(torch.tensor([0.9, 0.3, -0.4, 0.1]))
    window = (
        locking.locking_radius(layer.coupling, layer.bandwidth) / layer.frequency.log_slope.exp()
    ).floor()
    _, weights = layer(tokens(1, 1).expand(1, 40, E), need_weights=True, average_attn_weights=False)
    i = torch.arange(40)
    beyond = (i[:, None] - i).abs() > window[:, None, None]
    assert beyond.any() and (window >= 1).all() and not (weights[0] * beyond).any()


def test_runs_are_of_one_form_and_one_kind():
    forms, directed = ["drift", "drift", "screw", "helix", "helix"], [False, True, True, True, False]
    runs, counts = runs_of(forms, directed, [(3.0,)] * 5)
    assert [(r.form, r.heads.start, r.heads.stop) for r in runs] == [
        *(("drift", 0, 1), ("drift", 1, 2), ("screw", 2, 3), ("helix", 3, 4), ("helix", 4, 5))
    ]
    assert [r.sent and (r.sent.start, r.sent.stop) for r in runs] == [None, (0, 1), (1, 2), (2, 3), None]
    assert counts == (3, 3, 3, 3)


def test_heads_with_other_scales_are_runs_of_their_own():
    scales = [(2.0,), (3.0,), (4.0,), (4.0,)]
    runs, _ = runs_of(["none", "none", "helix", "helix"], [False] * 4, scales)
    assert [(r.heads.start, r.heads.stop, r.scales) for r in runs] == [(0, 2, ()), (2, 4, (4.0,))]
    runs, _ = runs_of(["helix"] * 4, [False] * 4, scales)
    assert [r.scales for r in runs] == [(2.0,), (3.0,), (4.0,)]


@pytest.mark.parametrize("form", ["helix", "own_helix", "screw", "own_screw"])
def test_scales_by_head_are_what_each_head_has_alone(form):
    """A layer whose heads have scales of their own, beside one for each of the lists."""
    lists, x = [[2.0, 9.0], [3.0, 40.0]], tokens(2, 9)

    def made(scales):
        torch.manual_seed(0)
        f = Frequency(E, 2, M, position=form, helix_scales=scales).double()
        return f.emit(x, torch.arange(9)[None])

    mixed_, first, second = made(lists), made(lists[0]), made(lists[1])
    assert torch.equal(mixed_[:, 0], first[:, 0]) and torch.equal(mixed_[:, 1], second[:, 1])
    assert torch.equal(made([lists[0]] * 2), first)
    assert Frequency(E, 2, M, position=["none", form], helix_scales=[None, [3.0]]).helix_scales == (
        *(None, (3.0,)),
    )


def test_no_head_with_a_helix_needs_no_scales():
    x = tokens(2, 9)
    torch.manual_seed(0)
    none = Frequency(E, 2, M, position=["drift", "none"], helix_scales=[None, None]).double()
    torch.manual_seed(0)
    default = Frequency(E, 2, M, position=["drift", "none"]).double()
    assert torch.equal(none.emit(x, torch.arange(9)[None]), default.emit(x, torch.arange(9)[None]))


def test_values_turned_by_head_are_what_each_head_has_alone():
    bases, x = [100.0, None, False, 50.0], tokens(2, 9)

    def heads_of(turning):
        torch.manual_seed(0)
        layer = SelectiveSynchronizationAttention(E, 4, value_rotation=turning).double()
        with torch.no_grad():
            layer.out_proj.weight.copy_(torch.eye(E))
            state, whole = IncrementalState(), layer(x, is_causal=True)[0]
            cached = [layer(x[:, a:b], is_causal=True, state=state)[0] for a, b in ((0, 4), (4, 5), (5, 9))]
            torch.testing.assert_close(torch.cat(cached, 1), whole, rtol=0, atol=1e-10)
        return whole.unflatten(-1, (4, -1))

    out = heads_of(bases)
    for head, base in enumerate(bases):
        torch.testing.assert_close(out[:, :, head], heads_of(base or None)[:, :, head], rtol=0, atol=1e-12)


def test_a_block_takes_a_mix():
    torch.manual_seed(0)
    block = OSNBlock(E, 4, 32, batch_first=True, directed=[True, False, False, True], delay=[False] * 4)
    x = tokens(2, 9).float()
    assert block(x, is_causal=True).shape == x.shape
    assert "directed=(True, False, False, True)" in repr(block)
    assert block.self_attn.frequency.send_proj.out_features == 2 * block.self_attn.freq_dim


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"directed": [True, False]}, ValueError, "directed must be True or False, or a list of True or "
         r"False with one for each of the 3 heads, got \[True, False\]"),
        ({"directed": [0, 1, 1]}, ValueError, r"directed must be .* got \[0, 1, 1\]"),
        ({"directed": "yes"}, TypeError, "directed must be True or False, got 'yes'"),
        ({"delay": [True]}, ValueError, "delay must be a fraction of the heads, or a list .* the 3 heads"),
        ({"delay": [0.5, 0.5, 0.5]}, ValueError, "delay must be a fraction of the heads, or a list of True"),
        ({"delay": "half"}, TypeError, "delay must be a number, got 'half'"),
        ({"windows": [4.0, 8.0]}, ValueError, "windows must be None or a list with one for each of the 3"),
        ({"windows": 4.0}, ValueError, "windows must be None or a list .* got 4.0"),
        ({"windows": [4.0, -1.0, 2.0]}, ValueError, "windows must be positive and finite, got -1.0"),
        ({"windows": [4.0, math.inf, 2.0]}, ValueError, "windows must be positive and finite, got inf"),
        ({"windows": [4.0, "8", 2.0]}, TypeError, "windows must be a number, got '8'"),
        ({"windows": [4.0, None, 2.0]}, ValueError, "windows must have a number for head 1, whose"),
        ({"helix_scales": [[3.0], [4.0]]}, ValueError, "or None, for each of the 3 heads, got"),
        ({"helix_scales": [[3.0], [4.0, 5.0], None]}, ValueError, "all as long as each other"),
        ({"helix_scales": [[], [], []]}, ValueError, "all as long as each other"),
        ({"helix_scales": [None, None]}, ValueError, "all as long as each other"),
        ({"helix_scales": [None] * 3, "position": "helix"}, ValueError, "must have a list for head 0"),
        ({"helix_scales": [[3.0], [-4.0], None]}, ValueError, "helix_scales must be positive and finite"),
        ({"helix_scales": [[3.0], 4.0, None]}, TypeError, r"helix_scales must be a number, got \[3.0\]"),
        ({"helix_scales": [[3.0], None, None], "position": ["none", "none", "helix"]}, ValueError,
         "helix_scales must have a list for head 2, whose position is 'helix', got None"),
        ({"position": "own_screw"}, ValueError, "position='own_screw' needs freq_dim of at least 8 .* got 6"),
        ({"position": "screw", "axes": 2}, ValueError, "position='screw' needs freq_dim of at least 12"),
    ],
    ids=str,
)  # fmt: skip
def test_mixes_that_do_not_fit_the_heads(options, error, message):
    with pytest.raises(error, match=message):
        Frequency(12, 3, 6, **options)
