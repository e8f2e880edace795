"""What only large or hostile calls bring out: long sums, NaN among limits, tracing, memory of the parts."""

import subprocess
import sys

import pytest
import torch

import syncattn
from syncattn.backends.cpu import library

attention = syncattn.selective_synchronization_attention
pytestmark = pytest.mark.skipif(isinstance(library.load(), str), reason=str(library.load()))


@pytest.mark.parametrize("keys", [4_096, 100_000])
def test_long_sums_do_not_drift(keys):
    """Equal weights of equal values: a single chain of float32 additions would be off by 4e-4 at 100,000."""
    receive, send = torch.zeros(1, 1, 32, 2), torch.zeros(1, 1, keys, 2)
    send[..., 0] = 0.5  # W = .7 or so, not a power of two
    value = torch.ones(1, 1, keys, 16)
    out = attention(receive, send, value, torch.ones(1) * 2, torch.ones(1) * 0.6, power=2, backend="cpu")
    assert (out - 1).abs().max() < 2e-5


@pytest.mark.parametrize("row", [0, 7, 22, 23])
def test_a_nan_coupling_shows_wherever_it_stands_in_its_tile(row, fresh_compiler):
    """Compiled calls do not check values. No sender is near, so only the NaN row may look at any."""
    receive, send = torch.zeros(1, 1, 60, 3), torch.full((1, 1, 60, 3), 100.0)
    value, bandwidth = torch.randn(1, 1, 60, 4, requires_grad=True), torch.ones(1)
    coupling = torch.ones(1, 1, 60)
    coupling[..., row] = torch.nan

    def call(*tensors):
        return attention(*tensors, power=2, backend="cpu")

    out = torch.compile(call, fullgraph=True, backend="eager")(receive, send, value, coupling, bandwidth)
    bad = out.isnan().any(-1)[0, 0]
    assert bad[row] and bad.sum() == 1 and (out[0, 0][~bad] == 0).all()
    out.sum().backward()
    assert value.grad is not None and value.grad.isnan().all()  # the row weighs every value with NaN


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_tracing_records_the_operator():
    """Without gradients the operator is called past the dispatcher; a trace must still contain it."""
    w, value, coupled = torch.randn(1, 2, 9, 3), torch.randn(1, 2, 9, 5), torch.ones(2)

    def call(w, value):
        return attention(w, w, value, coupled * 3, coupled * 0.1, power=2, backend="cpu")

    traced = torch.jit.trace(call, (w, value), check_trace=False)
    other = torch.randn_like(w)
    torch.testing.assert_close(traced(other, value), call(other, value))


def test_the_backward_of_one_long_head_with_many_coordinates_keeps_within_its_inputs_size():
    """The receivers' gradients are summed in parts; with 32 of them this call took 600 MiB."""
    code = """
import resource, torch, syncattn
torch.set_num_threads(1)
n = 32_768
w = torch.randn(1, 1, n, 64)
w[..., 0] += torch.arange(n)  # a window of a few tokens
w.requires_grad_()
value = torch.randn(1, 1, n, 16, requires_grad=True)
out = syncattn.selective_synchronization_attention(
    w, w, value, torch.full((1,), 12.0), torch.full((1,), 0.001), is_causal=True, power=2, backend="cpu")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
out.sum().backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 200, f"{run.stdout} MiB beyond the forward"
