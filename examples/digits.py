"""Handwritten digits, 8 x 8 pixels, as 16 patches at their rows and columns: an OSN beside a Transformer."""

import os
import time

import torch
from sklearn.datasets import load_digits  # pip install scikit-learn
from transformers import ViTConfig, ViTForImageClassification

from syncattn.models import OSNForImageClassification, OSNImageConfig
from syncattn.nn import calibrate, limit_density_, locked_density

STEPS, SEED = int(os.environ.get("SYNCATTN_EXAMPLE_STEPS", "400")), int(os.environ.get("SEED", "0"))
RATE = float(os.environ.get("RATE", "4e-3"))
data = load_digits()
order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
x = torch.tensor(data.images, dtype=torch.float32)[order, None] / 8 - 1  # (1797, 1, 8, 8), from -1 to 1
y = torch.tensor(data.target)[order]
train, test = slice(0, 1347), slice(1347, None)
sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_labels": 10}
image = {"image_size": 8, "patch_size": 2, "num_channels": 1}


def osn():
    # The last head looks all over the image, the others near by.
    config = OSNImageConfig.preset("images", **sizes, **image)
    model = OSNForImageClassification(config)
    calibrate(model, x[:64])
    return model


def transformer():  # with a table of positions; wider, for as many parameters
    config = ViTConfig(**sizes, **image, intermediate_size=230)
    return ViTForImageClassification(config)


for make in (transformer, osn):
    torch.manual_seed(SEED)
    model, start = make().train(), time.process_time()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    for step in range(STEPS):
        batch = torch.randint(1347, (64,))
        if make is osn and step % 10 == 0:
            limit_density_(model, 0.25, x[batch[:16]])
        model(x[batch], labels=y[batch]).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(), schedule.step(), optimizer.zero_grad()
    with torch.no_grad():
        right = (model.eval()(x[test]).logits.argmax(-1) == y[test]).float().mean()
    parameters = sum(p.numel() for p in model.parameters())
    seconds = time.process_time() - start
    print(f"{make.__name__}: test accuracy {right:.3f}, {parameters:,} parameters, {seconds:.0f} s")
print("pairs that lock:")
for name, density in locked_density(model, x[test][:64]).items():
    print(name, [round(share, 2) for share in density.tolist()])
