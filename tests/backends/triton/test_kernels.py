"""The Triton kernels against the definition: every size, mask, density and group of heads."""

import itertools

import pytest
import torch

import syncattn
from syncattn import locking
from syncattn.backends.call import prepare

attention = syncattn.selective_synchronization_attention
pytestmark = pytest.mark.usefixtures("poisoned_memory")
NEAREST = {"frame": "nearest", "power": 2}
LAYER = NEAREST | {"is_causal": True, "self_coupling": False}
FORMS = [  # each of the four weights, both frames
    {},
    {"power": 2},
    {"edge": 0.05},
    {"power": 2, "edge": 0.05},
    {"frame": "nearest"},
    NEAREST,
    {"frame": "nearest", "edge": 0.05},
    NEAREST | {"edge": 0.05},
]
SIZES = [(1, 1), (5, 1), (5, 2), (31, 33), (32, 16), (33, 32), (17, 70)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_any_number_of_receivers_and_senders(size, within_rounding, draw, walked_in_pieces):
    """Around the edges of the tiles of 32 and their halves; causal and without the own pair."""
    queries, keys = size
    options = FORMS[SIZES.index(size)]
    inputs = draw(1, 1, queries, keys, 3, 5)
    within_rounding(inputs, options, "triton")
    if keys >= queries:
        within_rounding(inputs, options | {"is_causal": True, "self_coupling": False}, "triton")


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_every_form(options, within_rounding, draw, per_query):
    """Symmetric; and directed, causal, a coupling for each row."""
    within_rounding(draw(1, 1, 40, 40, 20, 3, same=True), options, "triton")
    within_rounding(per_query(draw(1, 2, 20, 50, 4, 3)), options | {"is_causal": True}, "triton")


DIMS = [
    (1, 64),
    (2, 1),
    (3, 15),
    (7, 16),
    (8, 17),
    (16, 33),
    (17, 130),
    (33, 256),
    (64, 72),
    (100, 8),
    (128, 128),
]


@pytest.mark.parametrize("m_and_d", DIMS, ids=str)
def test_any_number_of_coordinates_and_value_columns(m_and_d, within_rounding, draw):
    options = FORMS[DIMS.index(m_and_d) % len(FORMS)]
    within_rounding(draw(1, 1, 20, 40, *m_and_d), options, "triton")


@pytest.mark.parametrize("which", [(0, 0, 0, 1), (0, 1, 1, 0), (1, 0, 0, 1), (1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("options", [{"power": 2}, LAYER], ids=["absolute", "nearest"])
def test_masks_of_every_broadcast_shape(which, options, within_rounding, draw):
    shape = [n if w else 1 for n, w in zip((2, 2, 10, 40), which)]
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(sum(which))) > 0.4
    within_rounding(draw(2, 2, 10, 40, 4, 6), options | {"attn_mask": mask}, "triton")


@pytest.mark.parametrize("density", [0, 0.05, 1])
@pytest.mark.parametrize("structure", ["gaussian", "clusters", "drift"])
def test_any_density(structure, density, within_rounding, draw, per_query):
    """Over lists of tiles, forward and backward."""
    inputs = per_query(draw(1, 1, 60, 130, 3, 17, density=density, structure=structure))
    options = FORMS[(3 * int(density * 100) + len(structure)) % 8]
    causal = {"is_causal": True, "self_coupling": False} if density else {}
    within_rounding(inputs, options | causal, "triton")


@pytest.mark.parametrize("frame", ["absolute", "nearest"])
def test_dropout_meets_the_same_pairs_forward_and_backward(frame, within_rounding, draw, per_query):
    inputs = per_query(draw(2, 2, 30, 50, 3, 5))
    options = {"dropout_p": 0.6, "frame": frame, "power": 2, "self_coupling": False}
    within_rounding(inputs, options, "triton")
    within_rounding(inputs, options | {"dropout_p": 0.1, "is_causal": True, "power": 1}, "triton")


@pytest.mark.parametrize(("send_heads", "value_heads"), [(4, 1), (1, 4), (2, 2), (1, 1)])
@pytest.mark.parametrize("options", [{"power": 2}, NEAREST | {"dropout_p": 0.2}], ids=str)
def test_grouped_heads(send_heads, value_heads, options, within_rounding, draw, per_query):
    receive, send, value, coupling, bandwidth = per_query(draw(2, 4, 20, 20, 5, 7))
    within_rounding(
        [receive, send[:, :send_heads], value[:, :value_heads], coupling, bandwidth], options, "triton"
    )


@pytest.mark.parametrize("order", ["forwards", "backwards", "shuffled"])
def test_of_equally_near_senders_the_earliest_takes_back_the_frame(order, evaluate, device):
    """Equal senders in one tile and in several, in whatever order the tiles are visited."""
    g = torch.Generator().manual_seed(0)
    options = {"frame": "nearest", "edge": 0.1} if order == "shuffled" else NEAREST
    vocabulary = 2 * torch.randn(9, 2, generator=g)
    number = torch.arange(100) % len(vocabulary)
    if order == "backwards":
        number = number.flip(0)
    elif order == "shuffled":
        number = number[torch.randperm(100, generator=g)]
    send, receive = vocabulary[number][None, None], torch.randn(1, 1, 40, 2, generator=g)
    parameters = locking.coupling_from_radius(torch.tensor([1.5]), 3.0)
    inputs = [receive, send, torch.randn(1, 1, 100, 3, generator=g), *parameters]
    for extra in ({}, {"is_causal": True, "self_coupling": False}):
        want = evaluate([x.double() for x in inputs], options | extra, "eager")[1]
        got = evaluate(inputs, options | extra, "triton", device=device)[1]
        for a, b in zip(got, want, strict=True):
            assert (a.double() - b).abs().max() <= 2e-5 * b.abs().max()


@pytest.mark.parametrize(
    ("mask", "options"), [("rows", {}), ("keys", NEAREST), ("tiles", {"edge": 0.1})], ids=str
)
def test_rows_that_lock_to_nobody_are_exactly_zero(mask, options, evaluate, draw, device):
    """Their gradients are 0 and no other is touched by NaN; also where whole tiles are masked out."""
    inputs = draw(2, 1, 30, 70, 3, 6)
    allowed = torch.ones(2, 1, 30, 70, dtype=torch.bool)
    if mask == "rows":
        allowed[:, :, ::3] = False
    elif mask == "keys":
        allowed = torch.tensor([True, False])[:, None, None, None].expand(2, 1, 1, 70)
    else:
        allowed[..., 32:64] = False
        allowed[:, :, 10:20, :] = False
    alone = ~allowed.expand(2, 1, 30, 70).any(-1)
    out, gradients = evaluate(inputs, options | {"attn_mask": allowed}, "triton", device=device)
    assert torch.count_nonzero(out[alone]) == 0 and torch.count_nonzero(out[~alone])
    assert all(torch.isfinite(x).all() for x in gradients)
    assert torch.count_nonzero(gradients[0][alone]) == 0
    nobody = ~allowed.expand(2, 1, 30, 70).any(-2)
    assert torch.count_nonzero(gradients[1][nobody]) == 0 and torch.count_nonzero(gradients[2][nobody]) == 0
    far = inputs[0] + 1e4
    out, gradients = evaluate([far, *inputs[1:]], options | {"frame": "absolute"}, "triton", device=device)
    assert not out.any() and not any(x.any() for x in gradients)


@pytest.mark.parametrize("options", [{"power": 2}, {"edge": 0.1}, NEAREST], ids=str)
def test_what_is_not_locked_moves_nothing(options, draw, device):
    """Not a bit: some rows' output with every value that they do not lock to blown up."""
    inputs = draw(1, 1, 20, 70, 3, 8, density=0.3)
    run = lambda *x: attention(*(y.to(device) for y in x), **options, backend="triton").cpu()  # noqa: E731
    out = run(*inputs)
    _, sync, _ = attention(*(x.double() for x in inputs), **options, return_weights=True)
    for i in (0, 7, 19):
        blown = torch.where(sync[0, 0, i, :, None] > 0, inputs[2], 1e30)
        assert (blown == 1e30).any()
        assert torch.equal(run(*inputs[:2], blown, *inputs[3:])[0, 0, i], out[0, 0, i])


@pytest.mark.parametrize("share", [0.9, 0.995])
@pytest.mark.parametrize("frame", ["absolute", "nearest"])
def test_what_only_just_locks_is_not_pruned(frame, share, evaluate, device):
    """All senders stand at this share of the squared locking radius, and so do the boxes of their tiles."""
    g = torch.Generator().manual_seed(0)
    base = 2.0 if frame == "nearest" else 0.0
    parameters = locking.coupling_from_radius(torch.tensor([1.5]).double(), 3.0)
    place = torch.eye(3)[0] * (base + share * 1.5**2) ** 0.5
    send = place.expand(1, 1, 140, 3).contiguous()
    if frame == "nearest":
        send[..., 70, :] *= (base / (base + share * 1.5**2)) ** 0.5
    value = torch.randn(1, 1, 140, 2, generator=g)
    inputs = [torch.zeros(1, 1, 40, 3), send, value, *(x.float() for x in parameters)]
    options = {"frame": frame, "power": 2, "eps": 1.0}  # without it equal weights would have no gradient
    want, wanted = evaluate([x.double() for x in inputs], options, "eager")
    out, gradients = evaluate(inputs, options, "triton", device=device)
    for a, b in zip((out, *gradients), (want, *wanted), strict=True):
        assert (a.double() - b).abs().max() <= 1e-3 * b.abs().max()


@pytest.mark.parametrize("scale", [1e4, 1e13])
def test_frequencies_far_from_the_origin_and_each_other(scale, evaluate, device):
    """In the nearest frame each row reads its own value; nothing overflows, forward or backward."""
    w = scale * torch.linspace(-1, 1, 40)[:, None].expand(1, 1, 40, 2).contiguous()
    value = torch.randn(1, 1, 40, 4)
    out, gradients = evaluate([w, w, value, torch.ones(1), torch.ones(1)], NEAREST, "triton", device=device)
    torch.testing.assert_close(out, value)
    assert all(torch.isfinite(x).all() for x in gradients)


def test_dropout_is_the_hash_of_all_backends(device):
    """All pairs lock equally and the values are the unit vectors: the output is the mask."""
    from syncattn.backends.dropout import keep_mask, row_numbers
    from syncattn.backends.triton import passes

    w, value = torch.zeros(2, 1, 40, 1, device=device), torch.eye(40, device=device).expand(2, 1, -1, -1)
    one = torch.ones(1, device=device)
    for seed, p in itertools.product((0, 2**40 + 17, 2**62 - 1), (0.1, 0.6)):
        seed = torch.tensor(seed, device=device)
        call = prepare(w, w.clone(), value, one, one, dropout_p=p, power=2, eps=0.0)._replace(seed=seed)
        out, *_ = passes.forward(call)
        rows, columns = row_numbers(2, 1, 40, out.device), torch.arange(40, device=device)
        assert torch.equal(out > 0, keep_mask(seed, rows, columns, p))


ROW_ALONE = (torch.arange(40 * 50).view(40, 50) * 37 % 101 < 40) & (torch.arange(40) != 7)[:, None]
NEAREST_GIVEN = {  # options, sizes
    "layer": (LAYER, (2, 2, 40, 40, 3, 5), {"same": True}),
    "directed": (LAYER, (1, 2, 40, 50, 3, 5), {}),
    "many coordinates": (LAYER, (1, 2, 40, 50, 40, 5), {}),
    "many coordinates, alike": (NEAREST, (1, 2, 40, 40, 40, 5), {"same": True}),
    "mask": (NEAREST | {"attn_mask": ROW_ALONE}, (1, 2, 40, 50, 20, 5), {}),
    "padding": (LAYER | {"attn_mask": (torch.arange(50) > 6)[None]}, (1, 2, 40, 50, 3, 5), {}),
    "packed": (LAYER | {"sequence_ids": torch.arange(50)[None] // 9 - 1}, (2, 1, 40, 50, 3, 5), {}),
    "dropout": ({"frame": "nearest", "edge": 0.1, "dropout_p": 0.3}, (1, 1, 40, 50, 3, 5), {}),
    "few receivers": (LAYER, (1, 2, 3, 70, 3, 5), {}),
    "absolute": ({"power": 2}, (1, 1, 40, 50, 3, 5), {}),
    "no senders": (NEAREST, (1, 1, 5, 0, 3, 5), {"density": None}),
    "no columns": (NEAREST, (1, 1, 5, 9, 3, 0), {}),
}


def given_out(inputs, options, backend, device):
    """(out, D of the nearest, the gradients of a functional of both), on the CPU."""
    torch.manual_seed(0)
    leaves = {id(x): x.detach().to(device).requires_grad_() for x in inputs}
    options = {k: x.to(device) if isinstance(x, torch.Tensor) else x for k, x in options.items()}
    tensors = [leaves[id(x)] for x in inputs]
    out, least = attention(*tensors, **options, backend=backend, return_nearest=True)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator).to(x) for x in (out, least)]
    loss = sum((x * w).sum() for x, w in zip((out, least), weights, strict=True))
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return out.detach().cpu(), least.detach().cpu(), *(None if x is None else x.cpu() for x in gradients)


@pytest.mark.parametrize("name", NEAREST_GIVEN)
def test_the_nearest_senders_detuning_is_given_out(name, draw, per_query, device):
    options, sizes, more = NEAREST_GIVEN[name]
    inputs = draw(*sizes, **more)
    if name not in ("layer", "no senders"):
        inputs = per_query(inputs)
    wide = {id(x): x.double() for x in inputs}
    want = given_out([wide[id(x)] for x in inputs], options, "eager", device)
    found = given_out(inputs, options, "triton", device)
    for one, expected in zip(found, want, strict=True):
        size = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, expected, rtol=2e-4, atol=2e-4 * size, check_dtype=False)
    if name == "mask":
        assert not found[1][:, :, 7].any() and not found[2][:, :, 7].any()


def test_it_is_given_out_of_heads_in_groups_and_sorted_tokens(draw, kernels, monkeypatch, device):
    receive, send, value, coupling, bandwidth = draw(1, 4, 40, 50, 3, 5)
    monkeypatch.setattr(kernels, "FEWEST_SORTED", 30)
    for inputs in (
        [receive, send[:, :2], value[:, :1], coupling, bandwidth],
        [send, send, value, coupling, bandwidth],
    ):
        wide = {id(x): x.double() for x in inputs}
        want = given_out([wide[id(x)] for x in inputs], NEAREST, "eager", device)
        for one, expected in zip(given_out(inputs, NEAREST, "triton", device), want, strict=True):
            torch.testing.assert_close(one, expected, rtol=2e-4, atol=1e-3, check_dtype=False)


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("options", [LAYER, NEAREST], ids=str)
def test_its_gradient_beside_values_of_two_bytes(options, far, draw, device):
    """Where D is a product of matrices in the head's unit, but for tiles that are too far for that."""
    inputs = draw(1, 2, 70, 100, 20, 4, structure="drift")
    inputs[2] = inputs[2].bfloat16()
    if far:
        inputs[0][:, :, 40, 3] += 3000.0
    leaves = [x.to(device).requires_grad_() for x in inputs]
    wide = [x.detach().double().requires_grad_() for x in leaves]
    generator, found = torch.Generator().manual_seed(1), []
    weight = torch.randn(1, 2, 70, generator=generator).to(device)
    for tensors, backend in ((leaves, "triton"), (wide, "eager")):
        out, least = attention(*tensors, **options, backend=backend, return_nearest=True)
        nothing = torch.zeros_like(out)
        found.append((least, *torch.autograd.grad((out, least), tensors[:2], (nothing, weight.to(least)))))
    for (one, expected), near in zip(zip(*found, strict=True), (1e-5, 1e-3, 1e-2), strict=True):
        usual = expected.abs().quantile(0.9).item()
        apart = (one.double() - expected).abs() / (expected.abs() + usual)
        assert apart.max() <= near
