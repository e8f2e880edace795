"""Pictures of the pages for the documentation: a report on a screen and on a phone, a study's charts.

    make demo
    python benchmarks/screenshots.py runs/demo --docs docs

Needs a Chromium, as the tests of the pages do; the study's page is made anew from docs/results/quality.
"""

from __future__ import annotations

import argparse
import base64
import runpy
import tempfile
from pathlib import Path
from typing import Any

from syncattn.training.compare import REPORT_FILE
from syncattn_lab.study.lines import LINES_FILE
from syncattn_lab.study.records import read_runs
from syncattn_lab.study.report import write_report

BROWSER = Path(__file__).parents[1] / "tests" / "chromium.py"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("comparison", type=Path, help="folder that `syncattn compare` wrote")
    parser.add_argument("--docs", type=Path, required=True, help="folder of the documentation")
    arguments = parser.parse_args()
    report = arguments.comparison.resolve() / REPORT_FILE
    if not report.is_file():
        raise SystemExit(f"error: {report} is not there: run syncattn compare first")
    driver = runpy.run_path(str(BROWSER))
    path = driver["find"]()
    if path is None:
        raise SystemExit(f"error: no browser: none of {', '.join(driver['NAMES'])} is on this machine")
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "study.html"
        write_report(read_runs(arguments.docs / "results" / "quality" / LINES_FILE), study)
        browser = driver["Chromium"](path)
        try:
            take(browser, report, arguments.docs / "report.png", height=1240, across=0.62)
            take(browser, report, arguments.docs / "report-phone.png", 390, 844, "dark", start=".chart")
            take(browser, study, arguments.docs / "report-study.png", start=".chart", height=980, across=0.5)
        finally:
            browser.close()


def take(
    browser: Any,
    page: Path,
    out: Path,
    width: int = 1100,
    height: int = 900,
    scheme: str = "light",
    start: str | None = None,
    across: float | None = None,
) -> None:
    """A picture of a part of a page.

    Args:
        width, height: of the part, in pixels.
        start: what it begins with, a selector; None for the top of the page.
        across: how far across its first chart the pointer stands; None for no pointer.
    """
    browser.open(page, width=width, scheme=scheme)
    if across is not None:
        browser.point(".u-over", across=across)
    top = 0
    if start is not None:
        top = browser.run(f"document.querySelector({start!r}).getBoundingClientRect().top + scrollY - 16")
    clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
    taken = browser.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
    out.write_bytes(base64.b64decode(taken["data"]))


if __name__ == "__main__":
    main()
