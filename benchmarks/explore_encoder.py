"""The explorer's page of a converted sentence encoder: python benchmarks/explore_encoder.py FOLDER PAGE

FOLDER is what `adopt_encoder.py --save` or `save_pretrained` wrote of a model whose attention is "ssa".
"""

import sys
from pathlib import Path

from transformers import AutoModel, AutoTokenizer

import syncattn
from syncattn.integrations.transformers import register

TEXT = (
    "The oscillators lock when their frequencies are close. The others drift, and hear nothing of each "
    "other. A text about oscillators, frequencies and coupling."
)


def main(folder: str, page: str) -> None:
    register()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, attn_implementation="ssa").eval()
    inputs = tokenizer(TEXT, return_tensors="pt")
    made = syncattn.explore(
        model,
        {name: inputs[name] for name in ("input_ids", "attention_mask")},
        decode=lambda token: tokenizer.decode([token]) + " ",
        title="A sentence encoder, converted and distilled",
    )
    Path(page).write_text(made.html, encoding="utf-8")
    print(f"{made.tokens} tokens, {len(made.html.encode()) / 1e6:.1f} MB: {page}")


if __name__ == "__main__":
    main(*sys.argv[1:])
