"""The split by file, and the larger body of text that is made with it, from wheels made up here."""

import hashlib
import importlib.util
import json
import sys
import zipfile
from pathlib import Path

import pytest

from syncattn_lab.study.held_out import PARTS, joined, split_files

ROOT = Path(__file__).parents[3]


def lines(name, count=20):
    return "".join(f"the line {i} of {name}, which is long enough\n" for i in range(count)).encode()


def test_the_order_of_the_files_does_not_matter_and_equal_ones_are_taken_once():
    files = [lines(number) for number in range(100)]
    parts, left_out = split_files([*files, files[3]])
    assert {name: len(parts[name]) for name in PARTS} == {"train": 90, "validation": 5, "test": 5}
    assert left_out["equal to another"] == 1 and sum(left_out.values()) == 1
    assert joined(split_files(files[::-1])[0]) == joined(parts)


def test_copies_are_left_out_of_training_only_if_that_is_asked_for():
    files = [lines(number, count) for number in range(100) for count in (20, 19)]
    every, left_out = split_files(files)
    assert len(every["train"]) == 180 and "mostly in another" not in left_out
    once, left_out = split_files(files, most_copied=0.5)
    assert len(once["train"]) + left_out["mostly in another"] == 180 and left_out["mostly in another"] > 70
    seen = [{line for data in once[name] for line in data.split(b"\n") if line} for name in PARTS]
    assert not seen[0] & (seen[1] | seen[2])


@pytest.fixture
def text():
    pytest.importorskip("rich")
    path = ROOT / "benchmarks" / "scale" / "text.py"
    spec = importlib.util.spec_from_file_location("scale_text", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["scale_text"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def sources(tmp_path):
    """Two wheels, in the folder "wheels", and the list that names them."""
    (tmp_path / "wheels").mkdir()
    listed = [
        'suffixes = [".py"]\nwithout = ["_vendor"]\nlargest = 5000\nlongest_lines = 120\nmost_copied = 0.5\n'
    ]
    for name, numbers in (("one", range(30)), ("two", range(25, 60))):
        path = tmp_path / "wheels" / f"{name}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            for number in numbers:
                wheel.writestr(f"{name}/m{number}.py", lines(number).replace(b"\n", b"\r\n"))
            wheel.writestr(f"{name}/_vendor/other.py", lines("somebody else"))
            wheel.writestr(f"{name}/large.py", lines("large", 500))
            wheel.writestr(f"{name}/latin.py", b"# caf\xe9\n")
            wheel.writestr(f"{name}/data.py", b"x = '" + b"0" * 300 + b"'\n")
            wheel.writestr(f"{name}-1.0.dist-info/x.py", lines("not source"))
            wheel.writestr(f"{name}/notes.txt", lines("notes"))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        listed.append(
            f'[[package]]\nname = "{name}"\nversion = "1.0"\nlicence = "MIT"\nfile = "{path.name}"\n'
            f'sha256 = "{digest}"\n'
        )
    (tmp_path / "sources.toml").write_text("\n".join(listed))
    return tmp_path / "sources.toml"


def test_the_text_is_described_and_made_again_the_same(text, sources, tmp_path):
    about = text.make(sources, tmp_path / "wheels", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "source.json").read_text()) == about
    assert about["files"] == {"train": 54, "validation": 3, "test": 3}
    assert about["left_out"]["equal to another"] == 5
    assert about["left_out"]["too large, not UTF-8, of others or data"] == 8
    assert [package["licence"] for package in about["packages"]] == ["MIT", "MIT"]
    for name in PARTS:
        data = (tmp_path / "out" / f"source.{name}.txt").read_bytes()
        assert hashlib.sha256(data).hexdigest() == about["sha256_of"][name] and b"\r" not in data
        assert len(data) == about["bytes"][name] and b"somebody" not in data and b"large" not in data
    assert text.make(sources, tmp_path / "wheels", tmp_path / "again") == about


def test_what_cannot_be_fetched_or_read_leaves_no_text(text, sources, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(text.subprocess, "run", lambda *given, **how: type("Failed", (), {"returncode": 1}))
    damaged = tmp_path / "wheels" / "two-1.0-py3-none-any.whl"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    monkeypatch.setattr(
        sys, "argv", ["text.py", str(tmp_path / "out"), "--sources", str(sources), "--wheels"]
    )
    sys.argv.append(str(tmp_path / "wheels"))
    assert text.main() == 1
    assert "could not fetch two==1.0" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())
    sources.write_text(sources.read_text().replace('"two-1.0', '"../two-1.0'))
    with pytest.raises(text.UserError, match="a name without folders"):
        text.read_sources(sources)
    sources.write_text("suffixes = []\n")
    with pytest.raises(text.UserError, match="expected suffixes, without"):
        text.read_sources(sources)
