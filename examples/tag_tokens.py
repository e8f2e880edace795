"""What kind of Python token is each byte part of? A bidirectional OSN tags 128 bytes of source at a time."""

import io
import os
import sysconfig
import tokenize
from itertools import accumulate
from keyword import iskeyword
from pathlib import Path

import torch

from syncattn.models import OSNConfig, OSNForTokenClassification
from syncattn.nn import calibrate

STEPS = int(os.environ.get("SYNCATTN_EXAMPLE_STEPS", 200))
LABELS = {tokenize.NAME: 1, tokenize.OP: 2, tokenize.NUMBER: 3, tokenize.STRING: 4, tokenize.COMMENT: 5}
NAMES = dict(enumerate(["between", "name", "operator", "number", "string", "comment", "keyword"]))
torch.manual_seed(0)
rows: tuple[list, list] = ([], [])  # every fourth module is kept for the test
for number, file in enumerate(sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:80]):
    text = file.read_text("utf-8").encode("ascii", "replace").decode()
    starts = list(accumulate((len(line) for line in io.StringIO(text)), initial=0))
    kinds = torch.zeros(len(text), dtype=torch.int64)
    for kind, word, (row, a), (last, b), _ in tokenize.generate_tokens(io.StringIO(text).readline):
        kinds[starts[row - 1] + a : starts[last - 1] + b] = 6 if iskeyword(word) else LABELS.get(kind, 0)
    both = torch.stack((torch.tensor(list(text.encode())), kinds), 1)
    rows[number % 4 == 3].extend(both.split(128)[:-1])
(x, y), (test_x, test_y) = (torch.stack(part).unbind(-1) for part in (rows[0], rows[1][::8]))
sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
model = OSNForTokenClassification(OSNConfig(**sizes, is_causal=False, id2label=NAMES))
calibrate(model, x[:32])
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for batch in torch.randint(len(x), (STEPS, 16)):
    model.train()(x[batch], labels=y[batch]).loss.backward()
    optimizer.step(), optimizer.zero_grad()
with torch.no_grad():
    found = torch.cat([model.eval()(part).logits.argmax(-1) for part in test_x.split(64)])
right, majority = ((guess == test_y).float().mean() for guess in (found, y.flatten().mode().values))
print(f"{found.numel()} bytes of other modules: accuracy {right:.3f}, the commonest kind {majority:.3f}")
