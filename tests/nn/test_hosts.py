"""Layers in the hands of other people's code, which quantises, offloads, fuses, maps and exports them."""

import ast
import copy
import functools
import inspect
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

import syncattn
from syncattn.nn import (
    IncrementalState,
    OSNBlock,
    SelectiveSynchronizationAttention,
    calibrate,
    limit_density_,
    locked_density,
)

E, H, LENGTH = 24, 4, 8
PADDING = torch.arange(LENGTH) >= torch.tensor([[8], [5], [2]])
WINDOW = (torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)).abs() > 1
FUTURE = nn.Transformer.generate_square_subsequent_mask(LENGTH)
CALLS = {
    "plain": {},
    "causal": {"is_causal": True},
    "padding": {"key_padding_mask": PADDING, "is_causal": True},
    "window": {"attn_mask": WINDOW},
}


@functools.cache
def small_model():
    from syncattn.models import OSNConfig, OSNForCausalLM

    torch.manual_seed(0)
    config = OSNConfig(hidden_size=E, num_hidden_layers=2, num_attention_heads=H, intermediate_size=32)
    return OSNForCausalLM(config).eval(), torch.randint(0, 256, (3, LENGTH))


# Weights that are none


class Opaque(nn.Module):
    """A linear map whose weight nobody else can read, as quantised ones have it."""

    def __init__(self, linear):
        super().__init__()
        self.compute = lambda x: nn.functional.linear(x, linear.weight, linear.bias)

    def forward(self, x):
        return self.compute(x)


@torch.no_grad()
def test_only_a_linear_itself_reads_its_weight(layer, tokens):
    opaque, x = copy.deepcopy(layer), tokens(3, LENGTH)
    for parent in list(opaque.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Opaque(child))
    for options in CALLS.values():
        assert torch.equal(opaque(x, **options)[0], layer(x, **options)[0])
        assert torch.equal(opaque.locked_density(x, **options), layer.locked_density(x, **options))
    states = IncrementalState(), IncrementalState()
    for piece in x.split([3, 5], 1):
        one, other = (m(piece, is_causal=True, state=s)[0] for m, s in zip((opaque, layer), states))
        assert torch.equal(one, other)


def test_no_code_here_reads_the_weight_of_another_module():
    """But to initialise it."""
    for path in Path(inspect.getfile(syncattn.nn)).parent.glob("*.py"):
        tree = ast.parse(path.read_text())
        initialising = {
            id(node)
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef) and function.name == "reset_parameters"
            for node in ast.walk(function)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and id(node) not in initialising:
                assert node.attr not in ("weight", "bias"), f"{path.name}:{node.lineno}"


@pytest.mark.skipif(
    torch.backends.quantized.engine == "none", reason="this torch has no engine for int8 arithmetic"
)
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_dynamically_quantised(build, tokens):
    model, ids = small_model()
    for module, run in (
        (
            build("token shift", dtype=torch.float32),
            lambda m: m(tokens(3, LENGTH, dtype=torch.float32), **CALLS["window"])[0],
        ),
        (model, lambda m: m(ids).logits),
    ):
        small = torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8)
        want, got = run(module), run(small)
        assert 0 < (got - want).abs().max() < 0.2 * want.abs().max()
    assert small.generate(ids, max_new_tokens=3, do_sample=False).shape == (3, LENGTH + 3)


# Weights that are elsewhere


@pytest.mark.parametrize("where", ["cpu", "cpu, buffers too", "disk"])
@torch.no_grad()
def test_offloaded(build, tokens, where, tmp_path):
    """Parameters are on the meta device but while the module that owns them computes."""
    accelerate = pytest.importorskip("accelerate")
    model, ids = small_model()
    x = tokens(3, LENGTH, dtype=torch.float32)
    runs = [(model, lambda m: m(ids, use_cache=False).logits)]
    runs += [(model, lambda m: m.generate(ids, max_new_tokens=3, do_sample=False))]
    for kind in ("own drift", "directed", "token shift"):
        layer = build(kind, dtype=torch.float32)
        runs += [(layer, lambda m, options=options: m(x, **options)[0]) for options in CALLS.values()]
    for n, (module, run) in enumerate(runs):
        want, module = run(module), copy.deepcopy(module)
        if where == "disk":
            accelerate.disk_offload(module, tmp_path / str(n), execution_device="cpu")
        else:
            accelerate.cpu_offload(module, execution_device="cpu", offload_buffers="buffers" in where)
        assert all(p.is_meta for p in module.parameters())
        assert torch.equal(run(module), want)


def test_what_counts_says_that_parameters_are_offloaded():
    accelerate = pytest.importorskip("accelerate")
    model, ids = small_model()
    model = copy.deepcopy(model)
    accelerate.cpu_offload(model, execution_device="cpu")
    for count in (calibrate, locked_density, functools.partial(limit_density_, limit=0.1)):
        with pytest.raises(ValueError, match=r"before they are offloaded.* got layer .* on the meta device"):
            count(model, input_ids=ids)


# PyTorch's own layers


@pytest.mark.parametrize("swapped", ["before copies", "after copies"])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True", "ignore:Support for mismatched")
def test_in_the_place_of_self_attn(norm_first, batch_first, swapped):
    """An encoder of PyTorch's layers computes the same in training and in evaluation."""
    torch.manual_seed(0)
    options = {"batch_first": batch_first, "norm_first": norm_first, "dropout": 0.0}
    theirs = nn.TransformerEncoderLayer(E, H, 48, **options)
    if swapped == "before copies":
        theirs.self_attn = SelectiveSynchronizationAttention(E, H, batch_first=batch_first)
    encoder = nn.TransformerEncoder(theirs, 2)
    if swapped == "after copies":
        for layer in encoder.layers:
            layer.self_attn = SelectiveSynchronizationAttention(E, H, batch_first=batch_first)
    x = torch.randn(3, LENGTH, E)
    x = x if batch_first else x.transpose(0, 1)
    for module, masks in (
        (encoder, ({}, {"mask": FUTURE}, {"mask": FUTURE, "is_causal": True})),
        (encoder.layers[1], ({}, {"src_mask": FUTURE, "is_causal": True})),
    ):
        for mask in masks:
            for padding in (None, PADDING):
                want = module.train()(x, **mask, src_key_padding_mask=padding)
                assert torch.equal(module.eval()(x, **mask, src_key_padding_mask=padding), want)
                with torch.no_grad():
                    assert torch.equal(module(x, **mask, src_key_padding_mask=padding), want)


def test_in_the_place_of_a_decoder_layers_attentions():
    torch.manual_seed(0)
    decoder = nn.TransformerDecoderLayer(E, H, 48, dropout=0.0, batch_first=True)
    decoder.self_attn = SelectiveSynchronizationAttention(E, H)
    decoder.multihead_attn = SelectiveSynchronizationAttention(E, H)
    x, memory = torch.randn(3, LENGTH, E), torch.randn(3, 5, E)
    want = decoder(x, memory, tgt_mask=FUTURE, tgt_is_causal=True, memory_key_padding_mask=PADDING[:, :5])
    with torch.no_grad():
        out = decoder.eval()(x, memory, FUTURE, tgt_is_causal=True, memory_key_padding_mask=PADDING[:, :5])
    assert torch.equal(out, want)


# Mapped over


@pytest.mark.parametrize("kind", ["default", "rotary, all delayed", "token shift", "published"])
def test_vmap(build, tokens, kind):
    """Over sequences, with what is theirs: padding, masks."""
    layer, x = build(kind), tokens(3, LENGTH)
    for options in CALLS.values():
        each = {n: v for n, v in options.items() if n == "key_padding_mask"}
        shared = {n: v for n, v in options.items() if n not in each}
        out = vmap(lambda one, own, shared=shared: layer(one, **own, **shared)[0])(x, each)
        torch.testing.assert_close(out, layer(x, **options)[0])
    windows = WINDOW.expand(3, -1, -1).clone()
    out = vmap(lambda one, mask: layer(one, attn_mask=mask)[0])(x, windows)
    torch.testing.assert_close(out, layer(x, attn_mask=WINDOW)[0])


def test_gradients_of_each_sequence():
    torch.manual_seed(0)
    block = OSNBlock(E, H, 48, batch_first=True, dropout=0.0, token_shift=True).double()
    parameters, x = dict(block.named_parameters()), torch.randn(3, LENGTH, E, dtype=torch.float64)

    def loss(parameters, one):
        return functional_call(block, parameters, (one[None],), {"is_causal": True}).square().sum()

    found = vmap(grad(loss), (None, 0))(parameters, x)
    for i in range(3):
        want = torch.autograd.grad(block(x[i : i + 1], is_causal=True).square().sum(), block.parameters())
        for name, gradient in zip(parameters, want):
            torch.testing.assert_close(found[name][i], gradient, rtol=0, atol=1e-9)


# Not dense


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
def test_nested_tensors_are_refused(layout):
    nested = torch.nested.nested_tensor([torch.randn(3, E), torch.randn(5, E)], layout=layout)
    layer, x = SelectiveSynchronizationAttention(E, H), torch.randn(2, 5, E)
    for call in (lambda: layer(nested), lambda: layer(nested, nested, nested)):
        with pytest.raises(
            ValueError, match=r"query must be a dense tensor .*to_padded_tensor.* got a nested one"
        ):
            call()
    with pytest.raises(ValueError, match=r"key must be a dense tensor .* got a nested one"):
        layer(x, nested)
    for norm_first in (True, False):
        with pytest.raises(ValueError, match=r"src must be a dense tensor .* got a nested one"):
            OSNBlock(E, H, 48, batch_first=True, norm_first=norm_first)(nested)
    with pytest.raises(ValueError, match=r"query must be a dense tensor .* got torch\.sparse_coo"):
        layer(x.to_sparse())


@pytest.mark.parametrize("batch_first", [True, False])
def test_batches_of_nothing(batch_first):
    """Of no sequences, and of sequences without tokens: shapes and gradients of nothing, with every mask."""
    block = OSNBlock(E, H, 48, batch_first=batch_first, norm_first=True, token_shift=True)
    for batch, length in ((0, 5), (2, 0), (0, 0)):
        x = torch.randn(batch, length, E) if batch_first else torch.randn(length, batch, E)
        square = torch.ones(length, length, dtype=torch.bool)
        for mask in (None, square.triu(1), square.triu(2) | square.tril(-2), square):
            for padding in (None, torch.zeros(batch, length, dtype=torch.bool)):
                for is_causal in (False, True):
                    out = block(x, mask, padding, is_causal)
                    assert out.shape == x.shape
                    out.sum().backward()
                _, weights = block(x, mask, padding, need_weights=True)
                assert weights.shape == (batch, H, length, length)
        assert torch.isfinite(locked_density(block, x)["self_attn"]).all()
