"""Tasks of several sizes: a batch has one, the first the largest; what is refused."""

from dataclasses import replace

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("transformers")

import torch

from syncattn.models import OSNConfig
from syncattn.training.errors import UserError
from syncattn.training.options import TrainingOptions
from syncattn_lab.study.answers import scores_by_size, train_on_answers
from syncattn_lab.study.synthetic import make_task
from syncattn_lab.study.varied import task_of

RANGE = {"kind": "reverse", "vocabulary": 5, "train": [{"symbols": [2, 6]}], "tests": [{"symbols": 8}]}


def lengths(task, count, seed=0):
    windows = task.windows("train", count, seed)
    return [len(windows[i]["input_ids"]) for i in range(count)]


def test_a_batch_has_one_size_and_the_first_the_largest():
    task, tests = task_of(RANGE)
    task = replace(task, together=4)
    found = lengths(task, 400)
    assert all(len(set(found[i : i + 4])) == 1 for i in range(0, 400, 4))
    assert found[0] == task.length == 13 and set(found) == {5, 7, 9, 11, 13}
    assert task.tokens(400, 0) == sum(found) and task.tokens(398, 0) == sum(found[:398])
    assert found[:40] == lengths(task, 40) != lengths(task, 40, seed=1)
    ((setting, test),) = tests
    assert setting == {"symbols": 8} and test.length == 17


def test_shares_say_how_often_a_setting_is_drawn():
    entry = {"kind": "mqar", "vocabulary": 64, "tests": [{"pairs": 8, "length": 32}]}
    entry["train"] = [{"pairs": 2, "length": 8, "share": 3}, {"pairs": 4, "length": 16}]
    task, _ = task_of(entry)
    task = replace(task, together=1)
    found = lengths(task, 1000)
    assert 0.7 < found.count(8) / 1000 < 0.8 and set(found) == {8, 16}


def test_windows_depend_on_part_seed_and_index_alone():
    task, _ = task_of(RANGE)
    windows = task.windows("train", 100, 0)
    again = task.windows("train", 100, 0)
    assert torch.equal(windows[99]["input_ids"], again[99]["input_ids"])
    assert torch.equal(windows[3]["input_ids"], again[3]["input_ids"])
    other = task.windows("test", 100, 0)
    assert not torch.equal(windows[0]["input_ids"], other[0]["input_ids"])
    with pytest.raises(IndexError):
        windows[100]
    with pytest.raises(UserError, match="count must be at least 1, got 0"):
        task.windows("train", 0, 0)
    with pytest.raises(UserError, match="part must be one of"):
        task.windows("all", 1, 0)


def test_without_train_it_is_the_task_itself():
    task, tests = task_of({"kind": "copy", "symbols": 3})
    assert task.length == make_task("copy", symbols=3).length and tests == []


def test_a_model_learns_windows_of_several_sizes_and_is_tested_at_others():
    task, tests = task_of(RANGE | {"vocabulary": 2, "train": [{"symbols": [1, 3]}]})
    sizes = {"vocab_size": 3, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    options = TrainingOptions(
        context=7, batch_size=8, steps=100, learning_rate=0.01, device="cpu", threads=1, max_density=0.5
    )
    record, model = train_on_answers(OSNConfig(**sizes), task, options, evaluate=32)
    assert record["result"]["test_accuracy"] > 0.8
    assert 800 * 3 < record["tokens"] < 800 * 7
    (found,) = scores_by_size(model, tests, 16)
    assert found["setting"] == {"symbols": 8} and found["length"] == 17 and found["windows"] == 16
    assert 0 <= found["exact"] <= found["accuracy"] <= 1 and 0 < found["density"] <= 1 <= found["partners"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": [{"symbols": [6, 2]}]}, r"symbols of the task 'reverse' must be a whole number, or two"),
        ({"train": [{"symbols": [2, 3, 4]}]}, r"the least and the most, got \[2, 3, 4\]"),
        ({"train": [{"symbols": [2, 3.5]}]}, "a whole number, or two"),
        ({"train": [{"symbols": [0, 3]}]}, "symbols of the task 'reverse' must be a positive integer, got 0"),
        ({"train": {"symbols": 3}}, "train of a task must be a list of tables of its options"),
        ({"train": [3]}, "train of a task must be a list of tables"),
        ({"tests": [{}]}, "tests of a task must be a list of tables"),
        ({"tests": [{"symbol": 3}]}, "no option 'symbol'.*did you mean symbols"),
        ({"tests": [{"symbols": [2, 3]}]}, "must be a positive integer"),
        ({"tests": [{"symbols": 3, "vocabulary": 9}]}, "must have as many tokens, got 6 and 10"),
        (
            {"train": [{"symbols": 3, "share": 0}]},
            "share of a setting of the task 'reverse' must be",
        ),
        ({"kind": "reserve"}, "the task kind must be one of"),
    ],
)
def test_bad_lists_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        task_of(RANGE | changes)
