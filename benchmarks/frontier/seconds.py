"""What a study's finished models cost a token: read, trained on, generated.

    python benchmarks/frontier/seconds.py runs/frontier --data DATA

The models of the lines are read from RUNS/runs, couplings as they were learned, and take turns: in each round
each of them makes, at its run's own window and batch and on the test text,

- forward passes without gradients,
- training steps: forward, backward, clipping and the run's optimizer at a rate of 0, so that the model stays
  what it is; without the looks at the density that training makes,
- tokens one by one after a window that a cache holds, one text, batch 1,

one of each before those that are timed. A line a model and round, with seconds of the process (CPU) and of
the clock, is added to RUNS/seconds.jsonl as it is measured; started again, what is there is not measured
again. No round begins after `--seconds`. publish.py beside this makes the page. One thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from syncattn.nn import SelectiveSynchronizationAttention, count_locked
from syncattn.training.checkpoints import load_model
from syncattn.training.environment import machine
from syncattn.training.errors import UserError
from syncattn.training.optimizers import MuonWithAdamW, inner_matrices
from syncattn.training.settings import quiet
from syncattn.training.texts import read_text
from syncattn.training.tokenizers import byte_tokenizer, encode
from syncattn_lab.study.frontier import SECONDS_FILE, read_seconds
from syncattn_lab.study.lines import LINES_FILE
from syncattn_lab.study.records import Line, read_runs
from syncattn_lab.study.run import corpus_of

GENERATED = 24
"""Tokens that are generated, a third of them before those that are timed."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="folder of the study")
    parser.add_argument("--data", type=Path, help="folder with the texts that the study read")
    parser.add_argument("--rounds", type=int, default=7, help="all models in turn, so many times")
    parser.add_argument("--repeats", type=int, default=2, help="timed in a round, after one that is not")
    parser.add_argument("--seconds", type=float, default=220.0, help="after which no round begins")
    arguments = parser.parse_args()
    for name in ("rounds", "repeats"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    try:
        measure_all(arguments.runs, arguments.data, arguments.rounds, arguments.repeats, arguments.seconds)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


def measure_all(runs: Path, data: Path | None, count: int, repeats: int, limit: float) -> None:
    """Add to `runs`/seconds.jsonl what it lacks of `count` rounds; no round begins after `limit` seconds.

    Raises:
        UserError: lines, models or texts that cannot be read.
    """
    begun = time.perf_counter()
    torch.set_num_threads(1)
    path = runs / SECONDS_FILE
    finished = [line for line in read_runs(runs / LINES_FILE) if line["outcome"] == "finished"]
    there = {(each.key, number) for each in read_seconds(path) for number in each.rounds}
    rounds = range(count)
    wanted = [line for line in finished if any((line["key"], number) not in there for number in rounds)]
    with quiet():
        models = {line["key"]: Timed(line, runs, data) for line in wanted}
    for number in rounds:
        if time.perf_counter() - begun > limit:
            print(f"stopped before round {number}: {limit:g} s are over; start again to go on")
            return
        for key, model in models.items():
            if (key, number) in there:
                continue
            line = {"key": key, "round": number, **model.measure(repeats)}
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(f"round {number}, {key}: {told(line)}", flush=True)


class Timed:
    """A run's finished model, its optimizer and its text."""

    def __init__(self, line: Line, runs: Path, data: Path | None) -> None:
        self.options = line["options"]
        self.model: Any = load_model(runs / "runs" / line["key"].replace("/", "--"))[0]
        context, batch = self.options["context"], self.options["batch_size"]
        tokens = encode(byte_tokenizer(context), test_text(line, data)[: 4 * (context * batch + GENERATED)])
        tokens = tokens.long()
        self.ids = tokens[: context * batch].view(batch, context)
        self.next = tokens[: context + GENERATED][None]
        weights = list(self.model.parameters())
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(weights, lr=0.0)
        if self.options["optimizer"] == "muon":
            self.optimizer = MuonWithAdamW(self.optimizer, inner_matrices(self.model))

    def measure(self, repeats: int) -> dict[str, Any]:
        """Seconds of each kind, [process, clock] each, and what they are of."""
        context = self.options["context"]
        found: dict[str, Any] = {
            "tokens": self.ids.numel(),
            "context": context,
            "forward": timed(self.forward, repeats),
            "training": timed(self.step, repeats),
            "generation": self.generate(),
            "partners": self.partners(),
            "threads": 1,
            "machine": machine(),
        }
        return found

    @torch.no_grad()
    def forward(self) -> Tensor:
        return self.model.eval()(input_ids=self.ids, use_cache=False).logits

    def step(self) -> None:
        self.model.train()(input_ids=self.ids, labels=self.ids, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options["max_grad_norm"])
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def generate(self) -> list[list[float]]:
        """Of each token after the window, what is fed being the text's own."""
        context, times = self.options["context"], []
        model = self.model.eval()
        cache = model(input_ids=self.next[:, : context - 1], use_cache=True).past_key_values
        for place in range(context - 1, context - 1 + GENERATED):
            begun = time.process_time(), time.perf_counter()
            given = self.next[:, place : place + 1]
            cache = model(input_ids=given, past_key_values=cache, use_cache=True).past_key_values
            times.append([time.process_time() - begun[0], time.perf_counter() - begun[1]])
        return times[GENERATED // 3 :]

    def partners(self) -> list[float] | None:
        """Senders of a receiver, the mean over a layer's heads, a number a layer; None without SSA."""
        if not any(isinstance(m, SelectiveSynchronizationAttention) for m in self.model.modules()):
            return None
        found = count_locked(self.model.eval(), input_ids=self.ids, use_cache=False).values()
        return [round(float(layer.partners.mean()), 2) for layer in found]


def timed(call: Callable[[], Any], repeats: int) -> list[list[float]]:
    """Seconds of the process and of the clock, for each of some calls after one more."""
    times = []
    for _ in range(1 + repeats):
        begun = time.process_time(), time.perf_counter()
        call()
        times.append([time.process_time() - begun[0], time.perf_counter() - begun[1]])
    return times[1:]


def test_text(line: Line, data: Path | None) -> str:
    """The run's text for test; its own file, where it has one, is all that is read."""
    named = line["task_options"].get("test")
    if named is not None:
        return read_text((data or Path()) / named)
    return corpus_of(line["task"], line["task_options"], data).test


def told(line: dict[str, Any]) -> str:
    """A line's least process times in words."""
    tokens = {"forward": line["tokens"], "training": line["tokens"], "generation": 1}
    return ", ".join(
        f"{kind} {1e6 * min(cpu for cpu, _ in line[kind]) / count:,.1f} µs a token"
        for kind, count in tokens.items()
    )


if __name__ == "__main__":
    main()
