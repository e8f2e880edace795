"""What the explorer sees of a model of transformers whose attention is "ssa"."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from syncattn.backends.call import check, expand_heads
from syncattn.explorer.gather import ADOPTED, Adopted, Heard
from syncattn.integrations.softmax import BANDWIDTH, softmax_frequencies


def sizes(model: nn.Module) -> list[tuple[int, int]] | None:
    """(heads, coordinates) of each layer; None if the model's attention is not "ssa"."""
    config: Any = getattr(model, "config", None)
    if getattr(config, "_attn_implementation", None) != "ssa":
        return None
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return [(heads, width + 1)] * layers


@contextmanager
def calls(watching: Callable[..., AbstractContextManager[None]], model: nn.Module) -> Iterator[list[Heard]]:
    """Within it, what the model's attention modules are called with is added to the list."""
    names = {module: name for name, module in model.named_modules()}
    heard: list[Heard] = []

    def watch(call: Any, out: Tensor) -> Tensor:
        if call.module in names:
            receive, send = softmax_frequencies(call.query, call.key, call.scaling)
            coupling = call.coupling.to(receive.dtype)
            made = check(
                receive,
                expand_heads(send, receive.shape[1]),
                expand_heads(call.value, receive.shape[1]),
                coupling,
                torch.full_like(coupling, BANDWIDTH),
                attn_mask=call.mask,
                is_causal=call.is_causal,
                frame="nearest",
                power=2,
                eps=0.0,
            )
            heard.append(Heard(names[call.module], made, coupling, None))
        return out

    with watching(watch):
        yield heard


def remark(model: nn.Module) -> str:
    """A field is no pair's, so a page does not show it."""
    if getattr(model.config, "ssa_field", None) is None:
        return ""
    return (
        "Beside its pairs each head gives a share of the mean of the text's values (config.ssa_field), which "
        "is not shown."
    )


def add_to_explorer(watching: Callable[..., AbstractContextManager[None]]) -> None:
    """Let `syncattn.explore` take such models.

    Args:
        watching: of syncattn.integrations.transformers.
    """
    if all(kind.sizes is not sizes for kind in ADOPTED):
        ADOPTED.append(Adopted(sizes, partial(calls, watching), remark))
