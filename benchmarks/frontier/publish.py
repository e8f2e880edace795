"""Turn the runs of benchmarks/frontier/plan.toml and what their models cost into docs/results/frontier.md.

    python benchmarks/frontier/publish.py runs/frontier --out docs/results \\
        --plan benchmarks/frontier/plan.toml --remarks benchmarks/frontier/remarks.toml

The remarks are what is typed in by hand: a TOML file with `[GROUP] text = "..."`, and `[all]` for the whole.
What the page is made from is copied beside its pictures, so that the same page comes from

    python benchmarks/frontier/publish.py docs/results/frontier --out docs/results
"""

from __future__ import annotations

import argparse
import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

from syncattn.training.errors import UserError
from syncattn.training.files import disk_errors, read_json, remove_staging, staged
from syncattn_lab.study.frontier import SECONDS_FILE, Panel, Seconds, panels, read_seconds, verdicts
from syncattn_lab.study.frontier_page import advice, frontier, progress, section
from syncattn_lab.study.lines import LINES_FILE
from syncattn_lab.study.plan import read_plan
from syncattn_lab.study.records import PLAN_FILE, Line, read_runs
from syncattn_lab.study.summary import as_groups
from syncattn_lab.study.tables import table

NAME = "frontier"
REMARKS_FILE = "remarks.toml"
WHOLE = "all"
_METHOD = (
    "Losses are in nats per byte, of one seed. A bound on partners is one of the mean over a layer's "
    "heads; what the finished models have is in the tables. Seconds are of one thread: medians over "
    "rounds in which the models take turns ([seconds.py](../../benchmarks/frontier/seconds.py)), "
    "process CPU time unless the clock is named, which on a busy machine shows the neighbours. A "
    "training step is forward, backward, clipping and the optimizer (Muon and AdamW), without the looks"
    " at the density, about 2 % of a training; a generated token is one after a window that a cache "
    "holds, in one text. Seconds to a loss are a step's times the steps until the validation loss of "
    "the training's own evaluations (16,384 tokens) is as low, by a line between two of them. A run "
    "that was planned to end there would have lowered its rate earlier, so these are upper bounds."
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help=f"folder with {LINES_FILE} and {SECONDS_FILE}")
    parser.add_argument("--out", type=Path, required=True, help="folder of the page, such as docs/results")
    parser.add_argument(
        "--remarks", type=Path, help=f"default: {REMARKS_FILE} among the runs, if it is there"
    )
    parser.add_argument("--plan", type=Path, help="whose runs are to be there; default: what was copied")
    arguments = parser.parse_args()
    try:
        publish(arguments.runs, arguments.out, arguments.remarks, arguments.plan)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


def publish(runs: Path, out: Path, remarks: Path | None = None, plan: Path | None = None) -> None:
    """Write the page and its folder, whole or not at all.

    Raises:
        UserError: malformed lines, seconds, plan or remarks, or `out`/frontier has files of others.
    """
    lines, seconds = read_runs(runs / LINES_FILE), read_seconds(runs / SECONDS_FILE)
    if remarks is None and (runs / REMARKS_FILE).is_file():
        remarks = runs / REMARKS_FILE
    notes = read_remarks(remarks) if remarks is not None else {}
    if plan is not None:
        keys = [run.key for run in read_plan(plan).runs]
    else:
        keys = [e["key"] for e in read_json(runs / PLAN_FILE)] if (runs / PLAN_FILE).is_file() else []
    copies = {LINES_FILE: "".join(json.dumps(line) + "\n" for line in lines).encode()}
    copies[PLAN_FILE] = (json.dumps([{"key": key} for key in keys], indent=0) + "\n").encode()
    if remarks is not None:
        copies[REMARKS_FILE] = remarks.read_bytes()
    if seconds:
        copies[SECONDS_FILE] = (runs / SECONDS_FILE).read_bytes()
    refuse_other_files(out / NAME)
    text, pictures = page(lines, seconds, notes, keys)
    with disk_errors(f"cannot write to {out}"):
        out.mkdir(parents=True, exist_ok=True)
        remove_staging(out)
    with disk_errors(f"cannot write to {out}"), staged(out, last=f"{NAME}.md") as folder:
        (folder / NAME).mkdir()
        for file, content in (copies | pictures).items():
            (folder / NAME / file).write_bytes(content)
        (folder / f"{NAME}.md").write_text(text, encoding="utf-8")


def page(
    lines: Sequence[Line], seconds: Sequence[Seconds], notes: dict[str, str], keys: Sequence[str] = ()
) -> tuple[str, dict[str, bytes]]:
    """The page in Markdown and its pictures by file name."""
    found = panels(as_groups(lines), seconds)
    drawn = {"loss-by-cost.png": frontier(found), "loss-by-time.png": progress(found)}
    pictures = {name: content for name, content in drawn.items() if content is not None}
    shown = [f"![{name.removesuffix('.png').replace('-', ' ')}]({NAME}/{name})" for name in pictures]
    wanted = table(
        ["wanted", "verdict", "measured"],
        [[each.target, f"**{each.state}**", each.measured] for each in verdicts(found)],
    )
    wanted[1] = "| --- | --- | --- |"
    parts = [
        "# Loss against time against partners",
        "",
        "Generated from the runs' own lines, by",
        "",
        "    python benchmarks/frontier/publish.py docs/results/frontier --out docs/results",
        "",
        "When to choose an OSN, and with how many partners, beside the strongest Transformer of the same "
        "size and one that reads the last 256 tokens alone.",
        "",
        *(line for panel in found for line in (f"- {advice(panel)}", "")),
        *shown[:1],
        "",
        *wanted,
        "",
        *shown[1:],
        "",
        *([notes[WHOLE], ""] if WHOLE in notes else []),
        *head(lines, seconds, keys),
        "",
        _METHOD,
    ]
    for panel in found:
        parts += ["", *section(panel), *predictions(panel)]
        group = panel.points[0].cell.group
        parts += ["", f"*Remark.* {notes[group]}"] if group in notes else []
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n", pictures


def head(lines: Sequence[Line], seconds: Sequence[Seconds], keys: Sequence[str]) -> list[str]:
    """What was run, what is missing, and on what."""
    there = {line["key"] for line in lines}
    missing = [key for key in keys if key not in there]
    text = f"{len(lines)} runs of {lines[0]['tokens']:,} bytes or a little more."
    if missing:
        names = ", ".join("/".join(key.split("/")[:3:2]) for key in missing)
        text += f" **Missing: {len(missing)} of the plan's {len(keys)}** ({names})."
    elif keys:
        text += " The plan is complete."
    rounds = sorted({len(each.rounds) for each in seconds})
    if rounds:
        text += f" Timed in {' to '.join(map(str, dict.fromkeys((rounds[0], rounds[-1]))))} rounds."
    machines = []
    for line in lines:
        named = ", ".join(f"{name} {value}" for name, value in line["machine"].items() if value)
        machines += [named] if named not in machines else []
    data = next((line["data"] for line in lines if line.get("data")), None)
    if data is not None:
        text += f" Text: {data['characters']['train']:,} characters, `{data['sha256'][:12]}`."
    every = f"[{NAME}/{LINES_FILE}]({NAME}/{LINES_FILE})"
    if seconds:
        every += f", [{NAME}/{SECONDS_FILE}]({NAME}/{SECONDS_FILE})"
    return [f"{text} Machine: {'; or '.join(machines)}. Every number: {every}."]


def predictions(panel: Panel) -> list[str]:
    """What was expected of each model before it ran."""
    said = [(point.cell.title, point.cell.lines[0].get("prediction")) for point in panel.points]
    found = [f"{title}: {text}" for title, text in said if text]
    return ["Expected, before the runs:", "", *(f"- {each}" for each in found), ""] if found else []


def read_remarks(path: Path) -> dict[str, str]:
    """The remarks by group.

    Raises:
        UserError: unreadable, no TOML, or of another form.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the remarks {path}: {error}") from error
    for name, entry in found.items():
        if not isinstance(entry, dict) or set(entry) != {"text"} or not isinstance(entry["text"], str):
            raise UserError(f'{path}: expected [{name}] with text = "..." and nothing else')
    return {name: entry["text"].strip() for name, entry in found.items()}


def refuse_other_files(folder: Path) -> None:
    """The folder is replaced as a whole: it must hold nothing that this program did not write."""
    ours = {LINES_FILE, PLAN_FILE, REMARKS_FILE, SECONDS_FILE}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.is_dir() or (path.suffix != ".png" and path.name not in ours):
            raise UserError(f"{folder} would be replaced, but holds {path.name}: choose another --out")


if __name__ == "__main__":
    main()
