"""The native kernel among others: threads, memory, compilers, torch's machinery, unchecked values."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import syncattn
from syncattn import locking
from syncattn.backends.cpu import library

attention = syncattn.selective_synchronization_attention
explain = syncattn.backends.explain
MISSING = syncattn.backends.availability()["cpu"]
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
NEAREST = {"frame": "nearest", "power": 2}


def problem(queries=150, keys=None, heads=3, m=3, d=20, batch=1, radius=1.0, dtype=torch.float32):
    g = torch.Generator().manual_seed(queries)
    receive = torch.randn(batch, heads, queries, m, generator=g)
    send = torch.randn(batch, heads, keys or queries, m, generator=g)
    value = torch.randn(batch, heads, keys or queries, d, generator=g)
    coupled = locking.coupling_from_radius(torch.full((heads,), radius), 5.0)
    return [x.to(dtype) for x in (receive, send, value)] + [x.float() for x in coupled]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("pool", ["torch's", "its own"])
@pytest.mark.parametrize(
    "options",
    [
        {"power": 2},
        {"is_causal": True, "dropout_p": 0.2, "edge": 0.1},
        NEAREST | {"is_causal": True, "self_coupling": False},
    ],
    ids=str,
)
def test_the_same_bits_for_any_number_of_threads(options, pool, threads, evaluate, monkeypatch):
    if pool == "its own":
        monkeypatch.setattr(library, "team", lambda: None)
    for inputs in (problem(), problem(70, 500, heads=1, radius=2.0), problem(40, heads=5, batch=4)):
        threads(1)
        want, gradients = evaluate(inputs, options, "cpu")
        for count in (1, 2, 3, 5):
            threads(count)
            out, again = evaluate(inputs, options, "cpu")
            assert torch.equal(out, want)
            assert all(torch.equal(a, b) for a, b in zip(again, gradients, strict=True))


def test_torchs_own_threads_do_the_work():
    """Where torch has loaded the GNU OpenMP runtime, as its Linux wheels do."""
    maps = Path("/proc/self/maps")
    if not maps.exists() or "libgomp" not in maps.read_text():
        pytest.skip("this torch has another runtime")
    assert library.team() is not None


def test_calls_from_several_python_threads_at_once(evaluate):
    """Each gets what it would get alone: nothing is shared."""
    cases = [(problem(60 + 10 * k, heads=1 + k % 3), NEAREST if k % 2 else {"power": 2}) for k in range(8)]

    def compute(case):
        inputs, options = case
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = attention(*leaves, **options, backend="cpu")
        return [out.detach(), *torch.autograd.grad(out, leaves, torch.ones_like(out))]

    want = [compute(case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for a, b in zip(pool.map(compute, cases), want, strict=True):
                assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


MEASURE = """
import resource, sys, torch, syncattn
torch.set_num_threads(2)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
def run(tokens, **options):
    w = torch.randn(1, 1, tokens, 4, requires_grad=True)
    value = torch.randn(1, 1, tokens, 16, requires_grad=True)
    coupled = torch.tensor([0.5]), torch.tensor([0.2])
    out = syncattn.selective_synchronization_attention(w, w, value, *coupled, backend="cpu", **options)
    out.sum().backward()
run(256, power=2)
run(256, power=2, is_causal=True, frame="nearest")
before = peak()
run(16384, power=2)
run(16384, power=2, is_causal=True, frame="nearest")
print(peak() - before)
"""


def test_memory_is_linear_in_the_tokens():
    """16,384 tokens, forward and backward: one float32 matrix of all pairs would be 1 GiB."""
    result = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert float(result.stdout) < 96  # MiB; the inputs, their gradients and the result are 6


CHECK = """
import torch, syncattn
torch.set_num_threads(1)
g = torch.Generator().manual_seed(0)
inputs = [torch.randn(2, 2, n, c, generator=g) for n, c in ((77, 3), (130, 3), (130, 20))]
inputs += [torch.full((2,), 2.0), torch.full((2,), 0.5)]
for options in ({}, {"power": 2, "frame": "nearest", "is_causal": True}, {"edge": 0.1, "dropout_p": 0.5}):
    results = []
    for backend in ("cpu", "eager"):
        torch.manual_seed(0)
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = syncattn.selective_synchronization_attention(*leaves, backend=backend, **options)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for a, b in zip(*results):
        assert (a - b).abs().max() <= 1e-2 * b.abs().max(), options
"""


@pytest.mark.parametrize("byte", ["85", "254"])
def test_memory_that_nothing_was_written_to_is_never_read(byte):
    """With everything that malloc gives and takes back overwritten, glibc's own poison."""
    environment = os.environ | {"MALLOC_PERTURB_": byte}
    subprocess.run([sys.executable, "-c", CHECK], check=True, env=environment)


def unchecked(inputs, options, backend):
    """A compiled call: the values are not looked at before it computes."""
    torch.compiler.reset()
    function = torch.compile(
        lambda *x: attention(*x, **options, backend=backend), fullgraph=True, backend="eager", dynamic=False
    )
    return function(*inputs)


@pytest.mark.parametrize("options", [{}, {"power": 2, "is_causal": True}, NEAREST], ids=str)
@pytest.mark.parametrize("where", ["receive", "send", "coupling", "bandwidth"])
def test_a_nan_shows_in_every_row_that_it_touches_and_no_other(where, options, fresh_compiler):
    """Far behind where pruning would have stopped, and in blocks of every kind."""
    for radius in (0.3, 5.0):
        inputs = problem(130, 200, radius=radius)
        index = ["receive", "send", "", "coupling", "bandwidth"].index(where)
        inputs[3] = inputs[3][:, None].expand(1, 3, 130).contiguous()
        bad = inputs[index].clone()
        at = {"receive": (0, 1, 77, 1), "send": (0, 1, 150, 1), "coupling": (0, 2, 50), "bandwidth": (1,)}
        bad[at[where]] = torch.nan
        inputs[index] = bad
        want, out = (unchecked(inputs, options, backend) for backend in ("eager", "cpu"))
        assert want.isnan().any() and torch.equal(out.isnan(), want.isnan())
        torch.testing.assert_close(out, want, equal_nan=True, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options", [{"power": 2}, NEAREST, {"edge": 0.1, "is_causal": True}], ids=str)
@pytest.mark.parametrize("radius", [0.5, 5.0])
def test_an_infinite_sender_locks_with_nobody(radius, options, fresh_compiler):
    inputs = problem(130, 200, radius=radius)
    far = inputs[1].clone()
    far[:, :, 10::50] = torch.inf
    far[:, :, 64:128, 0] = -torch.inf  # a whole tile
    mask = torch.isfinite(far).all(-1)[:, :, None]
    out = unchecked([inputs[0], far, *inputs[2:]], options, "cpu")
    want = attention(*inputs, **options, attn_mask=mask, backend="cpu")
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)


def test_a_padded_sender_may_hold_anything(fresh_compiler):
    """A key mask hides a frequency that is NaN: the rows are as without it."""
    for options in ({"power": 2}, NEAREST):
        inputs = problem(50, 150)
        mask = torch.ones(1, 1, 1, 150, dtype=torch.bool)
        mask[..., 100:] = False
        want = attention(*inputs, attn_mask=mask, **options, backend="cpu")
        padded = inputs[1].clone()
        padded[:, :, 100:] = torch.nan
        padded[:, :, 120:] = torch.inf
        out = unchecked([inputs[0], padded, *inputs[2:]], options | {"attn_mask": mask}, "cpu")
        torch.testing.assert_close(out, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", [NEAREST | {"is_causal": True}, {"edge": 0.1}], ids=str)
@pytest.mark.parametrize("d", [16, 5])
def test_compiled_equals_not_compiled(d, options, fresh_compiler):
    """Also through a view of the output, which asks for the strides that were promised."""

    def compute(*x):
        return attention(*x, **options, backend="cpu").transpose(1, 2).reshape(x[0].shape[0], -1)

    compiled = torch.compile(compute, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (9, 70, 131):
        leaves = [x.requires_grad_() for x in problem(tokens, d=d)]
        want, got = compute(*leaves), compiled(*leaves)
        assert torch.equal(got, want)
        cotangent = torch.randn_like(want)
        for a, b in zip(*(torch.autograd.grad(y, leaves, cotangent) for y in (got, want)), strict=True):
            assert torch.equal(a, b)


class Operator(torch.nn.Module):
    def forward(self, *x):
        return attention(*x, **NEAREST, is_causal=True)


def test_exported_programs_hold_the_kernel():
    tokens = torch.export.Dim("tokens", min=2, max=4096)
    by_token = {2: tokens}
    shapes = ((by_token, by_token, by_token, None, None),)
    program = torch.export.export(Operator(), tuple(problem(9)), dynamic_shapes=shapes, strict=False)
    graphs = (m for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule))
    assert sum("cpu_forward" in str(node.target) for graph in graphs for node in graph.graph.nodes) == 1
    for n in (2, 9, 100):
        assert torch.equal(program.module()(*problem(n)), Operator()(*problem(n)))


def test_autocast_does_not_reach_into_it():
    inputs = problem(40)
    leaves = [x.requires_grad_() for x in inputs]
    cotangent = torch.randn(1, 3, 40, 20)

    def compute():
        return attention(*leaves, power=2, backend="cpu")

    want = compute()
    gradients = torch.autograd.grad(want, leaves, cotangent)
    with torch.autocast("cpu", torch.bfloat16):
        out = compute()
        inside = torch.autograd.grad(out, leaves, cotangent, retain_graph=True)
    outside = torch.autograd.grad(out, leaves, cotangent)
    assert torch.equal(out, want)
    for a, b, c in zip(gradients, inside, outside, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_inference_mode_and_no_grad_give_the_same_bits():
    leaves = [x.requires_grad_() for x in problem(50)]
    want = attention(*leaves, **NEAREST, backend="cpu").detach()
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            out = attention(*leaves, **NEAREST, backend="cpu")
        assert torch.equal(out, want) and not out.requires_grad


def test_a_second_derivative_is_an_error_not_a_wrong_number():
    leaves = [x.requires_grad_() for x in problem(10)]
    out = attention(*leaves, power=2, backend="cpu")
    with pytest.raises(RuntimeError):
        (grad,) = torch.autograd.grad(out.square().sum(), leaves[:1], create_graph=True)
        grad.square().sum().backward()


def test_derivatives_that_it_has_not_are_refused():
    inputs = problem(10)
    with pytest.raises(ValueError, match="backend='cpu' cannot take this call: it has no forward-mode"):
        torch.func.jvp(lambda w: attention(w, *inputs[1:], backend="cpu"), (inputs[0],), (inputs[1],))


def test_the_instances_are_named_and_the_best_is_last():
    names = library.instances()
    assert names[0] == "plain" and len(set(names)) == len(names)
