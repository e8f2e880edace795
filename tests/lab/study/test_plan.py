"""What a plan says, and what it may not say."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from syncattn.models import count_parameters
from syncattn.training.errors import UserError
from syncattn_lab.study.plan import build_config, make_plan, read_plan
from syncattn_lab.study.varied import task_of

PLAN = {
    "seeds": [0, 1],
    "learning_rates": [0.01, 0.02],
    "model": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 256,
    },
    "training": {"context": 32, "batch_size": 4, "tokens": 1000},
    "task": {"recall": {"kind": "recall", "pairs": 4}},
    "group": [
        {
            "name": "main",
            "kind": "comparison",
            "tasks": ["stdlib", "pydoc"],
            "lengths": [32, 64],
            "variant": [
                {"name": "osn", "title": "OSN", "config": {"delay": 1.0}},
                {"name": "swiglu", "model": "transformer", "config": {"gated": True}, "seeds": [3]},
            ],
        },
        {
            "name": "recall",
            "kind": "synthetic",
            "tasks": ["recall"],
            "learning_rates": [0.005],
            "variant": [{"name": "osn", "training": {"steps": 7, "max_density": 0.1}}],
        },
    ],
}


def changed(**changes):
    plan = copy.deepcopy(PLAN)
    for path, value in changes.items():
        *way, last = path.split("__")
        place = plan
        for step in way:
            place = place[int(step) if step.isdigit() else step]
        place[last] = value
    return plan


def test_runs_are_tasks_by_variants_by_seeds_by_rates():
    plan = make_plan(PLAN)
    assert len(plan.runs) == 2 * (4 + 2) + 2
    assert [run.order for run in plan.runs] == list(range(14))
    assert len({run.key for run in plan.runs}) == 14
    first = plan.runs[0]
    assert first.key == "main/stdlib/osn/lr0.01/seed0" and first.first
    assert first.options.tokens == 1024 and first.options.threads == 1 and first.lengths == (32, 64)
    assert first.title == "OSN" and first.group_title == "main"
    assert [run.first for run in plan.cells()["main/stdlib/swiglu"]] == [True, True]
    assert {run.options.seed for run in plan.cells()["main/pydoc/swiglu"]} == {3}
    recall = plan.cells()["recall/recall/osn"][0]
    assert recall.options.max_density == 0.1 and recall.lengths == () and recall.task_options["pairs"] == 4
    assert set(plan.tasks) == {"stdlib", "pydoc", "recall"}


def test_a_part_of_a_plan():
    part = make_plan(PLAN).only(["recall"])
    assert {run.group for run in part.runs} == {"recall"} and set(part.tasks) == {"recall"}
    assert make_plan(PLAN).only([]).runs == make_plan(PLAN).runs
    with pytest.raises(UserError, match=r"--group must be one of main, recall, got 'mian'"):
        make_plan(PLAN).only(["mian"])


def test_every_model_has_as_many_parameters():
    plan = make_plan(PLAN)
    counts = []
    for runs in plan.cells().values():
        config = build_config(runs[0], 256, 32)
        counts.append(count_parameters(config))
        assert config.max_position_embeddings == 32
    assert max(counts) < 1.01 * min(counts)


def test_an_osn_has_the_gate_where_the_plan_says_so():
    run = next(run for run in make_plan(PLAN).runs if run.model == "osn")
    assert not build_config(run, 256, 32).nearest_gate
    assert build_config(replace(run, config=run.config | {"nearest_gate": True}), 256, 32).nearest_gate


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": []}, "the plan has no 'groups'; did you mean group"),
        ({"group": []}, "no runs"),
        ({"group__0__kind": "compare"}, "kind must be one of comparison"),
        ({"group__0__name": "a b"}, "each group needs a name"),
        ({"group__0__tasks": ["stdlb"]}, "no task 'stdlb'"),
        ({"group__0__tasks": []}, "tasks must be a list"),
        ({"seeds": [0, 0]}, "seeds must be a list of different"),
        ({"group__0__variant__0__model": "rnn"}, "model must be one of osn, transformer"),
        ({"group__0__variant__0__config": {"dely": 1}}, "config has no 'dely'; did you mean delay"),
        ({"group__0__variant__0__config": {"vocab_size": 3}}, "no 'vocab_size'"),
        ({"group__0__variant__1__config": {"freq_dim": 3}}, "no 'freq_dim'"),
        ({"training": {"seed": 3}}, "training has no 'seed'"),
        ({"training": {"context": 1}}, "context must be at least 2"),
        ({"training": {"tokens": 0}}, "tokens must be positive"),
        ({"learning_rates": [-1.0]}, "learning_rate must be a positive number"),
        ({"model": {"delay": 1}}, "model has no 'delay'"),
        (
            {"group__1__name": "main", "group__1__tasks": ["stdlib"], "group__1__learning_rates": [0.01]},
            "twice",
        ),
    ],
)
def test_what_a_plan_may_not_say(change, message):
    with pytest.raises(UserError, match=message):
        make_plan(changed(**change))


def test_a_missing_list():
    plan = copy.deepcopy(PLAN)
    del plan["seeds"]
    with pytest.raises(UserError, match="seeds is missing"):
        make_plan(plan)


def test_what_a_config_refuses_names_the_variant():
    plan = make_plan(changed(group__0__variant__0__config={"delay": 3}))
    with pytest.raises(UserError, match=r"main/stdlib/osn: delay must be"):
        build_config(plan.runs[0], 256, 32)


def test_files_that_are_no_plans(tmp_path):
    with pytest.raises(UserError, match="cannot read the plan"):
        read_plan(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = [")
    with pytest.raises(UserError, match=r"bad.toml is not TOML"):
        read_plan(tmp_path / "bad.toml")
    (tmp_path / "empty.toml").write_text("")
    with pytest.raises(UserError, match=r"empty.toml: the plan has no runs"):
        read_plan(tmp_path / "empty.toml")


def test_the_plan_of_the_literatures_tasks_can_be_done():
    plan = read_plan(Path(__file__).parents[3] / "benchmarks" / "tasks" / "plan.toml")
    assert all(task_of(options)[0].length <= 321 for options in plan.tasks.values())
    for variant in {run.variant: run for run in plan.runs}.values():
        build_config(variant, 64, 128)
