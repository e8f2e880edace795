"""Operator, layer and model as ONNX, run by onnxruntime: what PyTorch computes."""

import pytest
import torch
from torch import nn

import syncattn
from syncattn.models import OSNConfig, OSNForCausalLM
from syncattn.nn import SelectiveSynchronizationAttention

E, H = 24, 4


class Operator(nn.Module):
    def forward(self, frequency, value):
        coupling, bandwidth = value.new_full((2,), 3.0), value.new_full((2,), 0.1)
        options = {"frame": "nearest", "power": 2, "is_causal": True, "top_k": 3}
        return syncattn.selective_synchronization_attention(
            frequency, frequency, value, coupling, bandwidth, **options
        )


class Layer(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.layer, self.mask = SelectiveSynchronizationAttention(E, H, token_shift=True), mask
        nn.init.normal_(self.layer.shift)

    def forward(self, x, mask):
        return self.layer(x, **{self.mask: mask}, is_causal=True)[0]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        config = OSNConfig(hidden_size=E, num_hidden_layers=1, num_attention_heads=H)
        self.model = OSNForCausalLM(config)

    def forward(self, ids, mask):
        return self.model(ids, mask, use_cache=False).logits


def example(kind, batch, length):
    real = torch.arange(length) < torch.arange(1, batch + 1)[:, None] + 1
    if kind == "operator":
        return Operator(), (torch.randn(batch, 2, length, 6), torch.randn(batch, 2, length, 8)), (0, 2)
    if kind == "model":
        return Model(), (torch.randint(0, 256, (batch, length)), real.long()), (0, 1)
    if kind == "layer, window":
        window = (torch.arange(length)[:, None] - torch.arange(length)).abs() > 1
        return Layer("attn_mask"), (torch.randn(batch, length, E), window), (0, 1)
    return Layer("key_padding_mask"), (torch.randn(batch, length, E), ~real), (0, 1)


@pytest.mark.parametrize("kind", ["layer, window", "model"])
def test_nothing_in_the_way(kind, monkeypatch):
    """What is recorded for ONNX holds no operator that it lacks (onnx itself need not be installed)."""
    torch.manual_seed(0)
    module, arguments, _ = example(kind, 2, 9)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    program = torch.export.export(module.eval(), arguments, strict=False)
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [name for name in called if name.startswith("syncattn") or "cummax" in name]


@pytest.mark.filterwarnings("ignore")
def test_the_older_exporter_is_refused(monkeypatch):
    """It takes the lengths that it sees for constants, so that others fail in the runtime."""
    module, arguments, _ = example("model", 2, 9)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    with pytest.raises(ValueError, match=r"the lengths that it sees.*dynamo=True"):
        torch.jit.trace(module.eval(), arguments)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["operator", "layer", "layer, window", "model"])
def test_onnxruntime_computes_the_same(kind, tmp_path):
    for needed in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(needed, reason=f"{needed} is not installed")
    import onnxruntime

    torch.manual_seed(0)
    module, arguments, axes = example(kind, 2, 9)
    shapes = tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for _ in arguments)
    program = torch.onnx.export(module.eval(), arguments, dynamo=True, dynamic_shapes=shapes, verbose=False)
    program.save(tmp_path / "it.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "it.onnx")
    for batch, length in ((2, 9), (4, 17)):
        _, arguments, _ = example(kind, batch, length)
        feed = {given.name: x.numpy() for given, x in zip(session.get_inputs(), arguments)}
        (out,) = session.run(None, feed)
        torch.testing.assert_close(torch.from_numpy(out), module(*arguments), rtol=1e-4, atol=1e-4)
