"""The operator under torch.compile and torch.export, and the contracts of its custom operators."""

import shutil

import pytest
import torch

import syncattn

attention = syncattn.selective_synchronization_attention
explain = syncattn.backends.explain
pytestmark = pytest.mark.usefixtures("fresh_compiler")
COMPILER = "inductor" if shutil.which("g++") or shutil.which("clang++") else "aot_eager"


def problem(tokens=9, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(2, 2, tokens, 5, generator=g).to(dtype)
    send = torch.randn(2, 2, tokens, 5, generator=g).to(dtype)
    value = torch.randn(2, 2, tokens, 3, generator=g).to(dtype)
    return w, send, value, torch.tensor([4.0, 8.0]).to(dtype), torch.tensor([0.1, 0.05]).to(dtype)


NEAREST = {"power": 2, "frame": "nearest", "is_causal": True, "self_coupling": False}
TOP_K = {"power": 1, "edge": 0.01, "top_k": 4}


@pytest.mark.parametrize(
    ("options", "backend", "compiler"),
    [
        (NEAREST, "eager", COMPILER),
        (TOP_K, "eager", "aot_eager"),
        (NEAREST, "tiled", "aot_eager"),
        (TOP_K, "tiled", "aot_eager"),
    ],
    ids=str,
)
def test_compiled_equals_not_compiled(options, backend, compiler):
    def compute(receive, send, value, coupling, bandwidth):
        return attention(receive, send, value, coupling, bandwidth, backend=backend, **options)

    compiled = torch.compile(compute, fullgraph=True, backend=compiler)
    leaves = [x.requires_grad_() for x in problem()]
    want, got = compute(*leaves), compiled(*leaves)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    cotangent = torch.randn_like(want)
    for a, b in zip(*(torch.autograd.grad(y, leaves, cotangent) for y in (got, want)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_dropout_is_drawn_anew_at_every_compiled_call():
    compiled = torch.compile(lambda *x: attention(*x, dropout_p=0.5), fullgraph=True, backend="aot_eager")
    torch.manual_seed(0)
    first, second = (compiled(*problem()) for _ in range(2))
    torch.manual_seed(0)
    assert torch.equal(compiled(*problem()), first) and not torch.equal(first, second)


def test_dynamic_sequence_length():
    graphs = 0

    def count(graph, _):
        nonlocal graphs
        graphs += 1
        return graph

    compiled = torch.compile(
        lambda *x: attention(*x, is_causal=True, power=2), fullgraph=True, dynamic=True, backend=count
    )
    for tokens in (9, 12, 70, 131):
        arguments = problem(tokens)
        torch.testing.assert_close(compiled(*arguments), attention(*arguments, is_causal=True, power=2))
    assert graphs == 1


class Operator(torch.nn.Module):
    def forward(self, receive, send, value, coupling, bandwidth):
        return attention(receive, send, value, coupling, bandwidth, frame="nearest", power=2, is_causal=True)


def test_export():
    tokens = torch.export.Dim("tokens", min=2, max=4096)
    by_token = {2: tokens}
    program = torch.export.export(
        Operator(), problem(), dynamic_shapes=(by_token, by_token, by_token, None, None), strict=False
    )
    graphs = (m for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule))
    names = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    assert sum(f"{explain(*problem()).backend}_forward" in name for name in names) == 1
    for n in (2, 9, 100):
        torch.testing.assert_close(program.module()(*problem(n)), Operator()(*problem(n)))


@pytest.mark.parametrize("backend", ["cpu", "tiled"])
def test_a_second_derivative_is_refused_by_the_fused_backends(backend):
    """Not the first one, with create_graph=True either; and the message says where there is one."""
    if (reason := syncattn.backends.availability()[backend]) is not None:
        pytest.skip(reason)
    leaves = [x.requires_grad_() for x in problem(4)]
    plain = torch.autograd.grad(attention(*leaves, backend=backend).square().sum(), leaves)
    out = attention(*leaves, backend=backend)
    gradients = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
    assert all(torch.equal(a, b) and a.requires_grad for a, b in zip(gradients, plain))
    for grad in gradients:
        with pytest.raises(RuntimeError, match=f"backend='{backend}' has no second.*backend='eager'"):
            torch.autograd.grad(grad.square().sum(), leaves, retain_graph=True)
    with pytest.raises(RuntimeError, match=f"backend='{backend}' has no second.*backend='eager'"):
        torch.autograd.functional.hessian(
            lambda w: attention(w, *leaves[1:], backend=backend).sum(), leaves[0]
        )


def test_a_second_derivative_is_right_in_eager():
    leaves = [x.requires_grad_() for x in problem(4, torch.float64)]
    assert torch.autograd.gradgradcheck(
        lambda w, v: attention(w, leaves[1], v, *leaves[3:], power=2, backend="eager").square(),
        (leaves[0], leaves[2]),
        atol=1e-4,
    )
