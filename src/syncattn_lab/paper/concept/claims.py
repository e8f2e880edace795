"""The claim that Figure 1 makes."""

from __future__ import annotations

from syncattn_lab.paper import judge
from syncattn_lab.paper.concept.figure import draw
from syncattn_lab.paper.concept.measure import measure
from syncattn_lab.paper.section import Drawing, Numbers, Section


def claims(numbers: Numbers) -> list[judge.Claim]:
    tokens = len(numbers["words"])
    finding = (
        f"With the frequencies chosen for the picture (function words near -1.36, content words near 1.34, "
        f"locking radius {numbers['radius']:g}), all {numbers['zeros_across']} weights between the two "
        f"groups are exactly 0 and the smallest within them is {numbers['least_within']:.2f}. The blocks "
        f"appear when tokens are sorted by frequency; in the sentence's own order the same S is not "
        f"block-diagonal. The integrated Kuramoto network agrees: within a group the long-time mean "
        f"frequencies are equal to {numbers['spread_within']:.0e}, between the groups they are "
        f"{numbers['gap_between']:.2f} apart."
    )
    return [
        judge.Claim(
            "concept-figure",
            "Figure 1",
            "Tokens with near frequencies lock and others weigh exactly 0, so that two groups of frequencies "
            "give a block-diagonal synchronization matrix.",
            judge.HOLDS,
            finding,
            (
                judge.exactly("weights between the groups that are exactly 0", numbers["zeros_across"], 24),
                judge.exactly("weights within the groups that are 0", numbers["zeros_within"], 0),
                judge.above("smallest weight within a group", numbers["least_within"], 0.1),
                judge.exactly("tokens with S_ii = 1", numbers["ones_on_diagonal"], tokens),
                judge.exactly("largest difference between S and its transpose", numbers["asymmetry"], 0),
                judge.exactly("blocks along the diagonal, tokens sorted by frequency", numbers["blocks"], 2),
                judge.exactly("blocks in the sentence's order", numbers["blocks_in_sentence"], 1),
                judge.below(
                    "mean frequencies within a group differ by (ODE)", numbers["spread_within"], 0.02
                ),
                judge.above(
                    "mean frequencies between the groups differ by (ODE)", numbers["gap_between"], 2.0
                ),
            ),
        )
    ]


SECTION = Section(
    "concept",
    "Figure 1: the concept, computed on one sentence",
    measure,
    claims,
    (Drawing("figure-1-concept", "Phases, frequencies and S of one sentence", draw),),
)
