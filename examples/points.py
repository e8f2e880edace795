"""Charged particles: each one's force from those near by, at a time that is linear in their number."""

import os
import time

import torch

from syncattn.models import OSNConfig, OSNModel
from syncattn.nn import calibrate, count_locked

STEPS, SEED = int(os.environ.get("SYNCATTN_EXAMPLE_STEPS", "250")), int(os.environ.get("SEED", "0"))


def cloud(batch, n):
    """Places (B, N, 3) of n points, four in each unit of volume, and their charges (B, N, 1)."""
    return torch.rand(batch, n, 3) * (n / 4) ** (1 / 3), torch.randint(2, (batch, n, 1)) * 2.0 - 1


def forces(places, charges):
    """(B, N, 3): equal charges repel each other, by 1 - r at a distance r, and by nothing beyond r = 1."""
    away, pairs = places[:, :, None] - places[:, None], charges[:, :, None] * charges[:, None]
    r = away.norm(dim=-1, keepdim=True)
    return (pairs * (1 - r).clamp(min=0) * away / r.clamp(min=1e-6)).sum(2)


torch.manual_seed(SEED)
sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 1}
# A head hears no further than its radius, of values that are turned by the way they came.
config = OSNConfig.preset("points", **sizes)
embed, base, read = torch.nn.Linear(1, 48), OSNModel(config), torch.nn.Linear(48, 3)


def model(places, charges):
    return read(base(inputs_embeds=embed(charges), positions=places).last_hidden_state)


points = cloud(4, 256)
calibrate(base, inputs_embeds=embed(points[1]), positions=points[0], partners_range=(8, 24))
parameters = [p for module in (embed, base, read) for p in module.parameters()]
optimizer = torch.optim.AdamW(parameters, lr=6e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=STEPS)
for _ in range(STEPS):
    points = cloud(4, 256)
    (model(*points) - forces(*points)).square().mean().backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step(), schedule.step(), optimizer.zero_grad()
with torch.no_grad():
    (places, charges), order = cloud(1, 1024), torch.randperm(1024)  # four times as many as in training
    found, wanted = model(places, charges), forces(places, charges)
    print(f"explained of the forces' variance: {1 - (found - wanted).square().mean() / wanted.var():.3f}")
    moved = (model(places[:, order], charges[:, order]) - found[:, order]).abs().max()
    print(f"in another order points give the same forces, in that order, to {moved:.0e}")
    for n in [1000, 2000, 4000, 8000, 16000, 32000] if STEPS >= 100 else [1000]:
        points, start = cloud(1, n), time.process_time()
        model(*points), model(*points)
        each = 1e6 * (time.process_time() - start) / 2 / n
        first, *_ = count_locked(base, inputs_embeds=embed(points[1]), positions=points[0]).values()
        print(f"{n} points: {each:.0f} microseconds each, {first.partners.mean():.1f} partners")
