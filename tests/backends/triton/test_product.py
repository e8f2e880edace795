"""D as a product of float16 parts, as calls with values of 2 bytes have it: far from the head's centre, along
its axis and across it, where it is not exact enough and differences take over, and with many coordinates."""

import zlib

import pytest
import torch

import syncattn
from syncattn import locking

attention = syncattn.selective_synchronization_attention
FORMS = {
    "absolute": {"power": 2},
    "causal": {"power": 2, "is_causal": True, "self_coupling": False},
    "nearest": {"power": 2, "frame": "nearest"},
    "layer": {"power": 2, "frame": "nearest", "is_causal": True, "self_coupling": False},
}


def spread(structure, tokens, m, g):
    """(tokens, m) frequencies of which about a tenth lock with a radius of 1."""
    content = 0.4 * torch.randn(tokens, m, generator=g) / m**0.5
    places = torch.arange(tokens, dtype=torch.float32)
    direction = torch.randn(m, generator=g)
    direction /= direction.norm()
    if structure == "drift":  # 16 tokens are in reach; the whole is 1,000 radii from the origin
        return content + (places / 16 + 1000)[:, None] * direction
    if structure == "steep":  # six are
        return content + (0.15 * places)[:, None] * direction
    clusters = torch.randn(5, m, generator=g)
    clusters /= clusters.norm(dim=-1, keepdim=True)
    which = torch.randint(5, (tokens,), generator=g)
    distance = {"near clusters": 4.0, "clusters": 60.0, "far clusters": 1e4, "beyond": 1e8}[structure]
    if structure == "beyond":  # nothing of the contents is left of such a float32
        content = content * 0
    return content + distance * clusters[which]


def relative(got, want):
    return ((got.double() - want).norm() / want.norm().clamp(min=1e-30)).item()


def check(receive, send, value, radius, options, device, frequencies=True):
    """Output and gradients are as near to eager's in float64, of the same rounded values, as tiled's, or as
    rounding to bfloat16 leaves them."""
    heads = receive.shape[1]
    law = locking.coupling_from_radius(
        torch.full((heads,), radius).double(), torch.linspace(4, 50, heads).double()
    )
    inputs = [receive, send, value.bfloat16(), *(x.float() for x in law)]
    g = torch.Generator().manual_seed(receive.shape[2])
    cotangent = torch.randn(value.shape[0], heads, receive.shape[2], value.shape[3], generator=g).bfloat16()
    results = []
    for backend, to in (("triton", None), ("tiled", None), ("eager", torch.float64)):
        leaves = [x.to(device, to or x.dtype).requires_grad_() for x in inputs]
        if receive is send:
            leaves[1] = leaves[0]
        out = attention(*leaves, **options, backend=backend)
        found = torch.autograd.grad(out, leaves[:1] + leaves[1 + (receive is send) :], cotangent.to(out))
        results.append([out.detach(), *found])
    names = ["out", "receive", "send", "value", "coupling", "bandwidth"]
    if receive is send:
        names.remove("send")
    for name, got, other, want in zip(names, *results, strict=True):
        assert got.isfinite().all(), name
        if frequencies or name in ("out", "value"):
            # sums over all pairs, one a head, cancel; where a row hears one sender alone, dL/dF is what the
            # output lost when it was rounded: up to .02 over ten cotangents
            rounding = 0.4 if name in ("coupling", "bandwidth") else 4e-2
            assert relative(got, want) <= max(rounding, 2 * relative(other, want)), name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "structure", ["drift", "steep", "near clusters", "clusters", "far clusters", "beyond"]
)
def test_far_from_the_centre(structure, form, device):
    g = torch.Generator().manual_seed(zlib.crc32(f"{structure} {form}".encode()))
    receive = spread(structure, 150, 6, g).expand(1, 2, -1, -1).contiguous()
    send = receive if form == "absolute" else receive + 0.05 * torch.randn(receive.shape, generator=g)
    value = torch.randn(1, 2, 150, 8, generator=g)
    check(receive, send, value, 1.0, FORMS[form], device, frequencies=structure != "beyond")


@pytest.mark.parametrize("m", [4, 16, 45, 128])
def test_many_coordinates(m, device):
    g = torch.Generator().manual_seed(m)
    receive = spread("near clusters", 70, m, g).expand(1, 2, -1, -1).contiguous()
    send = receive + 0.05 * torch.randn(receive.shape, generator=g)
    check(receive, send, torch.randn(1, 2, 70, 8, generator=g), 1.0, FORMS["layer"], device)


@pytest.mark.parametrize("form", ["absolute", "nearest"])
@pytest.mark.parametrize("distance", [30.0, 300.0, 1e5, 1e12])
def test_one_token_far_from_all_others(distance, form, device):
    """Across the axis, it takes no other's exactness away; in the nearest frame it hears the nearest all the
    same."""
    g = torch.Generator().manual_seed(3)
    receive = spread("drift", 150, 6, g).expand(1, 2, -1, -1).clone()
    receive[:, :, 100, 3] += distance
    send = receive if form == "absolute" else receive + 0.05 * torch.randn(receive.shape, generator=g)
    check(receive, send, torch.randn(1, 2, 150, 8, generator=g), 1.0, FORMS[form], device)


@pytest.mark.parametrize("form", FORMS)
def test_a_constant_stays_constant_and_equal_tokens_lock_fully(form, device):
    """Where all frequencies are the same nothing is perpendicular, and nothing has a direction."""
    w = torch.full((1, 1, 70, 5), 1000.3)
    law = (x.float().to(device) for x in locking.coupling_from_radius(torch.ones(1), 10.0))
    value = torch.ones(1, 1, 70, 8).bfloat16()
    out = attention(w.to(device), w.to(device), value.to(device), *law, **FORMS[form], backend="triton")
    heard = out[:, :, 1 if FORMS[form].get("is_causal") else 0 :]
    assert (heard == 1).all()


@pytest.mark.parametrize("side", ["receive", "send"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_shows_in_its_rows_alone(bad, side, call_of, device):
    """Where it gets past the checks, as in a captured graph: NaN shows, an infinite one locks to nobody."""
    from syncattn.backends.triton import passes

    g = torch.Generator().manual_seed(5)
    receive = spread("drift", 100, 6, g).expand(1, 1, -1, -1).clone()
    send = receive + 0.05 * torch.randn(receive.shape, generator=g)
    law = (x.float() for x in locking.coupling_from_radius(torch.ones(1), 10.0))
    call = call_of([receive, send, torch.randn(1, 1, 100, 8).bfloat16(), *law], device, power=2)
    getattr(call, side)[0, 0, 50, 2] = bad
    out, *_ = passes.forward(call)
    rows = out.isnan().any(-1).flatten().nonzero().flatten().tolist()
    wanted = [50] if side == "receive" else [*range(100)]
    assert rows == (wanted if bad != float("inf") else [])
