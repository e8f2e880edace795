"""Work through the sections: measure, write the numbers, draw them, keep the ledger."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from syncattn.drawing import FORMATS, save, style
from syncattn.training.environment import command, machine, versions
from syncattn.training.errors import UserError
from syncattn.training.files import read_json, staged, write_json, write_text
from syncattn_lab.paper.judge import Claim
from syncattn_lab.paper.ledger import LEDGER_FILE, ledger
from syncattn_lab.paper.report import REPORT_FILE, render
from syncattn_lab.paper.section import Extent, Section
from syncattn_lab.paper.sections import NAMES, section

RECORD_FILE = "paper.json"
CLAIMS_FILE = "claims.json"


def run(
    extent: Extent,
    out: Path,
    names: Sequence[str],
    tell: Callable[[str], None] = lambda line: None,
    begin: Callable[[Section], None] = lambda section: None,
) -> dict[str, list[Claim]]:
    """Measure these sections into `out`, and write the ledger of all sections that are there.

    A section that is there already, measured to the same extent, is not measured again: this is how an
    interrupted run goes on. Each section is written whole, its pictures included, before the next begins.

    Args:
        out: a folder that exists.
        names: of NAMES.
        tell: is given lines about the progress.
        begin: is given each section before it is measured.

    Returns:
        Every section's claims, those that were there included.

    Raises:
        UserError: `out` holds a run of another extent, or cannot be written to.
    """
    record = _record(extent, out)
    for name in names:
        one = section(name)
        begin(one)
        if (out / f"{name}.json").is_file():
            if not all((out / file).is_file() for file in files_of(one)):
                _write(one, read_json(out / f"{name}.json"), out)
            tell(f"{name}: already there")
            continue
        try:
            seconds = _measure(one, extent, out, tell)
        except KeyboardInterrupt:
            write_ledger(out)  # of what is there
            raise
        record["sections"][name] = {"seconds": seconds, "command": command()}
        write_json(out / RECORD_FILE, record)
        tell(f"{name}: {seconds:.0f} s")
    return write_ledger(out)


def files_of(one: Section) -> list[str]:
    """The names of the section's files; the numbers come first."""
    pictures = [f"{drawing.name}.{kind}" for drawing in one.drawings for kind in FORMATS]
    return [f"{one.name}.json", *([f"{one.name}.md"] if one.table else []), *pictures]


def _measure(one: Section, extent: Extent, out: Path, tell: Callable[[str], None]) -> float:
    """Measure and write a section; the seconds it took."""
    started = time.perf_counter()
    with torch_threads(one.threads):
        numbers = one.measure(extent, tell)
    _require_json(numbers, one.name)
    seconds = round(time.perf_counter() - started, 1)
    _write(one, {"section": one.name, "seconds": seconds, "numbers": numbers}, out)
    return seconds


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """So many threads for PyTorch inside; None for as many as it has."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def write_ledger(out: Path) -> dict[str, list[Claim]]:
    """Judge all sections whose numbers are in `out`, and write the ledger and the page; all claims."""
    found: dict[str, list[Claim]] = {}
    for name in NAMES:
        path = out / f"{name}.json"
        if path.is_file():
            found[name] = section(name).claims(read_json(path)["numbers"])
    flat = [
        claim._asdict()
        | {"section": name, "shown": claim.shown, "checks": [c._asdict() for c in claim.checks]}
        | {"times": [t._asdict() for t in claim.times]}
        for name, claims in found.items()
        for claim in claims
    ]
    write_json(out / CLAIMS_FILE, {"claims": flat})
    about = _about(read_json(out / RECORD_FILE))
    write_text(out / LEDGER_FILE, ledger(found, about))
    write_text(out / REPORT_FILE, render(out, found, about))
    return found


def _record(extent: Extent, out: Path) -> dict[str, Any]:
    """The record of the run in this folder, a new one if there is none."""
    path = out / RECORD_FILE
    if path.is_file():
        record = read_json(path)
        if record["plan"] != extent._asdict():
            raise UserError(
                f"{out} holds a run of another extent ({record['plan']}): choose another folder, or replace "
                "it with --overwrite"
            )
        used = versions()
        for name in ("syncattn", "torch"):
            if record["versions"][name] != used[name]:
                raise UserError(
                    f"{out} holds a run with {name} {record['versions'][name]}, here is {used[name]}: choose "
                    "another folder, or replace it with --overwrite"
                )
        return record
    record = {
        "format": 1,
        "plan": extent._asdict(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "sections": {},
    }
    write_json(path, record)
    return record


def _write(one: Section, data: dict[str, Any], out: Path) -> None:
    """The section's pictures and, last, its numbers: their presence proves that all is there."""
    with staged(out, last=f"{one.name}.json") as folder:
        write_json(folder / f"{one.name}.json", data)
        # Draw what was written, not what was meant.
        numbers = read_json(folder / f"{one.name}.json")["numbers"]
        for drawing in one.drawings:
            with style():
                save(drawing.draw(numbers), folder, drawing.name)
        if one.table is not None:
            write_text(folder / f"{one.name}.md", one.table(numbers))


def _about(record: dict[str, Any]) -> str:
    computer, used = record["machine"], record["versions"]
    commands = list(dict.fromkeys(one["command"] for one in record["sections"].values()))
    seconds = sum(one["seconds"] for one in record["sections"].values())
    kind = "A quick run, with small sizes" if record["plan"]["quick"] else "A full run"
    made = ", ".join(f"`{one}`" for one in commands)
    return (
        f"{kind}: {made}, {seconds:.0f} s on {record['date'][:10]}, seed {record['plan']['seed']}, on "
        f"{computer['processor']} ({computer['cores']} cores, {computer['threads']} threads, "
        f"{computer['memory_gb']} GiB), Python {used['python']}, torch {used['torch']}, "
        f"syncattn {used['syncattn']}."
    )


def _require_json(value: Any, where: str) -> None:
    """Refuse what JSON cannot hold or would change, by name."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}: expected a string")
            _require_json(item, f"{where}.{key}")
    elif isinstance(value, list):
        for item in value:
            _require_json(item, where)
    elif not (value is None or isinstance(value, (str, bool, int)) or _finite(value)):
        raise TypeError(f"{where} is {value!r}: expected finite numbers, strings, lists and dictionaries")


def _finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)
