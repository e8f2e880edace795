"""A record as tables: on the terminal, and as the Markdown page beside the JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from syncattn.bench.contenders import ADASPLASH, FLASH, FLEX, PUBLISHED, SDPA, SSA_FLEX, TILED
from syncattn.bench.models import LLAMA, OSN
from syncattn.bench.plan import SUITES
from syncattn.bench.session import threads_text
from syncattn.bench.targets import HEADER
from syncattn.bench.timing import spread_text
from syncattn.training.files import write_text

MARKDOWN_FILE = "bench.md"
TITLES = {
    SDPA: "SDPA",
    PUBLISHED: "published",
    TILED: "tiled",
    OSN: "OSN",
    LLAMA: "Llama",
    FLASH: "FlashAttention",
    FLEX: "FlexAttention",
    SSA_FLEX: "SSA by FlexAttention",
    ADASPLASH: "AdaSplash",
}
Tables = list[tuple[str, list[str], list[list[str]]]]


def milliseconds(seconds: float) -> str:
    """Three digits: 0.0123, 1.23, 1,230."""
    ms = 1000 * seconds
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}"


def cell(result: dict[str, Any], reference: bool) -> str:
    """One contender's time in ms and its ratio to the reference, or why there is none."""
    if result["status"] != "measured":
        return "WRONG" if result["status"] == "wrong" else "left out"
    text = milliseconds(result["time"]["median"])
    return text if reference or "ratio" not in result else f"{text} × {spread_text(result['ratio'])}"


def entry_text(entry: dict[str, Any]) -> Text:
    """A finished entry in one line: wrong results in red."""
    if "contender" in entry:
        amount = entry["reason"] if entry["bytes"] is None else f"{entry['bytes'] / 2**20:,.1f} MiB"
        return Text(f"memory  N {entry['tokens']:<6} {_title(entry['contender'])}: {amount}")
    text = Text(f"{entry['suite']:<11} {entry['name']}", style="bold")
    tokens = entry["case"].get("tokens")
    where = f"  N {tokens}" if "N " not in entry["name"] and "tokens" not in entry else ""
    text.append(f"{where}, {entry['passes']}, {threads_text(entry['threads'])}: ", style="not bold")
    for number, (name, result) in enumerate(entry["contenders"].items()):
        style = {"wrong": "bold red", "left out": "dim"}.get(result["status"], "not bold")
        shown = cell(result, name == entry["reference"])
        reason = f" ({result['reason']})" if "reason" in result else ""
        text.append(("; " if number else "") + f"{_title(name)} {shown}{reason}", style=style)
    return text


def all_tables(record: dict[str, Any]) -> Tables:
    """(title, header, rows) of the targets and of every suite, times in ms."""
    found: Tables = [("Targets", HEADER, record.get("targets", {}).get("rows", []))]
    for suite, about in SUITES.items():
        entries = [entry for entry in record["entries"] if entry["suite"] == suite]
        if suite == "scaling":
            found.append(_scaling_table(entries))
            continue
        names = list(dict.fromkeys(name for entry in entries for name in entry["contenders"]))
        header = ["case", "N", "threads", "density", "pass", *(f"{_title(n)}, ms" for n in names)]
        rows = [
            [
                entry["name"],
                str(entry["case"]["tokens"]),
                str(entry["threads"]),
                _density(entry),
                entry["passes"],
                *(
                    cell(entry["contenders"][n], n == entry["reference"]) if n in entry["contenders"] else ""
                    for n in names
                ),
            ]
            for entry in entries
        ]
        found.append((f"{suite}: {about}", header, rows))
    found += [_cache_table(record), _memory_table(record)]
    return [each for each in found if each[2]]


def _scaling_table(entries: list[dict[str, Any]]) -> tuple[str, list[str], list[list[str]]]:
    rows = []
    for entry in entries:
        first = min(entry["tokens"].values())
        for label, tokens in entry["tokens"].items():
            result = entry["contenders"].get(label)
            if result is None:
                continue
            growth = ""
            if "ratio" in result:
                scaled = {"median": result["ratio"]["median"] * first / tokens}
                scaled["quartiles"] = [q * first / tokens for q in result["ratio"]["quartiles"]]
                growth = spread_text(scaled)
            rows.append([entry["name"], str(tokens), entry["passes"], cell(result, True), growth])
    header = ["case", "N", "pass", "ms", "time over linear growth"]
    return f"scaling: {SUITES['scaling']}", header, rows


def _cache_table(record: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    rows = []
    for entry in record["entries"]:
        held = entry.get("cache") or {}
        if OSN in held and SDPA in held:
            ours, theirs = held[OSN], held[SDPA]["nbytes"]
            with_room = (ours["nbytes"] + ours["spare_nbytes"]) / (theirs + held[SDPA]["spare_nbytes"])
            mib = [f"{x / 2**20:,.2f}" for x in (ours["nbytes"], theirs)]
            rows.append([entry["name"], *mib, f"{ours['nbytes'] / theirs:.3f}", f"{with_room:.3f}"])
    header = ["case", "OSN, MiB", "softmax, MiB", "share", "with the room for more"]
    return "generation: bytes of the cache", header, list({tuple(row): row for row in rows}.values())


def _memory_table(record: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    rows = []
    for each in record["memory"]:
        amount = "left out" if each["bytes"] is None else f"{each['bytes'] / 2**20:,.1f}"
        each_token = "" if each["bytes"] is None else f"{each['bytes'] / each['tokens'] / 1024:,.1f}"
        name = f"{each['name']} ({each['suite']})"
        rows.append([name, str(each["tokens"]), _title(each["contender"]), amount, each_token])
    return "memory: peak, inputs not counted", ["case", "N", "contender", "MiB", "KiB a token"], rows


def _density(entry: dict[str, Any]) -> str:
    counted = entry.get("counted") or {}
    return f"{counted['density']:.3g}" if "density" in counted else ""


def _title(name: str) -> str:
    return TITLES.get(name, name)


def show(record: dict[str, Any], console: Console) -> None:
    """Print all tables."""
    for title, header, rows in all_tables(record):
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        for index, name in enumerate(header):
            table.add_column(name, justify="left" if index == 0 else "right")
        for row in rows:
            table.add_row(*(Text(text, style=_style(text)) for text in row))
        console.print(table)


def _style(text: str) -> str:
    return {"WRONG": "bold red", "wrong": "bold red", "left out": "dim", "yes": "green", "no": "yellow"}.get(
        text, ""
    )


def write_markdown(record: dict[str, Any], path: Path) -> None:
    """The page of tables, with what was run, whole or not at all."""
    write_text(path, markdown(record))


def markdown(record: dict[str, Any]) -> str:
    """All tables, the command, machine and versions, and who was wrong or left out."""
    machine, versions = record["machine"], record["versions"]
    state = "" if record["status"] == "complete" else f" **This run is {record['status']}.**"
    parts = [
        "# syncattn bench",
        "",
        f"`{record['command']}`, {record['date']}, {record['seconds']:.0f} s.{state}",
        "",
        f"{machine['processor']}, {machine['cores']} of {machine['all_cores']} cores "
        f"({', '.join(machine['flags']) or 'no flags known'}), {machine['memory_gb']} GB, "
        f"{_load(record)}; GPUs: "
        f"{', '.join(machine['gpus']) or 'none'}. Python {versions['python']}, torch {versions['torch']}, "
        f"syncattn {versions['syncattn']}. Backend measured against the targets: {record['preferred']}"
        f"{_instance(record)}.",
        "",
        "Times are medians in ms; after × the median of the rounds' ratios to SDPA (counting: to the forward "
        "pass), its quartiles in brackets. Density is counted. Method: "
        + "; ".join(f"{name}: {text}" for name, text in record["method"].items())
        + ".",
    ]
    for title, header, rows in all_tables(record):
        parts += ["", f"## {title[0].upper() + title[1:]}", "", "| " + " | ".join(header) + " |"]
        parts.append("| --- |" + " ---: |" * (len(header) - 1))
        parts += ["| " + " | ".join(row) + " |" for row in rows]
    for status, title in (("wrong", "Wrong results: no numbers"), ("left out", "Left out")):
        reasons = _reasons(record, status)
        if reasons:
            parts += ["", f"## {title}", "", *(f"- {line}" for line in reasons)]
    return "\n".join(parts) + "\n"


def _instance(record: dict[str, Any]) -> str:
    name = record.get("cpu_instance")  # records made before have none
    return f", the CPU kernel's instructions {name}" if name else ""


def _load(record: dict[str, Any]) -> str:
    return f"load {record['load'][0]:.1f} before the run" if record["load"] else "load unknown"


def _reasons(record: dict[str, Any], status: str) -> list[str]:
    lines = [
        f"{entry['suite']}: {entry['name']}, N {entry['case']['tokens']}, {entry['passes']}, "
        f"{threads_text(entry['threads'])}: {_title(name)}: {result['reason']}"
        for entry in record["entries"]
        for name, result in entry["contenders"].items()
        if result["status"] == status
    ]
    if status == "left out":
        lines += [f"{each['job']}: {each['reason']}" for each in record.get("skipped", [])]
        lines += [
            f"memory: {each['name']}, N {each['tokens']}: {_title(each['contender'])}: {each['reason']}"
            for each in record["memory"]
            if each["bytes"] is None
        ]
    return lines
