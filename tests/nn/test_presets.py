"""Mixes of heads by name: they fit any number of heads, and what they say of each kind of data holds."""

import pytest
import torch

from syncattn import locking
from syncattn.nn import IncrementalState, OSNBlock, SelectiveSynchronizationAttention, preset
from syncattn.nn.presets import PRESETS


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("heads", [2, 3, 4, 8])
def test_every_preset_fits(name, heads):
    torch.manual_seed(0)
    options = preset(name, heads)
    layer = SelectiveSynchronizationAttention(8 * heads, heads, **options)
    x, axes = torch.randn(2, 12, 8 * heads), options.get("axes", 1)
    out, _ = layer(x, positions=None if axes == 1 else torch.rand(2, 12, axes) * 3)
    assert out.isfinite().all() and layer.frequency.axes == axes
    assert OSNBlock(8 * heads, heads, **options).self_attn.frequency.delayed.tolist() == (
        layer.frequency.delayed.tolist()
    )


def test_the_mixes():
    text, series = preset("text", 4), preset("series", 5)
    assert text["position"] == ["drift", "drift", "drift", "own_helix"]
    assert text["delay"] == [False, True, False, True]
    assert preset("text", 8)["position"] == ["drift"] * 6 + ["own_helix"] * 2
    assert preset("text", 3)["delay"] == [True, False, True]  # the one that looks far is delayed
    assert (
        preset("recall", 4)["position"]
        == preset("images", 4)["position"]
        == ["drift", "drift", "drift", "none"]
    )
    assert series["position"] == ["own_drift"] * 3 + ["own_helix"] * 2
    assert preset("points", 1)["position"] == "own_drift"
    assert (text | {"value_rotation": 50.0})["value_rotation"] == 50.0  # a part of it changed


def test_text_has_windows_and_looks_far():
    """In the mix's widest head every place far away is within reach of a token that is alike, whatever the
    distance; in the others it is not."""
    torch.manual_seed(0)
    layer = SelectiveSynchronizationAttention(64, 4, **preset("text", 4)).eval()
    alike = torch.randn(1, 1, 64).expand(1, 600, 64)
    made = layer.frequency(None, alike, *(torch.arange(600)[None, :, None],) * 2, None)
    squared = (made.emitted[0, :, -1:] - made.emitted[0]).square().sum(-1)
    assert squared[3].max() < 2 * 16 and (squared[:3, 0] > 2 * 16).all()


def test_points_have_no_order_and_nobody_hears_beyond_the_radius():
    torch.manual_seed(0)
    layer = SelectiveSynchronizationAttention(32, 4, **preset("points", 4)).eval()
    x, at, order = torch.randn(1, 40, 32), torch.rand(1, 40, 3) * 4, torch.randperm(40)
    out, weights = layer(x, positions=at, need_weights=True, average_attn_weights=False)
    moved, _ = layer(x[:, order], positions=at[:, order])
    torch.testing.assert_close(moved, out[:, order], rtol=0, atol=1e-5)
    radius = locking.locking_radius(layer.coupling, layer.bandwidth)
    slopes = layer.frequency.log_slope.exp().T  # (H, A)
    apart = torch.cdist(at * slopes[:, None], at * slopes[:, None])
    beyond = apart > radius[:, None, None] + 1e-4
    assert beyond.any((1, 2)).all() and not (weights[0] * beyond).any()


@pytest.mark.parametrize("name", ["text", "recall"])
def test_a_cache_of_the_mixes_for_texts(name):
    torch.manual_seed(0)
    layer = SelectiveSynchronizationAttention(32, 4, **preset(name, 4)).eval()
    x, state = torch.randn(2, 30, 32), IncrementalState()
    want, _ = layer(x, is_causal=True)
    with torch.no_grad():
        parts = [layer(part, is_causal=True, state=state)[0] for part in x.split([20, 1, 9], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "heads", "error", "message"),
    [
        (
            "texts",
            4,
            ValueError,
            "preset must be one of 'text', 'recall', .* 'points', got 'texts'",
        ),
        (None, 4, ValueError, "preset must be one of .* got None"),
        ("text", 1, ValueError, "num_heads must be at least 2 for preset='text', .* got 1"),
        ("series", 0, ValueError, "num_heads must be at least 1, got 0"),
        ("images", 4.0, TypeError, "num_heads must be an integer, got 4.0"),
    ],
)
def test_presets_that_do_not_exist_or_fit(name, heads, error, message):
    with pytest.raises(error, match=message):
        preset(name, heads)
