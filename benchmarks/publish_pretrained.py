"""Make a model that comes with the package out of a finished run.

    python benchmarks/publish_pretrained.py RUN NAME

The weights are rounded to bfloat16, and the losses on the card are measured with the rounded ones. The model
that is there was trained by

    syncattn train stdlib --out runs/osn-python-1m --hidden-size 144 --layers 4 --heads 8 --context 256 \\
        --batch-size 16 --steps 6000 --lr 0.004 --eval-every 500 --save-every 500 --log-every 100 --threads 1
"""

import argparse
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from syncattn.models.sharing import accompany
from syncattn.training.card import sections
from syncattn.training.checkpoints import load_model
from syncattn.training.data import encode_corpus, reload_corpus
from syncattn.training.files import read_object, staged, write_json
from syncattn.training.record import Record
from syncattn.training.tokenizers import encode
from syncattn.training.windows import EvaluationWindows

PLACE = Path(__file__).parents[1] / "src" / "syncattn" / "models" / "pretrained"
LICENCE = """## Licence

The weights are part of syncattn and under its licence, Apache-2.0.

## What it is for

The first ten lines of the README, the explorer, tests, a start for fine-tuning (`syncattn train --init-from
{name}`). It writes text that looks like Python. It knows nothing, and what it writes does not run."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the --out folder of `syncattn train`")
    parser.add_argument("name", help="a folder of this name is made or replaced")
    given = parser.parse_args()
    model, tokenizer = load_model(given.run)
    path = given.run / "training.json"
    record = Record.from_json(read_object(path), path)
    record = replace(record, command=re.sub(r"--out \S+", f"--out runs/{given.name}", record.command))
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    record = replace(record, result=replace(record.result, **losses(model, tokenizer, record)))

    with staged(PLACE) as folder:
        target = folder / given.name
        accompany(model, target, *sections(record), LICENCE.format(name=given.name))
        model.save_pretrained(target)
        # Stored in half the bytes; config.json still says float32, and that is what it is loaded as.
        weights = {
            name: tensor.bfloat16() for name, tensor in load_file(target / "model.safetensors").items()
        }
        save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
        (target / "model.safetensors").chmod(0o644)  # readable by all who install the package
        tokenizer.save_pretrained(target)
        write_json(target / "training.json", record.to_json())
    size = sum(file.stat().st_size for file in (PLACE / given.name).iterdir())
    print(f"{PLACE / given.name}: {size / 1e6:.2f} MB, test loss {record.result.test_loss:.4f}")


@torch.inference_mode()
def losses(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, record: Record) -> dict[str, float]:
    """Of the validation and the test text, in nats per token, over the windows of the run."""
    context, some = record.options["context"], record.options["final_eval_tokens"] or None
    corpus = reload_corpus(record.data)
    if corpus.sha256 != record.data["sha256"]:
        raise SystemExit("the text is another than the one that the model was trained on")
    tokens = encode_corpus(corpus, partial(encode, tokenizer), context)
    found = {}
    for part in ("validation", "test"):
        batches = DataLoader(EvaluationWindows(tokens[part], context, some), batch_size=16)
        sums = [
            (float(model(**batch, use_cache=False).loss) * len(batch["labels"]), len(batch["labels"]))
            for batch in batches
        ]
        found[f"{part}_loss"] = sum(loss for loss, _ in sums) / sum(count for _, count in sums)
    return found


if __name__ == "__main__":
    main()
