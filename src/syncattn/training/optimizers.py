"""Muon beside AdamW: one optimizer to the Trainer, its scheduler and its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from syncattn.training.errors import UserError


class MuonWithAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` on some of an AdamW's parameters, AdamW on the others; one learning rate for both.

    Muon's steps are scaled to AdamW's usual size (adjust_lr_fn="match_rms_adamw", Liu et al. 2025), so that
    the same learning rates and weight decays serve.

    Args:
        adamw: with all parameters, not yet used; what Muon takes is taken out of its groups.
        matrices: 2-D parameters for Muon, with the learning rate and weight decay of their groups.

    Raises:
        UserError: there are none, or this PyTorch has no Muon.
    """

    def __init__(self, adamw: torch.optim.Optimizer, matrices: Iterable[Tensor]) -> None:
        check_muon()
        taken = {id(parameter) for parameter in matrices}
        groups: list[dict[str, Any]] = []
        for group in adamw.param_groups:
            own = [p for p in group["params"] if id(p) in taken]
            group["params"] = [p for p in group["params"] if id(p) not in taken]
            if own:
                groups.append({"params": own, "lr": group["lr"], "weight_decay": group["weight_decay"]})
        if not groups:
            raise UserError(
                "optimizer='muon' needs a model with linear layers between embedding and output layer, got "
                "one without"
            )
        self._muon = torch.optim.Muon(groups, adjust_lr_fn="match_rms_adamw")
        self._adamw = adamw
        super().__init__([*self._muon.param_groups, *adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Groups and states are this object's, which loads and saves them: the two work on them.
        for part, is_muon in ((self._muon, True), (self._adamw, False)):
            part.param_groups = [group for group in self.param_groups if ("ns_steps" in group) == is_muon]
            part.state = self.state
            part.step()
        return loss


def check_muon() -> None:
    """Make sure that this PyTorch has Muon.

    Raises:
        UserError: it has not.
    """
    if not hasattr(torch.optim, "Muon"):
        raise UserError(
            f"optimizer='muon' needs a PyTorch with torch.optim.Muon, 2.9 or later, got {torch.__version__}"
        )


def inner_matrices(model: nn.Module) -> list[Tensor]:
    """The weights of a model's linear layers, without what embeds tokens and what makes logits of them."""
    named = ("get_input_embeddings", "get_output_embeddings")
    found = [getattr(model, name)() for name in named if hasattr(model, name)]
    ends = [getattr(end, "weight", None) for end in found]
    return [
        module.weight
        for module in model.modules()
        if isinstance(module, nn.Linear) and not any(module.weight is end for end in ends)
    ]
