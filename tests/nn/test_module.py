"""A layer is a well-behaved nn.Module: states, copies, devices, dtypes, gradients."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import syncattn
from syncattn.nn import IncrementalState, OSNBlock, SelectiveSynchronizationAttention

E, H = 24, 4


def test_state_dict_round_trip(layer, tokens, request, build):
    x = tokens(2, 9)
    want, _ = layer(x, is_causal=True)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = build(request.node.callspec.params["layer"], seed=9)
    assert not torch.equal(other(x, is_causal=True)[0], want)
    assert not any(other.load_state_dict(torch.load(file, weights_only=True)))
    assert torch.equal(other(x, is_causal=True)[0], want)


@pytest.mark.parametrize(
    "copier", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
def test_copies(layer, tokens, copier):
    x = tokens(2, 9)
    other = copier(layer)
    assert torch.equal(other(x, is_causal=True)[0], layer(x, is_causal=True)[0])
    other.value_proj.weight.data.zero_()
    assert layer.value_proj.weight.any()
    block = OSNBlock(E, H, 48, batch_first=True).double().eval()
    assert torch.equal(copier(block)(x), block(x))


@pytest.mark.parametrize("how", ["argument", "context"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"parametrisation": "softplus"},
        {"density_range": None},
        {"position": "rotary"},
        {"directed": True, "detuning": True},
    ],
    ids=str,
)
def test_on_the_meta_device(options, how, tokens):
    """Built without memory, then materialised and filled: what large models do."""
    if how == "argument":
        layer = SelectiveSynchronizationAttention(E, H, device="meta", **options)
    else:
        with torch.device("meta"):
            layer = SelectiveSynchronizationAttention(E, H, **options)
    assert all(t.device.type == "meta" for t in layer.state_dict().values())
    for need_weights in (False, True):
        out, _ = layer(torch.empty(2, 5, E, device="meta"), is_causal=True, need_weights=need_weights)
        assert out.device.type == "meta" and out.shape == (2, 5, E)
    real = SelectiveSynchronizationAttention(E, H, **options)
    filled = layer.to_empty(device="cpu")
    filled.load_state_dict(real.state_dict())
    x = tokens(2, 9, dtype=torch.float32)
    assert torch.equal(filled(x)[0], real(x)[0])
    block = OSNBlock(E, H, 48, device="meta", **options)
    assert block(torch.empty(5, 2, E, device="meta")).shape == (5, 2, E)


def test_materialised_and_initialised_afresh():
    layer = SelectiveSynchronizationAttention(64, H, device="meta").to_empty(device="cpu")
    torch.manual_seed(0)
    for module in layer.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    layer.reset_parameters()
    x = nn.functional.layer_norm(torch.randn(2, 128, 64), (64,))
    assert (layer(x, is_causal=True)[0]).isfinite().all()
    assert 0.04 < layer.locked_density(x, is_causal=True)[0] < 0.06


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes(dtype, tokens):
    torch.manual_seed(0)
    layer = SelectiveSynchronizationAttention(E, H, dtype=dtype, density_range=(0.3, 0.8))
    assert all(p.dtype == dtype for p in layer.parameters())
    x = tokens(2, 50, dtype=dtype)
    for need_weights in (False, True):
        out, _ = layer(x, is_causal=True, need_weights=need_weights)
        assert out.dtype == dtype and out.isfinite().all()
        out.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    wide = copy.deepcopy(layer).double()
    want, _ = wide(x.double(), is_causal=True)
    eps = torch.finfo(dtype).eps
    assert (out.double() - want).abs().max() < 20 * eps * want.abs().max()


@pytest.mark.parametrize("kind", ["default", "own drift", "rotary, all delayed"])
def test_autocast_far_along_the_drift(build, tokens, kind):
    """Under bfloat16 autocast the layer is as right at position 2,000 as at 20, by flag and by mask."""
    layer = build(kind, dtype=torch.float32)
    x = tokens(1, 2000, dtype=torch.float32)
    want, _ = layer(x, is_causal=True)
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = layer(x, is_causal=True)
        by_mask, _ = layer(x, attn_mask=torch.ones(2000, 2000, dtype=torch.bool).triu(1))
    assert out.dtype == torch.bfloat16
    for got in (out, by_mask):
        error = (got.float() - want).square().mean(-1).sqrt()[0] / want.square().mean().sqrt()
        assert error[:100].mean() < 0.02 and error[-100:].mean() < 0.02
        assert error.max() < 0.3


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, torch.device("meta")], ids=str)
def test_other_defaults_change_nothing(layer, tokens, default):
    """What a layer makes by itself has the dtype and the device of what it was given."""
    layer, x = layer.float(), tokens(2, 9, dtype=torch.float32)
    padding = torch.arange(9) >= torch.tensor([[9], [5]])
    window = (torch.arange(9)[:, None] - torch.arange(9)).abs() > 1
    cuts = (slice(4), slice(4, 9))

    def run():
        state = IncrementalState()
        yield layer(x, key_padding_mask=padding, is_causal=True)[0]
        yield layer(x, attn_mask=window, need_weights=True)[0]
        yield layer(x, attn_mask=window, key_padding_mask=padding)[0]
        yield from (
            layer(x[:, cut], key_padding_mask=padding[:, cut], is_causal=True, state=state)[0] for cut in cuts
        )
        yield layer.locked_density(x, key_padding_mask=padding)

    with torch.no_grad(), syncattn.use_backend("eager"):
        want = list(run())
        before = torch.get_default_dtype()
        try:
            if isinstance(default, torch.device):
                with default:
                    got = list(run())
            else:
                torch.set_default_dtype(default)
                got = list(run())
        finally:
            torch.set_default_dtype(before)
    assert all(map(torch.equal, got, want))


def test_every_parameter_gets_a_gradient(build, tokens):
    """With one exception, in theory exactly 0: a bias turns all phases alike and leaves their coherence."""
    x = tokens(2, 16)
    for options in ({}, {"phase_dim": 3}, {"directed": True, "detuning": True}, {"position": "own_drift"}):
        for causal in (False, True):
            layer = build(**options)
            out, _ = layer(x, is_causal=causal)
            g = torch.Generator().manual_seed(0)
            out.backward(torch.randn(out.shape, generator=g, dtype=out.dtype))
            for name, parameter in layer.named_parameters():
                if name == "phase_proj.bias":
                    assert parameter.grad.abs().max() < 1e-10
                else:
                    assert (parameter.grad.abs() > 1e-9).any(), name
                    if parameter.shape[:1] == (H,):
                        assert (parameter.grad.view(H, -1).abs().amax(1) > 1e-9).all(), name


def test_unbounded_gradients_of_power_1_are_finite_in_float32(build, tokens):
    for options in ({"power": 1}, {"power": 1, "frame": "absolute", "self_coupling": True}):
        layer = build(dtype=torch.float32, **options)
        x = tokens(4, 100, dtype=torch.float32).requires_grad_()
        layer(x, is_causal=True)[0].square().sum().backward()
        assert all(p.grad.isfinite().all() for p in layer.parameters()) and x.grad.isfinite().all()


def test_it_trains():
    """A small layer learns to say which token came before: twenty steps lower the loss, of every kind."""
    for options in ({}, {"power": 1, "edge": 0.01}, {"directed": True}, {"position": "own_drift"}):
        torch.manual_seed(0)
        embed = nn.Embedding(8, E)
        block = OSNBlock(E, H, 48, dropout=0.0, batch_first=True, norm_first=True, **options)
        model = nn.Sequential(embed, block, nn.Linear(E, 8))
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        losses = []
        for _ in range(20):
            ids = torch.randint(8, (8, 32))
            logits = model[2](block(embed(ids), is_causal=True))
            loss = nn.functional.cross_entropy(logits[:, 1:].flatten(0, 1), ids[:, :-1].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert sum(losses[-3:]) < 0.9 * sum(losses[:3]), options


def test_its_description_names_what_defines_it():
    text = repr(SelectiveSynchronizationAttention(E, H, top_k=7))
    for part in ("embed_dim=24", "num_heads=4", "freq_dim=6", "position='drift'", "power=2", "top_k=7"):
        assert part in text
