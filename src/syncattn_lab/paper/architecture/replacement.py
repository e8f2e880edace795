"""What carries over when an OSN block takes a Transformer block's place, and how the published one starts."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syncattn import order_parameter, selective_synchronization_attention
from syncattn.locking import calibrate_from_detuning
from syncattn.nn import OSNBlock, SelectiveSynchronizationAttention
from syncattn.nn.published import published

# Small: what is asked here is whether something works at all, not how well.
WIDTH, HEADS, FEED_FORWARD = 64, 4, 128
SYMBOLS, TOKENS = 16, 24


def interface(seed: int) -> dict[str, Any]:
    """The block in the places where PyTorch expects its own: calls, parameters' names, gradients.

    `right` of `calls` in nn.TransformerEncoder give the shape that nn.TransformerEncoderLayer gives, and
    outputs that change with the tokens that may be attended to and with no others. `shared` of the `outside`
    parameter tensors outside the attention load by name.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 10, WIDTH, generator=generator)
    padding = torch.zeros(3, 10, dtype=torch.bool)
    padding[1, 7:] = True
    causal = torch.ones(10, 10, dtype=torch.bool).triu(1)
    right = calls = 0
    for batch_first, norm_first, masked, padded, is_causal, form in itertools.product(
        (False, True), (False, True), (False, True), (False, True), (False, True), ("published", "trainable")
    ):
        if is_causal and not masked:
            continue  # PyTorch's layer wants the mask beside the flag
        layout: dict[str, Any] = {"batch_first": batch_first, "norm_first": norm_first}
        block: Any = _osn(form, **layout)
        if form == "published":  # with its defaults nothing locks, and a mask would have nothing to do
            nn.init.constant_(block.self_attn.raw_coupling, 100.0)
            nn.init.constant_(block.self_attn.raw_bandwidth, -5.0)
        masks = (causal if masked else None, padding if padded else None, is_causal)
        wanted, out = (_encoded(one, x, masks, batch_first) for one in (_transformer(**layout), block))
        # The last tokens of the second text become others: padding, or in the future of those before.
        changed = x.clone()
        changed[1, 7:] = torch.randn(3, WIDTH, generator=generator)
        moved = (_encoded(block, changed, masks, batch_first) - out).abs().amax(-1)
        hidden = float(moved[1, :7].max())
        calls += 1
        right += (
            wanted.shape == out.shape
            and float(moved[[0, 2]].max()) < 1e-5
            and (hidden < 1e-5 if masked or padded else hidden > 1e-3)
        )
    theirs = _transformer().state_dict()
    outside = {name: tensor for name, tensor in theirs.items() if not name.startswith("self_attn.")}
    block = _osn("published")
    found = block.load_state_dict(outside, strict=False)
    own = block.state_dict()
    shared = sum(name in own and bool(torch.equal(own[name], tensor)) for name, tensor in outside.items())
    assert not found.unexpected_keys
    trainable: Any = _osn("trainable")
    encoder = nn.TransformerEncoder(trainable, 2, enable_nested_tensor=False)
    whole = nn.Transformer(WIDTH, HEADS, 1, 1, FEED_FORWARD, custom_encoder=encoder, batch_first=True)
    whole(x, x[:, :5]).square().sum().backward()
    try:
        block(x, torch.randn(10, 10, generator=generator))  # a bias such as ALiBi's, not a mask
        refused = 0
    except ValueError:
        refused = 1
    return {
        "calls": calls,
        "right": right,
        "parameters": len(theirs),
        "outside": len(outside),
        "shared": shared,
        "without_gradient": sum(p.grad is None for p in encoder.parameters()),
        "bias_refused": refused,
    }


def transfer(networks: tuple[int, ...], steps: int, seed: int) -> dict[str, Any]:
    """Train a Transformer block to copy the token before, move its weights into an OSN block, ask again.

    Values and output projections are copied; frequencies take the queries' weights, or the keys'. Coupling
    and bandwidth: the published defaults, and calibrations to densities .05 to 1 at sharpness .1, 1 and 10,
    of which the best is kept. Accuracies are means over the networks; `difference` is the smallest relative
    difference of the attention's output that any setting reached.
    """
    rows = [_transfer_one(steps, 1000 * seed + network) for network in networks]
    return {
        "networks": len(networks),
        "steps": steps,
        "chance": 1 / SYMBOLS,
        "settings": rows[0]["settings"],
        "before": sum(row["before"] for row in rows) / len(rows),
        "published": sum(row["published"] for row in rows) / len(rows),
        "best": sum(row["best"] for row in rows) / len(rows),
        "difference": min(row["difference"] for row in rows),
    }


def anew(networks: tuple[int, ...], steps: int, seed: int) -> dict[str, Any]:
    """Train OSN blocks from their own initialisation on the task of `transfer`: the same number of steps.

    Accuracies of the trainable default's networks, and of one network in the published form.
    """
    trained = {
        form: [_accuracy(_trained(form, steps, 1000 * seed + one)) for one in which]
        for form, which in (("trainable", networks), ("published", networks[:1]))
    }
    return {"networks": len(networks), "steps": steps, "chance": 1 / SYMBOLS} | trained


class _Copier(nn.Module):
    """Symbols (B, N) to logits (B, N, SYMBOLS) through one block with learned positions."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.embedding = nn.Embedding(SYMBOLS, WIDTH)
        self.place = nn.Embedding(TOKENS, WIDTH)
        self.head = nn.Linear(WIDTH, SYMBOLS)

    def stream(self, symbols: Tensor) -> Tensor:
        return self.embedding(symbols) + self.place.weight

    def forward(self, symbols: Tensor) -> Tensor:
        return self.head(self.block(self.stream(symbols)))


def _trained(form: str, steps: int, seed: int) -> _Copier:
    """A network trained to copy the token before (the first token: the last), with a block of this form."""
    torch.manual_seed(seed)  # inside the caller's fork_rng
    layout: dict[str, Any] = {"batch_first": True, "norm_first": True}
    model = _Copier(_transformer(**layout) if form == "transformer" else _osn(form, **layout))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps)
    for _ in range(steps):
        symbols = torch.randint(SYMBOLS, (32, TOKENS))
        loss = F.cross_entropy(model(symbols).flatten(0, 1), symbols.roll(1, 1).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def _accuracy(model: _Copier) -> float:
    symbols = torch.randint(SYMBOLS, (64, TOKENS))
    return float((model(symbols).argmax(-1) == symbols.roll(1, 1)).float().mean())


def _transfer_one(steps: int, seed: int) -> dict[str, Any]:
    model = _trained("transformer", steps, seed)
    with torch.no_grad():
        return _moved(model, torch.randint(SYMBOLS, (64, TOKENS)))


def _moved(model: _Copier, symbols: Tensor) -> dict[str, Any]:
    """The trained model, and the same with its attention's weights in the published layer."""
    block: Any = model.block
    x = model.stream(symbols)
    normed = block.norm1(x)
    wanted, _ = block.self_attn(normed, normed, normed, need_weights=False)

    def accuracy(attended: Tensor) -> float:
        y = x + attended
        y = y + block.linear2(F.relu(block.linear1(block.norm2(y))))
        return float((model.head(y).argmax(-1) == symbols.roll(1, 1)).float().mean())

    layer = SelectiveSynchronizationAttention(WIDTH, HEADS, **published(WIDTH // HEADS))
    queries, keys, values = zip(
        block.self_attn.in_proj_weight.chunk(3), block.self_attn.in_proj_bias.chunk(3), strict=True
    )
    _copy(layer.value_proj, values)
    _copy(layer.out_proj, (block.self_attn.out_proj.weight, block.self_attn.out_proj.bias))
    attended: dict[tuple[Any, ...], Tensor] = {}
    for name, weights in (("queries", queries), ("keys", keys)):
        _copy(layer.frequency.receive_proj, weights)
        attended[name, "published"] = layer(normed)[0]
        frequency = layer.frequency.emit(normed, torch.arange(TOKENS)[None])  # (B, H, N, m)
        squared = torch.cdist(frequency, frequency).square().transpose(0, 1).flatten(1)
        value = layer.value_proj(normed).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for density, sharpness in itertools.product((0.05, 0.1, 0.3, 0.6, 1.0), (0.1, 1.0, 10.0)):
            coupling, bandwidth = calibrate_from_detuning(squared, density, sharpness)
            mixed = selective_synchronization_attention(frequency, frequency, value, coupling, bandwidth)
            assert isinstance(mixed, Tensor)
            attended[name, density, sharpness] = layer.out_proj(mixed.transpose(1, 2).flatten(-2))
    return {
        "before": accuracy(wanted),
        "published": max(accuracy(attended[name, "published"]) for name in ("queries", "keys")),
        "best": max(accuracy(one) for one in attended.values()),
        "settings": len(attended) - 2,
        "difference": min(float((one - wanted).norm() / wanted.norm()) for one in attended.values()),
    }


def leak(seed: int) -> dict[str, float]:
    """How much outputs change when the last quarter of the tokens does, at the tokens before, causal mask.

    The change's norm over the outputs' norm, of the published layer, calibrated so that half of the pairs
    lock (its defaults lock none). `global`: the published order parameter, over all tokens; the last quarter
    becomes other random tokens, or (`global_scaled`) three times as large. `running`: the order parameter
    over the tokens up to each; the larger of the two changes.
    """
    generator = torch.Generator().manual_seed(seed)
    width, heads, tokens, early = 512, 8, 64, 48
    torch.manual_seed(seed)
    layer = SelectiveSynchronizationAttention(width, heads, **published(width // heads))
    projection = layer.phase_proj
    assert projection is not None
    x = torch.randn(1, tokens, width, generator=generator)
    other, scaled = x.clone(), x.clone()
    other[:, early:] = torch.randn(1, tokens - early, width, generator=generator)
    scaled[:, early:] *= 3
    with torch.no_grad():
        w = layer.frequency.emit(x, torch.arange(tokens)[None])
        squared = torch.cdist(w, w).square().transpose(0, 1).flatten(1)
        kappa, bandwidth = calibrate_from_detuning(squared, 0.5, 1.0)

        def outputs(given: Tensor, is_causal: bool) -> Tensor:
            """The heads' outputs at the early tokens, with r over all tokens or the running one."""
            w = layer.frequency.emit(given, torch.arange(tokens)[None])
            value = layer.value_proj(given).unflatten(-1, (heads, -1)).transpose(1, 2)
            phase = projection(given).unflatten(-1, (heads, -1)).transpose(1, 2)
            r = order_parameter(phase, is_causal=is_causal)  # (1, H) or (1, H, N)
            coupling = kappa / level  # K, such that kappa = K r on x
            effective = r * (coupling[:, None] if is_causal else coupling)
            out = selective_synchronization_attention(w, w, value, effective, bandwidth, is_causal=True)
            assert isinstance(out, Tensor)
            return out[:, :, :early]

        phase = projection(x).unflatten(-1, (heads, -1)).transpose(1, 2)
        level = order_parameter(phase)[0]
        change: dict[tuple[bool, str], float] = {}
        for is_causal in (False, True):
            before = outputs(x, is_causal)
            for name, given in (("other", other), ("scaled", scaled)):
                change[is_causal, name] = float((outputs(given, is_causal) - before).norm() / before.norm())
    return {
        "global": change[False, "other"],
        "global_scaled": change[False, "scaled"],
        "running": max(change[True, "other"], change[True, "scaled"]),
    }


def initialisation(seed: int) -> dict[str, Any]:
    """What locks and what has a gradient in a fresh layer, published and trainable, on inputs ~ N(0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    width, heads, tokens = 512, 8, 256
    x = torch.randn(1, tokens, width, generator=generator)
    result: dict[str, Any] = {"tokens": tokens, "pairs": heads * tokens * (tokens - 1)}
    for name, options in (("published", published(width // heads)), ("trainable", {})):
        torch.manual_seed(seed)
        layer = SelectiveSynchronizationAttention(width, heads, **options)
        out, weights = layer(x, need_weights=True, average_attn_weights=False, is_causal=name == "trainable")
        out.backward(torch.randn(out.shape, generator=generator))
        assert weights is not None and layer.phase_proj is not None
        off_diagonal = ~torch.eye(tokens, dtype=torch.bool)
        locked = int((weights[:, :, off_diagonal] > 0).sum())
        allowed = result["pairs"] if name == "published" else result["pairs"] // 2
        frequency, value = layer.frequency.receive_proj.weight.grad, layer.value_proj.weight.grad
        others = (layer.phase_proj.weight, layer.raw_coupling, layer.raw_bandwidth)
        assert frequency is not None and value is not None
        with torch.no_grad():
            alone = layer.out_proj(layer.value_proj(x))
        result[name] = {
            "locked": locked,
            "density": locked / allowed,
            "frequency_gradients": int(frequency.count_nonzero()),
            "locking_gradients": sum(int(p.grad.count_nonzero()) for p in others if p.grad is not None),
            "value_gradients": int(value.count_nonzero()),
            "gradient_ratio": float(frequency.norm() / value.norm()),
            "from_linear": float((out.detach() - alone).abs().max()),
        }
    return result


def _transformer(**arguments: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(WIDTH, HEADS, FEED_FORWARD, 0.0, **arguments)


def _encoded(block: Any, x: Tensor, masks: tuple[Any, ...], batch_first: bool) -> Tensor:
    """x (B, N, E) through an nn.TransformerEncoder of two such blocks, (B, N, E)."""
    encoder = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
    with torch.no_grad():
        return encoder(x, *masks) if batch_first else encoder(x.transpose(0, 1), *masks).transpose(0, 1)


def _osn(form: str, **arguments: Any) -> OSNBlock:
    options = published(WIDTH // HEADS) if form == "published" else {}
    return OSNBlock(WIDTH, HEADS, FEED_FORWARD, 0.0, **arguments, **options)


def _copy(linear: nn.Linear, parts: tuple[Tensor, Tensor]) -> None:
    linear.weight.copy_(parts[0])
    linear.bias.copy_(parts[1])
