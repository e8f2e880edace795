"""The lists of tiles: complete, short where they can be, and without effect on the result."""

import pytest
import torch

import syncattn
from syncattn import locking
from syncattn.backends.call import prepare
from syncattn.backends.triton.blocks import BLOCKS

attention = syncattn.selective_synchronization_attention
pytestmark = pytest.mark.usefixtures("poisoned_memory")


def problem(launch, inputs, device, causal=False):
    return launch.Launch(prepare(*(x.to(device) for x in inputs), is_causal=causal, power=2), "forward")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("structure", ["gaussian", "clusters", "drift"])
def test_lists_hold_every_pair_of_tiles_with_a_locked_pair(structure, causal, draw, device, kernels):
    from syncattn.backends.triton import passes  # noqa: F401

    inputs = draw(1, 2, 120, 140, 2, 2, density=0.05, structure=structure)
    p = problem(kernels, inputs, device, causal)
    locked = attention(*(x.double() for x in inputs), is_causal=causal, return_weights=True)[1] > 0
    size = p.query_tile
    rows, columns = -(-120 // size), -(-140 // size)
    padded = torch.nn.functional.pad(locked, (0, columns * size - 140, 0, rows * size - 120))
    needed = padded.unflatten(-1, (columns, size)).unflatten(-3, (rows, size)).any(-1).any(-2).flatten(0, 1)
    for of_queries, want in ((True, needed), (False, needed.mT)):
        entries, counts, _ = p.lists(of_queries)
        counts = counts[..., 0]
        listed = torch.zeros_like(want)
        for bh, tile in torch.cartesian_prod(*(torch.arange(n) for n in want.shape[:2])).tolist():
            found = entries[bh, tile, : counts[bh, tile]].cpu()
            assert (found.diff() > 0).all() and (found < want.shape[2]).all()
            listed[bh, tile, found.long()] = True
        assert (listed | ~want).all()
        if causal and want.shape[1] > 2:
            assert not listed.all()


def test_with_drift_and_causal_order_the_list_is_a_band(device, kernels):
    from syncattn.backends.triton import passes  # noqa: F401

    size = BLOCKS[64, 4, False].forward.queries
    tokens = 6 * size
    w = torch.arange(tokens, dtype=torch.float32)[None, None, :, None].expand(1, 1, -1, 2).contiguous()
    radius = torch.tensor([size * 1.2])  # the window reaches into the tile before, no further
    inputs = [w * 0.5**0.5, w * 0.5**0.5, torch.randn(1, 1, tokens, 4)]
    p = problem(kernels, [*inputs, *locking.coupling_from_radius(radius, 10.0)], device, causal=True)
    for of_queries in (True, False):
        counts = p.lists(of_queries).counts[..., 0].flatten().cpu()
        assert sorted(counts.tolist()) == [1, 2, *[3] * (len(counts) - 2)]


@pytest.mark.parametrize("capacity", [1, 3, 5])
@pytest.mark.parametrize("structure", ["clusters", "drift"])
def test_where_more_tiles_can_lock_than_a_list_has_room_for(
    capacity, structure, draw, device, kernels, monkeypatch, tiles_of
):
    """The entries are the smallest granules of which all fit, and just those with a tile that can lock."""
    tiles_of(16, 16)
    monkeypatch.setattr(kernels, "_CHUNK", 4)
    inputs = draw(1, 2, 200, 250, 2, 2, density=0.02, structure=structure)
    rows, columns = 13, 16
    monkeypatch.setattr(kernels, "CAPACITY", 1000)
    p = problem(kernels, inputs, device)
    exact = {}
    for of_queries in (True, False):
        entries, counts, _ = p.lists(of_queries)
        own, other = (rows, columns) if of_queries else (columns, rows)
        exact[of_queries] = alive = torch.zeros(2, own, other, dtype=torch.bool)
        assert not counts[..., 1].any()
        for at in torch.cartesian_prod(torch.arange(2), torch.arange(own)).tolist():
            alive[(*at, entries[*at, : counts[*at, 0]].long().cpu())] = True
    monkeypatch.setattr(kernels, "CAPACITY", capacity)
    p = problem(kernels, inputs, device)
    sizes = set()
    for of_queries, alive in exact.items():
        entries, counts, _ = p.lists(of_queries)
        assert entries.shape[2] == capacity
        for at in torch.cartesian_prod(torch.arange(2), torch.arange(alive.shape[1])).tolist():
            size = 1
            granules = alive[*at].nonzero().flatten()
            while len(granules) > capacity:
                size, granules = size * 2, (granules // 2).unique()
            assert counts[*at, :2].tolist() == [size * len(granules), size.bit_length() - 1]
            assert torch.equal(entries[*at, : len(granules)].cpu().long(), granules)
            sizes.add(size)
    assert len(sizes) > 1


@pytest.mark.parametrize("capacity", [1, 2, 3])
@pytest.mark.parametrize(
    "options", [{"power": 2}, {"frame": "nearest", "edge": 0.1, "is_causal": True, "dropout_p": 0.2}], ids=str
)
def test_granules_of_tiles(
    capacity, options, within_rounding, draw, per_query, kernels, monkeypatch, walked_in_pieces
):
    """Past the end of the last granule nothing is read; 5 tiles of senders, 3 of receivers."""
    monkeypatch.setattr(kernels, "CAPACITY", capacity)
    inputs = per_query(draw(1, 2, 70, 160, 3, 5, density=0.1, structure="clusters"))
    within_rounding(inputs, options, "triton")


def test_past_the_last_value_nothing_is_read(draw, device, kernels, monkeypatch):
    """The senders fill 3 tiles, and the last granule is 2."""
    monkeypatch.setattr(kernels, "CAPACITY", 2)
    tokens = 3 * BLOCKS[64, 4, False].forward.queries
    receive, send, value, *parameters = (x.to(device) for x in draw(1, 1, tokens, tokens, 3, 16, density=0.9))
    longer = torch.full((1, 1, 2 * tokens, 16), torch.nan, device=device)
    longer[:, :, :tokens] = value
    results = []
    for v in (value, longer[:, :, :tokens]):
        leaves = [x.detach().requires_grad_() for x in (receive, send, v, *parameters)]
        out = attention(*leaves, power=2, backend="triton")
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    assert all(map(torch.equal, *results)) and results[0][0].isfinite().all()


@pytest.mark.parametrize(
    "options", [{"power": 2}, {"frame": "nearest", "edge": 0.1, "is_causal": True}], ids=str
)
def test_neither_lists_nor_their_order_change_a_bit(options, evaluate, draw, device, kernels, monkeypatch):
    from syncattn.backends.triton import launch

    inputs = draw(1, 1, 70, 100, 4, 5, density=0.05, structure="clusters")
    results = []
    for fewest_ordered, capacity in ((1, 9), (10**9, 9), (1, 1), (10**9, 3)):
        monkeypatch.setattr(launch, "CAPACITY", capacity)
        monkeypatch.setattr(launch, "_FEWEST_ORDERED", fewest_ordered)
        out, gradients = evaluate(inputs, options, "triton", device=device)
        results.append([out, *gradients])
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_the_bound_of_the_radius_is_one_and_close(device, kernels, call_of):
    """Over the whole range of couplings and bandwidths that a call may have."""
    kappa = torch.logspace(-10, 15, 26).repeat_interleave(10)
    alpha = torch.logspace(-30, 30, 10).repeat(26)
    w = torch.zeros(1, 260, 1, 1)
    reach = kernels.Launch(call_of([w, w, w, kappa, alpha], device), "forward").reach
    exact = locking.locking_radius(kappa.double(), alpha.double()).square()
    reach = reach.cpu().flatten().double()
    normal = exact > 1e-37
    assert (1.0001 * reach >= exact)[normal].all()  # lists.SLACK is 1.001
    assert (reach <= 1.1 * exact)[normal].all()
