"""The ledger of claims as Markdown: verdicts first, then each claim with its measurements and its command."""

from __future__ import annotations

import math
from typing import Any

from syncattn_lab.paper.judge import HOLDS_IF, VERDICTS, Claim

LEDGER_FILE = "claims.md"


def ledger(found: dict[str, list[Claim]], about: str) -> str:
    """The whole page.

    Args:
        found: each section's claims.
        about: a paragraph on the run: command, machine, versions.
    """
    claims = [(name, claim) for name, several in found.items() for claim in several]
    hold, partly, fail = (sum(c.shown and c.verdict == v for _, c in claims) for v in VERDICTS)
    not_shown = sum(not c.shown for _, c in claims)
    lines = [
        "# The claims ledger",
        "",
        "What *Selective Synchronization Attention* (Hays, arXiv:2602.14445) claims, as far as its "
        "abstract, its statements and its code tell, with a verdict that rests on measurements. Generated: "
        "the numbers below were measured by the run described here, but for those called published A100, "
        "which are the paper's own; every claim names the command that measures it again. Verdicts hang on "
        "counts, bytes and values; times, as median and quartiles of the rounds, are told beside them and "
        "decide nothing.",
        "",
        about,
        "",
        f"{len(claims)} claims: {hold} hold, {partly} hold under a condition, {fail} do not hold"
        + (f", {not_shown} not shown." if not_shown else "."),
        "",
        "| claim | where | verdict |",
        "| --- | --- | --- |",
    ]
    for _, claim in claims:
        lines.append(f"| [{_cell(claim.says)}](#{claim.name}) | {_cell(claim.source)} | {_verdict(claim)} |")
    for name, claim in claims:
        lines += ["", *_entry(name, claim)]
    return "\n".join(lines) + "\n"


def _verdict(claim: Claim) -> str:
    text = "holds under a condition" if claim.verdict == HOLDS_IF else claim.verdict
    return f"**{text}**" if claim.shown else f"not shown ({text} was expected)"


def _entry(section: str, claim: Claim) -> list[str]:
    lines = [
        f"## {claim.name}",
        "",
        f"*{claim.source}:* {claim.says}",
        "",
        f"{_verdict(claim)}. {claim.finding}",
        "",
        "| measured | value | wanted |",
        "| --- | --- | --- |",
    ]
    for check in claim.checks:
        mark = "" if check.met else " **not met**"
        lines.append(f"| {_cell(check.what)} | {number(check.measured)} | {_cell(check.expected)}{mark} |")
    for one in claim.times:
        spread = f"{number(one.median)} ({number(one.low)} to {number(one.high)})"
        lines.append(f"| {_cell(one.what)} | {spread} | a time: decides nothing |")
    return [*lines, "", f"`syncattn paper --section {section} --out DIR`"]


def _cell(text: str) -> str:
    """Text that does not end its cell of a Markdown table."""
    return text.replace("|", "\\|")


def number(value: Any) -> str:
    """A number as the ledger shows it: whole ones whole, others with four digits."""
    value = float(value)
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4g}"
