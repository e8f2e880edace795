"""One at a time in a folder, whoever comes and however the other one ends."""

import subprocess
import sys
import threading
import warnings
from dataclasses import replace

import pytest

from syncattn.training import lock
from syncattn.training.compare import compare
from syncattn.training.contenders import contenders
from syncattn.training.errors import UserError
from syncattn.training.lock import locked
from syncattn.training.once import train_once
from syncattn.training.train import resume, train

HOLDER = """
import sys
from pathlib import Path
from syncattn.training.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def another(tmp_path):
    """Another process that has the lock of the folder "run", until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "run"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_lock_of_another_process_is_respected_until_it_dies(
    another, config, corpus, tokenizer, options, tmp_path, unfinished, monkeypatch
):
    run, options = tmp_path / "run", replace(options, steps=1)
    (run / "run.json").write_text((unfinished / "run.json").read_text())
    entrants = contenders(config, ("rotary",), (0.01,))
    before = sorted(tmp_path.rglob("*"))
    calls = [
        lambda: resume(run),
        lambda: resume(run / "checkpoints" / ".."),
        lambda: train(config, corpus, tokenizer, run, options),
        lambda: train(config, corpus, tokenizer, run, options, overwrite=True),
        lambda: train_once(config, corpus, tokenizer, run, options),
        lambda: compare(entrants, corpus, tokenizer, run, options, overwrite=True),
    ]
    (run / "checkpoints").mkdir()
    for call in calls:
        with pytest.raises(UserError, match=f"{run} is in use by process {another.pid} on .*wait until"):
            call()
    (run / "checkpoints").rmdir()
    assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.setenv("RANK", "1")  # of several processes that train together, the first one has the lock
    with locked(run):
        pass
    monkeypatch.delenv("RANK")
    another.kill()
    another.wait()
    assert (run / ".lock").exists()
    train(config, corpus, tokenizer, run, options, overwrite=True)
    assert (run / "training.json").exists() and not (run / ".lock").exists()


def test_the_folder_is_left_as_it_was(tmp_path):
    with locked(tmp_path / "a" / "b"), locked(tmp_path / "a" / "b" / ".." / "b"):
        assert (tmp_path / "a" / "b" / ".lock").exists()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "c").touch()
        1 / 0  # noqa: B018
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "c"]
    with pytest.raises(UserError, match="cannot write to the output folder"), locked(tmp_path / "a" / "c"):
        pass


def test_threads_take_turns(tmp_path):
    seen = []

    def enter():
        try:
            with locked(tmp_path / "run"):
                seen.append("in")
        except UserError:
            seen.append("refused")

    with locked(tmp_path / "run"):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    enter()
    assert seen == ["refused", "in"]


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*args):
        raise OSError(lock.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with locked(tmp_path / "run"):
            pass
    assert "has no locks (No locks available)" in str(told[0].message) and list(tmp_path.iterdir()) == []
