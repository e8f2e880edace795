"""Time and memory of a training step of a study's finished models, each in a process of its own.

    python benchmarks/length/steps.py runs/length --rounds 3

The models are those at the end of their training, with the couplings that they have learned. A step is
forward, backward and AdamW on the test text, at the run's own window and batch, without the looks at the
density that training makes. Times are process CPU seconds with one thread, which say what a step costs on a
busy machine, too, except for the caches and memory that are shared. Adds a line for each model and round to
runs/length/steps.jsonl; publish_quality.py makes a table of them.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from syncattn.nn import SelectiveSynchronizationAttention, count_locked
from syncattn.training.checkpoints import load_model
from syncattn.training.environment import machine
from syncattn.training.tokenizers import byte_tokenizer, encode
from syncattn.training.windows import EvaluationWindows
from syncattn_lab.study.lines import LINES_FILE
from syncattn_lab.study.records import Line, read_runs
from syncattn_lab.study.run import corpus_of
from syncattn_lab.study.steps import STEPS_FILE


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="folder of the study")
    parser.add_argument("--rounds", type=int, default=3, help="all models in turn, so many times")
    parser.add_argument("--steps", type=int, default=3, help="timed in a process, after one that is not")
    parser.add_argument("--group", action="append", help="only this group")
    parser.add_argument("--data", type=Path, help="folder with the texts that the study read")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    lines = [
        line
        for line in read_runs(arguments.runs / LINES_FILE)
        if line["outcome"] == "finished" and (not arguments.group or line["group"] in arguments.group)
    ]
    if arguments.only is not None:
        (line,) = (line for line in lines if line["key"] == arguments.only)
        print(json.dumps(measure(line, arguments.runs, arguments.steps, arguments.data)))
        return
    firsts = [line for line in lines if line["seed"] == min(x["seed"] for x in lines)]
    for _ in range(arguments.rounds):
        for line in firsts:
            given = [sys.executable, *sys.argv, "--only", line["key"]]
            found = subprocess.run(given, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            with (arguments.runs / STEPS_FILE).open("a", encoding="utf-8") as file:
                file.write(found + "\n")
            print(found, flush=True)


def measure(line: Line, runs: Path, steps: int, data: Path | None = None) -> dict[str, Any]:
    """The times and the memory of one model's steps."""
    torch.set_num_threads(1)
    options = line["options"]
    model: Any = load_model(runs / "runs" / line["key"].replace("/", "--"))[0]
    tokens = encode(
        byte_tokenizer(options["context"]), corpus_of(line["task"], line["task_options"], data).test
    )
    windows = EvaluationWindows(tokens, options["context"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    before, times = peak(), []
    for step in range(steps + 1):
        numbers = [(step * options["batch_size"] + i) % len(windows) for i in range(options["batch_size"])]
        ids = torch.stack([windows[i]["input_ids"] for i in numbers])
        begun = time.process_time()
        model.train()(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.process_time() - begun)
    after, partners = peak(), None
    if any(isinstance(module, SelectiveSynchronizationAttention) for module in model.modules()):
        found = count_locked(model, input_ids=ids, use_cache=False).values()
        partners = [round(float(layer.partners.mean()), 2) for layer in found]
    return {
        "key": line["key"],
        "cpu_seconds": times[1:],
        "tokens": options["batch_size"] * options["context"],
        "peak_bytes": after,
        "before_bytes": before,
        "partners": partners,
        "threads": 1,
        "machine": machine(),
    }


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
