"""What a study's finished models know of a line read long ago, and what scaling their positions does.

    python benchmarks/at_length/measure.py runs/at-length --data DATA --scaling osn=16

Each model is asked for lines of code that it has read 256 to 16,000 bytes before, in texts evenly spaced in
the test text (syncattn_lab/study/by_gap.py says how): a line for each model in runs/at-length/gaps.jsonl.

`--scaling VARIANT=FACTOR` (for a rotary Transformer and an OSN whose heads drift; may be given several times)
evaluates a finished model once more, as the study does, for texts FACTOR times as long and without training:
a Transformer with YaRN's scaling, an OSN with the drift of each layer's widest head divided by FACTOR. That
adds a line to runs.jsonl as of a variant of its own, VARIANT-yarn-FACTOR or VARIANT-wide-FACTOR, and then one
to gaps.jsonl. What has been measured is not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch

from syncattn.models import TransformerForCausalLM
from syncattn.nn import widen_
from syncattn.training.checkpoints import load_model
from syncattn.training.environment import machine
from syncattn.training.errors import UserError
from syncattn.training.settings import quiet
from syncattn.training.tokenizers import byte_tokenizer, encode
from syncattn.training.windows import EvaluationWindows
from syncattn_lab.study import by_gap
from syncattn_lab.study.by_word import losses_of
from syncattn_lab.study.lines import LINES_FILE, append_line
from syncattn_lab.study.records import Line, read_runs
from syncattn_lab.study.run import LENGTH_TOKENS, corpus_of, loss_at


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="folder of the study")
    parser.add_argument("--data", type=Path, help="folder with the texts that the study read")
    parser.add_argument(
        "--scaling", action="append", default=[], metavar="VARIANT=FACTOR", help="may be given several times"
    )
    parser.add_argument("--texts", type=int, default=6, help="with a block of lines each")
    given = parser.parse_args()
    torch.set_num_threads(1)
    try:
        with quiet():
            for scaling in given.scaling:
                variant, _, factor = scaling.partition("=")
                scale(given.runs, given.data, variant, factor)
            ask(given.runs, given.data, given.texts)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def scale(runs: Path, data: Path | None, variant: str, factor: str) -> None:
    """Add the lines of a variant's runs, evaluated with this factor.

    Raises:
        UserError: no finished run of the variant, a model whose positions cannot be scaled, or no factor.
    """
    try:
        number = float(factor)
        if not 1 <= number < math.inf:
            raise ValueError
    except ValueError:
        raise UserError(f"--scaling must be VARIANT=FACTOR, got {variant}={factor}") from None
    lines = read_runs(runs / LINES_FILE)
    known = {line["key"] for line in lines}
    chosen = [line for line in lines if line["variant"] == variant and line["outcome"] == "finished"]
    if not chosen:
        raise UserError(f"--scaling: {runs} has no finished run of the variant {variant!r}")
    for line in chosen:
        osn = line["model"] == "osn"
        name = f"{variant}-{'wide' if osn else 'yarn'}-{factor}"
        key = line["key"].replace(f"/{variant}/", f"/{name}/")
        if key in known:
            continue
        model = load(line, runs, number)
        tokens, options = tokens_of(line, data), line["options"]
        lengths = {
            length: loss_at(model, tokens["test"], int(length), LENGTH_TOKENS)
            for length in line["result"]["lengths"]
        }
        result = line["result"] | {"lengths": lengths, "train_seconds": None, "wall_seconds": None}
        for part, ids in tokens.items():
            windows = EvaluationWindows(ids, options["context"], options["final_eval_tokens"])
            result[f"{part}_loss"] = float(losses_of(model, windows).mean())
        added = line | {
            "key": key,
            "variant": name,
            "title": line["title"] + (f", widest heads × {factor}" if osn else f", YaRN {factor}"),
            "order": line["order"] + 0.5,
            "of": line["key"],
            "scaling": number,
            "result": result,
            "history": [],
        }
        added.pop("prediction", None)
        append_line(runs, added)
        told = ", ".join(f"{length} {entry['loss']:.3f}" for length, entry in lengths.items())
        print(f"{key}: {told}", flush=True)


def ask(runs: Path, data: Path | None, texts: int) -> None:
    """Add what each finished model knows of lines that it has read.

    Raises:
        UserError: a model or a text cannot be used.
    """
    path = runs / by_gap.GAPS_FILE
    known = by_gap.read_gaps(path)
    for line in read_runs(runs / LINES_FILE):
        if line["outcome"] != "finished" or line["key"] in known:
            continue
        text = bytes(tokens_of(line, data)["test"].tolist())
        model = load(line, runs, line.get("scaling"))
        found = by_gap.measure(model, by_gap.cases(text, texts, max(by_gap.GAPS)), by_gap.GAPS)
        entry = {"key": line["key"], "texts": texts, "gaps": found, "machine": machine()}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        told = ", ".join(f"{each['gap']} {each['right']:.2f}" for each in found)
        print(f"{line['key']}: {told}", flush=True)


@torch.no_grad()
def load(line: Line, runs: Path, factor: float | None) -> Any:
    """A run's model; with a factor, for texts so many times as long."""
    folder = runs / "runs" / line.get("of", line["key"]).replace("/", "--")
    model: Any = load_model(folder)[0]  # it checks what it loads
    if factor is None:
        return model
    if line["model"] == "osn" and model.config.position == "drift":
        widen_(model, factor)
        return model
    if not isinstance(model, TransformerForCausalLM) or model.config.position != "rotary":
        raise UserError(f"--scaling: {line['key']} has neither rotary position nor heads that all drift")
    model = TransformerForCausalLM.from_pretrained(folder, rotary_scaling=factor, local_files_only=True)
    return model.eval()


def tokens_of(line: Line, data: Path | None) -> dict[str, torch.Tensor]:
    """The tokens of a run's validation and test text."""
    corpus, tokenizer = corpus_of(line["task"], line["task_options"], data), byte_tokenizer()
    return {name: encode(tokenizer, getattr(corpus, name)) for name in ("validation", "test")}


if __name__ == "__main__":
    sys.exit(main())
