"""LoRA (PEFT): a causal OSN that predicts tokens of source learns, by small updates, to tell its package."""

import os
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import ByteLevelBPETokenizer

from syncattn.models import OSNConfig, OSNForCausalLM, OSNForSequenceClassification

STEPS, PACKAGES = int(os.environ.get("SYNCATTN_EXAMPLE_STEPS", 150)), ["asyncio", "email", "unittest", "xml"]
torch.manual_seed(0)
library, tokenizer = Path(sysconfig.get_path("stdlib")), ByteLevelBPETokenizer()
files = sorted(file for name in PACKAGES for file in (library / name).rglob("*.py"))
tokenizer.train([str(file) for file in files[::2]], vocab_size=1000, show_progress=False)
rows: tuple[list, list] = ([], [])
for number, file in enumerate(files):  # every fourth module is kept for the test
    ids = torch.tensor(tokenizer.encode(file.read_text("utf-8")).ids, dtype=torch.int64)
    label = torch.tensor(PACKAGES.index(file.relative_to(library).parts[0]))
    rows[number % 4 == 3].extend((piece, label) for piece in ids.split(64)[:-1])
(x, y), (test_x, test_y) = (map(torch.stack, zip(*part)) for part in rows)
sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
model = OSNForCausalLM(OSNConfig(**sizes, vocab_size=1000))
for labels in (x, y):
    if labels is y:
        with TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            model = OSNForSequenceClassification.from_pretrained(folder, is_causal=False, num_labels=4)
        targets = ["receive_proj", "value_proj", "out_proj"]
        model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=4, target_modules=targets))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=4e-3)
    for batch in torch.randint(len(x), (STEPS, 32)):
        model.train()(input_ids=x[batch], labels=labels[batch]).loss.backward()
        optimizer.step(), optimizer.zero_grad()
found = model.merge_and_unload().eval()(test_x[::4]).logits.argmax(-1)
right, majority = ((guess == test_y[::4]).float().mean() for guess in (found, y.mode().values))
print(f"{len(found)} texts of other modules: accuracy {right:.3f}, the commonest package {majority:.3f}")
