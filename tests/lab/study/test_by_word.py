"""Losses by position, place in the word, repetition and rarity, on texts small enough to count by hand."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")
pytest.importorskip("transformers")

from syncattn.models import OSNConfig, OSNForCausalLM, TransformerConfig, TransformerForCausalLM
from syncattn.training.errors import UserError
from syncattn.training.tokenizers import byte_tokenizer
from syncattn.training.windows import EvaluationWindows
from syncattn_lab.study import by_word

TEXT = b"a cat, a cat sat on the mat. A cats sat\nthe end"
SIZES = {"vocab_size": 256, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def labels(sorting):
    """The name of each byte's class, in one list."""
    return [None if label < 0 else sorting.names[label] for label in sorting.labels.ravel()]


def test_words_know_where_they_begin_and_came_before():
    words = by_word.words_of(TEXT, b"cat cat the sat_ cats")
    at = TEXT.rindex(b"sat")
    assert words.start[at : at + 3].tolist() == [at] * 3 and words.start[at + 3] == -1
    assert words.before[at] == TEXT.index(b"sat") and words.before[TEXT.index(b"sat")] == -1
    assert words.before[TEXT.index(b"cats")] == -1  # another word than "cat"
    assert [words.known[TEXT.index(word)] for word in (b"cat", b"the", b"sat", b"mat")] == [2, 1, 1, 0]
    assert words.known[1] == -1 and words.space[TEXT.index(b"\n")] and not words.space[5]


def test_each_byte_is_in_one_class_of_position_and_place():
    windows = EvaluationWindows(torch.frombuffer(bytearray(TEXT), dtype=torch.uint8), 24)
    position, place, repeated, rare, both, rest = by_word.sortings(by_word.words_of(TEXT, TEXT), windows)
    assert position.labels.shape == (2, 23) and set(labels(position)) == {"1 to 15", "16 to 23"}
    first = labels(place)[: len(", a cat sat on the") + 5]
    assert first[:6] == [
        "space or line's end",
        "first byte",
        "second",
        "third",
        "other sign",
        "space or line's end",
    ]
    # the second window begins at byte 23, the end of "the"; its "sat" came before, but not in it
    second = labels(repeated)[23:]
    assert labels(repeated)[: len(TEXT[1:24])].count("1 to 23 bytes back") == 4  # "a", "cat"
    assert second[TEXT.rindex(b"sat") - 24] == "first in the window"
    assert labels(rare)[1] == "1 to 9 ×" and labels(both)[1] == "1 to 9 ×, first in the window"
    assert labels(rest)[7:12] == [None, "first byte, repeated"] + ["later bytes, repeated"] * 2 + [None]


def test_a_word_that_the_window_cuts_is_neither_first_nor_repeated():
    windows = EvaluationWindows(torch.frombuffer(bytearray(b"xx abcdef abcdef"), dtype=torch.uint8), 6)
    found = by_word.sortings(by_word.words_of(b"xx abcdef abcdef", b""), windows)[2]
    assert windows.starts == [0, 5, 10]
    assert labels(found)[5:10] == ["began before it"] * 3 + [None, "first in the window"]
    assert labels(found)[10:] == ["first in the window"] * 5


def test_parts_add_up_to_the_difference():
    random = np.random.default_rng(0)
    windows = EvaluationWindows(torch.frombuffer(bytearray(TEXT), dtype=torch.uint8), 12)
    ours, theirs = random.random((len(windows), 11)), random.random((len(windows), 11))
    for sorting in by_word.sortings(by_word.words_of(TEXT, TEXT), windows)[:2]:
        rows = by_word.rows_of(sorting, ours, theirs)
        assert sum(row.bytes for row in rows) == ours.size
        assert sum(row.part for row in rows) == pytest.approx(ours.mean() - theirs.mean())
        assert all(row.part == pytest.approx(row.difference * row.bytes / ours.size) for row in rows)
        assert all(row.error >= 0 for row in rows)


def test_two_models_are_compared_and_told_of():
    torch.manual_seed(0)
    shared = {**SIZES, "max_position_embeddings": 32}
    models = [OSNForCausalLM(OSNConfig(**shared)), TransformerForCausalLM(TransformerConfig(**shared))]
    text = TEXT * 8
    found = by_word.compare([model.eval() for model in models], text, TEXT, 32)
    (row,) = found[0][1]
    ids = torch.tensor([list(text[:32])])
    loss = by_word.losses_of(models[0], EvaluationWindows(ids[0], 32))
    torch.testing.assert_close(
        float(loss.mean()), models[0](input_ids=ids, labels=ids).loss.item(), rtol=1e-5, atol=0
    )
    assert row.bytes == 31 * (len(text) // 31) and row.losses[0] != row.losses[1]
    fewer = by_word.compare(models, text, TEXT, 32, most=100)
    assert fewer[0][1][0].bytes == 3 * 31
    page = "\n".join(by_word.tables_of(found, ["OSN", "Transformer"]))
    assert "| position in the window | bytes | share | OSN | Transformer |" in page and "(100 %)" in page
    assert by_word.picture(found, ["OSN", "Transformer"]).startswith(b"\x89PNG")
    with pytest.raises(UserError, match="length must be from 2"):
        by_word.compare(models, text, TEXT, len(text) + 1)
    with pytest.raises(UserError, match="two models, got 1"):
        by_word.compare(models[:1], text, TEXT, 32)


def test_the_script_writes_a_page_and_its_picture_or_nothing(tmp_path, monkeypatch, capsys):
    script = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "scale" / "words.py"))
    torch.manual_seed(0)
    shared = {**SIZES, "max_position_embeddings": 32}
    models = {
        "a": OSNForCausalLM(OSNConfig(**shared)),
        "b": TransformerForCausalLM(TransformerConfig(**shared)),
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        byte_tokenizer(32).save_pretrained(tmp_path / name)
    (tmp_path / "text.txt").write_bytes(TEXT * 8)
    folders = [str(tmp_path / name) for name in models]
    given = [
        "words.py",
        *folders,
        "--text",
        str(tmp_path / "text.txt"),
        "--training",
        str(tmp_path / "text.txt"),
    ]
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(
        "sys.argv", [*given, "--out", str(tmp_path / "out" / "page.md"), "--titles", "A", "B"]
    )
    assert script["main"]() == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["page.md", "page.png"]
    page = (tmp_path / "out" / "page.md").read_text()
    assert "words.py a b --text text.txt" in page and "(page.png)" in page and str(tmp_path) not in page
    monkeypatch.setattr("sys.argv", [*given, "--out", str(tmp_path / "out" / "page.txt")])
    assert script["main"]() == 1 and "--out must be a .md" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", [*given, "--out", str(tmp_path / "out" / "new.md"), "--context", "9999"])
    assert script["main"]() == 1 and "length must be from 2" in capsys.readouterr().err
    assert len(list((tmp_path / "out").iterdir())) == 2
