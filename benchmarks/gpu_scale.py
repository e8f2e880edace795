"""The quality study at scale, on one GPU: OSNs beside the study's best Transformer, on much more text.

    python benchmarks/gpu_scale.py --out FOLDER [--seconds 160] [--sizes 1M,5M] [--models osn,transformer]
        [--seeds 0,1,2] [--rates 0.006,0.003] [--text FOLDER] [--dry-run]

The text is the Python source of the installed packages, byte by byte. Every run is a process of its own, all
side by side on the one card: each size with each model and seed at the first learning rate, and with the
first seed at the other rates. They compile together, then measure together how fast they are beside each
other, then train with as many steps as leave all of them finished in time: models of a size read the same
windows in the same order, equally many. FOLDER/scale.json is renewed after every reply. A run that fails is
told there, and the others go on; Ctrl-C, and the end of the seconds, leave what is done, and of each run
that was stopped its losses so far. --dry-run does it at toy sizes on the CPU. On an H200 it
has run without the gates.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import multiprocessing
import os
import signal
import statistics
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from syncattn_lab.study.held_out import PARTS, joined, split_files

# Nothing here imports PyTorch before the processes do: text is read while they start.

ROOT = Path(__file__).resolve().parents[1]
PROBE_STEPS = 40
SHARE = 0.8  # of the time left that the steps are planned for: evaluations and logs come on top
TAIL = 15.0  # seconds for the last evaluation and the files
STARTING = 0.6  # of all the time: what has not started and compiled by then is left behind
STOPPING = 6.0  # seconds from asking a run to stop to ending its process


class Size(NamedTuple):
    """A size of model: that of the rotary Transformer which both models have as many parameters as."""

    hidden: int
    layers: int
    heads: int
    context: int
    batch: int


SIZES = {"1M": Size(128, 5, 4, 512, 32), "5M": Size(256, 6, 8, 1024, 16)}
TOY = {"toy": Size(16, 1, 2, 16, 2)}


class Model(NamedTuple):
    """What is trained: the fields of its configuration, and how many times the rate."""

    title: str
    config: dict[str, Any]
    optimizer: str = "adamw"
    times: float = 1.0

    @property
    def is_osn(self) -> bool:
        return self.title.startswith("OSN")


_STRONG = {"short_convolution": 4, "value_residual": True, "zero_outputs": True, "logit_softcap": 15.0}
MODELS = {
    "osn": Model("OSN", {}),
    "transformer": Model(
        "Transformer, rotary, delayed keys, token shift, SwiGLU",
        {"position": "rotary", "delay": 0.5, "token_shift": True},
    ),
    # all that is said to help: benchmarks/options/plan.toml
    "osn-strong": Model(
        "OSN, convolution, value residual, zero-initialised outputs, bounded logits, Muon",
        {"token_shift": False, **_STRONG},
        "muon",
        2.0,
    ),
    "transformer-strong": Model(
        "Transformer, the same and QK-norm, Muon",
        {"position": "rotary", "delay": 0.5, "qk_norm": True, "score_gate": True, **_STRONG},
        "muon",
        2.0,
    ),
}


class Job(NamedTuple):
    """One run."""

    size: str
    model: str
    rate: float
    seed: int
    dry: bool

    @property
    def name(self) -> str:
        return f"{self.size}-{self.model}-lr{self.rate:g}-seed{self.seed}"


@dataclass(eq=False)
class Worker:
    """A run's process, as its parent sees it; `shown` is what scale.json says about the run."""

    job: Job
    process: Any
    pipe: Connection
    shown: dict[str, Any] = field(default_factory=dict)
    alive: bool = True


def package_folders() -> list[Path]:
    """Where this Python's packages are."""
    named = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *sys.path]
    found = (Path(p).resolve() for p in named if Path(p).name in ("site-packages", "dist-packages"))
    return [folder for folder in dict.fromkeys(found) if folder.is_dir()]


def source_text(folders: Sequence[Path]) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The Python source below some folders in three parts, and what was read.

    Equal files are read once, and held-out files that share lines with the training text are left out, by
    `split_files`.
    """
    paths = [
        os.path.join(root, name)
        for folder in folders
        for root, _, names in os.walk(folder)
        for name in names
        if name.endswith(".py")
    ]
    with ThreadPoolExecutor(16) as pool:
        read = list(pool.map(_read, paths, chunksize=64))
    files = [data for data in read if data]
    parts, left_out = split_files(files)
    text, digest = joined(parts)
    if not all(text.values()):
        raise ValueError(f"too little Python source in {', '.join(map(str, folders))}: {len(files)} files")
    return text, {
        "about": "Python source of the installed packages, bytes",
        "folders": len(folders),
        "files": {name: len(data) for name, data in parts.items()},
        "bytes": {name: len(part) for name, part in text.items()},
        "left_out": {"not readable, empty or not UTF-8": len(read) - len(files), **left_out},
        "sha256": digest,
    }


def _read(path: str) -> bytes:
    try:
        data = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf")
        data.decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return b""
    return b"" if b"\x00" in data else data


def jobs_of(
    sizes: Iterable[str], models: Sequence[str], seeds: Sequence[int], rates: Sequence[float], dry: bool
) -> list[Job]:
    """Every seed at the first rate, the first seed at the others."""
    settings = [(rates[0], seed) for seed in seeds] + [(rate, seeds[0]) for rate in rates[1:]]
    return [Job(size, model, *setting, dry) for size in sizes for setting in settings for model in models]


def work(job: Job, pipe: Connection, folder: Path) -> None:
    """A run's process: compiles, measures its speed and trains, each when it is told to."""
    # Ctrl-C is for the parent, which asks us; and nobody else would end us if the parent is killed.
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        import torch

        torch.set_num_threads(1)
        pipe.send({"started": True})
        while (order := pipe.recv()) is not None:
            pipe.send(_carry_out(job, folder, **order))
    except (KeyboardInterrupt, EOFError, BrokenPipeError):
        pass


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _carry_out(job: Job, folder: Path, stage: str, steps: int, texts: list[str]) -> dict[str, Any]:
    """One training run of some steps, as `syncattn train` does it; for "whole", the one that counts."""
    from syncattn.training.errors import Interrupted
    from syncattn.training.tokenizers import byte_tokenizer
    from syncattn.training.train import train

    out = folder / f"{job.name}-{stage}"
    try:
        size = (TOY if job.dry else SIZES)[job.size]
        corpus = _corpus(tuple(texts))
        if stage != "whole":  # tokens and hashes of all that text take longer than the steps
            corpus = replace(corpus, train=corpus.train[:4_000_000])
        config = config_of(job.model, size)
        options = options_of(job, size, stage, steps)
        record = train(config, corpus, byte_tokenizer(size.context), out, options).to_json()
    except Interrupted as error:
        step = str(error).partition(";")[0]  # and how to go on, which a temporary folder does not allow
        return {"status": "stopped", "message": step, "history": _history_so_far(out)}
    except Exception as error:
        return {"status": "failed", "message": f"{stage}: {type(error).__name__}: {error}"[:1000]}
    reply: dict[str, Any] = {name: record[name] for name in ("versions", "machine", "parameters", "config")}
    reply["seconds_per_step"] = slowest_step(record["history"], size.batch * size.context)
    if stage != "whole":
        return reply
    result = record["result"]
    heads = [head for layer in result["density"] for head in layer]
    return reply | {
        "status": "finished",
        "steps": steps,
        "tokens": options.tokens,
        # a token is a byte, its loss in nats
        "validation_bits_per_byte": result["validation_loss"] / math.log(2),
        "test_bits_per_byte": result["test_loss"] / math.log(2),
        "test_bytes": result["test_tokens"],
        "tokens_per_second": result["tokens_per_second"],
        "density": statistics.fmean(heads) if heads else None,
        "text_sha256": record["data"]["sha256"],
        **{name: result[name] for name in ("train_seconds", "wall_seconds")},
        **{name: record[name] for name in ("device", "options", "history")},
    }


@cache
def _corpus(texts: tuple[str, ...]) -> Any:
    """The text in these three files, or in one folder, split as `syncattn train` does."""
    from syncattn.training.data import load_corpus

    _, validation, test = texts if len(texts) > 1 else (*texts, None, None)
    return load_corpus(texts[:1], validation=validation, test=test)


def config_of(model: str, size: Size) -> Any:
    """A model's configuration, with as many parameters as the size says."""
    from syncattn.models import OSNConfig, TransformerConfig, count_parameters, fit_parameters

    sizes: dict[str, Any] = {
        "vocab_size": 256,
        "hidden_size": size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "max_position_embeddings": size.context,
    }
    goal, kind = count_parameters(TransformerConfig(**sizes)), MODELS[model]
    return fit_parameters((OSNConfig if kind.is_osn else TransformerConfig)(**sizes, **kind.config), goal)


def options_of(job: Job, size: Size, stage: str, steps: int) -> Any:
    """How a run is trained; its evaluations and logs are few, since they are no part of its speed."""
    from syncattn.training.options import TrainingOptions

    whole = stage == "whole" and not job.dry
    backend = "tiled" if job.dry else "triton"
    return TrainingOptions(
        context=size.context,
        batch_size=size.batch,
        steps=steps,
        learning_rate=job.rate * MODELS[job.model].times,
        optimizer=MODELS[job.model].optimizer,
        seed=job.seed,
        log_every=max(1, steps // (20 if whole else 4)),
        eval_every=max(1, steps // 5) if whole else steps,
        save_every=steps,
        eval_tokens=(64 if whole else 2) * size.context,
        final_eval_tokens=2**20 if whole else 2 * size.context,
        precision="bf16",
        device="cpu" if job.dry else "cuda",
        # By name, so that falling back is an error; a Transformer needs none of ours.
        backend=backend if MODELS[job.model].is_osn else None,
        threads=1,
    )


def slowest_step(history: list[dict[str, Any]], tokens: int) -> float | None:
    """Seconds per step in the slowest stretch between two logs; before the first, things compile."""
    spent = [(e["step"], e["step"] * tokens / e["tokens_per_second"]) for e in history if "loss" in e]
    stretches = [
        (after - before) / (late - early)
        for (early, before), (late, after) in itertools.pairwise(spent)
        if late > early
    ]
    return max(stretches, default=None)


def _history_so_far(out: Path) -> list[dict[str, Any]]:
    """What a run that was stopped has logged: its checkpoint has it."""
    from syncattn.training.record import history

    states = sorted(out.glob("checkpoints/checkpoint-*/trainer_state.json"), key=os.path.getmtime)
    return history(json.loads(states[-1].read_text())["log_history"]) if states else []


class Study:
    """The processes, and the record of what they have said."""

    def __init__(self, out: Path, work_folder: Path, jobs: Sequence[Job], seconds: float) -> None:
        self.begun = time.monotonic()
        self.out, self.seconds = out, seconds
        context = multiprocessing.get_context("spawn")
        self.workers: list[Worker] = []
        self.record: dict[str, Any] = {"about": about(jobs), "state": "running", "runs": []}
        for job in jobs:
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(job, theirs, work_folder), daemon=True)
            process.start()
            theirs.close()  # so that a process that dies is seen
            self.workers.append(
                Worker(job, process, ours, job._asdict() | {"title": MODELS[job.model].title})
            )
            self.record["runs"].append(self.workers[-1].shown)
        self.write()

    def left(self) -> float:
        """Seconds until the end."""
        return self.seconds - (time.monotonic() - self.begun)

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.begun:6.1f} s  {text}", flush=True)

    def ask(self, stage: str, order: Callable[[Worker], dict[str, Any] | None], seconds: float) -> bool:
        """Give an order to every run that goes on, and take in the replies; False: not all came in time."""
        waiting = []
        for worker in self.workers:
            if worker.alive:
                told = order(worker)
                if told is not None:
                    with contextlib.suppress(OSError):  # it has died: its pipe says so below
                        worker.pipe.send(told)
                waiting.append(worker)
        self.collect(stage, waiting, seconds)
        return not waiting

    def collect(self, stage: str, waiting: list[Worker], seconds: float) -> None:
        """Take in replies until all have come or the seconds are over; who is still waited for stays."""
        until = time.monotonic() + seconds
        while waiting and (left := until - time.monotonic()) > 0:
            for pipe in wait([worker.pipe for worker in waiting], left):
                worker = next(worker for worker in waiting if worker.pipe is pipe)
                waiting.remove(worker)
                self._take_in(stage, worker)
            self.write()

    def _take_in(self, stage: str, worker: Worker) -> None:
        try:
            reply = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join(1)
            code = worker.process.exitcode
            status = "stopped" if stage == "stopping" else "failed"
            reply = {"status": status, "message": f"{stage}: its process ended with exit status {code}"}
        for name in ("versions", "machine"):
            if name in reply:
                self.record.setdefault(name, reply.pop(name))
        reply.pop("started", None)
        worker.shown |= reply
        if reply.get("status") in ("failed", "stopped"):
            worker.alive = False
        told = {name: value for name, value in reply.items() if isinstance(value, (int, float, str))}
        self.say(f"{worker.job.name}, {stage}: {told}")

    def stop(self, why: str) -> None:
        """Ask the runs that go on to stop, take in what they have, and end their processes."""
        waiting = [worker for worker in self.workers if worker.alive and worker.process.is_alive()]
        waiting = [worker for worker in waiting if "status" not in worker.shown]
        for worker in waiting:
            os.kill(worker.process.pid, signal.SIGINT)
        self.collect("stopping", waiting, STOPPING)
        for worker in self.workers:
            if "status" not in worker.shown:
                worker.shown |= {"status": "stopped", "message": why}
            worker.process.kill()

    def write(self) -> None:
        """Renew scale.json; never half of it, since this may be ended at any time."""
        self.record["seconds"] = round(time.monotonic() - self.begun, 1)
        self.record["models"] = summaries(self.record["runs"])
        draft = self.out / "scale.json.part"
        draft.write_text(json.dumps(self.record, indent=1))
        draft.replace(self.out / "scale.json")


def about(jobs: Sequence[Job]) -> str:
    """What is compared, in a sentence."""
    sizes = TOY if jobs[0].dry else SIZES
    shapes = "; ".join(
        f"{name}: hidden {s.hidden}, {s.layers} blocks, {s.heads} heads, context {s.context}, batch {s.batch}"
        for name, s in ((name, sizes[name]) for name in dict.fromkeys(job.size for job in jobs))
    )
    how = "bf16, float32 weights; backend " + ("tiled" if jobs[0].dry else "triton") + "; the Transformer: "
    return f"{shapes}; {how}SDPA; {len(jobs)} processes side by side, so that tokens per second are shares"


def summaries(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation (n - 1) over the seeds that finished, by size, model and learning rate."""
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for run in runs:
        if run.get("status") == "finished":
            groups.setdefault((run["size"], run["model"], run["rate"]), []).append(run)
    found = []
    for (size, model, rate), same in groups.items():
        entry = {"size": size, "model": model, "title": MODELS[model].title, "rate": rate, "seeds": len(same)}
        entry |= {name: same[0][name] for name in ("parameters", "tokens")}
        for name in ("validation_bits_per_byte", "test_bits_per_byte", "tokens_per_second", "density"):
            values = [run[name] for run in same if run[name] is not None]
            entry[name] = statistics.fmean(values) if values else None
            entry[f"{name}_spread"] = statistics.stdev(values) if len(values) > 1 else None
        found.append(entry)
    return found


def planned_steps(workers: Sequence[Worker], seconds: float) -> dict[str, int]:
    """Steps for each size, so that its slowest run takes about so many seconds."""
    slowest: dict[str, float] = {}
    for worker in workers:
        speed = worker.shown.get("seconds_per_step")
        if worker.alive and speed:
            slowest[worker.job.size] = max(speed, slowest.get(worker.job.size, 0.0))
    return {size: max(50, int(seconds / speed)) for size, speed in slowest.items()}


def main(out: Path, seconds: float, jobs: list[Job], folders: list[Path]) -> int:
    """The whole study; the exit status is 1 if a run failed or did not finish."""
    dry = jobs[0].dry
    out.mkdir(parents=True, exist_ok=True)
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory(prefix="gpu-scale-", ignore_cleanup_errors=True) as name:
        study = Study(out, Path(name), jobs, seconds)
        why = "out of time"
        try:
            if _stages(study, Path(name), folders, dry):
                why = "complete"
        except KeyboardInterrupt:
            why = "interrupted"
        except Exception as error:  # no text, say: the record has to tell
            why = f"failed: {type(error).__name__}: {error}"
        study.stop(why)
        study.record["state"] = why
        study.write()
    study.say(why)
    return int(why != "complete" or any(run["status"] != "finished" for run in study.record["runs"]))


def _stages(study: Study, work_folder: Path, folders: list[Path], dry: bool) -> bool:
    """Start, compile, measure, train; whether all runs ended in time."""
    # The kernels compile on a little text of ours while the other is read.
    few = {"stage": "compile", "steps": 4, "texts": [str(ROOT / "src" / "syncattn")]}
    for worker in study.workers:
        with contextlib.suppress(OSError):
            worker.pipe.send(few)
    text, study.record["text"] = source_text(folders)
    texts = [str(work_folder / f"{name}.txt") for name in PARTS]
    for path, part in zip(texts, text.values()):
        Path(path).write_bytes(part)
    study.say(f"text: {study.record['text']}")
    for stage in ("start", "compile"):
        # One that hangs here is left behind, and the others go on.
        if not study.ask(stage, lambda worker: None, study.left() - (1 - STARTING) * study.seconds):
            for worker in study.workers:
                if worker.alive and "seconds_per_step" not in worker.shown:
                    worker.alive = False
                    worker.shown |= {"status": "failed", "message": f"{stage}: took most of the time"}
                    worker.process.kill()
    probe = {"stage": "probe", "steps": 4 if dry else PROBE_STEPS, "texts": texts}
    if not study.ask("probe", lambda worker: probe, study.left()):
        return False
    steps = planned_steps(study.workers, max(1.0, SHARE * (study.left() - TAIL)))
    study.record["steps"] = dict.fromkeys(steps, 4) if dry else steps
    study.say(f"steps: {study.record['steps']}")

    def whole(worker: Worker) -> dict[str, Any]:
        return {"stage": "whole", "steps": study.record["steps"][worker.job.size], "texts": texts}

    return study.ask("whole", whole, study.left())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of scale.json")
    parser.add_argument("--seconds", type=float, default=160.0, help="for everything together")
    parser.add_argument("--sizes", default=",".join(SIZES), help="these sizes only, as a list")
    parser.add_argument("--models", default="osn,transformer", help=f"as a list, among {', '.join(MODELS)}")
    parser.add_argument("--seeds", default="0,1,2", help="as a list")
    parser.add_argument("--rates", default="0.006,0.003", help="learning rates; all seeds have the first")
    parser.add_argument("--text", type=Path, action="append", help="folders of Python source to read instead")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes, one seed, on the CPU")
    given = parser.parse_args()
    chosen = jobs_of(
        TOY if given.dry_run else [size for size in SIZES if size in given.sizes.split(",")],
        [model for model in MODELS if model in given.models.split(",")],
        [0] if given.dry_run else [int(seed) for seed in given.seeds.split(",")],
        [float(rate) for rate in given.rates.split(",")][: 1 if given.dry_run else None],
        given.dry_run,
    )
    where = given.text or ([ROOT / "src"] if given.dry_run else package_folders())
    sys.exit(main(given.out, given.seconds, chosen, where))
