"""At initialisation the heads' densities are the ladder's, and every head's frequencies get a gradient."""

import itertools
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from syncattn import locking
from syncattn.backends import eager
from syncattn.nn import (
    OSNBlock,
    SelectiveSynchronizationAttention,
    calibrate,
    count_locked,
    limit_density_,
    locked_density,
)

LENGTH = 128
SIZES = [  # embed_dim, num_heads, options
    (64, 8, {}),
    (256, 4, {"frame": "absolute", "delay": 0.0}),
    (128, 8, {"freq_dim": 4, "position": "own_drift"}),
    (96, 3, {"freq_dim": 16, "position": "rotary", "delay": 1.0}),
    (64, 2, {"freq_dim": 32, "position": "none", "self_coupling": True, "power": 1}),
    (128, 4, {"directed": True, "detuning": True, "sharpness": 10.0}),
    (64, 1, {"density_range": (0.3, 0.3), "order_parameter": False}),
    (64, 4, {"density_range": (0.04, 0.9), "phase_dim": 4, "window_range": (2.0, 512.0)}),
]


def text(batch, length, embed_dim, seed=0):
    """Real activations: bytes of a module of the standard library, embedded and layer-normalised."""
    data = torch.tensor(list(Path(textwrap.__file__).read_bytes()[: batch * length]))
    g = torch.Generator().manual_seed(seed)
    table = torch.randn(256, embed_dim, generator=g)
    return nn.functional.layer_norm(table[data.view(batch, length)], (embed_dim,))


def gradient_per_head(layer, x):
    layer.zero_grad()
    out, _ = layer(x, is_causal=True)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(0)))
    projections = (layer.frequency.receive_proj, layer.frequency.send_proj)
    grads = [p.weight.grad.view(layer.num_heads, -1).norm(dim=1) for p in projections if p is not None]
    return torch.stack(grads).amin(0)


@pytest.mark.parametrize(("embed_dim", "heads", "options"), SIZES, ids=str)
def test_the_constructor_alone(embed_dim, heads, options):
    """Fresh layer-normalised tokens, other than those it was calibrated on, in causal sequences of 128."""
    torch.manual_seed(1)
    layer = SelectiveSynchronizationAttention(embed_dim, heads, **options)
    x = nn.functional.layer_norm(torch.randn(4, LENGTH, embed_dim), (embed_dim,))
    wanted = locking.density_ladder(*options.get("density_range", (0.05, 0.5)), heads)
    density = layer.locked_density(x, is_causal=True)
    assert (density / wanted - 1).abs().max() < 0.2
    assert (gradient_per_head(layer, x) > 1e-6).all()
    # 2 alpha kappa^2 is the sharpness for kappa = K r, the coupling that the order parameter leaves of K
    sharpness = 2 * layer.bandwidth * layer.coupling**2
    assert (sharpness > 0.7 * layer.sharpness).all() and (sharpness < 2 * layer.sharpness).all()


@pytest.mark.parametrize(
    ("embed_dim", "heads", "options"),
    [size for size in SIZES if size[2].get("position") != "none"],  # where equal tokens lock together or not
    ids=str,
)
def test_calibrated_on_real_text(embed_dim, heads, options):
    torch.manual_seed(2)
    layer = SelectiveSynchronizationAttention(embed_dim, heads, **options)
    x = text(3, LENGTH, embed_dim)
    layer.calibrate_(x, is_causal=True)
    wanted = locking.density_ladder(*options.get("density_range", (0.05, 0.5)), heads)
    density = layer.locked_density(x, is_causal=True)
    assert (density - wanted).abs().max() < 0.01
    assert (gradient_per_head(layer, x) > 1e-6).all()


def test_calibrated_with_padding_masks_and_senders_of_its_own():
    torch.manual_seed(3)
    layer = SelectiveSynchronizationAttention(64, 4, density_range=(0.1, 0.5))
    x = text(3, LENGTH, 64)
    wanted = locking.density_ladder(0.1, 0.5, 4)
    padding = torch.arange(LENGTH) >= torch.tensor([[128], [100], [60]])
    band = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril(-50)
    for arguments in (
        {"query": x},
        {"query": x, "key_padding_mask": padding, "is_causal": True},
        {"query": x, "attn_mask": band, "is_causal": True},
        {"query": x[:, :40], "key": x},
    ):
        layer.calibrate_(**arguments)
        assert (layer.locked_density(**arguments) - wanted).abs().max() < 0.01
    layer.calibrate_(x, density_range=(0.2, 0.4))
    assert (layer.locked_density(x) - locking.density_ladder(0.2, 0.4, 4)).abs().max() < 0.01


class Model(nn.Module):
    def __init__(self, layers=3):
        super().__init__()
        self.norm = nn.LayerNorm(64)
        self.blocks = nn.ModuleList(
            OSNBlock(64, 4, 128, batch_first=True, norm_first=True, dropout=0.2) for _ in range(layers)
        )

    def forward(self, x, padding=None):
        for block in self.blocks:
            x = block(x, src_key_padding_mask=padding, is_causal=True)
        return self.norm(x)


def test_a_model_layer_by_layer():
    """Each layer on what the calibrated layers below make of the batch; every head of all gets a gradient."""
    torch.manual_seed(4)
    model, x = Model(), text(2, LENGTH, 64)
    wanted = locking.density_ladder(0.05, 0.5, 4)
    padding = torch.arange(LENGTH) >= torch.tensor([[128], [90]])
    for arguments in ((x,), (x, padding)):
        calibrate(model, *arguments)
        densities = locked_density(model, *arguments)
        assert list(densities) == [f"blocks.{i}.self_attn" for i in range(3)]
        for density in densities.values():
            assert (density - wanted).abs().max() < 0.01
    calibrate(model, x, density_range=(0.3, 0.6))
    for density in locked_density(model, x).values():
        assert (density - locking.density_ladder(0.3, 0.6, 4)).abs().max() < 0.01
    model.eval()
    model(x).square().mean().backward()
    for block in model.blocks:
        weight = block.self_attn.frequency.receive_proj.weight
        assert (weight.grad.view(4, -1).norm(dim=1) > 0).all()


def test_calibration_leaves_everything_else_alone():
    torch.manual_seed(5)
    model = Model()
    model.blocks[1].dropout.eval()  # a part that its owner has put into another mode
    modes = [module.training for module in model.modules()]
    before = {name: p.clone() for name, p in model.named_parameters()}
    state = torch.get_rng_state()
    calibrate(model, text(2, LENGTH, 64))
    locked_density(model, text(2, LENGTH, 64))
    assert torch.equal(state, torch.get_rng_state())
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks for module in model.modules())
    for name, parameter in model.named_parameters():
        set_anew = name.endswith(("raw_coupling", "raw_bandwidth"))
        assert torch.equal(parameter, before[name]) != set_anew and parameter.grad is None
    # and when the model fails
    with pytest.raises(ValueError, match="key_padding_mask must have shape"):
        calibrate(model, text(2, LENGTH, 64), torch.zeros(1))
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_density_below_what_the_nearest_frame_forces_is_raised_with_a_warning():
    layer = SelectiveSynchronizationAttention(64, 4)
    x = text(4, 8, 64)
    with pytest.warns(UserWarning, match=r"wanted densities of heads \[0.*\] are out of reach"):
        layer.calibrate_(x, is_causal=True)
    assert (layer.locked_density(x, is_causal=True) > 0.05).all()


def test_bad_calls():
    layer, x = SelectiveSynchronizationAttention(64, 4), text(1, 16, 64)
    with pytest.raises(ValueError, match="every pair is masked"):
        layer.calibrate_(x, key_padding_mask=torch.ones(1, 16, dtype=torch.bool))
    with pytest.raises(ValueError, match="holds no SelectiveSynchronizationAttention layer"):
        calibrate(nn.Linear(2, 2), torch.ones(2))
    with pytest.raises(ValueError, match="holds no SelectiveSynchronizationAttention layer"):
        locked_density(nn.Linear(2, 2), torch.ones(2))
    with pytest.raises(
        ValueError, match=r"needs parametrisation='log' and a density_range, got parametrisation='softplus'"
    ):
        SelectiveSynchronizationAttention(64, 4, parametrisation="softplus").calibrate_(x)
    with pytest.raises(ValueError, match="low must be at most high"):
        layer.calibrate_(x, density_range=(0.5, 0.1))
    with pytest.raises(ValueError, match="equal"):
        SelectiveSynchronizationAttention(64, 4, position="none").calibrate_(torch.ones(1, 16, 64))


def test_constructing_draws_no_more_than_the_weights():
    """The calibration's synthetic tokens come from a generator of their own."""
    torch.manual_seed(0)
    SelectiveSynchronizationAttention(64, 4)
    drawn = torch.get_rng_state()
    torch.manual_seed(0)
    SelectiveSynchronizationAttention(64, 4, density_range=None)
    assert torch.equal(drawn, torch.get_rng_state())


def test_a_layers_counts_are_those_of_its_call(build, tokens):
    """By the definition: every S that is not 0, of pairs that may attend, without padding."""
    for kind in ("default", "own drift", "directed", "absolute", "top k"):
        layer, x = build(kind), tokens(2, 17)
        padding = torch.arange(17) >= torch.tensor([[17], [9]])
        for options in ({}, {"is_causal": True}, {"key_padding_mask": padding}):
            call = layer.operator_call(x, **options)
            _, sync, _ = eager.run(call._replace(return_weights=True))
            allowed = eager.allowed_pairs(call).expand_as(sync)
            found = layer.count_locked(x, **options)
            assert torch.equal(found.locked, (sync > 0).sum((0, 2, 3)))
            assert torch.equal(found.allowed, allowed.sum((0, 2, 3)))
            assert torch.equal(found.receivers, allowed.any(-1).sum((0, 2)))
            assert torch.equal(layer.locked_density(x, **options), found.locked.float() / found.allowed)
            assert torch.equal(found.partners, found.locked.float() / found.receivers)


def limited(density_range=(0.1, 0.8), **options):
    torch.manual_seed(0)
    block = OSNBlock(64, 4, 32, batch_first=True, norm_first=True, density_range=density_range, **options)
    return block, text(2, LENGTH, 64)


def test_a_limit_brings_the_density_down_and_then_leaves_it_alone():
    block, x = limited()
    before = locked_density(block, x, is_causal=True)["self_attn"]
    assert before.mean() > 0.25
    couplings = [block.self_attn.coupling.detach().clone()]
    for _ in range(60):
        found = limit_density_(block, 0.1, x, is_causal=True)
        couplings.append(block.self_attn.coupling.detach().clone())
    after = locked_density(block, x, is_causal=True)["self_attn"]
    torch.testing.assert_close(found["self_attn"], after, atol=0.01, rtol=0)
    assert 0.08 < after.mean() < 0.105
    # the widest head gave way, the narrowest kept nearly all that it had
    assert after[-1] < 0.5 * before[-1] and after[0] > 0.6 * before[0]
    assert all((b <= a).all() for a, b in itertools.pairwise(couplings))
    still = block.self_attn.raw_coupling.detach().clone()
    limit_density_(block, 0.9, x, is_causal=True)
    torch.testing.assert_close(block.self_attn.raw_coupling, still, atol=0, rtol=0)


def test_a_bound_on_partners_is_a_limit_that_goes_with_the_length():
    """Of the two the tighter one acts; on its own it holds whatever share of the pairs it is."""
    block, x = limited()
    for _ in range(60):
        limit_density_(block, None, x, is_causal=True, max_partners=8)
    found = count_locked(block, x, is_causal=True)["self_attn"]
    assert 6.5 < found.partners.mean() < 8.5
    torch.testing.assert_close(found.partners, found.density * found.allowed / found.receivers)
    still = block.self_attn.raw_coupling.detach().clone()
    limit_density_(block, None, x, is_causal=True, max_partners=40)
    limit_density_(block, 0.9, x, is_causal=True)
    limit_density_(block, None, x, is_causal=True)
    assert torch.equal(block.self_attn.raw_coupling, still)
    limit_density_(block, 0.9, x, is_causal=True, max_partners=4)
    by_number = block.self_attn.raw_coupling.detach().clone()
    assert (by_number < still).all()
    limit_density_(block, 0.02, x, is_causal=True, max_partners=100)
    assert (block.self_attn.raw_coupling < by_number).all()


@pytest.mark.parametrize("length", [32, 128, 400])
def test_a_ladder_of_partners_does_not_depend_on_the_length(length):
    block, _ = limited()
    x = text(2, length, 64)
    calibrate(block, x, is_causal=True, partners_range=(4.0, 12.0))
    found = count_locked(block, x, is_causal=True)["self_attn"]
    wanted = torch.tensor([4.0, 4 * 3 ** (1 / 3), 4 * 3 ** (2 / 3), 12.0])
    torch.testing.assert_close(found.partners, wanted, atol=0.3, rtol=0)


def test_ladders_of_partners_that_cannot_be():
    block, x = limited()
    before = block.self_attn.raw_coupling.detach().clone()
    for bad in ((0, 4), (-1, 4), (5, 4), (1, float("inf")), (float("nan"), 4)):
        with pytest.raises(ValueError, match="partners_range must be"):
            calibrate(block, x, partners_range=bad)
    with pytest.raises(ValueError, match="not both"):
        calibrate(block, x, partners_range=(2, 4), density_range=(0.1, 0.2))
    with pytest.raises(ValueError, match="every pair is masked"):
        layer = SelectiveSynchronizationAttention(64, 4)
        layer.calibrate_(x, key_padding_mask=torch.ones(x.shape[:2], dtype=torch.bool), partners_range=(2, 4))
    assert torch.equal(block.self_attn.raw_coupling, before)
    block.self_attn.calibrate_(text(1, 8, 64), partners_range=(50, 90))  # there are but seven others
    assert (block.self_attn.locked_density(text(1, 8, 64)) == 1).all()


@pytest.mark.parametrize(("batch", "length"), [(1, 2048), (3, 1024), (80, 128)])
def test_some_receivers_stand_for_all_of_a_large_batch(batch, length):
    torch.manual_seed(6)
    layer = SelectiveSynchronizationAttention(64, 4)
    g = torch.Generator().manual_seed(batch)
    x = nn.functional.layer_norm(torch.randn(batch, length, 64, generator=g), (64,))
    layer.calibrate_(x, is_causal=True)
    found = layer.locked_density(x, is_causal=True)
    assert (found / locking.density_ladder(0.05, 0.5, 4) - 1).abs().max() < 0.1


def test_a_limit_touches_the_couplings_alone():
    block, x = limited()
    before = {name: p.detach().clone() for name, p in block.named_parameters()}
    found = limit_density_(block, 0.05, x, is_causal=True)
    torch.testing.assert_close(found["self_attn"].mean(), torch.tensor(0.3), atol=0.1, rtol=0)
    changed = {n for n, p in block.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"self_attn.raw_coupling"}
    assert block.training and all(p.grad is None for p in block.parameters())


def test_limits_that_cannot_be():
    block, x = limited()
    for bad in (0, -0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="limit must be"):
            limit_density_(block, bad, x)
    for bad in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="max_partners must be positive and finite"):
            limit_density_(block, None, x, max_partners=bad)
    for bad in (0, float("inf")):
        with pytest.raises(ValueError, match="gain must be"):
            limit_density_(block, 0.1, x, gain=bad)
    with pytest.raises(ValueError, match="no SelectiveSynchronizationAttention"):
        limit_density_(nn.Linear(2, 2), 0.1, torch.zeros(1, 2))
    shared, x = limited(density_range=None, parametrisation="softplus")
    with pytest.raises(ValueError, match="parametrisation must be 'log'"):
        limit_density_(shared, 0.1, x)


def test_a_limit_below_what_the_nearest_frame_forces_does_not_drive_couplings_away():
    block, _ = limited()
    x = text(4, 8, 64)  # 7 of 28 pairs are forced
    for _ in range(200):
        found = limit_density_(block, 0.01, x, is_causal=True, gain=0.5)
    assert 0.3 < found["self_attn"].mean() < 0.55
    assert block.self_attn.coupling.min() > 1e-3
