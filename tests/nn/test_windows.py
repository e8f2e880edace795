"""How far heads reach: no content that a LayerNorm lets through locks from farther away, however it is
chosen."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from syncattn import locking
from syncattn.nn import SelectiveSynchronizationAttention
from syncattn.nn.windows import head_windows

EMBED_DIM, HEADS = 16, 2


def layer_of(seed, **options):
    """A layer far from its start, and the LayerNorm before it, float64."""
    torch.manual_seed(seed)
    options = {"freq_dim": 4, "window_range": (2.0, 4.0), "density_range": None} | options
    layer = SelectiveSynchronizationAttention(EMBED_DIM, HEADS, **options).double().eval()
    norm = nn.LayerNorm(EMBED_DIM).double()
    with torch.no_grad():
        for name, parameter in [*layer.named_parameters(), *norm.named_parameters()]:
            if name.endswith(("bias", "shift", "send_proj.weight", "ask_mix")):
                parameter.normal_(std=0.3)
            if name.endswith("radius"):  # from what shortens most contents to what shortens none
                parameter.copy_(torch.randn(len(parameter)) - 0.5)
        norm.weight.add_(torch.randn(EMBED_DIM) * 0.3)
        layer.raw_coupling.add_(torch.randn(HEADS) * 0.3)
    return layer, norm


def farther(layer, norm, head, distance, steps, seed=0):
    """By how much rho^2 the last token's D from the one this far before it exceeds what would lock, for the
    contents that an optimiser finds. At most 0: they lock."""
    generator = torch.Generator().manual_seed(seed)
    # what is before the sender, the sender, those between, which must stay far away, and the receiver
    kinds = torch.randn(5, EMBED_DIM, dtype=torch.float64, generator=generator).requires_grad_()
    last, rows = distance + 1, torch.tensor([0, 1, 2, 3, 3, 4])
    places = torch.tensor([0, 1, 2, last - 2, last - 1, last])[
        None, :, None
    ]  # with fewer between than there are
    squared_radius = locking.locking_radius(layer.coupling.double(), layer.bandwidth.double())[head] ** 2
    optimizer, least = torch.optim.Adam([kinds], lr=0.1), math.inf
    for _ in range(steps):
        call = layer.operator_call(norm(kinds[rows])[None], is_causal=True, positions=places)
        detuning = (call.receive[0, head, -1] - call.send[0, head]).square().sum(-1)
        seen = detuning if layer.self_coupling else detuning[:-1]
        nearest = seen.min() if layer.frame == "nearest" else 0
        excess = (detuning[1] - nearest) / squared_radius.detach() - 1
        least = min(least, float(excess.detach()))
        optimizer.zero_grad()
        excess.backward()
        optimizer.step()
    return least


OPTIONS = {
    "frame": st.sampled_from(["nearest", "absolute"]),
    "delay": st.sampled_from([0.0, 1.0]),
    "position": st.sampled_from(["drift", "own_drift"]),
    "directed": st.booleans(),
    "directed_rank": st.sampled_from([None, 2]),
    "detuning": st.booleans(),
    "freq_bias": st.booleans(),
    "bounded_content": st.booleans(),
    "short_convolution": st.sampled_from([None, 2, 3]),  # 2 is the token shift
    "self_coupling": st.booleans(),
}


@settings(max_examples=6, deadline=None)
@given(st.fixed_dictionaries(OPTIONS), st.integers(0, 2**20))
def test_no_content_locks_from_beyond_the_window(options, seed):
    layer, norm = layer_of(seed, **options)
    (window, _) = head_windows(layer, norm).tolist()
    assert 1 <= window < 200
    assert farther(layer, norm, 0, math.floor(window) + 1, steps=12, seed=seed) > 0


@pytest.mark.parametrize("frame", ["absolute", "nearest"])
def test_the_window_is_no_wider_than_it_has_to_be(frame):
    """Contents that an optimiser finds lock from a good part of it: a window of that would be false."""
    layer, norm = layer_of(3, frame=frame, delay=0.0)
    (window, _) = head_windows(layer, norm).tolist()
    share = {"absolute": 0.85, "nearest": 0.6}[frame]
    assert farther(layer, norm, 0, math.floor(share * window), steps=100) <= 0
    assert farther(layer, norm, 0, math.floor(window) + 1, steps=100) > 0


@pytest.mark.parametrize("frame", ["absolute", "nearest"])
def test_a_radius_narrows_the_window_and_no_more_than_it_may(frame):
    """Contents that an optimiser finds reach beyond half of it, or .8 in the absolute frame."""
    layer, norm = layer_of(3, frame=frame, delay=0.0, bounded_content=True)
    windows = []
    for radius in (1e3, 1.0, 0.5):
        with torch.no_grad():
            layer.frequency.log_radius.fill_(math.log(radius))
        windows.append(float(head_windows(layer, norm)[0]))
    free, _ = layer_of(3, frame=frame, delay=0.0)
    with torch.no_grad():
        free.load_state_dict(layer.state_dict(), strict=False)
    assert windows[0] == float(head_windows(free, norm)[0])  # as wide as without one
    assert windows[0] > 1.2 * windows[1] and windows[1] > windows[2]
    share = {"absolute": 0.8, "nearest": 0.5}[frame]
    assert farther(layer, norm, 0, math.floor(share * windows[2]), steps=100) <= 0
    assert farther(layer, norm, 0, math.floor(windows[2]) + 1, steps=100) > 0


@pytest.mark.parametrize("directed", [True, [True, False]], ids=str)
def test_directed_heads_have_radii_of_their_own_in_their_windows(directed):
    layer, norm = layer_of(5, directed=directed, bounded_content=True)
    with torch.no_grad():
        layer.frequency.log_radius.fill_(-1.0)
        layer.frequency.log_sent_radius.fill_(-1.0)
        before = head_windows(layer, norm)
        layer.frequency.log_sent_radius[0] = 0.0
        wider = head_windows(layer, norm)
        assert wider[0] > before[0] and wider[1] == before[1]
        layer.frequency.log_radius.fill_(torch.nan)
    assert head_windows(layer, norm).isinf().all()


def test_weights_beyond_the_window_are_zero():
    layer, norm = layer_of(1, delay=0.5, token_shift=True)
    windows = head_windows(layer, norm)
    x = norm(torch.randn(3, 120, EMBED_DIM, dtype=torch.float64) * 5 + 2)
    _, weights = layer(x, is_causal=True, need_weights=True, average_attn_weights=False)
    apart = torch.arange(120)[:, None] - torch.arange(120)
    for head, window in enumerate(windows):
        assert 0 < float(window) < 119 and not weights[:, head, apart > window].any()
        assert weights[:, head].count_nonzero() > 0


def test_nothing_is_promised_where_nothing_is_known():
    layer, norm = layer_of(0, position=["drift", "rotary"])
    (first, second) = head_windows(layer, norm).tolist()
    assert math.isfinite(first) and second == math.inf
    for position in ("none", "helix", "screw"):
        other, _ = layer_of(0, position=position, helix_scales=[2.0])
        assert head_windows(other, norm).isinf().all()
    layer, norm = layer_of(0)
    assert head_windows(layer, norm).isfinite().all()
    for other in (None, nn.Identity(), nn.RMSNorm(EMBED_DIM)):
        assert head_windows(layer, other).isinf().all()
    plane, _ = layer_of(0, axes=2)
    assert head_windows(plane, norm).isinf().all()
    handle = layer.frequency.receive_proj.register_forward_hook(lambda *_: None)
    assert head_windows(layer, norm).isinf().all()
    handle.remove()
    layer.frequency.receive_proj = nn.Sequential(layer.frequency.receive_proj)  # as adapters do
    assert head_windows(layer, norm).isinf().all()
    assert head_windows(layer.to("meta"), norm).isinf().all()


def test_what_widens_a_window():
    layer, norm = layer_of(0)
    before = head_windows(layer, norm)
    with torch.no_grad():
        layer.raw_coupling.add_(1.0)
        wider = head_windows(layer, norm)
        assert (wider > before).all()
        norm.weight.mul_(2)
        assert (head_windows(layer, norm) > wider).all()
        layer.frequency.log_slope.sub_(math.log(2))
        assert (head_windows(layer, norm) > 1.9 * wider).all()
        layer.raw_coupling.fill_(torch.nan)
    assert head_windows(layer, norm).isinf().all()


def test_a_head_without_numbers_has_no_window_and_leaves_the_others_theirs():
    layer, norm = layer_of(0)
    before = head_windows(layer, norm)
    for number in (torch.nan, torch.inf):
        with torch.no_grad():
            layer.frequency.receive_proj.weight[0] = number  # of the first head
        first, second = head_windows(layer, norm).tolist()
        assert first == math.inf and second == float(before[1])
