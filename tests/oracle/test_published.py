"""The published implementation's own numbers (float64), and the published formula written out."""

from pathlib import Path

import numpy as np
import pytest
import torch

import syncattn
from syncattn.backends import eager
from syncattn.nn import SelectiveSynchronizationAttention

CASES = ["default_init", "mixed_density", "mixed_density_top6"]
# By symmetry these gradients are zero: a bias moves all frequencies, or all phases, alike.
ZERO = ("W_omega.bias", "W_theta.bias")


def load(case):
    with np.load(Path(__file__).parent / f"{case}.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def build(golden, top_k=None):
    parameters = {k.removeprefix("param/"): v for k, v in golden.items() if k.startswith("param/")}
    k = int(golden["sparsity_k"])
    layer = SelectiveSynchronizationAttention.from_reference(
        parameters, int(golden["n_heads"]), top_k=k if k > 0 else None
    )
    return layer, parameters


def published_formula(layer, x, top_k):
    """S and the output as the paper has them, no line of it ours: J cos(arcsin(sqrt(D) / (K r J)))."""
    batch, tokens, width = x.shape
    heads = layer.num_heads

    def split(y):
        return y.view(batch, tokens, heads, width // heads).transpose(1, 2)

    w = split(layer.frequency.receive_proj(x))
    theta = split(layer.phase_proj(x))
    value = split(layer.value_proj(x))
    r = torch.exp(1j * theta).mean(2).abs().mean(-1)  # (B, H)
    coupling = torch.log1p(layer.raw_coupling.exp()) * r
    bandwidth = torch.log1p(layer.raw_bandwidth.exp())
    squared = torch.zeros(batch, heads, tokens, tokens, dtype=x.dtype)
    for k in range(w.shape[-1]):
        squared = squared + (w[..., :, None, k] - w[..., None, :, k]) ** 2
    kernel = torch.exp(-bandwidth[None, :, None, None] * squared)
    ratio = squared.sqrt() / (coupling[..., None, None] * kernel)
    sync = torch.where(ratio <= 1, kernel * torch.cos(torch.arcsin(ratio.clamp(max=1))), 0.0)
    if top_k is not None:
        least = sync.topk(top_k, dim=-1).values[..., -1:]
        sync = torch.where(sync >= least, sync, 0.0)
    mixed = (sync / (sync.sum(-1, keepdim=True) + 1e-8)) @ value
    return sync, layer.out_proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


def synchronization(layer, x):
    """S as the operator returns it for the layer's own arguments."""
    return eager.run(layer.operator_call(x)._replace(return_weights=True))[1]


@pytest.mark.parametrize("case", CASES)
def test_zeros_and_values_of_s(case):
    golden = load(case)
    layer, _ = build(golden)
    sync = synchronization(layer, golden["x"])
    assert torch.equal(sync == 0, golden["S"] == 0)
    assert 1 / sync.shape[-1] < (sync > 0).double().mean() < 0.9  # more than the diagonal, less than all
    # The published code adds 1e-8 to the threshold; under a square root that is up to 1e-4 at the very edge.
    inside = golden["S"] > 0.1
    assert (sync - golden["S"]).abs()[inside].max() < 1e-6
    assert (sync - golden["S"]).abs().max() < 1e-4


@pytest.mark.parametrize("need_weights", [False, True], ids=["tiled", "eager"])
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients(case, need_weights):
    golden = load(case)
    layer, parameters = build(golden)
    x = golden["x"].clone().requires_grad_()
    out, _ = layer(x, need_weights=need_weights)
    assert (out - golden["out"]).abs().max() <= 2e-7

    out.backward(golden["grad_out"])
    ours = {
        "x": x.grad,
        "K": layer.raw_coupling.grad,
        "alpha": layer.raw_bandwidth.grad,
        **{
            f"{name}.{kind}": getattr(module, kind).grad
            for name, module in (
                ("W_omega", layer.frequency.receive_proj),
                ("W_theta", layer.phase_proj),
                ("W_v", layer.value_proj),
                ("W_o", layer.out_proj),
            )
            for kind in ("weight", "bias")
        },
    }
    assert set(ours) == {"x", *parameters}
    tolerance = 1e-3 if case == "mixed_density" else 1e-6  # it has pairs at the very edge of locking
    for name, got in ours.items():
        want = golden[f"grad/{name}"]
        if name in ZERO:
            assert got.abs().max() < 1e-10 and want.abs().max() < 1e-10, name
        else:
            scale = max(want.abs().max().item(), 1e-12)
            assert (got - want).abs().max() <= tolerance * scale, name


@pytest.mark.parametrize("case", CASES)
def test_formula(case):
    """Against the formula itself, without the published code's 1e-8: rounding only."""
    golden = load(case)
    layer, _ = build(golden)
    with torch.no_grad():
        sync, out = published_formula(layer, golden["x"], layer.top_k)
        assert (synchronization(layer, golden["x"]) - sync).abs().max() < 1e-12
        assert (layer(golden["x"], need_weights=True)[0] - out).abs().max() < 1e-12
        assert (layer(golden["x"])[0] - out).abs().max() < 1e-12


def test_formula_at_many_settings():
    """S of the operator is J cos(arcsin(sqrt(D) / (kappa J))) over couplings and bandwidths of all sizes."""
    g = torch.Generator().manual_seed(0)
    for m in (1, 4, 16):
        for log_kappa in (-1.0, 0.5, 2.0, 5.0):
            for log_alpha in (-6.0, -2.0, 0.0):
                w = torch.randn(1, 1, 20, m, generator=g, dtype=torch.float64)
                kappa = torch.tensor([log_kappa], dtype=torch.float64).exp()
                alpha = torch.tensor([log_alpha], dtype=torch.float64).exp()
                value = torch.randn(1, 1, 20, 3, generator=g, dtype=torch.float64)
                _, sync, weight = syncattn.selective_synchronization_attention(
                    w, w, value, kappa, alpha, return_weights=True
                )
                squared = torch.cdist(w, w, compute_mode="donot_use_mm_for_euclid_dist") ** 2
                kernel = torch.exp(-alpha * squared)
                ratio = squared.sqrt() / (kappa * kernel)
                want = torch.where(ratio <= 1, kernel * torch.cos(torch.arcsin(ratio.clamp(max=1))), 0.0)
                assert torch.equal(sync > 0, want > 0)
                assert (sync - want).abs().max() < 1e-12
                assert (weight - want / (want.sum(-1, keepdim=True) + 1e-8)).abs().max() < 1e-12


def test_published_initialisation_is_the_identity_and_does_not_train():
    """With the published defaults (64 coordinates, raw K and alpha 1) tokens never communicate."""
    from syncattn.nn.published import published

    torch.manual_seed(0)
    layer = SelectiveSynchronizationAttention(512, 8, **published(64))
    x = torch.nn.functional.layer_norm(torch.randn(2, 64, 512), (512,)).requires_grad_()
    sync = synchronization(layer, x)
    assert torch.equal(sync, torch.eye(64).expand_as(sync))
    for need_weights in (False, True):
        layer.zero_grad()
        out, _ = layer(x, need_weights=need_weights)
        out.backward(torch.randn(out.shape))
        assert torch.count_nonzero(layer.frequency.receive_proj.weight.grad) == 0
        assert torch.count_nonzero(layer.value_proj.weight.grad) > 0


def test_from_reference_rejects_what_is_not_the_published_form():
    golden = load("mixed_density")
    parameters = {k.removeprefix("param/"): v for k, v in golden.items() if k.startswith("param/")}
    from_reference = SelectiveSynchronizationAttention.from_reference
    with pytest.raises(ValueError, match=r"missing \['K'\], unknown \['coupling'\]"):
        from_reference({**{k: v for k, v in parameters.items() if k != "K"}, "coupling": parameters["K"]}, 4)
    with pytest.raises(ValueError, match="num_heads must divide"):
        from_reference(parameters, 5)
    with pytest.raises(ValueError, match=r"alpha must have shape \(8,\)"):
        from_reference(parameters, 8)
    with pytest.raises(ValueError, match=r"W_o\.bias must have shape"):
        from_reference({**parameters, "W_o.bias": torch.zeros(7)}, 4)
    # float32 parameters, as a published checkpoint would have them
    layer = from_reference({k: v.float() for k, v in parameters.items()}, 4)
    out, _ = layer(golden["x"].float())
    assert out.dtype == torch.float32 and (out - golden["out"]).abs().max() < 1e-3
