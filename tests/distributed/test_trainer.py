"""`syncattn train` by torchrun on two processes, beside one: the same model and numbers, written once."""

import json
import random
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("typer")

from safetensors.torch import load_file
from typer.testing import CliRunner

TRAINER = Path(__file__).parent / "trainer.py"
# Of 16 tokens a window, the texts give numbers of windows that two processes cannot share equally.
OPTIONS = [
    *("--context", "16", "--batch-size", "4", "--steps", "12", "--log-every", "4", "--eval-every", "6"),
    *("--save-every", "5", "--hidden-size", "24", "--heads", "3", "--layers", "1", "--max-density", ".3"),
    *("--device", "cpu", "--threads", "1"),
]


@pytest.fixture(scope="module")
def runs(run, tmp_path_factory):
    """(the folder of one process's run, of two processes', the two's records, what they printed)."""
    folder = tmp_path_factory.mktemp("trainer")
    sentence = "the oscillator that locks hears what another emits and the phase of each drifts"
    choose = random.Random(0)
    lines = [" ".join(choose.choices(sentence.split(), k=7)) + ".\n" for _ in range(250)]
    (folder / "text.txt").write_text("".join(lines))
    from syncattn.cli.app import app

    alone = ["train", str(folder / "text.txt"), *OPTIONS, "--quiet", "--out", str(folder / "alone")]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "WORLD_SIZE"):
            patch.delenv(name, raising=False)
        result = CliRunner().invoke(app, alone)
    assert result.exit_code == 0, result.output

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    together = ["train", str(folder / "text.txt"), *OPTIONS, "--out", str(folder / "together")]
    printed = run([[*torchrun, str(TRAINER), str(folder), *together]], folder, 100)
    records = [json.loads((folder / f"record-{rank}.json").read_text()) for rank in range(2)]
    return folder / "alone", folder / "together", records, printed[0]


def history(record: dict, name: str) -> list[float]:
    return [entry[name] for entry in record["history"] if name in entry]


def test_one_process_writes(runs):
    alone, together, _, printed = runs
    files = [sorted(p.name for p in folder.iterdir()) for folder in (alone, together)]
    assert files[0] == files[1]
    if (alone / "logs").is_dir():
        assert len(list((together / "logs").iterdir())) == len(list((alone / "logs").iterdir())) == 1
    assert printed.count(f"model in {together}") == 1


def test_the_model_is_that_of_one_process(runs):
    alone, together, _, _ = runs
    expected, found = (load_file(folder / "model.safetensors") for folder in (alone, together))
    assert set(expected) == set(found)
    for name, p in expected.items():
        if not name.endswith("phase_proj.bias"):  # its gradient is rounding, which AdamW makes large
            torch.testing.assert_close(found[name], p, rtol=0, atol=1e-4, msg=name)


def test_both_processes_return_what_the_first_one_wrote(runs):
    _, together, records, _ = runs
    written = json.loads((together / "training.json").read_text())
    for record in records:
        for name in ("loss", "validation_loss", "grad_norm", "density"):
            assert history(record, name) == history(written, name), name
        for name in ("validation_loss", "test_loss", "density", "validation_tokens", "test_tokens"):
            assert record["result"][name] == written["result"][name], name


@pytest.mark.parametrize("name", ["loss", "validation_loss", "grad_norm", "density"])
def test_the_history_is_that_of_one_process(runs, name):
    alone, together, _, _ = runs
    expected, found = (json.loads((folder / "training.json").read_text()) for folder in (alone, together))
    assert len(history(expected, name)) >= 2
    # one pair more or less that locks is .002 of the probe's
    flat = [_flat(history(record, name)) for record in (expected, found)]
    assert flat[1] == pytest.approx(flat[0], rel=1e-5, abs=0.01 if name == "density" else 0)


@pytest.mark.parametrize("part", ["validation", "test"])
def test_windows_that_processes_cannot_share_equally_count_once(runs, part):
    alone, together, _, _ = runs
    expected, found = (
        json.loads((folder / "training.json").read_text())["result"] for folder in (alone, together)
    )
    assert found[f"{part}_tokens"] == expected[f"{part}_tokens"]
    assert found[f"{part}_loss"] == pytest.approx(expected[f"{part}_loss"], rel=1e-5)


def test_a_process_that_comes_late_finds_the_folder_begun(monkeypatch, tmp_path):
    """The first process may have written to --out by the time the second looks."""
    from syncattn.cli.app import app
    from syncattn.training import train as module

    (tmp_path / "text.txt").write_text("all of them lock to the same beat\n" * 50)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text("{}")
    begun = []
    monkeypatch.setattr(module, "train", lambda *args, **kwargs: begun.append(args))
    for rank, expected in (("1", 1), ("0", 0)):
        monkeypatch.setenv("RANK", rank)
        begun.clear()
        arguments = ["train", str(tmp_path / "text.txt"), "--out", str(tmp_path / "out"), "--quiet"]
        result = CliRunner().invoke(app, arguments)
        assert len(begun) == expected, result.output


def _flat(numbers: list) -> list[float]:
    return [x for n in numbers for x in (_flat(n) if isinstance(n, list) else [n])]
