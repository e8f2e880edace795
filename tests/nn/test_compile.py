"""Layers and blocks under torch.compile(fullgraph=True) and torch.export."""

import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn

import syncattn
from syncattn.nn import IncrementalState, OSNBlock, SelectiveSynchronizationAttention

pytestmark = pytest.mark.usefixtures("fresh_compiler")
COMPILER = "inductor" if shutil.which("g++") or shutil.which("clang++") else "aot_eager"
E, H = 24, 4


def compare(compiled, plain, x, **options):
    """Outputs and all gradients of the two."""
    results = []
    for module in (compiled, plain):
        plain.zero_grad()
        out = module(x, **options)
        out = out[0] if isinstance(out, tuple) else out
        out.square().sum().backward()
        results.append([out, *(p.grad.clone() for p in plain.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1]) > 1
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_inductor(build, tokens):
    """The default layer through the real compiler, forward and backward."""
    layer = build(dtype=torch.float32)
    compiled = torch.compile(layer, fullgraph=True, backend=COMPILER)
    compare(compiled, layer, tokens(2, 11, dtype=torch.float32), is_causal=True)


FUTURE = nn.Transformer.generate_square_subsequent_mask(11)
PADDING = torch.arange(11) >= torch.tensor([[11], [7]])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("default", {}),
        ("token shift", {"attn_mask": FUTURE.roll(3, 0), "need_weights": True}),
        ("own drift", {"key_padding_mask": PADDING}),
        ("rotary, all delayed", {"key_padding_mask": PADDING, "is_causal": True}),
        ("directed", {"is_causal": True}),
        ("top k", {"attn_mask": FUTURE, "key_padding_mask": PADDING}),
        ("published", {"key_padding_mask": PADDING}),
    ],
    ids=lambda x: x if isinstance(x, str) else "+".join(x),
)
def test_full_graph(build, tokens, kind, options):
    """Every kind of layer is one graph, with and without masks."""
    layer = build(kind, dtype=torch.float32)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    compare(compiled, layer, tokens(2, 11, dtype=torch.float32), **options)


def test_block(tokens):
    torch.manual_seed(0)
    block = OSNBlock(E, H, 48, batch_first=True, dropout=0.0, density_range=(0.3, 0.8))
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    compare(compiled, block, tokens(2, 11, dtype=torch.float32), src_key_padding_mask=PADDING, is_causal=True)


def test_one_graph_for_all_lengths(build, tokens):
    layer, graphs = build(dtype=torch.float32), 0

    def count(graph, _):
        nonlocal graphs
        graphs += 1
        return graph

    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=count)
    with torch.no_grad():
        for length in (11, 5, 90, 131):
            x = tokens(2, length, dtype=torch.float32)
            torch.testing.assert_close(compiled(x, is_causal=True)[0], layer(x, is_causal=True)[0])
    assert graphs == 1


def test_decoding_with_a_compiled_layer(build, tokens):
    layer = build(dtype=torch.float32)
    x = tokens(2, 7, dtype=torch.float32)
    compiled = torch.compile(layer, backend="aot_eager")
    with torch.no_grad():
        want, _ = layer(x, is_causal=True)
        state = IncrementalState()
        out = [compiled(x[:, t : t + 1], is_causal=True, state=state)[0] for t in range(7)]
    torch.testing.assert_close(torch.cat(out, 1), want, rtol=0, atol=1e-5)


class Causal(nn.Module):
    """Export records one way of calling: this one."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x, padding):
        if isinstance(self.module, OSNBlock):
            return self.module(x, src_key_padding_mask=padding, is_causal=True)
        return self.module(x, key_padding_mask=padding, is_causal=True)[0]


@pytest.mark.parametrize(
    ("kind", "strict"),
    [("layer", True), ("layer", False), ("block", False), ("absolute gate", True), ("absolute gate", False)],
)
def test_export_with_dynamic_batch_and_length(kind, strict):
    torch.manual_seed(0)
    options = {"batch_first": True, "density_range": (0.3, 0.8)}
    if kind == "absolute gate":  # the nearest sender is looked for
        options |= {"nearest_gate": True, "frame": "absolute"}
    module = (
        OSNBlock(E, H, 48, **options)
        if kind == "block"
        else SelectiveSynchronizationAttention(E, H, **options)
    )
    if getattr(module, "gate", None) is not None:
        torch.nn.init.normal_(module.gate)
    module = Causal(module).eval()

    def example(batch, length):
        g = torch.Generator().manual_seed(length)
        padding = torch.arange(length) >= torch.randint(1, length + 1, (batch, 1), generator=g)
        return torch.randn(batch, length, E, generator=g), padding

    shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", min=2, max=4096)}
    program = torch.export.export(module, example(3, 9), dynamic_shapes=(shape, shape), strict=strict)
    for batch, length in ((3, 9), (2, 2), (5, 33), (4, 150)):
        arguments = example(batch, length)
        torch.testing.assert_close(program.module()(*arguments), module(*arguments), rtol=1e-4, atol=1e-5)


def test_exported_and_saved(tmp_path):
    torch.manual_seed(0)
    module = Causal(SelectiveSynchronizationAttention(E, H)).eval()
    arguments = torch.randn(2, 9, E), torch.zeros(2, 9, dtype=torch.bool)
    torch.export.save(torch.export.export(module, arguments, strict=False), tmp_path / "layer.pt2")
    torch.testing.assert_close(
        torch.export.load(tmp_path / "layer.pt2").module()(*arguments), module(*arguments)
    )


class Drifting(nn.Module):
    """The operator, with frequencies that drift."""

    def forward(self, w, value):
        place = torch.arange(w.shape[2], dtype=w.dtype, device=w.device)
        w = w + 0.1 * place[:, None]
        kappa, alpha = w.new_full((2,), 3.0), w.new_full((2,), 0.1)
        options = {"frame": "nearest", "power": 2, "is_causal": True}
        return syncattn.selective_synchronization_attention(w, w, value, kappa, alpha, **options)


@pytest.mark.skipif(COMPILER != "inductor", reason="there is no C++ compiler")
def test_ahead_of_time_in_a_process_without_syncattn(tmp_path):
    """A package of torch's own operators alone, for a length that nobody named."""
    length = {2: torch.export.Dim("length", min=2, max=64)}

    def example(tokens):
        g = torch.Generator().manual_seed(tokens)
        return torch.randn(1, 2, tokens, 3, generator=g), torch.randn(1, 2, tokens, 4, generator=g)

    with syncattn.use_backend("eager"), torch.no_grad():
        program = torch.export.export(Drifting(), example(9), dynamic_shapes=(length, length))
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "it.pt2"))
        expected = Drifting()(*example(40))
    torch.save(example(40), tmp_path / "given.pt")
    code = (
        "import sys, torch\n"
        "given = torch.load(sys.argv[2])\n"
        "torch.save(torch._inductor.aoti_load_package(sys.argv[1])(*given), sys.argv[3])\n"
        "assert 'syncattn' not in sys.modules\n"
    )
    files = [str(tmp_path / name) for name in ("given.pt", "out.pt")]
    subprocess.run([sys.executable, "-c", code, path, *files], check=True, timeout=300)
    torch.testing.assert_close(torch.load(files[1]), expected, rtol=1e-4, atol=1e-5)
