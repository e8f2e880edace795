"""The published benchmark: the blocks against formulas, the published figures' own arithmetic, the claims."""

import copy
import json

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from syncattn.drawing import style
from syncattn.nn import OSNBlock
from syncattn_lab.paper.benchmark import measure
from syncattn_lab.paper.benchmark.blocks import (
    PublishedBlock,
    SoftmaxAttention,
    SoftmaxBlock,
    lock_all,
    lock_half,
    make_block,
    published_block,
)
from syncattn_lab.paper.benchmark.claims import SECTION, held_matrices, published_ratios
from syncattn_lab.paper.benchmark.measure import BATCH, PUBLISHED
from syncattn_lab.paper.judge import FAILS, HOLDS
from syncattn_lab.paper.section import Extent


@pytest.fixture(scope="module")
def numbers():
    """A quick measurement at small sizes, as it comes back from JSON."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "QUICK_BATCH", {128: 1, 512: 1})
        measured = SECTION.measure(Extent(quick=True), lambda line: None)
    return json.loads(json.dumps(measured))


def published_formula(layer, x, top_k):
    """The layer in numpy and float64, pair by pair formulas: no line of it ours."""
    parameters = {name: p.double().numpy() for name, p in layer.named_parameters()}
    heads = layer.num_heads

    def project(name):
        y = x.double().numpy() @ parameters[f"{name}.weight"].T + parameters[f"{name}.bias"]
        return y.reshape(*y.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    w, phase, value = (project(name) for name in ("frequency.receive_proj", "phase_proj", "value_proj"))
    r = np.abs(np.exp(1j * phase).mean(2)).mean(-1)
    kappa = np.log1p(np.exp(parameters["raw_coupling"])) * r
    alpha = np.log1p(np.exp(parameters["raw_bandwidth"]))
    squared = ((w[:, :, :, None] - w[:, :, None]) ** 2).sum(-1)
    kernel = np.exp(-alpha[:, None, None] * squared)
    ratio = np.sqrt(squared) / (kappa[..., None, None] * kernel)
    sync = np.where(ratio <= 1, kernel * np.cos(np.arcsin(np.minimum(ratio, 1))), 0)
    if top_k is not None:
        least = np.sort(sync, -1)[..., -top_k, None]
        sync = np.where(sync >= least, sync, 0)
    mixed = (sync / sync.sum(-1, keepdims=True)) @ value
    mixed = mixed.transpose(0, 2, 1, 3).reshape(x.shape)
    return sync, mixed @ parameters["out_proj.weight"].T + parameters["out_proj.bias"]


@pytest.mark.parametrize("top_k", [None, 5])
@pytest.mark.parametrize("kind", [PublishedBlock, OSNBlock])
def test_published_blocks_compute_the_formula(kind, top_k):
    block = lock_half(published_block(kind, 32, 4, seed=1, top_k=top_k)).double()
    x = torch.nn.functional.layer_norm(
        torch.randn(2, 40, 32, generator=torch.Generator().manual_seed(2)).double(), (32,)
    )
    sync, want = published_formula(block.self_attn, x, top_k)
    assert 0.05 < (sync > 0).mean() < 0.95
    found, weights = block.self_attn(x)
    assert weights is None
    assert np.abs(found.numpy() - want).max() < 1e-5


def test_softmax_with_its_matrices_is_the_fused_one_and_torchs_own():
    held, fused = (SoftmaxAttention(32, 4, fused=fused) for fused in (False, True))
    fused.load_state_dict(held.state_dict())
    theirs = torch.nn.MultiheadAttention(32, 4, batch_first=True)
    names = ("query_proj", "key_proj", "value_proj")
    x = torch.randn(2, 40, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([held.get_submodule(name).weight for name in names]))
        theirs.in_proj_bias.copy_(torch.cat([held.get_submodule(name).bias for name in names]))
        theirs.out_proj.load_state_dict(held.out_proj.state_dict())
        want, _ = theirs(x, x, x)
        for layer in (held, fused):
            assert (layer(x)[0] - want).abs().max() < 1e-6


def test_blocks_refuse_masks_and_leave_random_numbers_alone():
    state = torch.get_rng_state()
    blocks = [make_block(SoftmaxBlock, 32, 4, 0, fused=False), published_block(PublishedBlock, 32, 4, 0)]
    assert torch.equal(torch.get_rng_state(), state)
    x = torch.zeros(1, 4, 32)
    for block in blocks:
        assert block(x).shape == x.shape
        with pytest.raises(ValueError, match="no masks"):
            block(x, is_causal=True)
        with pytest.raises(ValueError, match="no masks"):
            block(x, src_mask=torch.zeros(4, 4, dtype=torch.bool))


def test_densities():
    """Counted on some rows, against all pairs of one sequence; every token locks with itself."""
    x = measure.tokens_of(96, 1, seed=0)
    for prepare, low, high in (
        (lock_all, 1, 1),
        (lock_half, 0.3, 0.7),
        (lambda block: block, 1 / 96, 1 / 96),
    ):
        block = prepare(published_block(OSNBlock, measure.WIDTH, measure.HEADS, 0))
        sync, _ = published_formula(block.self_attn, block.norm1(x), None)
        found = measure.density(block, x, 0)
        assert low <= (sync > 0).mean() <= high
        assert found == pytest.approx((sync > 0).mean(), abs=0.03 if low < high else 1e-9)


def test_the_published_memory_is_whole_matrices():
    """The Transformer's peak grows by 2 matrices, dense OSN's by 10, where batches have equal tokens."""
    tokens = np.array(list(BATCH))
    matrix = np.array([BATCH[n] * 8 * n * n * 4 / 2**20 for n in tokens])
    assert matrix.tolist() == [4, 16, 64, 128, 256, 512]
    equal = np.array([BATCH[n] * n == 4096 for n in tokens])
    grown = {
        name: np.diff(np.array(peak)[equal]) / np.diff(matrix[equal])
        for name, peak in PUBLISHED["peak"].items()
    }
    assert grown["transformer"].tolist() == [2, 2, 2]
    assert np.abs(grown["osn_dense"] - 10).max() < 0.04
    assert held_matrices("osn_dense")[:5] == [8.0] * 5
    # of top-64: a float32 value and an int64 place for each chosen partner
    chosen = [BATCH[n] * n * 8 * 64 * (4 + 8) / 2**20 for n in tokens]
    more = np.subtract(PUBLISHED["peak"]["osn_sparse"], PUBLISHED["peak"]["osn_dense"])
    assert more.tolist() == chosen


def test_published_ratios():
    found = published_ratios("osn_dense", "throughput")
    assert found[4096] == pytest.approx(3.237, abs=1e-3) and min(found.values()) == found[256]
    assert published_ratios("osn_sparse", "peak")[4096] == pytest.approx(3.986, abs=1e-3)


def test_claims_are_shown(numbers):
    """And the times that they tell are those of the rounds."""
    found = {claim.name: claim for claim in SECTION.claims(numbers)}
    assert found["slower-as-published"].verdict == HOLDS and found["sparse-variant-saves"].verdict == FAILS
    for claim in found.values():
        assert claim.shown, [check for check in claim.checks if not check.met]
    sparse, dense = (
        numbers["rows"][-1]["contenders"][name]["seconds"] for name in ("osn_sparse", "osn_dense")
    )
    rounds = [a / b for a, b in zip(sparse, dense) if a is not None and b is not None]
    (told,) = found["sparse-variant-saves"].times
    assert (told.low, told.median, told.high) == pytest.approx(np.quantile(rounds, [0.25, 0.5, 0.75]))


def test_a_blocks_operations_by_hand(numbers):
    """Products: four projections of the attention, two of N x N with d, a feed-forward of eight projections;
    no form saves any. Three passes over N x N are the least that a softmax takes."""
    width, heads = measure.WIDTH, measure.HEADS
    for i, (tokens, batch) in enumerate(BATCH.items()):
        matrices = batch * heads * tokens**2
        products = 2 * batch * tokens * 12 * width**2 + 4 * matrices * (width // heads)
        for name in ("transformer", "osn_dense", "osn_sparse"):
            assert numbers["counts"][name]["products"][i] == products
            assert numbers["counts"][name]["elements"][i] > 3 * matrices


def test_what_is_measured(numbers):
    for row in numbers["rows"]:
        assert set(measure.NAMES) <= set(row["contenders"])
        assert row["density"]["ours_alone"] == pytest.approx(1 / row["tokens"])
        assert row["density"]["ours_locked"] == 1
        assert 0.2 < row["agreement"]["density"] < 0.8
    if (
        "no_memory" not in numbers
    ):  # the dense form holds more than the Transformer, which holds more than ours
        last = numbers["rows"][-1]["contenders"]
        assert (
            last["osn_dense"]["peak_mib"] > last["transformer"]["peak_mib"] > last["ours_locked"]["peak_mib"]
        )


@pytest.mark.parametrize(
    ("path", "value", "claim"),
    [
        (("rows", 0, "agreement", "difference"), 1.0, "slower-as-published"),
        (("counts", "osn_dense", "products"), [1] * 6, "slower-as-published"),
        (("counts", "transformer", "elements"), [10**12] * 6, "slower-as-published"),
        (("counts", "osn_dense", "elements", -1), 10**9, "slower-as-published"),
        (("rows", -1, "contenders", "transformer", "peak_mib"), 1e4, "slower-as-published"),
        (("rows", -1, "contenders", "ours_locked", "peak_mib"), 1e4, "slower-as-published"),
        (("counts", "osn_sparse", "elements", 0), 10**6, "sparse-variant-saves"),
        (("rows", -1, "contenders", "osn_sparse", "peak_mib"), 1.0, "sparse-variant-saves"),
    ],
    ids=[
        "disagree",
        "products",
        "few passes",
        "not growing",
        "small",
        "large kernel",
        "top-k few",
        "top-k small",
    ],
)
def test_a_false_number_makes_its_claim_fall(numbers, path, value, claim, falls):
    falls(SECTION, numbers, path, value, claim)


def test_false_published_figures_make_the_claims_fall(numbers, monkeypatch):
    peak = PUBLISHED["peak"] | {"osn_dense": [value + 20 for value in PUBLISHED["peak"]["osn_dense"]]}
    monkeypatch.setitem(PUBLISHED, "peak", peak)
    for claim in SECTION.claims(numbers):
        assert not claim.shown


def test_drawing_table_and_claims_without_memory(numbers):
    without = copy.deepcopy(numbers) | {"no_memory": "Linux only"}
    for row in without["rows"]:
        for one in row["contenders"].values():
            one.pop("peak_mib", None)
    with style():
        for given in (numbers, without):
            assert all(isinstance(one.draw(given), Figure) for one in SECTION.drawings)
            table = SECTION.table(given)
            assert table.count("OSN as published, dense") == len(given["rows"]) + 2
            assert all(row.count("|") == table.splitlines()[4].count("|") for row in table.splitlines()[5:12])
    for claim in SECTION.claims(without):
        assert claim.checks and not any(check.what.startswith("here: peak") for check in claim.checks)
