"""A run of the benchmarks: its jobs one after the other, its files, its tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from syncattn.starting import loading
from syncattn.terminal import quiet_progress

if TYPE_CHECKING:
    from rich.console import Console

    from syncattn.bench.plan import BenchPlan


def run(plan: BenchPlan, out: Path, console: Console, *, overwrite: bool = False) -> int:
    """Measure what the plan says into `out`; the exit status: 0, 1 if anything was wrong, 130 after Ctrl-C.

    Raises:
        UserError: `out` cannot be used.
    """
    with loading():
        import torch

        from syncattn.bench import counting, gpu, models, operators, tables
        from syncattn.bench.figures import write_figures
        from syncattn.bench.session import JSON_FILE, Session
        from syncattn.bench.targets import judged
    from syncattn.training.files import check_output, disk_errors, remove_staging

    check_output(out, overwrite=overwrite, resumes=False)
    with disk_errors(f"cannot write to the output folder {out}"):
        out.mkdir(parents=True, exist_ok=True)
        remove_staging(out)
        if overwrite:
            for name in (JSON_FILE, tables.MARKDOWN_FILE, "density.png", "tokens.png", "memory.png"):
                (out / name).unlink(missing_ok=True)
    before = torch.get_num_threads()
    session = Session(plan, out)
    jobs: dict[str, list[Any]] = {name: [] for name in plan.suites}
    found_jobs = [
        *operators.jobs(plan, session.backends),
        *gpu.jobs(plan, session.backends),
        *models.jobs(plan),
        *counting.jobs(plan),
    ]
    for suite, found in found_jobs:
        if suite in jobs:
            jobs[suite] += found
    session.save()
    try:
        _work(session, [job for found in jobs.values() for job in found], console)
        session.record["status"] = "complete"
    except KeyboardInterrupt:
        session.record["status"] = "interrupted"
    except BaseException:
        session.record["status"] = "failed"
        raise
    finally:
        torch.set_num_threads(before)
        session.record["targets"] = judged(session.record)
        session.save()
        tables.write_markdown(session.record, out / tables.MARKDOWN_FILE)
    drawn = write_figures(session.record, out)
    tables.show(session.record, console)
    for line in session.wrong:
        console.print(f"wrong: {line}", style="bold red", highlight=False, soft_wrap=True)
    files = ", ".join([JSON_FILE, tables.MARKDOWN_FILE, *drawn])
    console.print(f"{out}: {files}", highlight=False, soft_wrap=True)
    if session.record["status"] == "interrupted":
        console.print("interrupted: what was done is there", highlight=False)
        return 130
    return 1 if session.wrong else 0


def _work(session: Any, jobs: list[Any], console: Console) -> None:
    """Do the jobs one after the other; a terminal sees how far they are."""
    import torch

    from syncattn.bench.contenders import first_line
    from syncattn.bench.session import out_of_memory
    from syncattn.bench.tables import entry_text

    progress = quiet_progress(console)
    session.tell = lambda entry: console.print(entry_text(entry), highlight=False, soft_wrap=True)
    with progress:
        task = progress.add_task("", total=len(jobs))
        for job in jobs:
            progress.update(task, description=job.title)
            try:
                job.run(session)
            except Exception as error:
                reason = "out of memory" if out_of_memory(error) else f"it failed: {first_line(error)}"
                if not (out_of_memory(error) or session.plan.device == "cuda"):
                    raise
                session.record.setdefault("skipped", []).append({"job": job.title, "reason": reason})
                console.print(f"{job.title}: {reason}", style="yellow", highlight=False)
                session.save()
                if session.plan.device == "cuda":  # after some errors the device answers no more
                    torch.cuda.synchronize()
            progress.advance(task)
