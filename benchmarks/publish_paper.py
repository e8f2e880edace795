"""Turn a `syncattn paper` output into docs/claims.md and docs/results/paper: ledger, pictures, numbers.

    syncattn paper --out runs/paper
    python benchmarks/publish_paper.py runs/paper --docs docs

Nothing is typed in by hand. A quick run, one that lacks a section, or one with a verdict that its
measurements do not bear out is refused.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from syncattn_lab.paper.ledger import LEDGER_FILE
from syncattn_lab.paper.run import CLAIMS_FILE, RECORD_FILE
from syncattn_lab.paper.sections import NAMES, section


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--docs", type=Path, required=True)
    arguments = parser.parse_args()
    refuse_unfit(arguments.run)
    folder = arguments.docs / "results" / "paper"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in (RECORD_FILE, CLAIMS_FILE):
        shutil.copy(arguments.run / name, folder / name)
    shutil.copy(arguments.run / LEDGER_FILE, arguments.docs / LEDGER_FILE)
    page = [
        "# The paper's figures and table",
        "",
        "Made by `syncattn paper` and copied by `benchmarks/publish_paper.py`; the run is described in "
        f"[{RECORD_FILE}]({RECORD_FILE}), its verdicts are in [the ledger](../../claims.md). Each picture's "
        "numbers are in the JSON file of its section. The run's own folder has SVG and PDF files too.",
    ]
    for name in NAMES:
        shutil.copy(arguments.run / f"{name}.json", folder / f"{name}.json")
        one = section(name)
        page += ["", f"## {one.title}", "", f"`syncattn paper --section {name}`, [{name}.json]({name}.json)"]
        for drawing in one.drawings:
            shutil.copy(arguments.run / f"{drawing.name}.png", folder / f"{drawing.name}.png")
            page += ["", drawing.title, "", f"![{drawing.title}]({drawing.name}.png)"]
        if one.table is not None:
            page += ["", (arguments.run / f"{name}.md").read_text(encoding="utf-8").strip()]
    (folder / "README.md").write_text("\n".join(page) + "\n", encoding="utf-8")


def refuse_unfit(run: Path) -> None:
    """Exit unless the run is a full one, with all sections and all verdicts borne out."""
    record = json.loads((run / RECORD_FILE).read_text(encoding="utf-8"))
    claims = json.loads((run / CLAIMS_FILE).read_text(encoding="utf-8"))["claims"]
    missing = [name for name in NAMES if not (run / f"{name}.json").is_file()]
    not_shown = [claim["name"] for claim in claims if not claim["shown"]]
    if record["plan"]["quick"]:
        raise SystemExit(f"{run} is a quick run: publish a full one")
    if missing:
        raise SystemExit(f"{run} lacks the sections {', '.join(missing)}: go on with syncattn paper --resume")
    if not_shown:
        raise SystemExit(f"{run} does not bear out {', '.join(not_shown)}: see its {LEDGER_FILE}")


if __name__ == "__main__":
    main()
