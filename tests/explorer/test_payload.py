"""Numbers go to the page without loss."""

import torch

from syncattn.explorer.payload import pack, pack_bits, principal_plane, tokens_that_fit
from syncattn.nn import SelectiveSynchronizationAttention


def test_numbers_come_back_to_the_last_bit(javascript):
    for dtype in (torch.float32, torch.float64):
        limits = torch.finfo(dtype)
        numbers = torch.cat(
            (torch.randn(40, dtype=dtype), torch.tensor([limits.max, limits.tiny, 0.1], dtype=dtype))
        )
        back = javascript("result = A.numbers(data);", pack(numbers))
        assert torch.equal(torch.tensor(back, dtype=torch.float64), numbers.double())
    halves = torch.randn(9).bfloat16()
    assert torch.equal(torch.tensor(javascript("result = A.numbers(data);", pack(halves))), halves.float())


def test_masks_come_back_bit_by_bit(javascript):
    for tokens in (1, 3, 8, 11):
        allowed = torch.rand(tokens, tokens) > 0.5
        back = javascript(
            "result = A.allowedPairs(data[0], false, true, data[1]);", [tokens, pack_bits(allowed)]
        )
        assert torch.equal(torch.tensor(back).bool().view(tokens, tokens), allowed)


def test_the_plane_is_where_points_vary_most():
    points = torch.randn(50, 6) * torch.tensor([0.1, 3.0, 0.1, 0.2, 5.0, 0.1]) + 7
    basis, share = principal_plane(points)
    first, second = torch.tensor(basis)
    assert abs(float(first[4])) > 0.95 and abs(float(second[1])) > 0.95 and abs(float(first @ second)) < 1e-5
    variance = points.var(0).sum()
    assert abs(share - float((points @ torch.stack((first, second)).T).var(0).sum() / variance)) < 1e-3
    assert principal_plane(points[:, :1])[0][1] == [0.0]
    assert principal_plane(torch.ones(4, 3))[1] == 0.0  # nothing varies


def test_fewer_tokens_fit_where_a_layer_has_more_numbers():
    layers = torch.nn.ModuleList(SelectiveSynchronizationAttention(64, 4) for _ in range(30))
    assert tokens_that_fit(layers[0]) == 512 > tokens_that_fit(layers) > tokens_that_fit(layers.double())
