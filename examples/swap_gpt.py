"""SSA in the place of a small GPT's softmax attention: a model of PyTorch's own layers, trained both ways."""

import os
from pathlib import Path

import torch
from torch import nn

from syncattn.nn import SelectiveSynchronizationAttention, calibrate, locked_density

WIDTH, HEADS, CONTEXT = 64, 4, 128


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        block = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, 0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.out = nn.Linear(WIDTH, 256)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        future = torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).triu(1)  # True = may not attend
        return self.out(self.blocks(self.token(ids) + self.place.weight, mask=future, is_causal=True))


text = torch.tensor(list(Path(os.__file__).read_bytes()))  # any bytes; here the source of Python's module os
for attention in ("softmax", "SSA"):
    torch.manual_seed(0)
    model, losses = GPT(), []
    if attention == "SSA":  # the swap
        for block in model.blocks.layers:
            block.self_attn = SelectiveSynchronizationAttention(WIDTH, HEADS, delay=0.5, token_shift=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(int(os.environ.get("SYNCATTN_EXAMPLE_STEPS", "150"))):
        batch = text[torch.randint(len(text) - CONTEXT, (16, 1)) + torch.arange(CONTEXT + 1)]
        if attention == "SSA" and step == 0:
            calibrate(model, batch[:, :-1])  # once, on the first batch: so that tokens lock
        loss = nn.functional.cross_entropy(model(batch[:, :-1]).mT, batch[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    print(f"{attention}: loss {sum(losses[-20:]) / len(losses[-20:]):.3f} nats per byte")
print(
    "density", {name: round(d.mean().item(), 2) for name, d in locked_density(model, batch[:, :-1]).items()}
)
