"""Position: not as published, and what a drift makes of it."""

from __future__ import annotations

from syncattn_lab.paper import judge
from syncattn_lab.paper.position.figure import draw
from syncattn_lab.paper.position.measure import measure
from syncattn_lab.paper.section import Drawing, Numbers, Section


def claims(numbers: Numbers) -> list[judge.Claim]:
    return [
        _as_published(numbers),
        _with_drift(numbers),
        _translation_invariance(numbers),
        _extrapolation(numbers),
    ]


def _as_published(numbers: Numbers) -> judge.Claim:
    gap = numbers["permutation"]
    return judge.Claim(
        "position-as-published",
        "Abstract, Proposition 2",
        "The natural frequencies carry position and meaning together, so that no separate positional "
        "encoding is needed.",
        judge.FAILS,
        "As published a frequency is W x_i + b and knows nothing of i: when tokens move from before to "
        f"behind 1,000 others, the weights among them change by {gap['moved']:.1e}, and permuted tokens give "
        f"the permuted output (largest difference {gap['published']:.1e}). The layer does not see order "
        "unless an encoding is added to its input, "
        f"the very thing said to be eliminated. With a drift the same difference is {gap['drift']:.2f}.",
        (
            judge.below("change of the weights among tokens that move by 1,000 places", gap["moved"], 1e-12),
            judge.below("published form, largest |f(P x) - P f(x)|", gap["published"], 1e-12),
            judge.above("the same with a drift", gap["drift"], 1e-2),
        ),
    )


def _with_drift(numbers: Numbers) -> judge.Claim:
    own, shared, backward = numbers["own_drift"], numbers["shared_drift"], numbers["reversal"]
    return judge.Claim(
        "position-with-drift",
        "Proposition 2, with drift (our addition)",
        "Position and meaning can share one frequency, and position then bounds who can lock.",
        judge.HOLDS_IF,
        "It holds if the frequency drifts, w_i = W x_i + slope i u. With the drift in a coordinate of "
        f"its own the window is floor(rho / slope) tokens: to the token in {own['heads']} heads on "
        f"constant content, windows up to {own['longest']}, and never longer on random content. With u "
        "among the content's coordinates it is at most (rho + spread of content along u) / slope "
        f"(reached to {shared['of_spread']:.0%}), and by the weights alone at most (rho + 2 |W^T u| "
        f"sqrt(E)) / slope (to {shared['of_weights']:.0%}). What it does not give: a direction of time, "
        "without a mask and with position in its own coordinate (reversed tokens, reversed outputs: "
        f"{backward['own_drift']:.1e}); nor counting, see universality.",
        (
            judge.exactly(
                "own coordinate, constant content: windows other than floor(rho / slope)", own["wrong"], 0
            ),
            judge.exactly("own coordinate, random content: longer windows", own["exceeded"], 0),
            judge.between("share of windows that random content fills", own["reached"], 0.5, 1),
            judge.between(
                "shared: longest window over its bound from the content's spread", shared["of_spread"], 0.5, 1
            ),
            judge.between(
                "shared: longest window over its bound from the weights", shared["of_weights"], 0.1, 1
            ),
            judge.above("shared: windows longer than rho / slope, share", shared["beyond_radius"], 0.5),
            judge.below(
                "own coordinate, no mask: |f(reversed x) - reversed f(x)|", backward["own_drift"], 1e-12
            ),
            judge.above("the same, shared", backward["drift"], 1e-3),
        ),
    )


def _translation_invariance(numbers: Numbers) -> judge.Claim:
    worst = {
        dtype: {
            key: max(row[key] for row in numbers["translation"] if row["dtype"] == dtype)
            for key in ("difference", "changed")
        }
        for dtype in ("float64", "float32")
    }
    return judge.Claim(
        "translation-invariance",
        "Proposition 2, with drift (our addition)",
        "With drift S depends on how far apart two tokens are, not on where they stand.",
        judge.HOLDS,
        f"Moving all positions by up to 10,000 changes S by {worst['float64']['difference']:.1e} in "
        f"float64. In float32 the drift's rounding shows, {worst['float32']['difference']:.1e} at 10,000, "
        f"as the frequencies are themselves large there, and {worst['float32']['changed']:.2%} of the "
        "locked pairs change.",
        (
            judge.below("largest change of S in float64", worst["float64"]["difference"], 1e-9),
            judge.below("locked pairs that change in float64, share", worst["float64"]["changed"], 1e-4),
            judge.below("largest change of S in float32", worst["float32"]["difference"], 0.1),
            judge.below("locked pairs that change in float32, share", worst["float32"]["changed"], 1e-2),
        ),
    )


def _extrapolation(numbers: Numbers) -> judge.Claim:
    found, r, default = numbers["extrapolation"], numbers["coherence"], numbers["default_layer"]
    short, long = numbers["lengths"][0], numbers["lengths"][-1]
    own, shared, none, added = (found[name] for name in ("own_drift", "drift", "none", "sinusoidal"))
    change = max(own["change"], shared["change"])
    per_row = max(abs(line["locked"][-1] - line["locked"][0]) for line in (own, shared))
    settled = 1 - r["last"] / r["2"]
    return judge.Claim(
        "extrapolation",
        "Proposition 2, with drift (our addition)",
        "With drift a layer does on long texts what it does on short ones.",
        judge.HOLDS_IF,
        "It holds if the windows are finite and the order parameter does not move: measured in the paper's "
        "form with drift, the order parameter off, without delay, self kept. There the last tokens of a "
        f"text of {long:,} lock to as many tokens as after {short} ({own['locked'][-1]:.1f} with a drift "
        f"of its own, {shared['locked'][-1]:.1f} with a shared one) and their outputs agree to "
        f"{change:.1e}. Without position they lock to {none['locked'][0]:.0f} and "
        f"{none['locked'][-1]:.0f} and an output changes by {none['change']:.1f}; with sinusoidal "
        f"encodings added to the tokens, by {added['change']:.1f}. The running order parameter falls from "
        f"{r['2']:.3f} at the second token to {r['last']:.3f}: it lowers the coupling by {settled:.1%}, "
        "nearly all of it within the first 128. In the library's default layer, where it is on, the last 32 "
        f"outputs do change: from {short} tokens to {long:,} or fewer by {default['relative']:.2%} of their "
        f"norm at most (an entry by {default['largest']:.1e}).",
        (
            judge.below("change of an output, with drift, from the shortest to longer texts", change, 1e-9),
            judge.exactly("change of the tokens that a row locks to, with drift", per_row, 0),
            judge.above(
                "the same without position, ratio", none["locked"][-1] / none["locked"][0], long / short / 2
            ),
            judge.above("change of an output with sinusoidal encodings added", added["change"], 1e-2),
            judge.between("running order parameter, loss from token 2 on", settled, 0.05, 0.12),
            judge.below("the same from token 128 on", abs(1 - r["last"] / r["128"]), 0.01),
            judge.between(
                "default layer: relative change of its last outputs", default["relative"], 1e-6, 0.02
            ),
        ),
    )


SECTION = Section(
    "position",
    "Proposition 2: position in the frequency",
    measure,
    claims,
    (
        Drawing(
            "position", "Who locks, without position and with drift, and how density falls with length", draw
        ),
    ),
)
