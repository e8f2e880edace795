"""Several texts in one row: tiles of pairs of different texts are left out, pairs of others tested."""

import pytest
import torch

pytestmark = pytest.mark.usefixtures("poisoned_memory")
NEAREST = {"frame": "nearest", "power": 2}
LAYER = NEAREST | {"is_causal": True, "self_coupling": False}


def ids_of(*lengths):
    """(1, N): a negative length is so much padding."""
    parts = [torch.full((abs(n),), 7 * i if n > 0 else -1) for i, n in enumerate(lengths)]
    return torch.cat(parts)[None]


IDS = {
    "texts": ids_of(3, 1, 64, 9, 23),
    "with padding": ids_of(-5, 30, -20, 40, 5),
    "a row each": torch.cat((ids_of(50, 50), ids_of(32, 32, 36))),
    "not in order": torch.arange(100)[None] % 3,
    "only padding": ids_of(-100),
}


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize("options", [{"power": 2}, NEAREST, LAYER], ids=["absolute", "nearest", "layer"])
def test_texts(name, options, within_rounding, draw, per_query):
    receive, send, value, *parameters = per_query(draw(2, 2, 100, 100, 3, 4))
    inputs = [receive, send[:, :1], value[:, :1], *parameters]
    within_rounding(inputs, options | {"sequence_ids": IDS[name]}, "triton")


@pytest.mark.parametrize("queries", [1, 3, 40])
def test_the_last_receivers_of_more_senders(queries, within_rounding, draw):
    for options in ({"power": 2}, LAYER):
        inputs = draw(2, 2, queries, 100, 20, 4)
        within_rounding(inputs, options | {"sequence_ids": IDS["a row each"]}, "triton")


def test_beside_masks_and_between_equal_frequencies(within_rounding, draw):
    g = torch.Generator().manual_seed(0)
    by_sender, by_pair = (torch.rand(shape, generator=g) < 0.5 for shape in ((2, 1, 1, 100), (100, 100)))
    for mask in (by_sender, by_pair):
        inputs = draw(2, 2, 100, 100, 20, 3, same=True, density=0.8)
        within_rounding(inputs, LAYER | {"attn_mask": mask, "sequence_ids": IDS["texts"]}, "triton")


def test_tiles_of_different_texts_are_not_listed(draw, device, kernels, call_of):
    ids = ids_of(64, 64, 64)
    call = call_of(draw(1, 2, 192, 192, 3, 4, density=0.99), device, sequence_ids=ids)
    call = call._replace(sequence_ids=ids.to(device))
    p = kernels.Launch(call, "forward")
    for of_queries in (True, False):
        counts = p.lists(of_queries).counts[..., 0]
        assert (counts <= 64 // p.query_tile).all()
