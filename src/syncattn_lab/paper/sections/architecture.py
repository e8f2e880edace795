"""Figure 2, the architecture: what the blocks consist of, read from the modules, and replacing one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from syncattn.nn import OSNBlock
from syncattn.nn.convert import published
from syncattn_lab.paper.figures.architecture import draw
from syncattn_lab.paper.measures.replacement import anew, initialisation, interface, leak, transfer
from syncattn_lab.paper.section import (
    FAILS,
    HOLDS,
    HOLDS_IF,
    Claim,
    Drawing,
    Numbers,
    Plan,
    Section,
    above,
    below,
    exactly,
)

WIDTH, HEADS, FEED_FORWARD = 512, 8, 2048


def measure(plan: Plan, tell: Callable[[str], None]) -> Numbers:
    """The three blocks' structure and parameter counts, and the measurements on replacing one by another."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        arguments: dict[str, Any] = {"batch_first": True, "norm_first": True}
        blocks = {
            "transformer": nn.TransformerEncoderLayer(WIDTH, HEADS, FEED_FORWARD, **arguments),
            "published": OSNBlock(WIDTH, HEADS, FEED_FORWARD, **arguments, **published(WIDTH // HEADS)),
            "trainable": OSNBlock(WIDTH, HEADS, FEED_FORWARD, **arguments),
        }
        structure = {name: describe(block) for name, block in blocks.items()}
        tell("architecture: where the block fits")
        fits = interface(plan.seed)
        tell("architecture: moving trained weights")
        moved = transfer(plan.size((0, 1, 2), (0,)), plan.size(200, 120), plan.seed)
        tell("architecture: training anew")
        trained = anew(plan.size((0, 1, 2), (0,)), plan.size(200, 120), plan.seed)
        tell("architecture: the published initialisation")
        start = initialisation(plan.seed)
        leaked = leak(plan.seed)
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


def claims(numbers: Numbers) -> list[Claim]:
    return [_parity(numbers), _drop_in(numbers), _trains(numbers)]


def _parity(numbers: Numbers) -> Claim:
    counts = {name: block["parameters"] for name, block in numbers["blocks"].items()}
    more = counts["published"] - counts["transformer"]
    same = all(
        [step["name"] for step in block["steps"]]
        == [step["name"] for step in numbers["blocks"]["transformer"]["steps"]]
        for block in numbers["blocks"].values()
    )
    finding = (
        f"At width {numbers['width']} with {numbers['heads']} heads the published block has "
        f"{counts['published']:,} parameters and PyTorch's Transformer block {counts['transformer']:,}: "
        f"{more} more, one coupling and a bandwidth for each head. Projections for frequencies and phases "
        f"stand where those for queries and keys do, and the steps around the attention are the same. The "
        f"trainable form has {counts['trainable']:,}, {1 - counts['trainable'] / counts['transformer']:.0%} "
        f"fewer, for its frequencies have 16 coordinates a head and its phases one."
    )
    return Claim(
        "parameter-parity",
        "Figure 2",
        "The OSN block has practically as many parameters as the Transformer block it replaces.",
        HOLDS,
        finding,
        (
            exactly("parameters of the published OSN block", counts["published"], 3_152_393),
            exactly("parameters of the Transformer block", counts["transformer"], 3_152_384),
            exactly("parameters more", more, 1 + numbers["heads"]),
            exactly("blocks with the Transformer block's steps, of 3", 3 if same else 0, 3),
        ),
    )


def _drop_in(numbers: Numbers) -> Claim:
    fits, moved, leaked, trained = (numbers[k] for k in ("interface", "transfer", "leak", "anew"))
    ours, theirs = min(trained["trainable"]), max(trained["published"])
    finding = (
        f"It holds if the block is trained from another initialisation than the published one. The interface "
        f"carries over: inside nn.TransformerEncoder it kept shapes and masks in all {fits['calls']} "
        f"combinations of mask, padding, causality, batch order and norm position, in both forms, it ran in "
        f"nn.Transformer as the encoder, and {fits['shared']} of the {fits['parameters']} parameter tensors "
        f"of a Transformer block load by name, all but the attention's. Trained anew in the Transformer's "
        f"place, on copying the token before, {trained['steps']} steps, the trainable default reaches an "
        f"accuracy of {ours:.2f} (the least of {trained['networks']}; Transformer {moved['before']:.2f}, "
        f"chance {trained['chance']:.2f}), the published initialisation {theirs:.2f}. Under a causal mask "
        f"the published order parameter, which is over the whole text, lets other tokens in the last quarter "
        f"change earlier outputs by {leaked['global']:.1%} of their size ({leaked['global_scaled']:.0%} if "
        f"they are three times as large); the running one by nothing. Masks must be masks: an additive bias "
        f"as of ALiBi is refused. What the word does not cover, and the abstract does not claim: a trained "
        f"Transformer's attention weights, moved into the published block, give {moved['published']:.2f}, "
        f"and {moved['best']:.2f} with the best of {moved['settings']} calibrations."
    )
    return Claim(
        "drop-in-replacement",
        "Abstract",
        "The OSN block is a drop-in replacement for the Transformer block.",
        HOLDS_IF,
        finding,
        (
            exactly(
                "calls in nn.TransformerEncoder with its shape and the masks' effect",
                fits["right"],
                fits["calls"],
            ),
            exactly(
                "nn.Transformer with it as encoder: parameters without a gradient",
                fits["without_gradient"],
                0,
            ),
            exactly(
                "parameter tensors outside the attention that load by name", fits["shared"], fits["outside"]
            ),
            exactly("calls with an additive float mask refused, of 1", fits["bias_refused"], 1),
            above("accuracy of the trained Transformer block", moved["before"], 0.98),
            above("accuracy of the trainable block, trained anew, the least", ours, 0.9),
            below("accuracy of the published block, trained anew", theirs, 0.2),
            below("accuracy after moving its weights, best calibration", moved["best"], 0.4),
            above(
                "difference of the attention's output, relative, best calibration", moved["difference"], 0.5
            ),
            above("change of earlier outputs with the global order parameter", leaked["global"], 0.001),
            exactly("change of earlier outputs with the running order parameter", leaked["running"], 0),
        ),
    )


def _trains(numbers: Numbers) -> Claim:
    start = numbers["initialisation"]
    ours = start["trainable"]
    theirs = start["published"]
    finding = (
        f"At width {numbers['width']}, {numbers['heads']} heads and {start['tokens']} tokens, "
        f"{theirs['locked']:,} of the {start['pairs']:,} pairs of different tokens lock: S is the identity, "
        f"the layer is the linear map x -> W_o W_v x of each token alone (largest difference "
        f"{theirs['from_linear']:g}), and the gradient of frequencies, phases, coupling and bandwidth is "
        f"exactly 0, so that nothing in a loss moves them. The trainable form's initialisation "
        f"locks {ours['density']:.0%} of the pairs, and its "
        f"frequencies' gradient is {ours['gradient_ratio']:.2g} of its values' in norm."
    )
    return Claim(
        "trains-as-published",
        "Published initialisation",
        "The published default parameters give a usable attention layer at initialisation.",
        FAILS,
        finding,
        (
            exactly("pairs of different tokens that lock, published", theirs["locked"], 0),
            exactly(
                "gradients of the frequency weights that are not 0, published",
                theirs["frequency_gradients"],
                0,
            ),
            exactly(
                "other gradients of the locking that are not 0, published", theirs["locking_gradients"], 0
            ),
            above("gradients of the value weights that are not 0, published", theirs["value_gradients"], 0),
            below("largest difference from W_o W_v x, published", theirs["from_linear"], 1e-5),
            above("share of the pairs that lock, trainable", ours["density"], 0.05),
            above(
                "norm of the frequencies' gradient over that of the values', trainable",
                ours["gradient_ratio"],
                1e-3,
            ),
        ),
    )


SECTION = Section(
    "architecture",
    "Figure 2: the blocks side by side, and replacing one by the other",
    measure,
    claims,
    (
        Drawing(
            "figure-2-architecture", "Transformer block, published OSN block and trainable OSN block", draw
        ),
    ),
)
