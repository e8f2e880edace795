"""Muon beside AdamW: who steps what, and that a run with both goes on exactly."""

import signal
from dataclasses import replace

import pytest
import torch

pytest.importorskip("accelerate")

from syncattn.models import OSNConfig, OSNForCausalLM, TransformerConfig, TransformerForCausalLM
from syncattn.training.errors import Interrupted, UserError
from syncattn.training.optimizers import MuonWithAdamW, inner_matrices
from syncattn.training.options import TrainingOptions
from syncattn.training.train import resume, train

SIZES = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize("kind", ["osn", "transformer"])
def test_each_parameter_is_stepped_by_its_own(kind):
    torch.manual_seed(0)
    model = (
        OSNForCausalLM(OSNConfig(**SIZES))
        if kind == "osn"
        else TransformerForCausalLM(TransformerConfig(**SIZES))
    )
    matrices = inner_matrices(model)
    assert all(matrix.ndim == 2 and matrix is not model.lm_head.weight for matrix in matrices)
    # in, out, two of the feed-forward; an OSN has two frequencies, phase and value in place of in
    assert len(matrices) == 2 * (4 if kind == "transformer" else 7)
    others = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
    start = [p.detach().clone() for p in (*matrices, *others)]
    copies = [torch.nn.Parameter(p.clone()) for p in start]
    both = MuonWithAdamW(torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1), matrices)
    muon = torch.optim.Muon(
        copies[: len(matrices)], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(copies[len(matrices) :], lr=0.01, weight_decay=0.1)
    for _ in range(2):
        for p, copy in zip((*matrices, *others), copies, strict=True):
            p.grad = torch.randn_like(p)
            copy.grad = p.grad.clone()
        for optimizer in (both, muon, adamw):
            optimizer.step()
        both.load_state_dict(both.state_dict())  # as when a run goes on
    for p, copy in zip((*matrices, *others), copies, strict=True):
        torch.testing.assert_close(p, copy)


def test_a_run_with_muon_goes_on_exactly(
    config, corpus, tokenizer, options, finished, tmp_path, monkeypatch, stop_at, without_times
):
    chosen = replace(options, optimizer="muon")
    whole = train(config, corpus, tokenizer, tmp_path / "whole", chosen)
    with monkeypatch.context() as patch:
        stop_at(patch, 6, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Interrupted):
            train(config, corpus, tokenizer, tmp_path / "parts", chosen)
    assert without_times(resume(tmp_path / "parts")) == without_times(whole)
    assert finished[0].result.validation_loss != whole.result.validation_loss


def test_what_is_refused(monkeypatch):
    with pytest.raises(UserError, match="optimizer must be 'adamw' or 'muon', got 'sgd'"):
        TrainingOptions(optimizer="sgd")
    embedding = torch.nn.Embedding(4, 4)
    with pytest.raises(UserError, match="needs a model with linear layers"):
        MuonWithAdamW(torch.optim.AdamW(embedding.parameters()), inner_matrices(embedding))
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(UserError, match=r"needs a PyTorch with torch.optim.Muon, 2.9 or later, got"):
        MuonWithAdamW(torch.optim.AdamW(embedding.parameters()), inner_matrices(embedding))
