"""From which package of the standard library is this? A bidirectional OSN reads 96 tokens and says."""

import os
import sysconfig
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from torch.nn.utils.rnn import pad_sequence

from syncattn.models import OSNConfig, OSNForSequenceClassification
from syncattn.nn import calibrate

STEPS, PAD = int(os.environ.get("SYNCATTN_EXAMPLE_STEPS", 200)), -1
PACKAGES = ["asyncio", "email", "http", "importlib", "json", "multiprocessing", "unittest", "xml"]
torch.manual_seed(0)
library = Path(sysconfig.get_path("stdlib"))
files = [(i, f) for i, name in enumerate(PACKAGES) for f in sorted((library / name).rglob("*.py"))]
modules = [(label, file.read_text("utf-8", "replace")) for label, file in files]
tokenizer = ByteLevelBPETokenizer()
tokenizer.train_from_iterator((text for _, text in modules[::2]), vocab_size=2000, show_progress=False)
rows: tuple[list, list] = ([], [])
for number, (label, text) in enumerate(modules):
    ids = torch.tensor(tokenizer.encode(text).ids, dtype=torch.int64)
    rows[number % 4 == 3].extend((piece, label) for piece in ids.split(96) if len(ids))  # kept for the test
x, test_x = (pad_sequence([ids for ids, _ in part], True, PAD) for part in (rows[0], rows[1][::4]))
y, test_y = (torch.tensor([label for _, label in part]) for part in (rows[0], rows[1][::4]))
fields = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_dropout": 0.1}
config = OSNConfig(**fields, vocab_size=2000, is_causal=False, id2label=dict(enumerate(PACKAGES)))
model = OSNForSequenceClassification(config)
calibrate(model, x[:32].clamp(min=0), x[:32] != PAD)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for b in torch.randint(len(x), (STEPS, 32)):
    model.train()(x[b].clamp(min=0), x[b] != PAD, labels=y[b]).loss.backward()
    optimizer.step(), optimizer.zero_grad()
with torch.no_grad():
    found = [model.eval()(ids.clamp(min=0), ids != PAD).logits.argmax(-1) for ids in test_x.split(64)]
right, majority = (torch.cat(found) == test_y).float().mean(), (test_y == y.mode().values).float().mean()
print(f"{len(test_y)} texts of other modules: accuracy {right:.3f}, the commonest package {majority:.3f}")
