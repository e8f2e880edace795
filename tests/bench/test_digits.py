"""benchmarks/tasks/digits.py: the images are the study's, and the script runs."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "tasks" / "digits.py"


@pytest.fixture
def digits(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return runpy.run_path(str(SCRIPT), run_name="digits")


def test_images_are_the_studys(digits):
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = digits["images"]("test")
    assert x.shape[1:] == (1, 8, 8) and len(x) == len(y) == 269
    known = torch.tensor(data.images, dtype=torch.float32).flatten(1) / 8 - 1
    nearest = torch.cdist(x.flatten(1), known)
    assert nearest.amin(1).max() == 0
    assert (torch.tensor(data.target)[nearest.argmin(1)] == y).all()
    assert len(digits["images"]("validation")[0]) == 269


def test_the_vit_has_no_fewer_parameters(digits):
    for form in digits["FORMS"]:
        osn, vit = (
            sum(p.numel() for p in digits["build"](name, form).parameters()) for name in ("osn", "vit")
        )
        assert osn <= vit <= 1.03 * osn


def test_the_script_resumes_and_writes_its_page(digits, tmp_path, monkeypatch):
    main = digits["main"]
    main.__globals__.update(RATES=(0.01,), BATCH=4)
    arguments = [
        "digits.py",
        "--out",
        str(tmp_path),
        "--steps",
        "2",
        "--seeds",
        "0",
        "1",
        "--forms",
        "patches",
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    for _ in range(2):
        main()
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert len(lines) == len({line["key"] for line in lines}) == 4
    page = (tmp_path / "README.md").read_text()
    assert "| patches | OSN | 93,270 |" in page and "| patches | ViT |" in page
