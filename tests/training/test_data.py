"""Corpora: what is read, what is refused, how it is split and cut into windows."""

import pytest
import torch

from syncattn.training.data import (
    BUILT_IN,
    Corpus,
    EvaluationWindows,
    RandomWindows,
    encode_corpus,
    load_corpus,
    split_documents,
)
from syncattn.training.errors import UserError


def count_tokens(text: str) -> torch.Tensor:
    return torch.arange(len(text), dtype=torch.int32)


def test_a_file_is_split_by_position_and_nothing_is_lost(tmp_path):
    text = "".join(f"line {i}\r\n" for i in range(1000))
    path = tmp_path / "text.anything"
    path.write_bytes(text.encode())
    corpus = load_corpus([path])
    assert corpus.train + corpus.validation + corpus.test == text
    assert 0.85 < len(corpus.train) / len(text) < 0.95
    assert 0.03 < len(corpus.validation) / len(text) < 0.07
    assert corpus.train.endswith("\n")
    assert corpus.sources == (str(path),)


def test_a_folder_reads_text_by_extension_and_says_what_it_leaves_out(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.md").write_text("first")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "c.py").write_text("third")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\x00")
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / "empty.txt").write_text("")
    corpus = load_corpus([tmp_path])
    whole = corpus.train + corpus.validation + corpus.test
    assert whole == "first\nsecond\nthird"
    (note,) = corpus.notes
    assert "3 files" in note and "1 .png" in note and "1 hidden" in note and "1 empty" in note


def test_documents_are_split_stratified_by_length():
    documents = [f"{i:04d}" + "x" * (i * i) for i in range(100)]
    parts = split_documents(documents)
    held = [{line[:4] for line in part.split("\n")} for part in parts]
    assert [len(names) for names in held] == [90, 5, 5]
    assert set.union(*held) == {d[:4] for d in documents}
    for part in parts[1:]:
        assert 0.02 < len(part) / sum(map(len, documents)) < 0.1


def test_a_few_documents_are_split_by_position():
    train, validation, test = split_documents(["a" * 1000, "b" * 1000])
    assert train + validation + test == "a" * 1000 + "\n" + "b" * 1000
    assert set(validation) == set(test) == {"b"}


def test_specs_are_concatenated_part_by_part(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name * 1000)
    corpus = load_corpus([tmp_path / "a", tmp_path / "b"])
    for part in (corpus.train, corpus.validation, corpus.test):
        first, second = part.split("\n")
        assert set(first) == {"a"} and set(second) == {"b"}


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_built_in_corpora_are_the_same_every_time(name):
    corpus, again = load_corpus([name]), load_corpus([name])
    assert corpus == again and corpus.sha256 == again.sha256
    total = len(corpus.train) + len(corpus.validation) + len(corpus.test)
    assert total > 200_000
    for part in (corpus.validation, corpus.test):
        assert 0.03 < len(part) / total < 0.07
    assert name in corpus.notes[0]


def test_pydoc_does_not_repeat_itself():
    corpus = load_corpus(["pydoc"])
    trained_on = {" ".join(p.split()) for p in corpus.train.split("\n\n") if len(p) > 200}
    for part in (corpus.validation, corpus.test):
        assert not trained_on & {" ".join(p.split()) for p in part.split("\n\n")}


def test_max_chars_caps_the_whole(tmp_path):
    (tmp_path / "a").write_text("a" * 600)
    (tmp_path / "b").write_text("b" * 600)
    corpus = load_corpus([tmp_path / "a", tmp_path / "b"], max_chars=1000)
    whole = corpus.train + corpus.validation + corpus.test
    assert whole.count("a") == 600 and whole.count("b") == 400
    with pytest.raises(UserError, match="max_chars"):
        load_corpus([tmp_path / "a"], max_chars=0)


def test_bad_specs_are_refused_with_the_file_and_the_place(tmp_path):
    empty, binary, latin = (tmp_path / name for name in ("empty.txt", "binary.txt", "latin.txt"))
    empty.write_bytes(b"")
    binary.write_bytes(b"abc\x00def")
    latin.write_bytes(b"caf\xe9 au lait")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"png")
    cases = {
        "empty.txt is empty": [empty],
        r"binary.txt is binary, not text: NUL byte at offset 3": [binary],
        r"latin.txt is not UTF-8: byte 0xe9 at offset 3": [latin],
        "no file or folder named": [tmp_path / "missing.txt"],
        r"no text in the folder .*1 \.png": [tmp_path / "pictures"],
        "no text given": [],
    }
    for message, specs in cases.items():
        with pytest.raises(UserError, match=message):
            load_corpus(specs)
    with pytest.raises(UserError, match=r"binary.txt is binary"):
        load_corpus([tmp_path])  # a bad file in a folder is not passed over


def test_other_encodings_are_named(tmp_path):
    for encoding in ("utf-16", "utf-32"):
        (tmp_path / "text.txt").write_text("ünïcode", encoding=encoding)
        with pytest.raises(UserError, match=rf"text.txt is {encoding.upper()} .*, expected UTF-8"):
            load_corpus([tmp_path / "text.txt"])


def test_a_text_given_twice_is_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("text")
    (tmp_path / "link.txt").symlink_to(path)
    for specs in ([path, path], [path, tmp_path / "link.txt"], [tmp_path, f"{tmp_path}/."], ["pydoc"] * 2):
        with pytest.raises(UserError, match="is given twice"):
            load_corpus(specs)


def test_a_text_shorter_than_the_context_says_what_it_has_and_needs():
    corpus = Corpus("a" * 900, "b" * 50, "c" * 50, ("x",))
    with pytest.raises(UserError, match=r"1,000 tokens.*validation 50.*at least 64.*about 1,280"):
        encode_corpus(corpus, count_tokens, context=64)
    assert len(encode_corpus(corpus, count_tokens, context=50)["validation"]) == 50


def test_random_windows_depend_on_the_seed_alone():
    tokens = torch.arange(1000, dtype=torch.int32)
    windows, same, other = (RandomWindows(tokens, 10, 50, seed) for seed in (3, 3, 4))
    assert torch.equal(windows.offsets, same.offsets) and not torch.equal(windows.offsets, other.offsets)
    for i in range(50):
        item = windows[i]
        start = int(item["input_ids"][0])
        assert item["input_ids"].tolist() == list(range(start, start + 10))
        assert item["input_ids"].dtype == torch.int64 and torch.equal(item["labels"], item["input_ids"])
    assert len(RandomWindows(tokens[:10], 10, 5, 0)[4]["input_ids"]) == 10


@pytest.mark.parametrize("count", [10, 18, 19, 28, 100])
def test_evaluation_windows_predict_each_token_once(count):
    windows = EvaluationWindows(torch.arange(count, dtype=torch.int32), 10)
    predicted = [token for i in range(len(windows)) for token in windows[i]["labels"][1:].tolist()]
    assert predicted == list(range(1, 1 + (count - 1) // 9 * 9))
    assert windows.predicted == len(predicted)


def test_capped_evaluation_windows_are_spread_over_the_text():
    windows = EvaluationWindows(torch.arange(10_000, dtype=torch.int32), 10, max_tokens=100)
    assert len(windows) == 10
    starts = [int(windows[i]["input_ids"][0]) for i in range(10)]
    assert starts[0] == 0 and starts[-1] > 8900 and starts == sorted(set(starts))
    assert len(EvaluationWindows(torch.arange(10), 10, max_tokens=1)) == 1
