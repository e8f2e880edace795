"""benchmarks/tasks/shapes.py: the shapes are what they are called, and the script runs."""

import json
import math
import runpy
import sys
from pathlib import Path

import pytest
import torch

TASKS = Path(__file__).parents[2] / "benchmarks" / "tasks"


@pytest.fixture
def shapes(monkeypatch):
    monkeypatch.syspath_prepend(str(TASKS))
    return runpy.run_path(str(TASKS / "shapes.py"), run_name="shapes")


def test_points_lie_on_their_shape_and_evenly(shapes):
    at = {
        name: shapes["sampled"](name, 20_000, torch.Generator().manual_seed(0)) for name in shapes["SHAPES"]
    }
    x, y, z = at["torus"].T
    torch.testing.assert_close((torch.hypot(x, y) - 1).square() + z.square(), torch.full((20_000,), 0.16))
    torch.testing.assert_close(at["cube"].abs().amax(1), torch.ones(20_000))
    torch.testing.assert_close(at["sphere"].norm(dim=1), torch.ones(20_000))
    torch.testing.assert_close(at["coil"][:, :2].norm(dim=1), torch.ones(20_000))
    assert at["ball"].norm(dim=1).pow(3).mean() == pytest.approx(0.5, abs=0.01)
    # Shares of area: a torus's outer half, a cylinder's ends, a cone's base.
    assert (torch.hypot(x, y) > 1).float().mean() == pytest.approx(0.5 + 0.4 / math.pi, abs=0.01)
    assert (at["cylinder"][:, 2].abs() == 1).float().mean() == pytest.approx(1 / 3, abs=0.01)
    assert (at["cone"][:, 2] == 0).float().mean() == pytest.approx(1 / (1 + math.sqrt(5)), abs=0.01)
    corners = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    torch.testing.assert_close((at["tetrahedron"] @ corners.T).amin(1), torch.full((20_000,), -1.0))


def test_size_and_place_say_nothing(shapes):
    places, which = shapes["clouds"](64, 512, torch.Generator().manual_seed(0))
    assert places.mean(1).abs().max() < 0.05
    spread = places.square().sum(2).mean(1).sqrt()
    assert spread.min() > 0.75 and spread.max() < 1.35
    assert set(which.tolist()) == set(range(len(shapes["SHAPES"])))


def test_the_script_resumes_and_writes_its_page(shapes, tmp_path, monkeypatch):
    main = shapes["main"]
    main.__globals__.update(TESTED=(16, 32), POINTS=16, BATCH=2, TESTS=16, RATES=(0.01,))
    arguments = ["shapes.py", "--out", str(tmp_path), "--steps", "2", "--seeds", "0", "1"]
    monkeypatch.setattr(sys, "argv", arguments)
    for _ in range(2):
        main()
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert len(lines) == len({line["key"] for line in lines}) == 4
    assert lines[0]["parameters"] == lines[1]["parameters"]
    page = (tmp_path / "README.md").read_text()
    assert "| 16 points | 32 points |" in page and "| OSN | 0.01 | 1 | yes |" in page
