"""The scripts in examples/ run, at a small size: each ends with a printed result."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_example(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SYNCATTN_EXAMPLE_STEPS", "3")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.chdir(tmp_path)
    state = torch.random.get_rng_state()
    try:
        runpy.run_path(str(script), run_name="__main__")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("syncattn"):
            raise
        pytest.skip(f"{script.name} needs {error.name}")
    finally:
        torch.random.set_rng_state(state)
    assert capsys.readouterr().out.strip(), f"{script.name} prints no result"
