"""The verdicts on what the abstract and figure 4 say of the weight matrices at initialisation."""

from __future__ import annotations

from syncattn_lab.paper import judge
from syncattn_lab.paper.matrices.figure import draw_matrices, draw_statistics, table
from syncattn_lab.paper.matrices.measure import measure
from syncattn_lab.paper.section import Drawing, Numbers, Section


def claims(numbers: Numbers) -> list[judge.Claim]:
    """The verdicts on what the abstract and figure 4 say of the matrices at initialisation."""
    return [_non_uniform(numbers), _head_diverse(numbers), _inductive_bias(numbers)]


def _non_uniform(numbers: Numbers) -> judge.Claim:
    figure, default, calibrated = (
        _of(numbers, name) for name in ("published_figure", "published_default", "calibrated")
    )
    law = numbers["effective_share_law"]
    worst = min(numbers["settings"]["calibrated"]["per_head"]["variation_among_others"])
    return judge.Claim(
        "non-uniform-at-initialisation",
        "Abstract; Figure 4",
        "A freshly initialised layer already couples its tokens non-uniformly.",
        judge.HOLDS_IF,
        "With the figure's parameters every pair locks, and a row is spread over "
        f"{100 * figure['effective_share']:.1f} % of the tokens (theory {100 * law:.1f} %), "
        f"{figure['total_variation']:.3f} in total variation from uniform. By default no token hears "
        f"another: a fraction {default['isolated_rows']:g} of the rows is isolated. With coupling and "
        f"bandwidth calibrated to densities {numbers['densities'][0]} to {numbers['densities'][1]} over the "
        f"heads, {100 * calibrated['off_diagonal_mass']:.0f} % of the weight lies on other tokens, at a "
        f"total variation of {calibrated['variation_among_others']:.2f} from uniform among them, and "
        f"{100 * calibrated['isolated_rows']:.1f} % of the rows are isolated: it holds if the layer is "
        "calibrated.",
        (
            judge.below("total variation from uniform, published figure", figure["total_variation"], 0.03),
            judge.below(
                "N_eff / N, published figure, off its law", abs(figure["effective_share"] - law), 1e-3
            ),
            judge.exactly("weight on other tokens, published default", default["off_diagonal_mass"], 0),
            judge.exactly("isolated rows, published default", default["isolated_rows"], 1),
            judge.above(
                "total variation from uniform among others, calibrated, most uniform head", worst, 0.3
            ),
            judge.above("weight on other tokens, calibrated", calibrated["off_diagonal_mass"], 0.5),
            judge.below("isolated rows, calibrated", calibrated["isolated_rows"], 0.1),
        ),
    )


def _head_diverse(numbers: Numbers) -> judge.Claim:
    settings = numbers["settings"]
    ratios = {
        name: settings[name]["sd_heads"] / settings[name]["sd_draws"]
        for name in ("published_figure", "calibrated_alike", "softmax")
    }
    figure, ladder, alike, softmax = (
        settings[n] for n in ("published_figure", "calibrated", "calibrated_alike", "softmax")
    )
    chance = ladder["over_shuffled"]
    return judge.Claim(
        "head-diverse-at-initialisation",
        "Abstract; Figure 4",
        "A freshly initialised layer has heads that couple the tokens in different ways.",
        judge.HOLDS_IF,
        "How much a head hears is set, not found. Between published heads, and between calibrated ones of "
        f"one density, N_eff / N varies as between draws of one head ({ratios['published_figure']:.2f} and "
        f"{ratios['calibrated_alike']:.2f} times, softmax {ratios['softmax']:.2f}); it varies more where the "
        f"calibration gives the heads a ladder of densities, here {numbers['densities'][0]} to "
        f"{numbers['densities'][1]}. Whom it hears: published heads are all but the same (Jensen-Shannon "
        f"divergence {figure['divergence']:.4f}, softmax {softmax['divergence']:.3f}). Calibrated heads "
        f"diverge by {ladder['divergence']:.3f}, and by {alike['divergence']:.3f} if all have one density: "
        "it holds if the heads are calibrated to be sparse, for divergence comes with sparsity. It is no "
        f"more than chance: with every row's own weights in random places it would be {-chance['mean']:.3f} "
        "more, for the heads, whose projections are independent, still see the same tokens.",
        (
            judge.between(
                "sd of N_eff / N over heads over sd over draws, published figure",
                ratios["published_figure"],
                0.4,
                2,
            ),
            judge.below("divergence between heads, published figure", figure["divergence"], 0.002),
            judge.between(
                "sd over heads over sd over draws, calibrated to one density",
                ratios["calibrated_alike"],
                0.4,
                2,
            ),
            judge.above("divergence between heads, calibrated to one density", alike["divergence"], 0.5),
            judge.below(
                "divergence minus that of shuffled rows, calibrated, in standard errors",
                chance["mean"] / chance["error"],
                -2,
            ),
            judge.below(
                "divergence minus that of shuffled rows, calibrated to one density",
                alike["over_shuffled"]["mean"],
                0,
            ),
        ),
    )


def _inductive_bias(numbers: Numbers) -> judge.Claim:
    names = ("published_figure", "published_default", "calibrated", "softmax", "softmax_linear")
    figure, default, calibrated, softmax, linear = (_of(numbers, name) for name in names)
    nearest = min(softmax["total_variation"], linear["total_variation"])
    farthest = max(softmax["total_variation"], linear["total_variation"])
    worst = min(numbers["settings"]["calibrated"]["per_head"]["total_variation"])
    return judge.Claim(
        "stronger-inductive-bias",
        "Abstract",
        "At initialisation the weights are further from uniform than a Transformer's, a stronger inductive "
        "bias.",
        judge.HOLDS_IF,
        "At the published default it is met as worded, and says nothing: each token hears only itself, "
        f"{default['total_variation']:.3f} in total variation from uniform. In the published figure's "
        "setting it is the other way round: the rows are "
        f"{figure['total_variation']:.3f} from uniform and spread over "
        f"{100 * figure['effective_share']:.1f} % of the tokens; a random softmax layer's are "
        f"{softmax['total_variation']:.3f} and {100 * softmax['effective_share']:.0f} % (PyTorch's "
        f"nn.MultiheadAttention), or {linear['total_variation']:.3f} and "
        f"{100 * linear['effective_share']:.0f} % (nn.Linear's default initialisation). With tokens "
        f"that hear others it holds if calibrated: {calibrated['total_variation']:.2f}, and {worst:.2f} for "
        "the most uniform head. That measures distance from uniform, all that an untrained layer can show; "
        "whether it is a bias towards anything useful it does not tell.",
        (
            judge.above("total variation from uniform, published default", default["total_variation"], 0.99),
            judge.exactly("isolated rows, published default", default["isolated_rows"], 1),
            judge.below(
                "total variation from uniform, published figure over the most uniform softmax",
                figure["total_variation"] / nearest,
                0.3,
            ),
            judge.between(
                "N_eff / N, softmax, nn.MultiheadAttention (theory exp(-1/4) = .779)",
                softmax["effective_share"],
                0.765,
                0.795,
            ),
            judge.between(
                "N_eff / N, softmax, nn.Linear (theory exp(-1/9) = .895)",
                linear["effective_share"],
                0.885,
                0.905,
            ),
            judge.above(
                "total variation from uniform, most uniform calibrated head over the farthest softmax",
                worst / farthest,
                2,
            ),
        ),
    )


def _of(numbers: Numbers, name: str) -> dict[str, float]:
    """A setting's statistics, averaged over heads and draws."""
    return numbers["settings"][name]["mean"]


SECTION = Section(
    name="matrices",
    title="Synchronization matrices at initialisation (figure 4)",
    measure=measure,
    claims=claims,
    drawings=(
        Drawing("figure-4-matrices", "Eight heads at initialisation, on one scale", draw_matrices),
        Drawing("figure-4-statistics", "Their statistics, head by head", draw_statistics),
    ),
    table=table,
)
