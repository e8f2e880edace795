"""benchmarks/tasks/points.py: the softmax beside the OSN is what it says, and the script runs."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "tasks" / "points.py"


@pytest.fixture
def points(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return runpy.run_path(str(SCRIPT), run_name="points")


def test_the_rival_is_softmax_of_the_detuning_with_nobody_beside(points):
    torch.manual_seed(0)
    layer = points["Model"]("softmax").base.layers[0].self_attn
    with torch.no_grad():
        layer.nobody.copy_(torch.tensor([-2.0, 0.0, 1.0, 2.0]))
    x, (at, _) = torch.randn(2, 30, 48), points["cloud"](2, 30, torch.Generator().manual_seed(0))
    w = layer.frequency.emit(x, at)
    score = -layer.log_sharpness.exp()[:, None, None] * torch.cdist(w, w).square()
    nobody = layer.nobody[:, None, None].expand(2, 4, 30, 1)
    weights = torch.cat([score, nobody], -1).softmax(-1)[..., :-1]
    value = layer.value_proj(x).unflatten(-1, (4, -1)).transpose(1, 2)
    out = points["turn_values"](weights @ points["turn_values"](value, at, 100.0), -at, 100.0)
    want = layer.out_proj(out.transpose(1, 2).flatten(-2))
    torch.testing.assert_close(layer(x, positions=at)[0], want, rtol=0, atol=1e-4)


def test_both_models_have_as_many_parameters(points):
    sizes = {name: sum(p.numel() for p in points["Model"](name).parameters()) for name in points["TITLES"]}
    assert sizes["osn"] == sizes["softmax"]


def test_the_script_resumes_and_writes_its_page(points, tmp_path, monkeypatch):
    main = points["main"]
    main.__globals__.update(TESTED=(16, 32), LEARNED=16, TIMED={"osn": [50, 100], "softmax": [50]})
    arguments = ["points.py", "--out", str(tmp_path), "--steps", "2", "--seeds", "0", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", arguments)
    for _ in range(2):
        main()
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert len(lines) == len({line["key"] for line in lines}) == 2 * len(points["RATES"]) + 3
    page = (tmp_path / "README.md").read_text()
    assert "| 16 points | 32 points |" in page and (tmp_path / "points.png").stat().st_size
