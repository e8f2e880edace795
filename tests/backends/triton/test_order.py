"""Calls in the order of a k-d tree: the same results, from shorter lists."""

import itertools

import pytest
import torch

import syncattn
from syncattn.backends.call import prepare

attention = syncattn.selective_synchronization_attention
pytestmark = pytest.mark.usefixtures("poisoned_memory")
NEAREST = {"frame": "nearest", "power": 2}


@pytest.fixture
def sorts(kernels, monkeypatch):
    """Sets from how many tokens on calls are sorted; at first all are."""
    monkeypatch.setattr(kernels, "FEWEST_SORTED", 1)
    return lambda fewest: monkeypatch.setattr(kernels, "FEWEST_SORTED", fewest)


def shuffled(inputs, seed=3):
    """The same tokens in no order: receivers and senders of each head on their own."""
    g = torch.Generator().manual_seed(seed)
    order = lambda x: torch.rand(x.shape[:3], generator=g).argsort(-1)[..., None]  # noqa: E731
    receive, send, value, *parameters = inputs
    same = send is receive
    receive = receive.gather(2, order(receive).expand_as(receive))
    by = order(send)
    send = receive if same else send.gather(2, by.expand_as(send))
    value = value if same else value.gather(2, by.expand_as(value))
    return [receive, send, value, *parameters]


SIZES = [(5, 1), (33, 32), (70, 100), (64, 64), (129, 40)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_any_number_of_receivers_and_senders(size, within_rounding, draw, per_query, sorts):
    inputs = per_query(draw(1, 2, *size, 3, 5, density=0.2))
    within_rounding(inputs, {"power": 2}, "triton")
    if size[1] >= size[0]:
        within_rounding(inputs, NEAREST | {"self_coupling": False, "edge": 0.05}, "triton")


@pytest.mark.parametrize("m", [3, 20])
@pytest.mark.parametrize("options", [{}, NEAREST | {"self_coupling": False}], ids=str)
def test_symmetric(m, options, within_rounding, draw, sorts):
    """One order for both sides: the diagonal of D stays exactly 0, also as a Gram product (m 20)."""
    within_rounding(shuffled(draw(1, 2, 100, 100, m, 4, same=True, structure="clusters")), options, "triton")


@pytest.mark.parametrize(("send_heads", "value_heads"), [(2, 2), (1, 4), (4, 1)])
def test_grouped_heads(send_heads, value_heads, within_rounding, draw, per_query, sorts):
    receive, send, value, *parameters = per_query(draw(2, 4, 20, 50, 5, 7))
    inputs = [receive, send[:, :send_heads], value[:, :value_heads], *parameters]
    within_rounding(inputs, NEAREST | {"dropout_p": 0.2}, "triton")


def test_heads_that_share_neither_senders_nor_values_evenly(within_rounding, draw, sorts):
    receive, send, value, *parameters = draw(1, 6, 20, 40, 3, 4)
    within_rounding([receive, send[:, :2], value[:, :3], *parameters], {"power": 2}, "triton")


@pytest.mark.parametrize("which", [(0, 0), (1, 0), (0, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("options", [{"power": 2}, NEAREST | {"self_coupling": False}], ids=str)
def test_masks_of_senders(which, options, within_rounding, draw, sorts):
    shape = [n if w else 1 for n, w in zip((2, 2), which)]
    mask = torch.rand(*shape, 1, 70, generator=torch.Generator().manual_seed(sum(which))) > 0.4
    inputs = draw(2, 2, 70, 70, 20, 6, same=True, density=0.8)
    within_rounding(shuffled(inputs), options | {"attn_mask": mask}, "triton")


def test_dropout_drops_the_same_pairs(device, sorts):
    """All pairs lock equally and the values are the unit vectors: the output is the mask."""
    from syncattn.backends.dropout import keep_mask, row_numbers
    from syncattn.backends.triton import passes

    g = torch.Generator().manual_seed(0)
    w = [(1e-4 * torch.randn(2, 2, 100, 2, generator=g)).to(device) for _ in "rs"]
    value = torch.eye(100, device=device).expand(2, 2, -1, -1)
    one, seed = torch.ones(2, device=device), torch.tensor(2**40 + 17, device=device)
    call = prepare(*w, value, one, one, dropout_p=0.6, power=2, eps=0.0)._replace(seed=seed)
    out, *_ = passes.forward(call)
    rows, columns = row_numbers(2, 2, 100, out.device), torch.arange(100, device=device)
    assert torch.equal(out > 0, keep_mask(seed, rows, columns, 0.6))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("duplicates", [False, True])
def test_the_nearest_sender_is_the_same(duplicates, masked, draw, device, sorts, call_of):
    """Of equally near ones the earliest of the call, not of the tree; and the frame's gradient is its own."""
    from syncattn.backends.triton import passes

    inputs = draw(1, 2, 50, 70, 3, 4, density=0.2)
    if duplicates:
        inputs[1] = inputs[1][:, :, torch.randperm(70, generator=torch.Generator().manual_seed(0)) % 7]
    options = NEAREST | {"self_coupling": False}
    if masked:
        options["attn_mask"] = torch.arange(70) % 3 > 0
    results = []
    for fewest in (1, 10**9):
        sorts(fewest)
        call = call_of(inputs, device, **options)
        saved = passes.forward(call)
        grad = torch.ones_like(saved[0]) * torch.arange(4.0, device=device)
        results.append([*saved, *passes.backward(call, grad, *saved)])
    for name, a, b in zip(["out", "sum", "base", "sender"], *results, strict=False):
        if name in ("base", "sender"):
            assert torch.equal(a, b), name
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())


def test_the_lists_get_shorter(draw, device, sorts, kernels, call_of):
    """Clusters in no order: every tile had one of each; also where half of the senders are masked out."""
    inputs = shuffled(draw(1, 2, 512, 512, 3, 4, density=0.03, structure="clusters", same=True))
    counted = {}
    for name, fewest, options in (
        ("as it is", 10**9, {}),
        ("sorted", 1, {}),
        ("masked", 1, {"attn_mask": torch.arange(512) % 2 > 0}),
    ):
        sorts(fewest)
        p = kernels.Launch(call_of(inputs, device, power=2, **options), "forward")
        counted[name] = p.lists(True).counts[..., 0].sum().item()
    assert counted["as it is"] == 2 * 16 * 16
    assert counted["sorted"] < 0.5 * counted["as it is"]
    assert counted["masked"] <= 0.7 * counted["sorted"]


@pytest.mark.parametrize("tokens", [1, 32, 33, 100, 128])
def test_the_order_holds_every_token_once_and_near_ones_together(tokens):
    from syncattn.backends.triton.order import kd_order
    from syncattn.backends.triton.start import Host

    g = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, tokens, 1, generator=g)
    order = kd_order(Host(x.device), x, 32, None)
    assert torch.equal(order.sort(-1).values, torch.arange(tokens).expand(2, 3, -1))
    pieces = x[..., 0].gather(-1, order).split(32, -1)
    for before, after in itertools.pairwise(pieces):  # in one dimension tiles are intervals
        assert (before.amax(-1) <= after.amin(-1)).all()


def test_who_is_not_finite_or_not_allowed_is_in_the_last_tiles():
    from syncattn.backends.triton.order import kd_order
    from syncattn.backends.triton.start import Host

    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, 150, 2, generator=g)
    x[0, 0, 3, 1], x[0, 0, 60, 0], x[0, 0, 70, 0] = torch.nan, torch.inf, -torch.inf
    allowed = torch.rand(1, 1, 150, generator=g) > 0.3
    away = ~allowed[0, 0] | ~x[0, 0].isfinite().all(-1)
    order = kd_order(Host(x.device), x.half(), 32, allowed)[0, 0]
    assert torch.equal(order.sort().values, torch.arange(150))
    whole = (150 - int(away.sum())) // 32 * 32  # of others alone
    assert not away[order[:whole]].any() and away[order[whole + 32 :]].all()


def test_what_is_not_a_number_shows_and_touches_no_other_row(draw, device, sorts, call_of):
    from syncattn.backends.triton import passes

    inputs = draw(1, 1, 70, 70, 3, 4)
    for options in ({"power": 2}, NEAREST):
        call = call_of(inputs, device, **options)
        clean, *_ = passes.forward(call)
        call = call._replace(receive=call.receive.clone())
        call.receive[0, 0, 11, 0] = torch.nan
        out, *saved = passes.forward(call)
        touched = out.isnan().all(-1)
        assert touched[0, 0, 11] and touched.sum() == 1
        torch.testing.assert_close(out[~touched], clean[~touched])
        assert passes.backward(call, torch.ones_like(out), out, *saved)[0][0, 0, 11].isnan().any()


@pytest.mark.parametrize("mask", ["none", "rows", "causal"])
def test_which_calls_are_sorted(mask, draw, device, sorts, kernels, call_of):
    """By shapes and options alone; masks that differ by row and causal order keep their places."""
    inputs = draw(1, 1, 60, 70, 2, 3)
    options = {"rows": {"attn_mask": torch.ones(60, 70, dtype=torch.bool)}, "causal": {"is_causal": True}}
    call = call_of(inputs, device, **options.get(mask, {}))
    assert (kernels.Launch(call, "forward").order is not None) == (mask == "none")
    sorts(61)
    assert kernels.Launch(call, "forward").order is None
