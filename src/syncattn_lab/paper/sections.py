"""The sections in the ledger's order; each is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module

from syncattn_lab.paper.section import Section

NAMES = (
    "concept",
    "architecture",
    "benchmark",
    "matrices",
    "order",
    "complexity",
    "universality",
    "sparsity",
    "position",
    "closed_form",
    "ode",
)


def section(name: str) -> Section:
    """The section of this name, one of NAMES."""
    return import_module(f"syncattn_lab.paper.{name}.claims").SECTION
