"""One command of under ten minutes on a machine with one GPU: everything that only a GPU can show.

    python benchmarks/gpu_session.py --out FOLDER [--minutes 9] [--steps check,steps] [--dry-run]

Steps, in this order, each in processes of its own with a time limit; none needs another to have worked:

    versions    nvidia-smi, `syncattn doctor`
    check       the tests marked gpu; beside them, small calls of every form under compute-sanitizer
    warm        short runs that compile what the next steps need
    gpu-decode  the operator decoding, CUDA graphs, peak memory
    gpu-generation
                a token for each text by whole models beside the Transformer: growing cache, cache of fixed
                size, its step in a CUDA graph and compiled; tokens a second, memory
    steps       the host's time for a pass; a training step of 30M parameters at several lengths and in
                several forms, also compiled, beside a Transformer
    gpu-anchors beside SSA through FlexAttention, and AdaSplash if PYTHONPATH has it
    gpu-widths  `syncattn bench gpu-64 gpu-128`: beside SDPA and FlashAttention
    tests       the rest of the Triton backend's tests, for as long as there is time
    training    an OSN and a Transformer of its size: tokens per second and losses: only if --steps names it
    tune        benchmarks/gpu_tune.py, each kernel's time in many block sizes: likewise
    scale       benchmarks/gpu_scale.py, the quality study at 1M and 5M parameters: likewise, in a call of its
                own, since it takes three minutes

The limits of all these are longer than nine minutes together, what they take is not known: what no session
has reached comes first, and what is left is for a second call (--steps gpu-anchors,gpu-widths).

FOLDER gets eight files at most: summary.md and summary.json (what passed, how long it took, the targets),
log.txt (all that was printed), and the records gpu-decode.json, gpu-generation.json, gpu-anchors.json,
gpu-widths.json (as `syncattn bench` writes them) and steps.json, besides those of the steps that have to be
named. They are renewed after every step, the records while it runs, too. Nothing has to be installed but what
syncattn imports. --dry-run does it all at toy sizes on the CPU, in the interpreter of Triton 3.7 or later.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from gpu_summary import summary_lines

ROOT = Path(__file__).resolve().parents[1]
TESTS = "tests/backends/triton"
GRACE = 8.0  # seconds from the polite end of a process to its hard one
RENEWED = 3.0  # seconds from one copy of a record that is being written to the next
LOG_BYTES = 12 * 2**20


class Step(NamedTuple):
    """A part of the session: what runs at the same time, for how many seconds at most, and its record."""

    name: str
    commands: dict[str, list[str]]
    seconds: float
    record: str | None = None  # a file of the work folder that goes to FOLDER as NAME.json
    asked: bool = False  # runs only if --steps names it


def steps(work: Path, out: Path, minutes: float, dry: bool) -> list[Step]:
    """All steps in running order; the seconds are those of a session of nine minutes, scaled."""
    python, scale = sys.executable, minutes / 9
    toy = ["--dry-run"] if dry else []
    gpus = "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"
    pytest = [
        python,
        "-m",
        "pytest",
        "-vv",
        "--tb=short",
        "-p",
        "no:cacheprovider",
    ]  # -q is in pyproject.toml
    if not dry and importlib.util.find_spec("xdist"):
        pytest += ["-n", "8"]

    def part(name: str, *options: str) -> list[str]:
        return [python, str(ROOT / "benchmarks" / "gpu_parts.py"), "--out", str(work / name), *toy, *options]

    suites = ("gpu-64", "gpu-128", "gpu-decode", "gpu-generation", "gpu-anchors")
    warm = {} if dry else {f"warm-{x}": part(f"warm-{x}", "--bench", x, "--warm") for x in suites}
    if not dry:
        warm["warm-steps"] = part("warm-steps", "--steps", "1")
    others = [f"{TESTS}/test_lists.py"] if dry else [TESTS, f"--ignore={TESTS}/test_gpu.py"]
    checker = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "3", "--print-limit", "5"]
    checker = [] if dry else checker
    train_seconds = str(50 * scale)
    scaled = [python, str(ROOT / "benchmarks" / "gpu_scale.py"), "--out", str(out.absolute())]
    scaled += ["--seconds", str(160 * scale)]
    plan = [
        Step(
            "versions",
            {
                "nvidia-smi": ["nvidia-smi"],
                "clocks": ["nvidia-smi", f"--query-gpu={gpus}", "--format=csv"],
                "doctor": [python, "-m", "syncattn", "doctor"],
            },
            40,
        ),
        Step(
            "check",
            {
                "gpu tests": [*pytest, f"{TESTS}/test_gpu.py", f"{TESTS}/test_product.py"],
                **{
                    f"memcheck {form}": [*checker, *part("small-calls", "--small-calls", form)]
                    for form in (("layer",) if dry else ("dense", "dense-16", "quarter", "window", "layer"))
                },
            },
            120,
        ),
        Step("warm", warm, 75),
        Step(
            "gpu-decode",
            {"gpu-decode": part("gpu-decode", "--bench", "gpu-decode,gpu-memory")},
            45,
            "gpu-decode/bench.json",
        ),
        Step(
            "gpu-generation",
            {"gpu-generation": part("gpu-generation", "--bench", "gpu-generation")},
            110,
            "gpu-generation/bench.json",
        ),
        Step("steps", {"steps": part("steps", "--steps", str(80 * scale))}, 110, "steps/steps.json"),
        Step(
            "gpu-anchors",
            {"gpu-anchors": part("gpu-anchors", "--bench", "gpu-anchors,gpu-flex")},
            170,
            "gpu-anchors/bench.json",
        ),
        Step(
            "gpu-widths",
            {"gpu-widths": part("gpu-widths", "--bench", "gpu-64,gpu-128")},
            170,
            "gpu-widths/bench.json",
        ),
        Step("tests", {"other tests": [*pytest, *others]}, 540),
        Step(
            "training",
            {"training": part("training", "--train", train_seconds)},
            150,
            "training/training.json",
            asked=True,
        ),
        Step(
            "tune",
            {"tune": [python, str(ROOT / "benchmarks" / "gpu_tune.py"), "--out", str(work / "tune")]},
            150,
            "tune/tune.json",
            asked=True,
        ),
        # Its record goes to FOLDER at once: these are the longest three minutes to lose.
        Step("scale", {"scale": [*scaled, *toy]}, 175, str(out.absolute() / "scale.json"), asked=True),
    ]
    return [step._replace(seconds=step.seconds * scale) for step in plan]


def run_step(
    step: Step,
    seconds: float,
    work: Path,
    env: dict[str, str],
    renew: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Run a step's commands at the same time, and end them when its seconds are over.

    Args:
        renew: called every few seconds meanwhile: to keep what there is, if all of this should be killed.

    Returns:
        name, limit, seconds, and for each command its status ("passed", "failed", "out of time"), exit status
        and the end of what it printed.
    """
    begun, running, results = time.monotonic(), {}, {}
    for label, command in step.commands.items():
        log = work / f"{label}.log"
        try:
            with log.open("wb") as stream:
                running[label] = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    # a shell starts its background jobs with Ctrl-C ignored, which is how they are ended here
                    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
                )
        except OSError as error:
            log.write_text(f"{error}\n")
            results[label] = {"status": "failed", "exit": None}
    deadline, ended, late, renewed = begun + seconds, {}, set(), begun
    try:
        while len(ended) < len(running):
            now = time.monotonic()
            if now > renewed + RENEWED:
                renewed = now
                renew()
            for label, process in running.items():
                if label not in ended and process.poll() is not None:
                    ended[label] = now - begun
                elif label not in ended and now > deadline + GRACE:
                    _signal(process, signal.SIGKILL)
                elif label not in ended and now > deadline and label not in late:
                    late.add(label)
                    _signal(process, signal.SIGINT)
            time.sleep(0.1)
    finally:
        for process in running.values():
            _signal(process, signal.SIGKILL)  # and what it may have left behind
    for label, process in running.items():
        status = "out of time" if label in late else "passed" if process.returncode == 0 else "failed"
        results[label] = {"status": status, "exit": process.returncode, "seconds": round(ended[label], 1)}
    for label in step.commands:
        text = (work / f"{label}.log").read_text(errors="replace")
        results[label]["tests"] = count_tests(text)
        results[label]["end"] = text[-2000:]
    taken = round(time.monotonic() - begun, 1)
    return {"name": step.name, "limit": round(seconds), "seconds": taken, "commands": results}


def _signal(process: subprocess.Popen, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def count_tests(text: str) -> dict[str, Any] | None:
    """How many tests passed, failed and were skipped by pytest's -vv output so far, and which failed."""
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        name = re.search(r"\S+::.*?(?=\s+(?:PASSED|FAILED|ERROR|SKIPPED)|\s*$)", line)
        kind = re.search(r"\b(PASSED|FAILED|ERROR|SKIPPED)\b", line)
        if name and kind and not re.match(r"(FAILED|ERROR|SKIPPED)\b", line):  # not the summary's lines
            found.setdefault(kind[1], set()).add(name[0])
    if not found:
        return None
    failed = sorted(found.get("FAILED", set()) | found.get("ERROR", set()))
    return {k.lower(): len(found.get(k, ())) for k in ("PASSED", "SKIPPED")} | {"failed": failed}


def keep_record(step: Step, work: Path, out: Path) -> None:
    """Renew NAME.json in `out` from what the step has written so far, which is whole at any time."""
    source = work / (step.record or "none")
    if step.record is not None and source.is_file() and source.parent != out.absolute():
        _write(out / f"{step.name}.json", source.read_bytes())


def _write(path: Path, data: bytes) -> None:
    """The file, or the one before it, whole: this may be killed at any time."""
    draft = path.with_name(path.name + ".part")
    draft.write_bytes(data)
    draft.replace(path)


def write_results(out: Path, work: Path, session: dict[str, Any], plan: list[Step]) -> None:
    """Renew the files in `out` from what is in the work folder."""
    records = {}
    for step in plan:
        keep_record(step, work, out)
        source = work / (step.record or "none")
        if step.record is not None and source.is_file():
            with contextlib.suppress(ValueError):  # ended while it wrote
                records[step.name] = json.loads(source.read_text())
    _write(out / "summary.json", json.dumps(session, indent=1).encode())
    try:
        page = "\n".join(summary_lines(session, records)) + "\n"
    except Exception as error:  # the steps that are still to come matter more than this page
        page = f"no summary: {error!r}; see summary.json\n"
    _write(out / "summary.md", page.encode())
    log = b""
    for step in session["steps"]:
        for label in step["commands"]:
            data = (work / f"{label}.log").read_bytes()
            log += f"\n===== {step['name']}, {label}\n".encode() + data[-LOG_BYTES // 16 :]
    _write(out / "log.txt", log)


def main(out: Path, minutes: float, chosen: list[str], dry: bool) -> int:
    """The whole session; the exit status is 1 if anything failed."""
    begun = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(ROOT / "src"))
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    env = os.environ | offline
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    env.pop("TRITON_INTERPRET", None)
    if dry:
        env |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory(prefix="gpu-session-", ignore_cleanup_errors=True) as folder:
        work = Path(folder)
        plan = steps(work, out, minutes, dry)
        if unknown := set(chosen) - {step.name for step in plan}:
            print(f"--steps: no such step: {', '.join(sorted(unknown))}", file=sys.stderr)
            return 2
        session: dict[str, Any] = {"begun": time.strftime("%Y-%m-%d %H:%M:%S %Z"), "dry_run": dry}
        session |= {"minutes": minutes, "seconds": 0.0, "state": "running", "steps": []}
        for step in plan:
            left = 60 * minutes - (time.monotonic() - begun)
            if step.name not in chosen if chosen else step.asked:
                continue
            if left < 5:
                session["state"] = "out of time"
                break
            print(
                f"{time.monotonic() - begun:5.0f} s  {step.name}: up to {min(step.seconds, left):.0f} s",
                flush=True,
            )
            renew = partial(keep_record, step, work, out)
            session["steps"].append(run_step(step, min(step.seconds, left), work, env, renew))
            session["seconds"] = round(time.monotonic() - begun, 1)
            write_results(out, work, session, plan)
        if session["state"] == "running":
            session["state"] = "complete"
        session["seconds"] = round(time.monotonic() - begun, 1)
        write_results(out, work, session, plan)
    print((out / "summary.md").read_text())
    parts = [part for step in session["steps"] for part in step["commands"].values()]
    return int(any(part["status"] == "failed" for part in parts))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results; the device's $OUT")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything together")
    parser.add_argument("--steps", default="", help="these steps only, as a list; `scale` needs it")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes, CPU, Triton's interpreter")
    given = parser.parse_args()
    sys.exit(main(given.out, given.minutes, list(filter(None, given.steps.split(","))), given.dry_run))
