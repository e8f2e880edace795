"""What is particular to the tiled backend: its memory, and a backward of its own."""

import subprocess
import sys

import torch

import syncattn

MEASURE = """
import resource, sys, torch, syncattn
torch.set_num_threads(1)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
def run(tokens):
    w = torch.randn(1, 1, tokens, 8, requires_grad=True)
    value = torch.randn(1, 1, tokens, 16, requires_grad=True)
    coupled = torch.tensor([10.0]), torch.tensor([0.2])
    out = syncattn.selective_synchronization_attention(
        w, w, value, *coupled, is_causal=True, self_coupling=False, frame="nearest", power=2, backend="tiled"
    )
    out.sum().backward()
run(256)
before = peak()
run(8192)
print(peak() - before)
"""


def test_memory_is_linear_in_the_tokens():
    """8,192 tokens, forward and backward: one float32 matrix of all pairs would be 256 MiB."""
    result = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert float(result.stdout) < 64  # MiB


def test_autocast_does_not_reach_into_it():
    """Neither forward nor backward loses precision under autocast, called inside of it or not."""
    g = torch.Generator().manual_seed(0)
    w, value, cotangent = (torch.randn(1, 2, 40, n, generator=g) for n in (8, 16, 16))
    leaves = w.requires_grad_(), value.requires_grad_()

    def compute():
        coupled = torch.full((2,), 8.0), torch.full((2,), 0.1)
        return syncattn.selective_synchronization_attention(w, w, value, *coupled, power=2, backend="tiled")

    want = compute()
    gradients = torch.autograd.grad(want, leaves, cotangent)
    with torch.autocast("cpu", torch.bfloat16):
        out = compute()
        inside = torch.autograd.grad(out, leaves, cotangent, retain_graph=True)
    outside = torch.autograd.grad(out, leaves, cotangent)
    assert torch.equal(out, want)
    for a, b, c in zip(gradients, inside, outside, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
