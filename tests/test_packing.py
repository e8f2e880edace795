"""Packed texts by ids and by cumulative lengths."""

import pytest
import torch

from syncattn import cu_seqlens_of, sequence_ids_of


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_there_and_back(dtype):
    given = torch.tensor([0, 2, 5, 6], dtype=dtype)
    ids = sequence_ids_of(given, tokens=8)
    assert ids.tolist() == [[0, 0, 1, 1, 1, 2, -1, -1]] and ids.dtype == torch.int64
    assert cu_seqlens_of(ids).tolist() == cu_seqlens_of(ids[0]).tolist() == given.tolist()
    assert sequence_ids_of(given).shape == (1, 6)
    assert sequence_ids_of(torch.tensor([0])).shape == (1, 0)
    assert sequence_ids_of(torch.tensor([0, 0, 2])).tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("given", "tokens", "error", "message"),
    [
        ([0, 2], None, TypeError, "cu_seqlens must be a tensor.*got list"),
        (torch.tensor([0.0, 2.0]), None, ValueError, "cu_seqlens must be integers.*float32"),
        (torch.tensor([[0, 2]]), None, ValueError, r"cu_seqlens must be integers.*\(1, 2\)"),
        (torch.tensor([1, 2]), None, ValueError, r"begin with 0 and not fall, got \[1, 2\]"),
        (torch.tensor([0, 2, 1]), None, ValueError, "begin with 0 and not fall"),
        (torch.tensor([0, 5]), 4, ValueError, r"tokens must be at least cu_seqlens\[-1\] = 5, got 4"),
        (torch.tensor([0, 5]), 6.0, TypeError, "tokens must be an integer, got float"),
    ],
)
def test_refused(given, tokens, error, message):
    with pytest.raises(error, match=message):
        sequence_ids_of(given, tokens)


@pytest.mark.parametrize("ids", [[[0, 0], [0, 1]], [1, 0], [0, -1, 1]])
def test_ids_that_have_no_lengths(ids):
    with pytest.raises(ValueError, match=r"sequence_ids must .*got [(\[]"):
        cu_seqlens_of(torch.tensor(ids))


def test_other_kinds_of_arguments():
    with pytest.raises(TypeError, match="sequence_ids must be a tensor of integers, got list"):
        cu_seqlens_of([0, 1])
    with pytest.raises(ValueError, match="sequence_ids must be integers, got torch"):
        cu_seqlens_of(torch.tensor([0.0, 1.0]))
    for tokens in (2.5, "7", True):
        with pytest.raises(TypeError, match="tokens must be an integer, got"):
            sequence_ids_of(torch.tensor([0]), tokens)
