"""Output folders: refused in time, and never half-written."""

import errno
import shutil
from collections import namedtuple

import pytest

from syncattn.training import files
from syncattn.training.errors import UserError
from syncattn.training.files import prepare_output, read_json, read_object, staged, write_json


def contents(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_new_folder_is_made_and_left_clean(tmp_path):
    prepare_output(tmp_path / "a" / "b", 1000)
    assert contents(tmp_path / "a" / "b") == []
    prepare_output(tmp_path / "a" / "b", 1000)  # empty is as good as new


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"is not empty.*--resume.*--overwrite"):
        prepare_output(tmp_path, 0)


def test_overwrite_touches_nothing_that_is_not_a_runs(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / "model.safetensors").write_text("old")
    (tmp_path / "training.json").write_text("{}")
    (tmp_path / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    prepare_output(tmp_path, 0, overwrite=True)
    assert contents(tmp_path) == ["model.safetensors", "thesis.txt"]


def test_a_file_is_no_output_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        prepare_output(tmp_path / "file", 0)
    with pytest.raises(UserError, match="cannot write to the output folder"):
        prepare_output(tmp_path / "file" / "below", 0)


def test_an_unwritable_folder_is_found_at_the_start(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files.tempfile, "NamedTemporaryFile", refuse)
    with pytest.raises(UserError, match=r"cannot write to the output folder .*: Permission denied"):
        prepare_output(tmp_path / "out", 0)


def test_a_full_disk_is_found_at_the_start(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 10**6))
    with pytest.raises(UserError, match="full disk: 1 MB are free, and this run needs about 50 MB"):
        prepare_output(tmp_path / "out", 50_000_000)


def test_staged_files_appear_together_or_not_at_all(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyError), staged(tmp_path) as folder:
        (folder / "a").write_text("new")
        raise KeyError
    assert contents(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"
    with staged(tmp_path, last="a") as folder:
        (folder / "a").write_text("new")
        (folder / "sub").mkdir()
        (folder / "sub" / "b").write_text("b")
    assert contents(tmp_path) == ["a", "sub"] and (tmp_path / "a").read_text() == "new"


def test_the_proof_file_moves_last(tmp_path, monkeypatch):
    moved = []
    real = files.os.replace
    monkeypatch.setattr(files.os, "replace", lambda a, b: (moved.append(b.name), real(a, b)))
    with staged(tmp_path, last="b") as folder:
        for name in "cab":
            (folder / name).write_text("")
    assert moved == ["a", "c", "b"]


def test_json_is_written_whole(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    assert read_json(path) == {"a": 1}
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(UserError, match=r"cannot write .*x.json: No space left on device"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1} and contents(tmp_path) == ["x.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": ', "truncated"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": NaN}', "finite, got NaN"),
        ('{"a": -Infinity}', "finite, got -Infinity"),
        ('{"a": 1e999}', "finite, got 1e999"),
        ("9" * 5000, "digits"),
        ("\ufeff{}", "BOM"),
        ("[1]", "must hold a JSON object, got a list"),
        ("null", "must hold a JSON object, got null"),
        (" " * 100_001, "at most 100,000 bytes, got 100,001"),
    ],
)
def test_damaged_json_is_refused(content, message, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(UserError, match=rf"x\.json.*{message}"):
        read_object(path, largest=100_000)


def test_what_is_no_file_is_not_read(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to("circle")
    for name, message in (
        ("missing", f"no missing in {tmp_path}"),
        ("folder", "must be a file, got a folder"),
        ("link", "is a link to nowhere, which is not there"),
        ("circle", "cannot read .*circle: "),
    ):
        with pytest.raises(UserError, match=message):
            read_json(tmp_path / name)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file"),
    ],
)
def test_failed_writes_of_every_library_are_told_as_such(error):
    with pytest.raises(UserError, match="cannot save"), files.disk_errors("cannot save"):
        raise error
    with pytest.raises(ZeroDivisionError), files.disk_errors("cannot save"):
        raise ZeroDivisionError
