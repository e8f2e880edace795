"""The synthetic tasks: what a window holds, that answers are determined, that streams repeat and differ."""

import subprocess
import sys

import pytest
import torch

pytest.importorskip("transformers")

from syncattn.training.errors import UserError
from syncattn_lab.study.synthetic import TASK_KINDS, make_task

SMALL = {
    "recall": {"vocabulary": 16, "pairs": 3, "length": 20},
    "induction": {"vocabulary": 6, "length": 12},
    "copy": {"vocabulary": 5, "symbols": 4, "gap": 3},
    "digits": {},
    "mqar": {"vocabulary": 16, "pairs": 3, "length": 20},
    "selective": {"vocabulary": 5, "symbols": 4, "length": 9},
    "reverse": {"vocabulary": 5, "symbols": 4},
    "sort": {"vocabulary": 5, "symbols": 4},
    "count": {"vocabulary": 5, "length": 20, "most": 4},
    "words": {"vocabulary": 3, "pairs": 5, "letters": 2, "queries": 2},
}
UNWRITTEN = ("mqar", "count")  # whose answers are asked for and do not stand in the window


def small(kind):
    if kind == "digits":
        pytest.importorskip("sklearn")
    return make_task(kind, **SMALL[kind])


def stacked(task, part="train", count=300, seed=0):
    windows = task.windows(part, count, seed)
    items = [windows[i] for i in range(len(windows))]
    return torch.stack([item["input_ids"] for item in items]), torch.stack([item["labels"] for item in items])


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_labels_are_the_inputs_at_the_answers_and_ignored_elsewhere(kind):
    task = small(kind)
    ids, labels = stacked(task)
    answers = labels != -100
    assert ids.shape == labels.shape == (300, task.length) and ids.dtype == labels.dtype == torch.int64
    assert kind in UNWRITTEN or torch.equal(ids[answers], labels[answers])
    assert labels[answers].min() >= 0 and labels[answers].max() < task.vocab_size
    assert not answers[:, 0].any()  # nothing stands before it
    assert len(set(answers.sum(1).tolist())) == 1  # so that a mean over windows is one over answers
    assert ids.min() >= 0 and ids.max() < task.vocab_size


def test_recall_asks_for_every_key_once_after_the_pairs():
    task = small("recall")
    ids, labels = stacked(task)
    for row, label in zip(ids.tolist(), labels.tolist()):
        pairs = dict(zip(row[0:6:2], row[1:6:2], strict=True))
        assert len(pairs) == len(set(pairs.values())) == 3
        assert all(1 <= key < 8 for key in pairs) and all(8 <= value < 16 for value in pairs.values())
        places = [place for place, answer in enumerate(label) if answer != -100]
        assert {row[place - 1]: row[place] for place in places} == pairs
        assert all(place % 2 == 1 and place > 6 for place in places)
        queries = {place - 1 for place in places}
        assert all(row[i] == 0 for i in range(6, 20) if i not in queries and i - 1 not in queries)


def test_recall_prefers_short_gaps_as_the_power_law_says():
    task = make_task("recall", vocabulary=8, pairs=1, length=20)
    _, labels = stacked(task, count=20_000)
    slots = ((labels != -100).nonzero()[:, 1] - 3) // 2
    law = torch.arange(1, 10, dtype=torch.float64) ** (0.01 - 1)
    share = torch.bincount(slots, minlength=9) / 20_000
    assert torch.allclose(share.double(), law / law.sum(), atol=0.012)


def test_recall_may_fill_the_window_and_use_all_keys():
    ids, labels = stacked(make_task("recall", vocabulary=10, pairs=4, length=16))
    assert ((labels != -100).sum(1) == 4).all() and (ids != 0).all()


def test_induction_answers_with_what_followed_the_special_token():
    task = small("induction")
    ids, labels = stacked(task)
    assert task.vocab_size == 6 and task.length == 13
    places = set()
    for row, label in zip(ids.tolist(), labels.tolist()):
        assert row.count(5) == 2 and row[-2] == 5
        place = row.index(5)
        assert row[-1] == row[place + 1] == label[-1] and set(label[:-1]) == {-100}
        places.add(place)
    assert places == set(range(10))


def test_copy_repeats_the_symbols_after_the_marker():
    task = small("copy")
    ids, labels = stacked(task)
    assert task.vocab_size == 7 and task.length == 12
    assert ids[:, :4].max() == 4
    assert (ids[:, 4:7] == 5).all() and (ids[:, 7] == 6).all()
    assert torch.equal(ids[:, 8:], ids[:, :4])
    assert torch.equal(labels[:, 8:], ids[:, :4]) and (labels[:, :8] == -100).all()


def test_digits_are_split_by_class_and_share_no_image():
    task = small("digits")
    validation, test = (stacked(task, part, count=1)[0] for part in ("validation", "test"))
    train = {tuple(row) for row in stacked(task, count=20_000)[0].tolist()}
    assert task.vocab_size == 27 and task.length == 65
    assert len(validation) == len(test) == 269
    for part in (validation, test):
        assert part[:, :64].max() <= 16 and part[:, 64].min() == 17 and part[:, 64].max() == 26
        per_class = torch.bincount(part[:, 64] - 17, minlength=10)
        assert per_class.min() >= 25 and per_class.max() <= 28
        assert not {tuple(row) for row in part.tolist()} & train
    assert len(train) == 1797 - 2 * 269
    again, _ = stacked(task, "test", count=7, seed=3)
    assert torch.equal(again, test)


@pytest.mark.parametrize("kind", [kind for kind in TASK_KINDS if kind != "digits"])
def test_a_window_depends_on_task_part_seed_and_index_alone(kind):
    task = small(kind)
    ids, _ = stacked(task, count=600)
    assert torch.equal(ids, stacked(small(kind), count=600)[0])
    assert torch.equal(ids[:10], stacked(task, count=10)[0])
    windows = task.windows("train", 600, 0)
    assert torch.equal(windows[599]["input_ids"], ids[599]) and torch.equal(windows[3]["input_ids"], ids[3])
    for part, seed in (("train", 1), ("validation", 0), ("test", 0)):
        assert not torch.equal(ids[:10], stacked(task, part, 10, seed)[0])
    assert not torch.equal(ids[:256], ids[256:512])
    with pytest.raises(IndexError):
        windows[600]


def test_another_process_draws_the_same_windows():
    code = (
        "from syncattn_lab.study.synthetic import make_task;"
        "print(make_task('recall', pairs=2, length=12, vocabulary=8)"
        ".windows('test', 300, 5)[299]['input_ids'].tolist())"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    task = make_task("recall", vocabulary=8, pairs=2, length=12)
    assert printed.strip() == str(task.windows("test", 300, 5)[299]["input_ids"].tolist())


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("recal", {}, "kind must be one of recall, induction, copy, digits, .*, got 'recal'"),
        ("recall", {"pair": 2}, "no option 'pair'.*did you mean pairs"),
        ("digits", {"length": 3}, "no option 'length': it has none"),
        ("recall", {"pairs": 0}, "pairs of the task 'recall' must be a positive integer, got 0"),
        ("recall", {"pairs": True}, "positive integer"),
        ("copy", {"gap": 2.5}, "gap of the task 'copy' must be a positive integer, got 2.5"),
        ("recall", {"pairs": 4, "vocabulary": 8}, r"at least 2 \* pairs \+ 2 = 10, got 8"),
        ("recall", {"vocabulary": 63}, "must be even"),
        ("recall", {"pairs": 4, "length": 14}, r"at least 4 \* pairs = 16, got 14"),
        ("recall", {"length": 65}, "must be even"),
        ("induction", {"length": 2}, "at least 3, got 2"),
        ("induction", {"vocabulary": 2}, "at least 3, got 2"),
        ("copy", {"vocabulary": 1}, "at least 2, got 1"),
    ],
)
def test_what_cannot_be_is_refused(kind, options, message):
    with pytest.raises(UserError, match=message):
        make_task(kind, **options)


def test_windows_refuse_an_unknown_part_and_no_windows():
    task = small("copy")
    with pytest.raises(UserError, match="part must be one of train, validation, test, got 'eval'"):
        task.windows("eval", 3, 0)
    with pytest.raises(UserError, match="count must be at least 1, got 0"):
        task.windows("train", 0, 0)


def test_digits_without_scikit_learn_say_how_to_install_it(monkeypatch):
    from syncattn_lab.study.synthetic import _digit_parts

    _digit_parts.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"needs scikit-learn.*syncattn\[study\]"):
        make_task("digits")
