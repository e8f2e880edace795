"""Positions that are given: only their differences count, on any number of axes, in a cache, for padding."""

import copy

import pytest
import torch

from syncattn.nn import (
    IncrementalState,
    OSNBlock,
    SelectiveSynchronizationAttention,
    calibrate,
    locked_density,
)
from syncattn.nn.places import lattice

FORMS = {
    "drift": {"position": "drift"},
    "own drift": {"position": "own_drift"},
    "rotary": {"position": "rotary"},
    "helix": {"position": "helix", "helix_scales": (1.0, 5.0)},
    "turned values": {"value_rotation": 100.0, "token_shift": True},
    "own helix": {"position": "own_helix", "helix_scales": (1.0, 5.0)},
    "mix": {
        "position": ["drift", "helix", "own_drift", "rotary"],
        "helix_scales": (3.0,),
    },
}
LENGTH = 13
PADDING = {  # "." is padding
    "left": ["....#########", "#############", "............#"],
    "late": ["######..#..##", ".............", "..#.#.#.#.#.#"],
}


def on_axes(axes, dtype=torch.float64, **options):
    """A layer whose frequencies are unlike those it starts with."""
    torch.manual_seed(0)
    layer = SelectiveSynchronizationAttention(24, 4, axes=axes, freq_dim=8, **options).to(dtype).eval()
    with torch.no_grad():
        for parameter in (layer.frequency.log_slope, layer.frequency.log_amplitude):
            if parameter is not None:
                parameter.add_(torch.randn_like(parameter) / 2)
    return layer


def at_random(batch, tokens, axes=1, seed=3, dtype=torch.float64):
    """Positions with gaps of all sizes, which rise on the first axis."""
    generator = torch.Generator().manual_seed(seed)
    gaps = torch.rand(batch, tokens, axes, generator=generator, dtype=torch.float64) * 5
    gaps[..., 0] = gaps[..., 0].cumsum(1)
    return gaps.to(dtype)


@pytest.fixture(params=FORMS)
def placed(request, build):
    return build(**FORMS[request.param])


def decode(layer, x, cuts, positions, padding=None):
    state, outs, at = IncrementalState(), [], 0
    with torch.no_grad():
        for n, given in zip(cuts, positions.split(cuts, 1)):
            mask = None if padding is None else padding[:, at : at + n]
            part = {"key_padding_mask": mask, "is_causal": True, "positions": given}
            outs.append(layer(x[:, at : at + n], **part, state=state)[0])
            at += n
    return torch.cat(outs, 1), state


@pytest.mark.parametrize("padded", [False, True])
def test_numbers_of_tokens_given_are_the_numbers_not_given(layer, tokens, padded):
    layer = layer.float()
    x, numbers = tokens(2, 11, dtype=torch.float32), torch.arange(11)[None, :, None]
    padding = torch.zeros(2, 11, dtype=torch.bool)
    padding[0, :3], padding[1, [4, 9]] = True, True
    mask = {"key_padding_mask": padding} if padded else {}
    if padded:
        numbers = ((~padding).cumsum(1) - 1).masked_fill(padding, 77)[..., None]
    for causal in (False, True):
        want, _ = layer(x, is_causal=causal, **mask)
        for same in (numbers, numbers + 40, numbers.double() - 3):
            assert torch.equal(layer(x, is_causal=causal, positions=same, **mask)[0], want)


@pytest.mark.parametrize("offset", [1e6, -1e6, 123456.5])
def test_a_common_offset_changes_nothing(placed, tokens, offset):
    """In float32, too: D between neighbours is as exact a million places on as it is at 0."""
    layer, x = placed.float(), tokens(2, 9, dtype=torch.float32)
    at = (at_random(2, 9) * 8).round() / 8  # sums with the offset are exact
    for causal in (False, True):
        want, _ = layer(x, is_causal=causal, positions=at)
        assert not torch.allclose(want, layer(x, is_causal=causal)[0], atol=1e-3)
        assert torch.equal(layer(x, is_causal=causal, positions=at + offset)[0], want)
        each = offset * torch.tensor([1.0, 0.5], dtype=torch.float64)[:, None, None]
        assert torch.equal(layer(x, is_causal=causal, positions=at + each)[0], want)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("position", ["drift", "own_drift"])
def test_every_axis_has_its_slope_and_direction(axes, position):
    f, nothing = on_axes(axes, position=position).frequency, torch.zeros(2, 6, 24, dtype=torch.float64)
    at = at_random(2, 6, axes)
    w = f.emit(nothing, at)
    apart = (w[..., :, None, :] - w[..., None, :, :]).square().sum(-1)
    slopes = f.log_slope.exp().view(axes, 4)
    steps = torch.einsum("bija,ah->bhija", at[:, :, None] - at[:, None], slopes)
    if position == "own_drift":
        want = steps.square().sum(-1)
    else:
        units = torch.nn.functional.normalize(f.direction.view(axes, 4, 8), dim=-1)
        want = torch.einsum("bhija,ahm->bhijm", steps, units).square().sum(-1)
    torch.testing.assert_close(apart, want)


@pytest.mark.parametrize("axes", [1, 2])
def test_a_helix_is_a_bounded_relative_position(axes):
    """D = sum of 4 A^2 sin^2((x_i - x_j) / 2 w); on average over far places a quarter of contents' 2 m."""
    f, at = on_axes(axes, position="helix", helix_scales=[2.0]).frequency, at_random(2, 6, axes)
    radius = (4 / 2) ** 0.5
    with torch.no_grad():
        f.log_amplitude.zero_()
    w = f.emit(torch.zeros(2, 6, 24, dtype=torch.float64), at)
    apart = (w[..., :, None, :] - w[..., None, :, :]).square().sum(-1)
    want = (4 * radius**2 * ((at[:, :, None] - at[:, None]) / 4).sin().square()).sum(-1)
    torch.testing.assert_close(apart, want[:, None].expand_as(apart))
    with torch.no_grad():
        f.log_amplitude.fill_(2.0)
    w = f.emit(torch.zeros(2, 6, 24, dtype=torch.float64), at)
    torch.testing.assert_close((w[:, :, 0] - w[:, :, 1]).square().sum(-1), apart[:, :, 0, 1] * torch.e**4)


@pytest.mark.parametrize("cuts", [[1] * LENGTH, [6] + [1] * 7, [3, 1, 5, 4]], ids=str)
@pytest.mark.parametrize("name", [None, *PADDING])
def test_a_cache_goes_on_from_given_positions(placed, tokens, name, cuts):
    x, at = tokens(3, LENGTH), at_random(3, LENGTH) + 5e3
    padding = None
    if name is not None:
        padding = torch.tensor([[c == "." for c in row] for row in PADDING[name]])
        at = torch.where(padding[..., None], torch.nan, at)  # nothing is made of it
    real = slice(None) if padding is None else ~padding
    want, _ = placed(x, key_padding_mask=padding, is_causal=True, positions=at)
    out, _ = decode(placed, x, cuts, at, padding)
    torch.testing.assert_close(out[real], want[real], rtol=0, atol=1e-9)


def test_a_cache_goes_on_by_itself(placed, tokens):
    """After given positions the next token is one further on; after numbered ones, positions count from 0."""
    x, at = tokens(3, LENGTH), at_random(3, LENGTH) * 10
    at[:, 6:] = at[:, 5:6] + torch.arange(1, 8)[:, None]
    padding = torch.zeros(3, LENGTH, dtype=torch.bool)
    padding[1, :2] = True
    want, _ = placed(x, key_padding_mask=padding, is_causal=True, positions=at)
    out, state = decode(placed, x, [6], at[:, :6], padding)
    twice = copy.deepcopy(state)
    index = torch.tensor([2, 1, 1])
    twice.select_(index)
    more, _ = placed(x[:, 6:], is_causal=True, state=state)
    torch.testing.assert_close(torch.cat((out, more), 1)[~padding], want[~padding], rtol=0, atol=1e-9)
    chosen, _ = placed(x[index, 6:], is_causal=True, state=twice)
    torch.testing.assert_close(chosen, want[index, 6:], rtol=0, atol=1e-9)

    at = torch.arange(LENGTH)[None, :, None] + torch.where(torch.arange(LENGTH) < 6, 0, 100)[None, :, None]
    want, _ = placed(x, is_causal=True, positions=at)
    state = IncrementalState()
    placed(x[:, :6], is_causal=True, state=state)
    more, _ = placed(x[:, 6:], is_causal=True, state=state, positions=at[:, 6:])
    torch.testing.assert_close(more, want[:, 6:], rtol=0, atol=1e-9)


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("form", ["drift", "own drift", "rotary", "helix", "own helix", "turned values"])
def test_gradients(tokens, form, axes):
    layer, x = on_axes(axes, **FORMS[form] | {"helix_scales": (3.0,)}), tokens(1, 4).requires_grad_()
    at = at_random(1, 4, axes).requires_grad_()
    parameters = {n: p for n, p in layer.frequency.named_parameters() if "proj" not in n}

    def function(x, at, *values):
        given = dict(zip((f"frequency.{n}" for n in parameters), values))
        options = {"is_causal": True, "positions": at}
        return torch.func.functional_call(layer, given, (x,), options)[0]

    values = [p.detach().clone().requires_grad_() for p in parameters.values()]
    assert torch.autograd.gradcheck(function, (x, at, *values), atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("form", ["drift", "own drift", "rotary", "own helix", "turned values"])
def test_permuted_points_give_permuted_outputs(tokens, form):
    """But for a helix beside contents, which is counted from the first token."""
    layer = on_axes(2, **FORMS[form] | {"helix_scales": (3.0,), "token_shift": False}, delay=0.0)
    x, at, order = tokens(2, 9), at_random(2, 9, 2), torch.randperm(9)
    want = layer(x, positions=at)[0][:, order]
    torch.testing.assert_close(layer(x[:, order], positions=at[:, order])[0], want, rtol=0, atol=1e-10)


def test_cross_attention_from_place_to_place(placed, tokens):
    """Queries at the places of the keys that they are copies of are those keys."""
    x, at = tokens(2, 9), at_random(2, 9) + 1e3
    placed.self_coupling = True  # elsewhere a token is itself only where key is query
    placed.phase_proj = None
    want, _ = placed(x, is_causal=True, positions=at)
    both = {"is_causal": True, "self_attention": False}
    out, _ = placed(x, x, x, **both, positions=at, key_positions=at)
    torch.testing.assert_close(out, want, rtol=0, atol=1e-10)
    out, _ = placed(x[:, 4:], x, x, **both, positions=at[:, 4:], key_positions=at)
    torch.testing.assert_close(out, want[:, 4:], rtol=0, atol=1e-10)
    out, _ = placed(x, x, x, self_attention=False, positions=at + 2, key_positions=at + 2)
    want, _ = placed(x, x, x, self_attention=False, positions=at, key_positions=at)
    torch.testing.assert_close(out, want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("form", ["drift", "own drift", "rotary", "own helix", "turned values"])
def test_masks_that_hide_the_token_before(build, tokens, form):
    """Senders in several forms: each row is what its tokens give alone, where they stand."""
    placed = build(**FORMS[form] | {"token_shift": True})
    x, at = tokens(1, 9), at_random(1, 9)
    placed.phase_proj = None
    far = torch.arange(9)
    hidden = (far[:, None] < far) | (far[:, None] - far > 3)
    out, _ = placed(x, attn_mask=hidden, positions=at)
    for i in range(9):
        kept = slice(max(0, i - 3), i + 1)
        want, _ = placed(x[:, kept], is_causal=True, positions=at[:, kept])
        torch.testing.assert_close(out[:, i], want[:, -1], rtol=0, atol=1e-9)


def test_every_backend_takes_it_as_it_stands(placed, tokens):
    """The backend that is chosen, and eager, which is asked for weights: outputs and gradients."""
    layer, at = placed.float(), (at_random(2, 70) + 1e6).requires_grad_()
    x = tokens(2, 70, dtype=torch.float32).requires_grad_()
    parameters = [p for n, p in layer.frequency.named_parameters() if "proj" not in n]
    for causal in (False, True):
        found = []
        for need_weights in (False, True):
            out, _ = layer(x, is_causal=causal, positions=at, need_weights=need_weights)
            found.append((out, *torch.autograd.grad(out.square().sum(), (x, at, *parameters))))
        for ours, eager in zip(*found):
            scale = eager.abs().max().clamp(min=1)
            torch.testing.assert_close(ours / scale, eager / scale, rtol=0, atol=1e-4)


def test_blocks_take_positions_and_calibration_sees_them():
    torch.manual_seed(0)
    block = OSNBlock(24, 4, 32, batch_first=True, norm_first=True, axes=2)
    x, at = torch.randn(2, 64, 24), lattice(64, 2)
    assert block(x, positions=at).shape == x.shape
    calibrate(block, x, positions=at, density_range=(0.2, 0.6))
    here = locked_density(block, x, positions=at)["self_attn"]
    torch.testing.assert_close(here, torch.tensor([0.2, 0.2884, 0.4160, 0.6]), rtol=0, atol=0.03)
    assert (locked_density(block, x, positions=at * 100)["self_attn"] < here).all()


def test_a_lattice():
    assert lattice(4, 2).tolist() == [[[0, 0], [0, 1], [1, 0], [1, 1]]]
    assert lattice(128, 3).amax() == 5 and len(set(map(tuple, lattice(128, 3)[0].tolist()))) == 128


def test_positions_without_a_batch_and_with_another_order(placed, tokens):
    x, at = tokens(2, 7), at_random(2, 7)
    want, _ = placed(x, positions=at)
    torch.testing.assert_close(placed(x[1], positions=at[1:])[0], want[1])
    placed.batch_first = False
    torch.testing.assert_close(placed(x.transpose(0, 1), positions=at)[0].transpose(0, 1), want)


AT = torch.zeros(2, 5, 1)
BAD = [
    (
        1,
        {"positions": AT[..., 0]},
        r"positions must have shape \(B or 1, N, A\) = \(2, 5, 1\), .*got \(2, 5\)",
    ),
    (1, {"positions": AT[:, :4]}, r"positions must have shape .* got \(2, 4, 1\)"),
    (1, {"positions": AT.expand(2, 5, 2)}, r"with A = axes as the layer was made, got \(2, 5, 2\)"),
    (2, {"positions": AT}, r"positions must have shape .* = \(2, 5, 2\).* got \(2, 5, 1\)"),
    (2, {}, r"positions must be given to a layer of axes=2, .* got None"),
    (1, {"positions": AT / 0}, "positions must be finite, got NaN or infinity"),
    (1, {"positions": AT + torch.inf}, "positions must be finite"),
    (1, {"positions": AT.bool()}, "positions must be real numbers .* got torch.bool"),
    (1, {"positions": AT, "key_positions": AT}, "key_positions must be left out in self-attention"),
    (1, {"positions": AT, "self_attention": False}, "key_positions must be given with positions"),
    (1, {"key_positions": AT, "self_attention": False}, "positions must be given with key_positions"),
]


@pytest.mark.parametrize(("axes", "given", "message"), BAD)
def test_bad_positions(axes, given, message):
    layer, x = SelectiveSynchronizationAttention(24, 4, axes=axes), torch.randn(2, 5, 24)
    with pytest.raises(ValueError, match=message):
        layer(x, **given)


def test_bad_positions_leave_the_state_as_it_was(placed, tokens):
    x, state = tokens(2, 5), IncrementalState()
    placed(x, is_causal=True, state=state, positions=AT)
    origin = state.origin
    with pytest.raises(ValueError, match="positions must be finite"):
        placed(x, is_causal=True, state=state, positions=AT + torch.nan)
    assert state.length == 5 and state.origin is origin
    with pytest.raises(TypeError, match=r"positions must be a tensor \(B or 1, N, A\), got list"):
        placed(x, positions=[0, 1, 2, 3, 4])


def test_a_cache_that_went_back_goes_on_from_where_it_stood():
    torch.manual_seed(0)
    layer = SelectiveSynchronizationAttention(32, 4, freq_dim=8).eval()
    x, at = torch.randn(2, 12, 32), 3 * torch.rand(2, 12, 1).cumsum(1)
    state = IncrementalState(steps=[])
    with torch.no_grad():
        whole, _ = layer(x, is_causal=True, positions=at)
        for first, last in ((0, 7), (7, 10)):
            part = slice(first, last)
            layer(x[:, part], is_causal=True, positions=at[:, part], state=state)
        state.crop_(5)
        again, _ = layer(x[:, 5:], is_causal=True, positions=at[:, 5:], state=state)
    torch.testing.assert_close(again, whole[:, 5:])


def test_co_rotating_values_say_how_far_they_came(tokens):
    """out_i = sum_j P_ij R(x_j - x_i) v_j."""
    layer, x, at = on_axes(2, value_rotation=50.0), tokens(2, 7), at_random(2, 7, 2)
    with torch.no_grad():
        layer.out_proj.weight.copy_(torch.eye(24))
        layer.out_proj.bias.zero_()
    out, weights = layer(x, positions=at, need_weights=True, average_attn_weights=False)
    value = layer.value_proj(x).unflatten(-1, (4, 6))
    pairs = torch.complex(value[..., :3], value[..., 3:])  # (B, M, H, 3)
    rates = 50.0 ** (
        -torch.tensor([0, 0, 2], dtype=torch.float64) / 3
    )  # pairs 0 and 2 turn by the first axis
    angle = (at[:, None] - at[:, :, None])[..., [0, 1, 0]] * rates  # (B, N, M, 3)
    moved = torch.polar(torch.ones_like(angle), angle)
    want = torch.einsum("bhij,bijc,bjhc->bihc", weights.to(pairs.dtype), moved, pairs)
    want = torch.cat((want.real, want.imag), -1).flatten(-2)
    torch.testing.assert_close(out, want, rtol=0, atol=1e-10)


def test_values_are_turned_in_float32_in_half_layers(tokens):
    layer, x = on_axes(1, torch.bfloat16, value_rotation=100.0), tokens(1, 9, dtype=torch.bfloat16)
    at = torch.arange(9)[None, :, None]
    out, _ = layer(x, positions=at + 10**6)
    assert out.dtype == torch.bfloat16 and torch.equal(out, layer(x)[0])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"value_rotation": 1}, ValueError, "value_rotation must be above 1 and finite, or None, got 1"),
        ({"value_rotation": True}, TypeError, "value_rotation must be a number, got True"),
        (
            {"value_rotation": [10.0, None]},
            ValueError,
            r"value_rotation must be a number, None, or a list .*4 h",
        ),
        ({"value_rotation": [10.0, None, True, 2.0]}, TypeError, "value_rotation must be a number, got True"),
        ({"value_rotation": [10.0, 1.0, 2.0, 2.0]}, ValueError, "value_rotation must be above 1 and finite"),
        ({"value_rotation": False}, TypeError, "value_rotation must be a number, got False"),
        ({"value_rotation": 10.0, "num_heads": 8}, ValueError, r"needs an even head_dim .*, got 3"),
        ({"value_rotation": 10.0, "axes": 4}, ValueError, r"at least 2 \* axes = 8, got 6"),
    ],
    ids=str,
)
def test_bad_value_rotations(options, error, message):
    with pytest.raises(error, match=message):
        SelectiveSynchronizationAttention(**{"embed_dim": 24, "num_heads": 4} | options)
