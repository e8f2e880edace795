"""Parameter parity, the drop-in replacement, and training as published."""

from __future__ import annotations

from syncattn_lab.paper import judge
from syncattn_lab.paper.architecture.figure import draw
from syncattn_lab.paper.architecture.measure import measure
from syncattn_lab.paper.section import Drawing, Numbers, Section


def claims(numbers: Numbers) -> list[judge.Claim]:
    return [_parity(numbers), _drop_in(numbers), _trains(numbers)]


def _parity(numbers: Numbers) -> judge.Claim:
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
    return judge.Claim(
        "parameter-parity",
        "Figure 2",
        "The OSN block has practically as many parameters as the Transformer block it replaces.",
        judge.HOLDS,
        finding,
        (
            judge.exactly("parameters of the published OSN block", counts["published"], 3_152_393),
            judge.exactly("parameters of the Transformer block", counts["transformer"], 3_152_384),
            judge.exactly("parameters more", more, 1 + numbers["heads"]),
            judge.exactly("blocks with the Transformer block's steps, of 3", 3 if same else 0, 3),
        ),
    )


def _drop_in(numbers: Numbers) -> judge.Claim:
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
    return judge.Claim(
        "drop-in-replacement",
        "Abstract",
        "The OSN block is a drop-in replacement for the Transformer block.",
        judge.HOLDS_IF,
        finding,
        (
            judge.exactly(
                "calls in nn.TransformerEncoder with its shape and the masks' effect",
                fits["right"],
                fits["calls"],
            ),
            judge.exactly(
                "nn.Transformer with it as encoder: parameters without a gradient",
                fits["without_gradient"],
                0,
            ),
            judge.exactly(
                "parameter tensors outside the attention that load by name", fits["shared"], fits["outside"]
            ),
            judge.exactly("calls with an additive float mask refused, of 1", fits["bias_refused"], 1),
            judge.above("accuracy of the trained Transformer block", moved["before"], 0.98),
            judge.above("accuracy of the trainable block, trained anew, the least", ours, 0.9),
            judge.below("accuracy of the published block, trained anew", theirs, 0.2),
            judge.below("accuracy after moving its weights, best calibration", moved["best"], 0.4),
            judge.above(
                "difference of the attention's output, relative, best calibration", moved["difference"], 0.5
            ),
            judge.above("change of earlier outputs with the global order parameter", leaked["global"], 0.001),
            judge.exactly("change of earlier outputs with the running order parameter", leaked["running"], 0),
        ),
    )


def _trains(numbers: Numbers) -> judge.Claim:
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
    return judge.Claim(
        "trains-as-published",
        "Published initialisation",
        "The published default parameters give a usable attention layer at initialisation.",
        judge.FAILS,
        finding,
        (
            judge.exactly("pairs of different tokens that lock, published", theirs["locked"], 0),
            judge.exactly(
                "gradients of the frequency weights that are not 0, published",
                theirs["frequency_gradients"],
                0,
            ),
            judge.exactly(
                "other gradients of the locking that are not 0, published", theirs["locking_gradients"], 0
            ),
            judge.above(
                "gradients of the value weights that are not 0, published", theirs["value_gradients"], 0
            ),
            judge.below("largest difference from W_o W_v x, published", theirs["from_linear"], 1e-5),
            judge.above("share of the pairs that lock, trainable", ours["density"], 0.05),
            judge.above(
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
