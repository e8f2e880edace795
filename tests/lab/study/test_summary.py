"""What a study's lines add up to: chosen rates, verdicts, and a page that is written whole or not at all."""

import json
import runpy
from pathlib import Path

import pytest

from syncattn.training.errors import UserError
from syncattn_lab.study.records import read_runs, thin
from syncattn_lab.study.summary import as_groups, choose_rate, difference, lengths, missing, sweep
from syncattn_lab.study.verdicts import MET, MISSED, OPEN, common_rate, decide, number, percent, verdicts

MADE = runpy.run_path(str(Path(__file__).with_name("lines.py")))
line, write, study = MADE["line"], MADE["write"], MADE["study"]
PUBLISH = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "publish_quality.py"))


def ordered(*lines):
    """The lines with their places in the plan."""
    return [each | {"order": order} for order, each in enumerate(lines)]


def only(*lines):
    """The single group of these lines."""
    (group,) = as_groups(ordered(*lines))
    return group


def verdict(lines, part):
    """The one verdict with this in its target."""
    (found,) = [each for each in verdicts(as_groups(ordered(*lines))) if part in each.target]
    return found


def test_rate_is_chosen_on_validation_of_the_first_seed():
    lines = [
        line(rate=0.003, loss=1.50, test=1.30),
        line(rate=0.006, loss=1.45, test=1.48),  # the best on validation is the worst on test
        line(rate=0.012, loss=1.46, test=1.40),
        line(rate=0.006, seed=1, loss=1.47, test=1.44),
        line(rate=0.012, seed=1, loss=1.10, test=1.10),  # of another seed: no part in the choice
    ]
    cell = only(*lines).cell("stdlib", "osn")
    assert only(*reversed(lines)).cell("stdlib", "osn").rate == 0.006  # a plan that was changed in between
    assert cell.rate == 0.006
    assert cell.values("test_loss") == [1.48, 1.44]
    assert cell.mean("test_loss") == pytest.approx(1.46)
    assert cell.spread("test_loss") == pytest.approx(0.04 / 2**0.5)
    assert list(cell.tried) == [0.003, 0.006, 0.012]


def test_rate_of_a_synthetic_task_is_the_most_accurate_and_then_the_lowest_loss():
    about = {"kind": "synthetic", "task_kind": "recall"}
    lines = ordered(
        line(rate=0.003, accuracy=0.8, loss=0.1, **about),
        line(rate=0.006, accuracy=0.9, loss=0.5, **about),
        line(rate=0.012, accuracy=0.9, loss=0.4, **about),
    )
    assert choose_rate(lines) == 0.012


def test_diverged_rates_are_not_chosen_and_count():
    lines = [
        line(rate=0.003, loss=1.5),
        line(rate=0.006, diverged=True),
        line(rate=0.003, seed=1, diverged=True),
    ]
    cell = only(*lines).cell("stdlib", "osn")
    assert (cell.rate, cell.diverged, len(cell.runs)) == (0.003, 1, 1)
    assert cell.spread("test_loss") is None
    lost = only(line(rate=0.003, diverged=True), line(rate=0.006, diverged=True)).cell("stdlib", "osn")
    assert (lost.rate, lost.diverged, lost.runs, lost.density) == (None, 2, [], None)
    single = only(line(diverged=True)).cell("stdlib", "osn")
    assert (single.rate, single.runs) == (0.012, [])
    assert difference(single, lost, "test_loss") is None


def test_groups_keep_the_plans_order_and_titles():
    lines = [
        line(variant="rotary", order=2),
        line(order=1),
        line(group="later", order=3),
        line(order=4, seed=1),
    ]
    groups = as_groups(lines)
    assert [group.name for group in groups] == ["comparison", "later"]
    assert list(groups[0].variants.items()) == [("osn", "OSN"), ("rotary", "Transformer, rotary")]


def three_seeds(variant, level, **about):
    return [line(variant=variant, seed=s, loss=level + 0.01 + (s - 1) * 0.002, **about) for s in range(3)]


@pytest.mark.parametrize(
    ("osn", "transformer", "state"),
    [
        ({"level": 1.40, "density": 0.08}, {"level": 1.46}, MET),
        ({"level": 1.40, "density": 0.12}, {"level": 1.46}, MISSED),
        ({"level": 1.42, "density": 0.08}, {"level": 1.46}, MISSED),
        ({"level": 1.40, "density": 0.08, "parameters": 130_000}, {"level": 1.46}, MISSED),
    ],
)
def test_lead(osn, transformer, state):
    lines = [
        *three_seeds("osn", **osn),
        *three_seeds("rotary", 1.5),
        *three_seeds("rotary-delay", **transformer),
    ]
    found = verdict(lines, "stdlib: test loss")
    assert found.state == state
    assert "Transformer, rotary, delay" in found.measured  # the best of the two
    assert f"lead {number(transformer['level'] - osn['level'])}" in found.measured


def test_lead_must_exceed_the_spread():
    wide = [line(variant="rotary", seed=s, loss=1.47 + 0.09 * (s - 1)) for s in range(3)]
    assert verdict([*three_seeds("osn", 1.4, density=0.08), *wide], "stdlib").state == MISSED


def test_lead_of_a_single_seed_or_of_missing_or_diverged_runs():
    osn, other = line(loss=1.40, density=0.08), line(variant="rotary", loss=1.50)
    assert verdict([osn, other], "stdlib").state == OPEN
    assert verdict([osn, other], "stdlib").measured.endswith("one seed has no spread")
    assert verdict([line(loss=1.49, density=0.08), other], "stdlib").state == MISSED  # whatever the spread
    assert verdict([osn], "stdlib").state == OPEN
    assert verdict([other], "stdlib").state == OPEN
    good = [*three_seeds("osn", 1.4, density=0.08), *three_seeds("rotary", 1.5)]
    failed = line(seed=3, diverged=True)
    assert verdict([*good, failed], "stdlib").state == MISSED
    lost = verdict([*good, line(variant="rotary", seed=3, diverged=True)], "stdlib")
    assert lost.state == MET and "1 of the Transformer's seeds diverged" in lost.measured
    assert verdict([line(kind="ablation")], "test loss at least").state == OPEN


def recall(variant, pairs, accuracy, **about):
    options = {"vocabulary": 64, "pairs": pairs, "length": 16 * pairs}
    about = {"kind": "synthetic", "task_kind": "recall", "task_options": options, "loss": 0.5} | about
    return line("recall", f"recall-{pairs}", variant, accuracy=accuracy, **about)


def test_accuracy_at_every_size():
    small = [recall("osn", 4, 0.99), recall("rotary", 4, 0.80), recall("rotary-delay", 4, 0.9904)]
    assert verdict(small, "recall").state == MET  # equal in three digits
    large = [recall("osn", 8, 0.90), recall("rotary", 8, 0.91)]
    found = verdict([*small, *large], "recall")
    assert found.state == MISSED
    assert "at 1 of 2 sizes" in found.measured and "recall-8: .900 against .910" in found.measured
    assert verdict([*small, recall("osn", 8, 0.9)], "recall").state == OPEN
    assert verdict([*small, recall("osn", 8, 0, diverged=True), large[1]], "recall").state == MISSED
    assert verdict(small, "induction").state == OPEN


def at_lengths(variant, *ratios, seed=0):
    found = {str(256 * 2**i): {"loss": 1.5 * ratio, "density": None} for i, ratio in enumerate(ratios)}
    return line(variant=variant, seed=seed, loss=1.6, lengths=found)


@pytest.mark.parametrize(
    ("ratios", "state"),
    [
        ((1, 1.01, 1.015, 1.019), MET),
        ((1, 1.01, 1.03, 1.0), MISSED),
        ((1, 1.01, 1.015), OPEN),  # 8 times the training length is not there
        ((1, 1.05), MISSED),
        ((1, 1.01, 1.015, 1.019, 1.5), MET),  # 16 times is no part of it
        ((1, 0.96, 0.95, 0.94), MET),
    ],
)
def test_extrapolation(ratios, state):
    found = verdict(
        [at_lengths("osn", *ratios), at_lengths("rotary", 1, 1.2), at_lengths("alibi", 1, 1)], "8 ×"
    )
    assert found.state == state
    assert "Transformer, rotary +20.0 %" in found.measured
    assert "Transformer, ALiBi 0 % (within too)" in found.measured


def test_extrapolation_without_runs_and_from_the_test_loss():
    assert verdict([line()], "8 ×").state == OPEN
    assert verdict([at_lengths("rotary", 1, 1.2)], "8 ×").measured.startswith("OSN not measured")
    cell = only(line(test=2.0, lengths={"512": {"loss": 2.1, "density": 0.1}})).cell("stdlib", "osn")
    assert lengths(cell)[512] == {"loss": 2.1, "ratio": pytest.approx(1.05), "density": 0.1}


def sized(name, parameters, losses, variant="osn"):
    return [
        line(f"size-{name}", variant=variant, kind="size", rate=rate, parameters=parameters,
             **({"diverged": True} if loss is None else {"loss": loss}))
        for rate, loss in losses.items()
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("small", "large", "state"),
    [
        ({0.006: 1.60, 0.012: 1.59}, {0.006: 1.40, 0.012: 1.41}, MET),
        ({0.006: 1.60, 0.012: 1.58}, {0.006: 1.40, 0.012: 1.42}, MISSED),
        ({0.006: 1.60, 0.012: 1.50}, {0.006: 1.40, 0.012: None}, MISSED),
        ({0.006: 1.60, 0.012: 1.50}, {0.006: 1.40}, OPEN),
        ({0.006: 1.60}, {0.006: 1.40}, OPEN),
        ({0.006: None, 0.012: None}, {0.006: 1.40, 0.012: 1.4}, MISSED),
    ],
)
def test_one_learning_rate_for_all_sizes(small, large, state):
    lines = [*sized("a", 30_000, small), *sized("b", 120_000, large), *sized("b", 120_000, large, "rotary")]
    assert verdict(lines, "one learning rate").state == state


def test_one_size_does_not_decide():
    assert verdict(sized("a", 30_000, {0.006: 1.6, 0.012: 1.5}), "one learning rate").state == OPEN
    assert verdict([line()], "one learning rate").state == OPEN
    (group,) = as_groups(ordered(*sized("a", 30_000, {0.006: 1.6})))
    assert common_rate(list(group.cells.values()))[0] == OPEN


def test_dead_heads_are_counted_over_all_runs_of_the_default():
    lines = [
        line(),
        line(rate=0.024, dead=1),
        line("ablation", kind="ablation", dead=2),
        line(variant="osn-x", dead=5),
    ]
    found = verdict(lines, "dead heads")
    assert (found.state, found.measured) == (MISSED, "3 in 3 runs, in 2 of them")
    assert verdict([line(), line(seed=1, diverged=True)], "dead heads").state == MET
    assert verdict([line(variant="rotary")], "dead heads").state == OPEN


def test_decide():
    assert [decide(True, True), decide(True, None), decide(None, False), decide()] == [
        MET,
        OPEN,
        MISSED,
        OPEN,
    ]


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [(1.4641, False, "1.464"), (0.0031, False, ".003"), (-0.0101, False, "−.010"), (0.024, True, "+.024"),
     (-0.0001, True, ".000"), (None, False, "–"), (1.0, False, "1.000")],
)  # fmt: skip
def test_number(value, signed, text):
    assert number(value, signed=signed) == text


def test_percent():
    assert [percent(1.012), percent(0.996), percent(1.0)] == ["+1.2 %", "−0.4 %", "0 %"]


def test_sweep():
    group = only(*(recall("osn", pairs, 0.9) for pairs in (16, 4, 8)))
    assert sweep(group, "recall") == (
        "pairs / length",
        {"": [("4 / 64", "recall-4"), ("8 / 128", "recall-8"), ("16 / 256", "recall-16")]},
    )
    about = {"kind": "synthetic", "task_kind": "copy", "accuracy": 0.5}
    grid = [
        line("g", f"t-{v}-{n}", task_options={"vocabulary": v, "n": n}, **about)
        for v in (64, 8)
        for n in (256, 64, 128)
    ]
    name, panels = sweep(only(*grid), "copy")
    assert (name, list(panels)) == ("n", ["vocabulary 8", "vocabulary 64"])
    assert panels["vocabulary 8"] == [("64", "t-8-64"), ("128", "t-8-128"), ("256", "t-8-256")]


def test_missing_counts_the_runs_that_the_choice_leaves():
    keys = [f"comparison/stdlib/osn/lr{rate!r}/seed{seed}" for seed in (0, 1, 2) for rate in (0.006, 0.012)]
    assert missing(keys, []) == (4, 4)
    lines = ordered(line(rate=0.006, loss=1.4), line(rate=0.012, loss=1.5), line(rate=0.006, seed=1))
    assert missing(keys, as_groups(lines)) == (1, 4)
    assert missing(keys, as_groups(lines[:1])) == (3, 4)
    lost = ordered(line(rate=0.006, diverged=True), line(rate=0.012, diverged=True))
    assert missing(keys, as_groups(lost)) == (0, 2)
    with pytest.raises(UserError, match=r"plan.json has the key 'no key'"):
        missing(["no key"], [])


def test_lines_are_thinned_once_and_without_loss_of_what_is_drawn():
    lines = study()
    small = thin(lines)
    assert thin(small) == small
    assert len(json.dumps(small)) < 0.4 * len(json.dumps(lines))
    assert thin(lines[:3]) == lines[:3]
    for before, after in zip(lines, small):
        kept = [entry["validation_loss"] for entry in before["history"] if "validation_loss" in entry]
        found = [entry["validation_loss"] for entry in after["history"] if "validation_loss" in entry]
        assert found == pytest.approx(kept, abs=1e-5)
    default = next(each for each in small if each["variant"] == "osn")
    assert sum("density" in entry for entry in default["history"]) == 50


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def small_study():
    wanted = [each for each in study() if each["task"] in ("stdlib", "recall-4", "recall-8", "digits")]
    return ordered(
        *(each for each in wanted if each["kind"] != "ablation" or "change-1" not in each["variant"])
    )


def test_page_comes_again_from_its_own_copy(tmp_path):
    runs = write(small_study(), tmp_path / "runs")
    keys = [{"key": each["key"], "first": True} for each in small_study()]
    (runs / "plan.json").write_text(json.dumps([*keys, {"key": "more/stdlib/osn/lr0.1/seed0"}]))
    remarks = tmp_path / "remarks.toml"
    remarks.write_text('[recall]\ntext = "Pairs matter | more than length."\n')
    out = tmp_path / "docs" / "results"
    PUBLISH["publish"](runs, out, remarks)
    text = (out / "quality.md").read_text()
    assert "*Remark.* Pairs matter | more than length." in text
    assert "**Missing: 1 of the plan's" in text
    assert text.count("![") == len(list((out / "quality").glob("*.png")))
    for name in (out / "quality").glob("*.png"):
        assert f"(quality/{name.name})" in text
    first = files(out)
    PUBLISH["publish"](out / "quality", out)
    assert files(out) == first


def test_page_says_who_is_ahead_and_what_diverged(tmp_path):
    lines = [line(loss=1.5), line(variant="rotary", loss=1.4), line(variant="alibi", diverged=True)]
    PUBLISH["publish"](write(ordered(*lines), tmp_path / "runs"), tmp_path / "out")
    text = (tmp_path / "out" / "quality.md").read_text()
    assert "The Transformer (rotary) is ahead by .100." in text
    assert "| Transformer, ALiBi | – | 0.012 | diverged | diverged | 0 | 1 | – |" in text
    assert "Missing" not in text and "3 runs, 1 of which diverged" in text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text + '{"format": 1, "key": "hal', r"runs.jsonl, line 3: not JSON"),
        (lambda text: text.replace('"seed": 0', '"seed": "0"', 1), r"line 1: seed must be a number, got '0'"),
        (lambda text: text + text.splitlines()[0] + "\n", r"line 3: the run .* is in line 1 already"),
        (
            lambda text: text.replace('"comparison", "group"', '"other", "group"', 1),
            r"line 1: kind must be one of",
        ),
        (
            lambda text: text.replace('"test_loss": 1.44', '"test_loss": null', 1),
            r"line 1: result: test_loss must",
        ),
        (lambda text: text.replace('"step": 19, ', "", 1), r"line 1: history must be a list"),
        (lambda text: "", r"has no runs"),
    ],
)
def test_nothing_is_written_when_a_line_is_malformed(tmp_path, damage, message):
    runs = write(ordered(line(), line(seed=1)), tmp_path / "runs")
    out = tmp_path / "out"
    PUBLISH["publish"](runs, out)
    before = files(out)
    path = runs / "runs.jsonl"
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=message):
        PUBLISH["publish"](runs, out)
    with pytest.raises(UserError, match=message):
        PUBLISH["publish"](runs, tmp_path / "new")
    assert files(out) == before and not (tmp_path / "new").exists()


def test_bad_remarks_plans_and_folders_are_refused(tmp_path):
    runs, out = write(ordered(line()), tmp_path / "runs"), tmp_path / "out"
    remarks = tmp_path / "remarks.toml"
    for text, message in (
        ('[else]\ntext = ""', "no group 'else'"),
        ("[comparison]\nnote = 1", "expected"),
        ("[", "read"),
    ):
        remarks.write_text(text)
        with pytest.raises(UserError, match=message):
            PUBLISH["publish"](runs, out, remarks)
    (runs / "plan.json").write_text("{}")
    with pytest.raises(UserError, match="expected a list"):
        PUBLISH["publish"](runs, out)
    (runs / "plan.json").unlink()
    (out / "quality").mkdir(parents=True)
    (out / "quality" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"other files \(notes.txt\)"):
        PUBLISH["publish"](runs, out)
    assert list(files(out)) == ["quality/notes.txt"]
    with pytest.raises(UserError, match="has no runs"):
        read_runs(tmp_path / "nowhere.jsonl")


def test_differences_are_over_the_seeds_that_both_have():
    group = only(
        *(line(variant="osn", seed=seed, test=1.0 + seed) for seed in range(3)),
        line(variant="rotary", seed=1, test=2.5),
        line(variant="alibi", seed=7, test=2.5),
    )
    osn, rotary, alibi = (group.cell("stdlib", name) for name in ("osn", "rotary", "alibi"))
    assert difference(rotary, osn, "test_loss") == pytest.approx(0.5)
    assert difference(alibi, osn, "test_loss") == pytest.approx(0.5)  # no seed in common: the means'
    assert difference(rotary, None, "test_loss") is None
