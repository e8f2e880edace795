"""Tokenisers: exact round trips, saved and loaded without a network."""

import pytest
import torch
from transformers import AutoTokenizer

from syncattn.training.errors import UserError
from syncattn.training.tokenizers import (
    UNKNOWN,
    byte_tokenizer,
    char_tokenizer,
    encode,
    is_byte_tokenizer,
    load_tokenizer,
    make_tokenizer,
    token_labels,
)

TEXT = "  héllo,\n\tworld \r\n\n漢字 😀 don't  <unk> </s> [PAD] ## ▁x Ġy \ufffd . , !  "


@pytest.mark.parametrize("kind", ["byte", "char"])
def test_round_trip_is_exact_before_and_after_saving(kind, tmp_path):
    tokenizer = make_tokenizer(kind, TEXT, 64)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    for each in (tokenizer, loaded):
        ids = encode(each, TEXT)
        assert ids.dtype == (torch.uint8 if kind == "byte" else torch.int32)
        assert each.decode(ids.tolist()) == TEXT
        assert each(TEXT)["input_ids"] == ids.tolist()


@pytest.mark.parametrize("kind", ["byte", "char"])
def test_no_text_has_no_tokens(kind):
    ids = encode(make_tokenizer(kind, "abc"), "")
    assert ids.shape == (0,) and ids.dtype == (torch.uint8 if kind == "byte" else torch.int32)


def test_token_i_is_byte_i():
    tokenizer = byte_tokenizer()
    assert len(tokenizer) == 256 and is_byte_tokenizer(tokenizer)
    assert encode(tokenizer, TEXT).tolist() == list(TEXT.encode())


def test_every_byte_of_utf8_makes_the_round_trip():
    text = "".join(map(chr, [*range(0x250), 0x7FF, 0x800, 0xFFFF, 0x10000, 0x10FFFF]))
    tokenizer = byte_tokenizer()
    ids = tokenizer(text)["input_ids"]
    assert ids == list(text.encode()) and tokenizer.decode(ids) == text


def test_characters_that_the_text_did_not_have_are_unknown():
    tokenizer = char_tokenizer("abc")
    assert tokenizer.get_vocab() == {UNKNOWN: 0, "a": 1, "b": 2, "c": 3}
    assert tokenizer("axb")["input_ids"] == [1, 0, 2] and tokenizer.unk_token_id == 0
    assert not is_byte_tokenizer(tokenizer)


def test_long_text_is_encoded_in_pieces(monkeypatch):
    monkeypatch.setattr("syncattn.training.tokenizers._CHUNK", 7)
    tokenizer = char_tokenizer(TEXT)
    assert tokenizer.decode(encode(tokenizer, TEXT * 3).tolist()) == TEXT * 3


def test_any_other_tokenizer_loads_from_a_path(tmp_path):
    char_tokenizer("abc").save_pretrained(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        assert make_tokenizer(str(path), "", 8)("cab")["input_ids"] == [3, 1, 2]


def test_what_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match="no tokenizer at"):
        make_tokenizer("bert-base-uncased", "")
    (tmp_path / "tokenizer.json").write_text("{ not json")
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        with pytest.raises(UserError, match=r"cannot read .*tokenizer\.json"):
            load_tokenizer(path)
    (tmp_path / "tokenizer.json").write_text("{}")
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        with pytest.raises(UserError, match="cannot load a tokenizer"):
            load_tokenizer(path)


def test_labels_of_tokens_are_visible():
    tokenizer = byte_tokenizer()
    assert token_labels(tokenizer, list(b"a \n\t\x00$")) == ["a", "␣", "↵", "⇥", "·", "$"]
    assert all(token_labels(tokenizer, list("é".encode())))
