"""The nearest sender of each receiver and its D, beside all pairs compared one by one."""

import pytest
import torch

from syncattn.backends import nearest
from syncattn.backends.call import prepare
from syncattn.backends.counting import allowed_pairs_of


def call(queries=7, keys=7, heads=4, senders=4, dtype=torch.float64, **options):
    generator = torch.Generator().manual_seed(0)

    def made(*sizes):
        return torch.randn(2, *sizes, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    receive, send, value = made(heads, queries, 3), made(senders, keys, 3), made(senders, keys, 2)
    ones = torch.ones(heads, dtype=dtype)
    return prepare(receive, send, value, ones, ones, frame="nearest", **options)


@pytest.mark.parametrize("rows_at_a_time", [10**9, 1])
@pytest.mark.parametrize(
    "given",
    [
        pytest.param({}, id="all"),
        pytest.param({"is_causal": True, "self_coupling": False}, id="causal"),
        pytest.param({"keys": 12, "is_causal": True}, id="after a past"),
        pytest.param({"senders": 2}, id="grouped"),
        pytest.param({"attn_mask": torch.arange(2 * 4 * 7 * 7).view(2, 4, 7, 7) * 37 % 101 < 40}, id="mask"),
        pytest.param(
            {"sequence_ids": torch.tensor([[0, 0, 0, 1, 1, -1, -1]]), "is_causal": True}, id="packed"
        ),
        pytest.param({"keys": 0}, id="no senders"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])  # the native kernel is of float32 alone
def test_it_is_the_least_of_all_allowed_pairs(given, rows_at_a_time, dtype, monkeypatch):
    monkeypatch.setattr(nearest, "_MAX_PAIRS", rows_at_a_time)
    if rows_at_a_time == 1:
        monkeypatch.setattr(nearest, "seeker", lambda asked: None)
    asked = call(**given, dtype=dtype)
    found = nearest.nearest_detuning(asked)
    send = asked.send.repeat_interleave(4 // asked.send.shape[1], 1)
    detuning = (asked.receive[:, :, :, None] - send[:, :, None]).square().sum(-1)
    allowed = allowed_pairs_of(asked, torch.arange(7)).expand_as(detuning)
    expected = torch.zeros_like(found)
    if asked.send.shape[2]:
        least = detuning.masked_fill(~allowed, torch.inf).amin(-1)
        expected = torch.where(allowed.any(-1), least, 0.0)
    torch.testing.assert_close(found, expected)
    if found.requires_grad and expected.requires_grad:
        inputs = asked.receive, asked.send
        wanted = torch.autograd.grad(expected.sum(), inputs)
        torch.testing.assert_close(torch.autograd.grad(found.sum(), inputs), wanted)


def test_far_from_the_origin_the_nearest_is_found_all_the_same():
    asked = call(dtype=torch.float32)
    moved = asked._replace(receive=asked.receive.detach() + 5000, send=asked.send.detach() + 5000)
    exact = moved._replace(receive=moved.receive.double(), send=moved.send.double())
    assert torch.equal(nearest.nearest_senders(moved), nearest.nearest_senders(exact))


@pytest.mark.parametrize("self_coupling", [True, False])
def test_the_kernel_finds_the_same_in_an_order_of_its_own(self_coupling):
    """Where it sorts tokens, which it does in long calls without causality."""
    receive = torch.randn(1, 2, 2100, 8, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(2)
    asked = prepare(receive, receive, receive, ones, ones, self_coupling=self_coupling)
    assert torch.equal(nearest.nearest_senders(asked), nearest._by_pairs(asked))
