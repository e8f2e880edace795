"""The native kernel against the definition: every size, mask, density and group of heads."""

import itertools

import pytest
import torch

import syncattn
from syncattn import locking

attention = syncattn.selective_synchronization_attention
MISSING = syncattn.backends.availability()["cpu"]
pytestmark = [
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
    pytest.mark.usefixtures("poisoned_memory"),
]
NEAREST = {"frame": "nearest", "power": 2}
FORMS = [  # each of the four strengths, both frames
    {**frame, **power, **edge}
    for frame in ({}, {"frame": "nearest"})
    for edge in ({}, {"edge": 0.05})
    for power in ({}, {"power": 2})
]


SIZES = [1, 2, 23, 24, 25, 63, 64, 65, 127, 200]


@pytest.mark.parametrize("queries", SIZES)
@pytest.mark.parametrize("keys", [1, 2, 24, 63, 64, 65, 129, 200])
def test_any_number_of_receivers_and_senders(queries, keys, within_rounding, draw):
    """Around the edges of the blocks of 24 receivers and 64 senders; causal and without the own pair."""
    options = FORMS[(queries + keys) % len(FORMS)]
    inputs = draw(1, 2, queries, keys, 3, 5)
    within_rounding(inputs, options, "cpu")
    if keys >= queries:
        within_rounding(inputs, options | {"is_causal": True, "self_coupling": False}, "cpu")


@pytest.mark.parametrize("tokens", SIZES)
def test_symmetric(tokens, within_rounding, draw):
    options = FORMS[tokens % len(FORMS)]
    inputs = draw(2, 1, tokens, tokens, 4, 3, same=True)
    within_rounding(inputs, options, "cpu")
    within_rounding(inputs, options | {"is_causal": True}, "cpu")
    within_rounding(inputs, options | {"self_coupling": False}, "cpu")


DIMS = [*range(1, 19), 24, 31, 32, 33, 48, 63, 64, 65, 100, 128, 512]


@pytest.mark.parametrize("m", DIMS)
def test_any_number_of_coordinates_and_value_columns(m, within_rounding, draw):
    d = [1, 15, 16, 17, 31, 32, 33, 48, 64, 72, 80, 128, 144, 200, 256][DIMS.index(m) % 15]
    options = FORMS[DIMS.index(m) % len(FORMS)]
    within_rounding(draw(1, 2, 50, 90, m, d), options | {"is_causal": True}, "cpu")
    within_rounding(draw(1, 1, 30, 70, m, d, density=0.1), options, "cpu")  # pair by pair


@pytest.mark.parametrize("which", itertools.product((0, 1), repeat=4), ids=str)
@pytest.mark.parametrize("options", [{"power": 2}, NEAREST | {"is_causal": True}], ids=str)
@pytest.mark.parametrize("density", [0.2, 0.9])
def test_masks_of_every_broadcast_shape(which, options, density, within_rounding, draw):
    shape = [n if w else 1 for n, w in zip((2, 3, 50, 70), which)]
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(sum(which))) > 0.4
    inputs = draw(2, 3, 50, 70, 4, 6, density=density)
    within_rounding(inputs, options | {"attn_mask": mask}, "cpu")
    if which[3]:
        view = mask.mT.contiguous().mT.expand(2, 3, 50, 70)[:, :, :, :]
        assert torch.equal(*(attention(*inputs, attn_mask=x, **options, backend="cpu") for x in (mask, view)))


DENSITIES = [0, 0.001, 0.01, 0.1, 0.3, 0.5, 1]
STRUCTURES = ["gaussian", "clusters", "drift"]


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_any_density(structure, density, within_rounding, draw, per_query):
    """Skipped tiles, listed pairs and whole blocks, one after another, forward and backward."""
    inputs = per_query(draw(1, 2, 230, 330, 3, 17, density=density, structure=structure))
    number = DENSITIES.index(density) + STRUCTURES.index(structure)
    within_rounding(inputs, FORMS[number % 8], "cpu")
    causal = {"is_causal": True, "self_coupling": False}
    within_rounding(inputs, FORMS[(number + 5) % 8] | causal, "cpu")


@pytest.mark.parametrize("density", [0.05, 0.6])
@pytest.mark.parametrize("frame", ["absolute", "nearest"])
def test_dropout_meets_the_same_pairs_forward_and_backward(frame, density, within_rounding, draw, per_query):
    inputs = per_query(draw(2, 3, 70, 150, 3, 5, density=density))
    for p in (0.1, 0.7):
        options = {"dropout_p": p, "frame": frame, "power": 2, "self_coupling": False}
        within_rounding(inputs, options, "cpu")
        mask = torch.rand(2, 1, 70, 150, generator=torch.Generator().manual_seed(0)) > 0.3
        within_rounding(inputs, options | {"attn_mask": mask, "is_causal": True}, "cpu")


@pytest.mark.parametrize(("send_heads", "value_heads"), [(6, 1), (1, 6), (2, 3), (3, 2), (1, 1), (6, 2)])
@pytest.mark.parametrize("options", [{"power": 2}, NEAREST, {"dropout_p": 0.2}], ids=str)
def test_grouped_heads(send_heads, value_heads, options, within_rounding, draw, per_query):
    receive, send, value, coupling, bandwidth = per_query(draw(2, 6, 40, 70, 5, 7))
    inputs = [receive, send[:, :send_heads], value[:, :value_heads], coupling, bandwidth]
    within_rounding(inputs, options, "cpu")


@pytest.mark.parametrize("copies", [2, 40, 300])
@pytest.mark.parametrize("options", [NEAREST, {"frame": "nearest", "edge": 0.1}], ids=str)
@pytest.mark.parametrize("order", ["forwards", "backwards", "shuffled"])
def test_of_equally_near_senders_the_earliest_takes_back_the_frame(order, options, copies, evaluate):
    """Equal senders in one tile and in several, in whatever order the tiles are visited. Only the earliest's
    gradient differs from that of its equals."""
    g = torch.Generator().manual_seed(copies)
    vocabulary = 2 * torch.randn(300 // copies + 1, 2, generator=g)
    number = torch.arange(300) % len(vocabulary)
    if order == "backwards":
        number = number.flip(0)
    elif order == "shuffled":
        number = number[torch.randperm(300, generator=g)]
    send = vocabulary[number][None, None]
    receive = torch.randn(1, 1, 130, 2, generator=g)
    coupled = locking.coupling_from_radius(torch.tensor([1.5]), 3.0)
    inputs = [receive, send, torch.randn(1, 1, 300, 3, generator=g), *coupled]
    for extra in ({}, {"is_causal": True, "self_coupling": False}):
        want = evaluate([x.double() for x in inputs], options | extra, "eager")[1]
        got = evaluate(inputs, options | extra, "cpu")[1]
        for a, b in zip(got, want, strict=True):
            assert (a.double() - b).abs().max() <= 2e-5 * b.abs().max()


@pytest.mark.parametrize("options", FORMS, ids=str)
@pytest.mark.parametrize("mask", ["rows", "keys", "tiles"])
def test_rows_that_lock_to_nobody_are_exactly_zero(mask, options, evaluate, draw):
    """Their gradients are 0 and no other is touched by NaN; also where whole tiles are masked out."""
    inputs = draw(2, 2, 100, 200, 3, 6)
    allowed = torch.ones(2, 1, 100, 200, dtype=torch.bool)
    if mask == "rows":
        allowed[:, :, ::3] = False
        allowed[:, :, 24:48] = False
    elif mask == "keys":
        allowed = torch.tensor([True, False])[:, None, None, None].expand(2, 1, 1, 200)
    else:
        allowed[..., 64:128] = False
        allowed[:, :, 10:60, :] = False
    alone = ~allowed.expand(2, 2, 100, 200).any(-1)
    out, gradients = evaluate(inputs, options | {"attn_mask": allowed}, "cpu")
    assert torch.count_nonzero(out[alone]) == 0 and torch.count_nonzero(out[~alone])
    assert all(torch.isfinite(x).all() for x in gradients)
    assert torch.count_nonzero(gradients[0][alone]) == 0
    nobody = ~allowed.expand(2, 2, 100, 200).any(-2)
    assert torch.count_nonzero(gradients[1][nobody]) == 0 and torch.count_nonzero(gradients[2][nobody]) == 0
    wide = inputs[0] + 1e4
    out, gradients = evaluate([wide, *inputs[1:]], options | {"frame": "absolute"}, "cpu")
    assert not out.any() and not any(x.any() for x in gradients)


@pytest.mark.parametrize("options", [{"power": 2}, {"edge": 0.1}, NEAREST], ids=str)
def test_what_is_not_locked_moves_nothing(options, draw):
    """Not a bit: each row's output with every value that it does not lock to blown up."""
    inputs = draw(1, 1, 60, 190, 3, 8, density=0.3)
    out = attention(*inputs, **options, backend="cpu")
    _, sync, _ = attention(*(x.double() for x in inputs), **options, return_weights=True)
    for i in range(0, 60, 7):
        blown = torch.where(sync[0, 0, i, :, None] > 0, inputs[2], 1e30)
        assert (blown == 1e30).any()
        again = attention(*inputs[:2], blown, *inputs[3:], **options, backend="cpu")
        assert torch.equal(again[0, 0, i], out[0, 0, i])


@pytest.mark.parametrize("options", [{}, {"frame": "nearest"}, {"edge": 0.02, "power": 2}], ids=str)
def test_pruning_is_exact_along_a_drift(options, draw):
    """2,000 tokens whose window is a few tiles wide, against eager in float64 on some rows."""
    inputs = draw(1, 2, 2000, 2000, 3, 8, density=0.02, structure="drift", same=True)
    options = options | {"is_causal": True, "self_coupling": False}
    out = attention(*inputs, **options, backend="cpu").double()
    wide = [x.double() for x in inputs]
    for i in (0, 1, 24, 63, 64, 65, 500, 1023, 1024, 1999):
        prefix = wide[0][:, :, i : i + 1], wide[0][:, :, : i + 1], wide[2][:, :, : i + 1], *wide[3:]
        want, sync, _ = attention(*prefix, **options, return_weights=True)
        # a pair within rounding of the edge weighs next to nothing, unless it is all there is
        near = (sync**2 < 1e-4) & (sync > 0)
        assert (out[:, :, i] - want[:, :, 0]).abs().max() < (1e-4 if not near.any() else 1e-2)
    assert (sync > 0).double().mean() < 0.1


@pytest.mark.parametrize("share", [0.9, 0.97, 0.995])
@pytest.mark.parametrize("frame", ["absolute", "nearest"])
@pytest.mark.parametrize(("queries", "keys", "m"), [(70, 140, 3), (1100, 1300, 1)])
def test_what_only_just_locks_is_not_pruned(queries, keys, m, frame, share, evaluate):
    """All senders stand at this share of the squared locking radius, and so do the boxes of their tiles."""
    g = torch.Generator().manual_seed(0)
    base = 2.0 if frame == "nearest" else 0.0
    coupled = locking.coupling_from_radius(torch.tensor([1.5]).double(), 3.0)
    place = torch.eye(m)[0] * (base + share * 1.5**2) ** 0.5
    send = place.expand(1, 1, keys, m).contiguous()
    if frame == "nearest":
        send[..., keys // 2, :] *= (base / (base + share * 1.5**2)) ** 0.5
    value = torch.randn(1, 1, keys, 2, generator=g)
    inputs = [torch.zeros(1, 1, queries, m), send, value, *(x.float() for x in coupled)]
    options = {"frame": frame, "power": 2, "eps": 1.0}  # without it equal weights would have no gradient
    want, wanted = evaluate([x.double() for x in inputs], options, "eager")
    out, gradients = evaluate(inputs, options, "cpu")
    for a, b in zip((out, *gradients), (want, *wanted), strict=True):
        assert (a.double() - b).abs().max() <= 1e-3 * b.abs().max()


def test_gradients_through_pruned_groups_of_tiles(within_rounding, draw, per_query):
    """Long enough for several groups of tiles on both sides, of which most are skipped whole."""
    inputs = per_query(draw(1, 1, 1100, 1300, 2, 3, density=0.01, structure="drift"))
    within_rounding(inputs, NEAREST | {"self_coupling": False}, "cpu")


@pytest.mark.parametrize("side", ["receiver", "sender"])
@pytest.mark.parametrize("options", [{"power": 2}, {"edge": 0.1, "dropout_p": 0.2}], ids=str)
def test_one_token_that_locks_to_everybody_among_many_that_do_not(options, side, within_rounding, draw):
    """The pairs that wait for their evaluation are then all of one row, or of one key."""
    receive, send, value, coupling, bandwidth = draw(1, 2, 500, 600, 2, 5, density=0.002)
    hub = torch.linspace(-1, 1, 500)
    coupling = coupling[:, None].expand(1, 2, 500).contiguous()
    if side == "receiver":
        coupling[:, :, 100] = 50.0
        bandwidth = bandwidth.clamp(max=0.05)
    else:  # receivers far apart from each other and from all senders but one, which all reach
        receive = torch.stack((hub.cos(), hub.sin()), -1)[None, None].expand(1, 2, 500, 2).contiguous()
        send = send + 30
        send[:, :, 77] = 0
        coupling, bandwidth = torch.full((1, 2, 500), 3.0), torch.full((2,), 0.1)
    within_rounding([receive, send, value, coupling, bandwidth], options, "cpu")


@pytest.mark.parametrize("scale", [1e4, 1e8, 1e13])
def test_frequencies_far_from_the_origin_and_each_other(scale, evaluate):
    """In the nearest frame each row reads its own value; nothing overflows, forward or backward."""
    w = scale * torch.linspace(-1, 1, 150)[:, None].expand(1, 1, 150, 2).contiguous()
    value = torch.randn(1, 1, 150, 4)
    out, gradients = evaluate([w, w, value, torch.ones(1), torch.ones(1)], NEAREST, "cpu")
    torch.testing.assert_close(out, value)
    assert all(torch.isfinite(x).all() for x in gradients)
