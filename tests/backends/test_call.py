"""Bad input: every check names the argument, what was given and what is expected; every backend makes it."""

import warnings

import pytest
import torch

import syncattn

attention = syncattn.selective_synchronization_attention
explain = syncattn.backends.explain
BACKENDS = [
    name for name, reason in syncattn.backends.availability().items() if reason is None and name != "triton"
]  # which takes no CPU tensors unasked: tests/backends/triton


def good():
    return {
        "receive": torch.randn(2, 4, 5, 3),
        "send": torch.randn(2, 4, 6, 3),
        "value": torch.randn(2, 4, 6, 7),
        "coupling": torch.ones(4),
        "bandwidth": torch.ones(4),
    }


def first(tensor, number):
    tensor = tensor.clone()
    tensor.view(-1)[0] = number
    return tensor


NAN, INF = float("nan"), float("inf")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # nested tensors are a prototype
    JAGGED, STRIDED = (
        torch.nested.nested_tensor([torch.ones(5, 4, 3), torch.ones(2, 4, 3)], layout=layout)
        for layout in (torch.jagged, torch.strided)
    )
BAD = [
    # what replaces which argument, the error, its message
    ({"receive": [[1.0]]}, TypeError, r"receive must be a torch\.Tensor, got list"),
    ({"send": None}, TypeError, r"send must be a torch\.Tensor, got NoneType"),
    ({"coupling": 3.0}, TypeError, r"coupling must be a torch\.Tensor, got float"),
    ({"bandwidth": 3.0}, TypeError, r"bandwidth must be a torch\.Tensor, got float"),
    *(
        ({name: nested}, ValueError, rf"{name} must be a dense tensor, .* got a nested tensor")
        for name, nested in (("receive", JAGGED), ("value", STRIDED), ("attn_mask", STRIDED))
    ),
    ({"send": torch.ones(2, 4, 6, 3).to_sparse()}, ValueError, r"send .* dense .* got layout .*sparse_coo"),
    ({"attn_mask": torch.ones(5, 6).bool().to_sparse()}, ValueError, r"attn_mask .* dense .* got layout"),
    (
        {"value": torch.ones(2, 4, 6, 7).to(torch.float8_e4m3fn)},
        ValueError,
        r"value must have a floating-point dtype \(float32, bfloat16, float16, float64\), got .*float8",
    ),
    ({"receive": torch.ones(2, 0, 5, 3)}, ValueError, r"at least one head, got shape \(2, 0, 5, 3\)"),
    ({"is_causal": "no"}, TypeError, r"is_causal must be True or False, got 'no'"),
    ({"self_coupling": None}, TypeError, r"self_coupling must be True or False, got None"),
    ({"return_weights": 1}, TypeError, r"return_weights must be True or False, got 1"),
    (
        {"receive": torch.ones(2, 4, 5, 3, dtype=torch.int64)},
        ValueError,
        r"receive must have a floating.* got torch\.int64",
    ),
    (
        {"value": torch.ones(2, 4, 6, 7, dtype=torch.complex64)},
        ValueError,
        r"value must have a floating.* torch\.complex64",
    ),
    (
        {"coupling": torch.ones(4, dtype=torch.int64)},
        ValueError,
        r"coupling must have a floating.* got torch\.int64",
    ),
    (
        {"send": torch.randn(2, 4, 6, 3, device="meta")},
        ValueError,
        r"on one device: receive is on cpu, send is on meta",
    ),
    ({"coupling": torch.ones(4, device="meta")}, ValueError, r"on one device: .* coupling is on meta"),
    (
        {"receive": torch.randn(4, 5, 3)},
        ValueError,
        r"receive must have shape \(B, H, N, m\), got \(4, 5, 3\)",
    ),
    ({"send": torch.randn(4, 6, 3)}, ValueError, r"send must have shape \(B, H, M, m\), got \(4, 6, 3\)"),
    ({"value": torch.randn(6)}, ValueError, r"value must have shape \(B, H, M, d\), got \(6,\)"),
    ({"send": torch.randn(3, 4, 6, 3)}, ValueError, r"send must have receive's batch size 2, got 3"),
    ({"value": torch.randn(1, 4, 6, 7)}, ValueError, r"value must have receive's batch size 2, got 1"),
    ({"send": torch.randn(2, 3, 6, 3)}, ValueError, r"number of heads of send, 3, must divide receive's, 4"),
    (
        {"value": torch.randn(2, 8, 6, 7)},
        ValueError,
        r"number of heads of value, 8, must divide receive's, 4",
    ),
    (
        {"value": torch.randn(2, 0, 6, 7)},
        ValueError,
        r"number of heads of value, 0, must divide receive's, 4",
    ),
    (
        {"send": torch.randn(2, 4, 6, 3).double()},
        ValueError,
        r"send must have receive's dtype torch\.float32, got torch\.float64",
    ),
    ({"send": torch.randn(2, 4, 6, 2)}, ValueError, r"same freq_dim, got 3 and 2"),
    (
        {"receive": torch.randn(2, 4, 5, 0), "send": torch.randn(2, 4, 6, 0)},
        ValueError,
        r"freq_dim .* must be at least 1, got 0",
    ),
    ({"value": torch.randn(2, 4, 5, 7)}, ValueError, r"same number of tokens M, got 6 and 5"),
    ({"coupling": torch.ones(3)}, ValueError, r"coupling must have shape \(H,\) = \(4,\), .*, got \(3,\)"),
    ({"coupling": torch.ones(())}, ValueError, r"coupling must have shape .*, got \(\)"),
    ({"coupling": torch.ones(4, 2)}, ValueError, r"coupling .* \(B, H\) = \(2, 4\) .*, got \(4, 2\)"),
    (
        {"coupling": torch.ones(2, 4, 6)},
        ValueError,
        r"coupling .* \(B, H, N\) = \(2, 4, 5\), got \(2, 4, 6\)",
    ),
    ({"bandwidth": torch.ones(2, 4)}, ValueError, r"bandwidth must have shape \(H,\) = \(4,\), got \(2, 4\)"),
    (
        {"receive": first(torch.randn(2, 4, 5, 3), NAN)},
        ValueError,
        r"receive must hold finite frequencies, .* got nan at index \(0, 0, 0, 0\) \(1 bad of 120\)",
    ),
    (
        {"send": first(torch.randn(2, 4, 6, 3), -INF)},
        ValueError,
        r"send must hold finite frequencies, .* got -inf at index",
    ),
    (
        {"coupling": torch.tensor([1.0, 0.0, 1.0, 1.0])},
        ValueError,
        r"coupling must be positive and finite, got 0",
    ),
    (
        {"coupling": torch.full((2, 4, 5), -2.5)},
        ValueError,
        r"coupling must be positive and finite, got -2\.5",
    ),
    ({"coupling": torch.full((2, 4), NAN)}, ValueError, r"coupling must be positive and finite, got nan"),
    ({"coupling": torch.full((4,), INF)}, ValueError, r"coupling must be positive and finite, got inf"),
    ({"bandwidth": torch.zeros(4)}, ValueError, r"bandwidth must be positive and finite, got 0"),
    ({"bandwidth": torch.full((4,), INF)}, ValueError, r"bandwidth must be positive and finite, got inf"),
    ({"top_k": 0}, ValueError, r"top_k must be None or an integer of at least 1, got 0"),
    ({"top_k": 2.0}, ValueError, r"top_k must be None or an integer of at least 1, got 2\.0"),
    ({"top_k": True}, ValueError, r"top_k must be None or an integer of at least 1, got True"),
    ({"dropout_p": 1.0}, ValueError, r"dropout_p must be in \[0, 1\), got 1\.0"),
    ({"dropout_p": -0.1}, ValueError, r"dropout_p must be in \[0, 1\), got -0\.1"),
    ({"dropout_p": NAN}, ValueError, r"dropout_p must be in \[0, 1\), got nan"),
    ({"dropout_p": None}, TypeError, r"dropout_p must be a number, got NoneType"),
    ({"frame": "closest"}, ValueError, r"frame must be one of \('absolute', 'nearest'\), got 'closest'"),
    ({"frame": None}, ValueError, r"frame must be one of .* got None"),
    ({"power": 0}, ValueError, r"power must be positive and finite, got 0"),
    ({"power": INF}, ValueError, r"power must be positive and finite, got inf"),
    ({"power": NAN}, ValueError, r"power must be positive and finite, got nan"),
    ({"power": "2"}, TypeError, r"power must be a number, got str"),
    ({"edge": -0.1}, ValueError, r"edge must be at least 0 and finite, got -0\.1"),
    ({"edge": torch.tensor(0.1)}, TypeError, r"edge must be a number, got Tensor"),
    ({"eps": -1e-8}, ValueError, r"eps must be at least 0 and finite, got -1e-08"),
    ({"eps": NAN}, ValueError, r"eps must be at least 0 and finite, got nan"),
    ({"attn_mask": [[True]]}, TypeError, r"attn_mask must be a torch\.Tensor, got list"),
    (
        {"attn_mask": torch.ones(5, 6, dtype=torch.bool, device="meta")},
        ValueError,
        r"attn_mask must be on receive's device cpu, got meta",
    ),
    (
        {"attn_mask": torch.ones(6, 5, dtype=torch.bool)},
        ValueError,
        r"attn_mask must be broadcastable to \(B, H, N, M\) = \(2, 4, 5, 6\), got \(6, 5\)",
    ),
    (
        {"attn_mask": torch.ones(1, 2, 4, 5, 6, dtype=torch.bool)},
        ValueError,
        r"attn_mask must be broadcastable .* got \(1, 2, 4, 5, 6\)",
    ),
    (
        {"attn_mask": torch.ones(5, 6, dtype=torch.int64)},
        ValueError,
        r"attn_mask must be boolean .* got torch\.int64",
    ),
    (
        {"attn_mask": first(torch.zeros(5, 6), 0.5)},
        ValueError,
        r"attn_mask is additive: .* got values such as 0\.5",
    ),
    (
        {"attn_mask": first(torch.zeros(5, 6), NAN)},
        ValueError,
        r"attn_mask is additive: .* got values such as nan",
    ),
    (
        {"attn_mask": first(torch.zeros(5, 6), INF)},
        ValueError,
        r"attn_mask is additive: .* got values such as inf",
    ),
    ({"attn_mask": torch.ones(5, 6)}, ValueError, r"attn_mask is additive: .* got values such as 1"),
    (
        {"receive": torch.randn(2, 4, 7, 3), "is_causal": True},
        ValueError,
        r"is_causal=True needs at least as many senders .* N = 7 receivers and M = 6",
    ),
    (
        {"receive": torch.randn(2, 4, 7, 3), "self_coupling": False},
        ValueError,
        r"self_coupling=False needs at least as many senders",
    ),
    ({"backend": "flash"}, ValueError, r"backend must be None or one of \(.*'eager'.*\), got 'flash'"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[b[2] for b in BAD])
def test_bad_input(change, error, message, backend):
    arguments = {"backend": backend} | good() | change
    for function in (attention, explain):
        with pytest.raises(error, match=message):
            function(**arguments)


def test_good_input_passes():
    assert attention(**good()).shape == (2, 4, 5, 7)
    assert str(explain(**good())).startswith(explain(**good()).backend)


def test_inputs_are_checked_without_being_summed_wrongly():
    """Infinities of both signs cancel in a sum; the largest frequencies allowed overflow a float16 one."""
    arguments = good()
    arguments["receive"].view(-1)[:2] = torch.tensor([INF, -INF])
    with pytest.raises(ValueError, match=r"receive must hold finite frequencies, .* got inf .* \(2 bad"):
        attention(**arguments)
    arguments = {k: v.double() for k, v in good().items()}
    arguments["receive"].fill_(1e13)
    assert torch.isfinite(attention(**arguments)).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_of_an_input_that_was_checked_flows(backend):
    arguments = {k: v.requires_grad_() for k, v in good().items()}
    attention(**arguments, backend=backend).sum().backward()
    assert all(v.grad is not None for v in arguments.values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_where_values_are_not_read_bad_ones_give_nan(backend):
    """Under torch.compile a bad coupling or frequency shows in the rows that it touches, and only there."""

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(receive, send, value, coupling, bandwidth):
        return attention(receive, send, value, coupling, bandwidth, power=2, backend=backend)

    arguments = good()
    want = attention(**arguments, power=2)
    torch.testing.assert_close(compiled(**arguments), want)
    for bad in (-1.0, 0.0, NAN):
        out = compiled(**arguments | {"coupling": torch.tensor([1.0, bad, 1.0, 1.0])})
        assert out[:, 1].isnan().all()
        torch.testing.assert_close(out[:, [0, 2, 3]], want[:, [0, 2, 3]])
        assert compiled(**arguments | {"bandwidth": torch.full((4,), bad)}).isnan().all()
        per_query = torch.ones(2, 4, 5)
        per_query[1, 2, 3] = bad
        assert torch.equal(compiled(**arguments | {"coupling": per_query}).isnan().any(-1), per_query != 1)
    out = compiled(**arguments | {"receive": first(arguments["receive"], NAN)})
    assert out[0, 0, 0].isnan().all()
    out = compiled(**arguments | {"send": first(arguments["send"], NAN)})
    assert out[0, 0].isnan().all()


def test_where_values_are_not_read_an_additive_mask_fails():
    """A compiled graph cannot look before it computes, but it does not take a bias for a mask either."""

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(mask):
        return attention(**arguments, attn_mask=mask)

    arguments, blocked = good(), torch.zeros(5, 6, dtype=torch.bool)
    blocked[1, 2] = True
    mask = torch.zeros(5, 6).masked_fill(blocked, -INF)
    torch.testing.assert_close(compiled(mask), attention(**arguments, attn_mask=~blocked))
    with pytest.raises(RuntimeError, match="attn_mask must hold only 0"):
        compiled(first(mask, -0.5))
    on_meta = {name: tensor.to("meta") for name, tensor in arguments.items()}
    assert attention(**on_meta, attn_mask=mask.to("meta")).shape == (2, 4, 5, 7)
