"""Toy sizes: nothing here looks at a time."""

from dataclasses import replace

import pytest

pytest.importorskip("typer")
pytest.importorskip("transformers")

from rich.console import Console

from syncattn.bench import figures, memory
from syncattn.bench.plan import SUITES, BenchPlan
from syncattn.bench.run import run


@pytest.fixture
def plan() -> BenchPlan:
    return BenchPlan(
        suites=("table",),
        threads=(1,),
        rounds=2,
        budget=5.0,
        tokens=96,
        heads=4,
        head_dim=16,
        freq_dim=4,
        densities=(0.95, 0.1),
        window=16,
        token_sweep=(32, 64),
        memory_sweep=(64,),
        freq_sweep=(2, 16),
        freq_tokens=64,
        scaling=(64, 128),
        decode_keys=(64,),
        generation_keys=(32,),
        generation_batches=(2,),
        generation_size=(16, 1, 2),
        gpu_tokens=(64, 128),
        gpu_cache=(64,),
        gpu_generation_keys=(32,),
        gpu_generation_batches=(2,),
        gpu_generation_size=(16, 1, 2),
        gpu_heads=2,
        gpu_window=16,
        length_tokens=(32,),
        model_tokens=(32,),
        counting_tokens=(48,),
        model_sizes=((16, 1, 2),),
        step_tokens=64,
        check_rows=8,
    )


@pytest.fixture
def bench(tmp_path, monkeypatch, plan):
    """Runs suites of the toy plan; returns the exit status and the folder. Memory takes no processes."""
    monkeypatch.setattr(memory, "peak_bytes", lambda case, *rest: 1000 * case["tokens"])

    def go(*suites, **changes):
        changed = replace(plan, suites=suites, **changes)
        if len(suites) < len(SUITES):
            monkeypatch.setattr(figures, "FIGURES", {})  # they take the longest
        return run(changed, tmp_path / "out", Console(width=150, quiet=True)), tmp_path / "out"

    return go
