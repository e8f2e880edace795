"""What the blocks consist of, read from the modules, and what replacing one does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from syncattn.nn import OSNBlock
from syncattn.nn.published import published
from syncattn_lab.paper.architecture.replacement import anew, initialisation, interface, leak, transfer
from syncattn_lab.paper.section import Extent, Numbers

WIDTH, HEADS, FEED_FORWARD = 512, 8, 2048


def measure(extent: Extent, tell: Callable[[str], None]) -> Numbers:
    """The three blocks' structure and parameter counts, and the measurements on replacing one by another."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(extent.seed)
        arguments: dict[str, Any] = {"batch_first": True, "norm_first": True}
        blocks = {
            "transformer": nn.TransformerEncoderLayer(WIDTH, HEADS, FEED_FORWARD, **arguments),
            "published": OSNBlock(WIDTH, HEADS, FEED_FORWARD, **arguments, **published(WIDTH // HEADS)),
            "trainable": OSNBlock(WIDTH, HEADS, FEED_FORWARD, **arguments),
        }
        structure = {name: describe(block) for name, block in blocks.items()}
        tell("architecture: where the block fits")
        fits = interface(extent.seed)
        tell("architecture: moving trained weights")
        moved = transfer(extent.size((0, 1, 2), (0,)), extent.size(200, 120), extent.seed)
        tell("architecture: training anew")
        trained = anew(extent.size((0, 1, 2), (0,)), extent.size(200, 120), extent.seed)
        tell("architecture: the published initialisation")
        start = initialisation(extent.seed)
        leaked = leak(extent.seed)
    return {
        "width": WIDTH,
        "heads": HEADS,
        "feed_forward": FEED_FORWARD,
        "blocks": structure,
        "interface": fits,
        "transfer": moved,
        "anew": trained,
        "leak": leaked,
        "initialisation": start,
    }


def describe(block: nn.Module) -> dict[str, Any]:
    """A block's steps in the order in which they run, its attention's parameters, and its total."""
    return {
        "parameters": sum(p.numel() for p in block.parameters()),
        "steps": trace(block),
        "attention": [
            {"name": name, "shape": list(p.shape), "parameters": p.numel()}
            for name, p in block.get_submodule("self_attn").named_parameters()
        ],
    }


class _Sums(TorchFunctionMode):
    """Notes the additions of two tensors of the stream's shape that happen outside the block's modules."""

    def __init__(self, steps: list[dict[str, Any]], shape: torch.Size) -> None:
        super().__init__()
        self.steps, self.shape, self.depth = steps, shape, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        adds = getattr(func, "__name__", "") in ("add", "__add__", "add_")
        if (
            self.depth == 0
            and adds
            and all(isinstance(a, Tensor) and a.shape == self.shape for a in args[:2])
        ):
            self.steps.append({"name": "add", "kind": "add", "parameters": 0})
        return result


def trace(block: nn.Module) -> list[dict[str, Any]]:
    """Run the block once and note its children as they are called, and the residual additions between them.

    Dropout is left out: it has no parameters and is in the same places in all blocks.
    """
    steps: list[dict[str, Any]] = []
    x = torch.zeros(1, 4, WIDTH)
    sums = _Sums(steps, x.shape)
    hooks = []
    for name, child in block.named_children():

        def enter(module: nn.Module, _: Any, name: str = name) -> None:
            sums.depth += 1
            if not isinstance(module, nn.Dropout):
                count = sum(p.numel() for p in module.parameters())
                step = {"name": name, "kind": type(module).__name__, "parameters": count}
                if isinstance(module, nn.Linear):
                    step["shape"] = list(module.weight.shape)
                steps.append(step)

        def leave(module: nn.Module, *_: Any) -> None:
            sums.depth -= 1

        hooks += [child.register_forward_pre_hook(enter), child.register_forward_hook(leave)]
    try:
        with sums:
            block.train()(x)  # in training, for PyTorch's fused path in evaluation calls no module
    finally:
        for hook in hooks:
            hook.remove()
    return steps
