"""The literature's tasks: what a window asks follows from what it tells, by reading it plainly."""

import itertools

import pytest
import torch

pytest.importorskip("transformers")

from syncattn.training.errors import UserError
from syncattn_lab.study.sequences import distinct
from syncattn_lab.study.synthetic import make_task


def drawn(kind, rows=200, **options):
    """The windows as lists, with the answers by place."""
    windows = make_task(kind, **options).windows("train", rows, 0)
    for i in range(rows):
        ids, labels = windows[i]["input_ids"].tolist(), windows[i]["labels"].tolist()
        yield ids, {place: label for place, label in enumerate(labels) if label != -100}


def test_mqar_asks_at_each_key_for_the_value_which_is_not_written():
    written = 0
    for ids, answers in drawn("mqar", vocabulary=64, pairs=3, length=24):
        pairs = dict(zip(ids[0:6:2], ids[1:6:2], strict=True))
        assert len(pairs) == len(set(pairs.values())) == 3
        assert all(1 <= key < 32 for key in pairs) and all(32 <= value < 64 for value in pairs.values())
        assert {ids[place - 1]: answer for place, answer in answers.items()} == pairs
        assert all(place % 2 == 1 and place > 6 for place in answers)
        written += sum(ids[place] == answer for place, answer in answers.items())
    assert written < 40  # of 600, as chance has it: random tokens follow


def test_mqar_at_the_published_sizes():
    task = make_task("mqar", pairs=256, length=1024)
    ids, answers = next(drawn("mqar", 1, pairs=256, length=1024))
    assert task.vocab_size == 8192 and len(ids) == 1024 and len(answers) == 256
    assert len(set(ids[0:512:2])) == 256 and max(ids) < 8192


def test_selective_answers_are_the_symbols_without_blanks():
    places = set()
    for ids, answers in drawn("selective", vocabulary=5, symbols=3, length=7):
        told = [token for token in ids[:7] if token != 5]
        assert ids[7] == 6 and ids[8:] == told == [answers[i] for i in (8, 9, 10)]
        places.add(tuple(token != 5 for token in ids[:7]))
    assert len(places) == 35  # every way to choose 3 of 7


@pytest.mark.parametrize(("kind", "change"), [("reverse", lambda x: x[::-1]), ("sort", sorted)])
def test_symbols_are_answered_in_another_order(kind, change):
    for ids, answers in drawn(kind, vocabulary=7, symbols=5):
        assert ids[5] == 7 and ids[6:] == change(ids[:5]) == list(answers.values())
        assert list(answers) == [6, 7, 8, 9, 10]


def test_count_tells_how_many_of_a_run_came_before():
    lengths = set()
    for ids, answers in drawn("count", vocabulary=3, length=30, most=4):
        runs = [len(list(run)) for _, run in itertools.groupby(ids)]
        expected = [3 + place for run in runs for place in range(run)]
        assert answers == {place + 1: label for place, label in enumerate(expected[:-1])}
        assert all(2 <= run <= 4 for run in runs[:-1])
        lengths |= set(runs[:-1])
    assert lengths == {2, 3, 4}


def test_words_asks_for_the_values_of_some_keys():
    for ids, answers in drawn("words", vocabulary=3, pairs=5, letters=2, queries=3):
        told = [ids[i : i + 6] for i in range(0, 30, 6)]
        asked = [ids[i : i + 6] for i in range(30, 48, 6)]
        values = {tuple(key): value for *key, _, a, b, _ in told for value in [[a, b]]}
        assert len(values) == 5 and all(pair[2] == 4 and pair[5] == 3 for pair in told)
        assert len({tuple(query[1:3]) for query in asked}) == 3
        for start, (mark, a, b, colon, *value) in zip((30, 36, 42), asked):
            assert (mark, colon) == (5, 4) and value == values[a, b]
            assert value == [answers[start + 4], answers[start + 5]]
        assert len(answers) == 6


@pytest.mark.parametrize("most", [12, 5000])
def test_distinct_numbers_are_distinct_and_all_are_drawn_alike(most):
    count = 12 if most == 12 else 400
    numbers = distinct(most, count, 200, torch.Generator().manual_seed(0))
    assert all(len(set(row)) == count for row in numbers.tolist())
    assert numbers.min() >= 0 and numbers.max() < most
    assert abs(float(numbers.float().mean()) / ((most - 1) / 2) - 1) < 0.02


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "mqar",
            {"pairs": 4, "vocabulary": 8},
            r"must be even and at least 2 \* pairs \+ 2 = 10, got 8",
        ),
        (
            "mqar",
            {"pairs": 64},
            r"'mqar' must be even and at least 4 \* pairs = 256, got 64",
        ),
        (
            "selective",
            {"symbols": 65},
            "'selective' must be at least symbols = 65, got 64",
        ),
        ("selective", {"vocabulary": 1}, "vocabulary of the task 'selective' must be at least 2, got 1"),
        ("sort", {"vocabulary": 1}, "vocabulary of the task 'sort' must be at least 2, got 1"),
        ("count", {"most": 1}, "most of the task 'count' must be at least 2, got 1"),
        ("count", {"length": 1}, "length of the task 'count' must be at least 2, got 1"),
        ("words", {"vocabulary": 2, "pairs": 5}, r"at most vocabulary \*\* letters = 4, got 5"),
        ("words", {"pairs": 3}, "queries of the task 'words' must be at most pairs = 3, got 4"),
    ],
)
def test_what_cannot_be_is_refused(kind, options, message):
    with pytest.raises(UserError, match=message):
        make_task(kind, **options)
