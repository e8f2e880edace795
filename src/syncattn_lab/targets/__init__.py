"""What the project wants of its kernels, and what a record of `syncattn bench` says about it."""

from __future__ import annotations

from typing import Any

from syncattn_lab.targets import cpu, gpu


def assess(record: dict[str, Any]) -> dict[str, Any]:
    """Rows and bounds, as `syncattn.bench.targets.judged` wants them."""
    return {"rows": cpu.rows(record) + gpu.rows(record), "bounds": cpu.bounds(record)}
