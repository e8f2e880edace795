"""Masks: by sender they change who is where, others leave out the tiles in which nobody may attend."""

import pytest
import torch

from syncattn.backends.triton.blocks import BLOCKS

pytestmark = pytest.mark.usefixtures("poisoned_memory")
NEAREST = {"frame": "nearest", "power": 2}
LAYER = NEAREST | {"is_causal": True, "self_coupling": False}


def random_mask(*shape, share=0.5, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


def of_documents(tokens, length):
    """Tokens attend within their own document."""
    document = torch.arange(tokens) // length
    return document[:, None] == document


FOLDED = [(1, 1, 1, 100), (2, 1, 1, 100), (2, 2, 1, 100), (2, 1, 1, 1)]


@pytest.mark.parametrize("shape", FOLDED, ids=str)
def test_masks_by_sender(shape, within_rounding, draw, device, kernels, call_of):
    """Over lists; causal and not, symmetric as a Gram product, where the own sender may be masked out."""
    mask = random_mask(*shape, share=0.3)
    inputs = draw(2, 2, 30, 100, 3, 4)
    p = kernels.Launch(call_of(inputs, device, attn_mask=mask), "forward")
    assert p.mask is None and p.mask_tiles is None
    within_rounding(inputs, LAYER | {"attn_mask": mask}, "triton")
    within_rounding(
        draw(2, 2, 100, 100, 20, 3, same=True, density=0.8), {"power": 2, "attn_mask": mask}, "triton"
    )


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("options", [{}, NEAREST, LAYER], ids=["absolute", "nearest", "layer"])
def test_in_small_calls_without_lists(same, options, within_rounding, draw):
    mask = random_mask(1, 1, 1, 40, share=0.4)
    inputs = draw(1, 2, 40, 40, 20, 3, same=same, density=0.8)
    within_rounding(inputs, options | {"attn_mask": mask}, "triton")


OTHERS = {
    "documents": of_documents(100, 30)[-40:],
    "by head of senders that are shared": random_mask(1, 2, 1, 100),
    "by row": random_mask(2, 1, 40, 1),
    "by row and head": random_mask(1, 2, 40, 100, share=0.1),
    "few": random_mask(2, 1, 40, 100, share=0.01),
}


@pytest.mark.parametrize("name", OTHERS)
def test_masks_by_tile(name, within_rounding, draw, per_query, device, kernels, call_of):
    receive, send, value, *parameters = per_query(draw(2, 2, 40, 100, 3, 4))
    inputs = [receive, send[:, :1], value[:, :1], *parameters]
    mask = OTHERS[name]
    p = kernels.Launch(call_of(inputs, device, attn_mask=mask), "forward")
    mask = mask.view((1,) * (4 - mask.ndim) + mask.shape)
    tile = p.query_tile
    rows, columns = (-(-n // tile) if n > 1 else 1 for n in mask.shape[2:])
    assert p.mask_tiles.base.untyped_storage().nbytes() == mask[:, :, 0, 0].numel() * rows * columns
    padded = mask.new_zeros(2, 2, p.receive.tiles * tile, p.send.tiles * tile)
    padded[:, :, :40, :100] = mask
    want = padded.unflatten(-1, (-1, tile)).unflatten(2, (-1, tile)).any(-1).any(3)
    assert torch.equal(p.mask_tiles.base.cpu().bool(), want)
    for options in ({"power": 2}, LAYER):
        within_rounding(inputs, options | {"attn_mask": OTHERS[name]}, "triton")


@pytest.mark.parametrize("capacity", [1024, 2])
def test_masked_tiles_are_not_listed(capacity, draw, device, kernels, monkeypatch, call_of):
    """Everyone locks: what is left out is left out by the mask. Documents of two tiles; padding."""
    monkeypatch.setattr(kernels, "CAPACITY", capacity)
    size = BLOCKS[64, 4, False].forward.queries
    tokens = 6 * size
    inputs = draw(1, 1, tokens, tokens, 2, 2, density=1)
    padding = torch.arange(tokens) < 3 * size - 5
    for mask, by_query, by_key in (
        (of_documents(tokens, 2 * size), [2] * 6, [2] * 6),
        (padding, [3 if capacity > 2 else 4] * 6, [6 if capacity > 2 else 8] * 3 + [0] * 3),
    ):
        p = kernels.Launch(call_of(inputs, device, attn_mask=mask), "forward")
        for of_queries, want in ((True, by_query), (False, by_key)):
            counts = p.lists(of_queries).counts[0, :, 0].tolist()
            assert counts == want + [0] * (len(counts) - 6)


@pytest.mark.parametrize("options", [{"power": 2}, NEAREST, LAYER], ids=["absolute", "nearest", "layer"])
@pytest.mark.parametrize("queries", [40, 140])
def test_what_masked_senders_hold_touches_nobody(queries, options, draw, device, call_of):
    """Frequencies that are NaN or infinite; and a receiver that is NaN is so in its own row only."""
    from syncattn.backends.triton import passes

    inputs = draw(1, 1, queries, 140, 3, 4)
    mask = random_mask(1, 1, 1, 140)
    mask[..., [3, 100]], mask[..., [4, 101]] = False, True
    results = []
    for spoiled in (False, True):
        call = call_of(inputs, device, attn_mask=mask, **options)
        if spoiled:
            call = call._replace(send=call.send.clone())
            call.send[0, 0, 3, 0], call.send[0, 0, 100, 1] = torch.nan, torch.inf
        out, *saved = passes.forward(call)
        results.append([out, *saved, *passes.backward(call, torch.ones_like(out), out, *saved)])
    assert all(map(torch.equal, *results))
    call = call._replace(receive=call.receive.clone())
    call.receive[0, 0, 35, 2] = torch.nan
    out, *_ = passes.forward(call)
    assert out.isnan().all(-1).flatten().nonzero().tolist() == [[35]]


def test_where_nobody_may_be_heard(draw, device, kernels, call_of):
    """No nearest sender, an output of 0, no gradient; in the other element of the batch everything."""
    from syncattn.backends.triton import passes

    mask = torch.tensor([False, True])[:, None, None, None]
    call = call_of(draw(2, 1, 40, 140, 3, 4), device, attn_mask=mask, **NEAREST)
    out, row_sum, base, sender = passes.forward(call)
    assert not out[0].any() and not row_sum[0].any() and not base[0].any() and (sender[0] == -1).all()
    assert (sender[1] >= 0).all() and (row_sum[1] > 0).all()
    receive, send, value, *_ = passes.backward(call, torch.ones_like(out), out, row_sum, base, sender)
    for x in (receive, send, value):
        assert not x[0].any() and torch.isfinite(x).all()
    assert value[1].any()


@pytest.mark.parametrize("queries", [40, 140])
def test_where_only_oneself_may_be_heard(queries, draw, device, call_of):
    """And is left out: nobody is nearest, though the tile holds one who is not masked out."""
    from syncattn.backends.triton import passes

    inputs = draw(1, 1, queries, queries, 3, 4, same=True)
    mask = (torch.arange(queries) == 5)[None, None, None]
    for options in (NEAREST, NEAREST | {"is_causal": True}):
        call = call_of(inputs, device, attn_mask=mask, self_coupling=False, **options)
        out, row_sum, base, sender = passes.forward(call)
        assert sender[0, 0, 5] == -1 and base[0, 0, 5] == 0 and not out[0, 0, 5].any()
        heard = torch.arange(queries) > 5 if options.get("is_causal") else torch.arange(queries) != 5
        assert (sender[0, 0].cpu()[heard] == 5).all() and (row_sum[0, 0].cpu()[heard] > 0).all()
