"""Corpora: what is read, what is refused, how it is split and cut into windows."""

import random

import pytest
import torch

from syncattn.training.data import Corpus, encode_corpus, load_corpus, reload_corpus, split_documents
from syncattn.training.errors import UserError
from syncattn.training.texts import BUILT_IN, Reader, read_text
from syncattn.training.windows import EvaluationWindows, RandomWindows


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
    parts, note = split_documents(documents)
    assert list(parts) == ["train", "validation", "test"] and not note
    held = [{line[:4] for line in part.split("\n")} for part in parts.values()]
    assert [len(names) for names in held] == [90, 5, 5]
    assert set.union(*held) == {d[:4] for d in documents}
    for name in ("validation", "test"):
        assert 0.02 < len(parts[name]) / sum(map(len, documents)) < 0.1
    ranks = {int(line[:4]) % 20 for line in parts["test"].split("\n")}
    assert ranks == {19} and split_documents(documents, ["test"])[0]["test"] == parts["test"]


@pytest.mark.parametrize("count", [2, 19])
def test_each_of_a_few_files_is_in_every_part(count, tmp_path):
    """By position over all of them, the last files by name would be another text than the others."""
    for i in range(count):
        (tmp_path / f"{i:02d}.txt").write_text("".join(f"{i:02d} {line}\n" for line in range(400)))
    corpus = load_corpus([tmp_path])
    for part, share in ((corpus.train, 0.9), (corpus.validation, 0.05), (corpus.test, 0.05)):
        lines = [line[:2] for line in part.splitlines() if line]
        counts = [lines.count(f"{i:02d}") for i in range(count)]
        assert all(abs(n - 400 * share) < 20 for n in counts)
    together = sorted(
        line for part in (corpus.train, corpus.validation, corpus.test) for line in part.split()
    )
    assert together == sorted(word for p in tmp_path.iterdir() for word in p.read_text().split())
    (note,) = corpus.notes
    assert "fewer than 20 files, so each is split: its last tenth is for validation and test" in note


@pytest.mark.parametrize("documents", [["first", "second"], ["x" * 100_000, *["y"] * 25]])
def test_where_files_cannot_be_held_out_nor_split_it_is_said(documents):
    parts, note = split_documents(documents)
    assert "".join(parts.values()) == "\n".join(documents)
    assert "the end of the last ones by name is for validation and test, unless" in note


def test_text_of_ones_own_for_validation_and_test(tmp_path):
    names = ("train", "validation", "test")
    texts = {name: "".join(f"{name} {i}\n" for i in range(200)) for name in names}
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    train, validation, test = (str(tmp_path / f"{name}.txt") for name in names)
    corpus = load_corpus([train], validation=validation, test=test)
    assert {name: getattr(corpus, name) for name in names} == texts
    assert reload_corpus(corpus.describe()) == corpus
    assert (corpus.validation_source, corpus.test_source) == (validation, test)
    one = load_corpus(
        [train], 1000, validation=validation
    )  # the other is cut off the text, and the cap its own
    assert one.validation == texts["validation"] and one.train + one.test == texts["train"][:1000]
    assert 30 < len(one.test) < 70 and "for test: the end of the training text" in one.notes[-1]
    folder = load_corpus([tmp_path / "train.txt"], validation=validation, test="pydoc")
    assert len(folder.test) > 100_000 and folder.train == texts["train"]
    for options in ({"validation": train}, {"validation": validation, "test": validation}):
        with pytest.raises(UserError, match="is given twice"):
            load_corpus([train], **options)
    with pytest.raises(
        UserError, match=rf"'{validation}' is given twice \(as '{tmp_path}', too\), the file "
    ):
        load_corpus([tmp_path], validation=validation)


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
        "no file or folder named ''": [""],
        "no file or folder named '~nobody_of_this": ["~nobody_of_this_name/x"],
        r"no text in the folder .*1 \.png": [tmp_path / "pictures"],
        "no text given": [],
    }
    for message, specs in cases.items():
        with pytest.raises(UserError, match=message):
            load_corpus(specs)
    with pytest.raises(UserError, match=r"binary.txt is binary"):
        load_corpus([tmp_path])  # a bad file in a folder is not passed over


def test_all_that_is_wrong_is_named_at_once(tmp_path):
    files = {"a": b"caf\xe9", "b": b"\x00", "c": "ü".encode("utf-16"), "good": b"text " * 50, "e": b""}
    for name, content in files.items():
        (tmp_path / f"{name}.txt").write_bytes(content)
    (tmp_path / "loose.bin").write_bytes(b"\xff")
    (tmp_path / "empty.anything").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    loose, gone, empty = tmp_path / "loose.bin", tmp_path / "gone", tmp_path / "empty.anything"
    (tmp_path / "folder").mkdir()
    for name in files:
        (tmp_path / f"{name}.txt").rename(tmp_path / "folder" / f"{name}.txt")
    specs = [tmp_path / "folder", loose, gone, empty]
    with pytest.raises(UserError, match=r"^7 texts cannot be used; train and compare take --enc") as caught:
        load_corpus(specs, validation=tmp_path / "empty")
    _, *lines = str(caught.value).splitlines()
    expected = ["no file or folder named", "a.txt is not UTF-8: byte 0xe9 at offset 3", "b.txt is binary"]
    expected += [
        "c.txt is UTF-16",
        "loose.bin is not UTF-8",
        "empty.anything is empty",
        "no text in the folder",
    ]
    assert len(lines) == 7 and all(part in line for part, line in zip(expected, lines, strict=True)), lines
    with pytest.raises(
        UserError, match=r"^2 texts cannot be used:"
    ):  # what is no text is left out, not the rest
        load_corpus(specs, skip_undecodable=True)
    corpus = load_corpus([tmp_path / "folder"], skip_undecodable=True)
    assert corpus.train.startswith("text ") and reload_corpus(corpus.describe()) == corpus
    assert all(f"{name}.txt is" in corpus.notes[-1] for name in "abc")
    with pytest.raises(UserError, match=r"nothing is left of a text: .*loose\.bin is not UTF-8"):
        load_corpus([tmp_path / "folder", loose], skip_undecodable=True)


def test_files_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    """Whoever runs the tests may read everything: what reading says is made up."""
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("text")

    def refused(path, *args):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("pathlib.Path.open", refused)
    with pytest.raises(
        UserError, match=r"(?s)2 texts cannot be used:.*a\.txt: Permission.*b\.txt: Permission"
    ):
        load_corpus([tmp_path])
    monkeypatch.setattr("os.scandir", refused)
    with pytest.raises(UserError, match=f"(?s)cannot read {tmp_path}: Permission denied"):
        load_corpus([tmp_path])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32", "latin-1", "cp1252", "utf-16-le"])
def test_every_encoding_can_be_read_and_a_byte_order_mark_is_no_text(encoding, tmp_path):
    text = "déjà vu\r\n" * 100
    mark = "\ufeff" if encoding in ("utf-8", "utf-16-le") else ""
    (tmp_path / "a.txt").write_bytes((mark + text).encode(encoding))
    corpus = load_corpus([tmp_path / "a.txt"], encoding=encoding)
    assert corpus.train + corpus.validation + corpus.test == text
    assert reload_corpus(corpus.describe()) == corpus and corpus.encoding == Reader(encoding).encoding
    if encoding not in ("utf-8", "latin-1", "cp1252", "utf-16-le"):
        with pytest.raises(UserError, match=rf"a.txt is {encoding.upper()} .*, expected UTF-8"):
            load_corpus([tmp_path / "a.txt"])
    capped = load_corpus([tmp_path / "a.txt"], 10, encoding=encoding)
    assert capped.train + capped.validation + capped.test == text[:10] and "its first 10" in capped.notes[0]


def test_bad_encodings_are_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\x80text\x00")
    for name in ("utf-9", "hex", "rot13", "", "a\0b"):
        with pytest.raises(UserError, match=r"encoding must be the name of a text encoding.*got"):
            load_corpus([tmp_path / "a.txt"], encoding=name)
    with pytest.raises(UserError, match="did you mean 'latin_1'"):
        load_corpus([tmp_path / "a.txt"], encoding="latin_one")
    with pytest.raises(UserError, match=r"binary, not cp1252 text: NUL at character 5"):
        load_corpus([tmp_path / "a.txt"], encoding="windows-1252")
    with pytest.raises(UserError, match=r"is not ascii: byte 0x80 at offset 0"):
        load_corpus([tmp_path / "a.txt"], encoding="ascii")


def test_text_larger_than_memory_is_refused_or_capped(tmp_path):
    with (tmp_path / "huge.txt").open("wb") as file:
        file.write(b"some text\n" * 200)
        file.truncate(1 << 42)  # without taking the room
    with pytest.raises(UserError, match=r"the text has 4,096\.0 GiB .* GiB: give less text"):
        load_corpus([tmp_path])
    capped = load_corpus([tmp_path], 100)
    assert capped.train + capped.validation + capped.test == "some text\n" * 10


def test_decoding_is_pythons_own(tmp_path):
    choose = random.Random(0)
    for _ in range(100):
        data = bytes(choose.choices([65, 10, 13, 0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0x80], k=8))
        (tmp_path / "a").write_bytes(data)
        try:
            expected = data.decode("utf-8")
        except UnicodeDecodeError as error:
            with pytest.raises(UserError, match=rf"byte 0x{data[error.start]:02x} at offset {error.start} "):
                read_text(tmp_path / "a")
        else:
            assert read_text(tmp_path / "a") == expected


def test_a_text_given_twice_is_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("text")
    (tmp_path / "link.txt").symlink_to(path)
    with pytest.raises(UserError, match=r"is given twice \(as '.*', too\), the file .*a\.txt: it"):
        load_corpus([tmp_path, path])
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
