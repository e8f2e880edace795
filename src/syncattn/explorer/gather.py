"""What a model's synchronization layers do with one text: their checked calls, phases and the next tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from syncattn.backends.call import Call
from syncattn.nn import SelectiveSynchronizationAttention


class Heard(NamedTuple):
    """One call of one layer, of one sequence of N tokens.

    Attributes:
        name: the module's name in the model.
        call: what the operator is called with, one sequence.
        coupling: K, (H,), before the order parameter scales it.
        phase: (H, N, p) in radians; None without an order parameter.
    """

    name: str
    call: Call
    coupling: Tensor
    phase: Tensor | None


class Adopted(NamedTuple):
    """A kind of model that synchronizes without layers of this library.

    Attributes:
        sizes: (heads, coordinates of a frequency) for each layer of a model, or None: it is not of this kind.
        calls: within it, what the model's layers are called with is added to the list.
        remark: a sentence on what a page of a model does not show; "" if it shows all.
    """

    sizes: Callable[[nn.Module], list[tuple[int, int]] | None]
    calls: Callable[[nn.Module], AbstractContextManager[list[Heard]]]
    remark: Callable[[nn.Module], str]


ADOPTED: list[Adopted] = []
"""The kinds that are known; `syncattn.integrations.transformers.register` adds its own."""


def adopted(model: nn.Module) -> Adopted | None:
    """The kind that a model is of; None if it has layers of this library, or neither.

    Raises:
        TypeError, ValueError: as `find_layers`, for what is no module and for weights that are not finite.
    """
    _check_model(model)
    return next((kind for kind in ADOPTED if kind.sizes(model)), None)


def find_layers(model: nn.Module) -> dict[str, SelectiveSynchronizationAttention]:
    """The model's synchronization layers by name.

    Raises:
        TypeError: model is no module.
        ValueError: it has none of them, or a parameter that is not finite.
    """
    _check_model(model)
    named = model.named_modules()
    layers = {name or "layer": m for name, m in named if isinstance(m, SelectiveSynchronizationAttention)}
    if not layers:
        raise ValueError(
            "model must have SelectiveSynchronizationAttention layers, as an OSN has: there is nothing to "
            f"see in {type(model).__name__}, which has none"
        )
    return layers


def of_gates(model: nn.Module) -> str:
    """A sentence on the gates of a model's layers, which are no pair's, so that a page does not show them."""
    if all(layer.gate is None for layer in find_layers(model).values()):
        return ""
    return (
        "What a head hears is multiplied by a gate, 0 to 2, that closes where the nearest sender is far "
        "(nearest_gate), which is not shown."
    )


def listen(model: nn.Module, inputs: Any) -> tuple[list[Heard], Tensor | None]:
    """Run the model once, as it is in evaluation, and keep what each synchronization layer was called with.

    Args:
        model: with synchronization layers.
        inputs: what it is called with: a tensor, or a mapping of keyword arguments.

    Returns:
        The layers' calls in the order they were made; and the output's `logits` (N, V) of next tokens, None
        if there are none.

    Raises:
        ValueError: the inputs are not one sequence, or a layer's senders are not its receivers.
    """
    kind = adopted(model)
    if kind is not None:
        with _in_evaluation(model), torch.no_grad(), kind.calls(model) as heard:
            output = run(model, inputs)
        for one in heard:
            _check_text(one.name, one.call)
        return heard, _logits(model, output, _tokens(heard))
    layers, heard = find_layers(model), []

    def keep(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            assert isinstance(layer, SelectiveSynchronizationAttention)
            heard.append(_heard(name, layer, args, kwargs))

        return hook

    with _in_evaluation(model), torch.no_grad():
        hooks = [layers[name].register_forward_pre_hook(keep(name), with_kwargs=True) for name in layers]
        try:
            output = run(model, inputs)
        finally:
            for handle in hooks:
                handle.remove()
    return heard, _logits(model, output, _tokens(heard))


def _tokens(heard: list[Heard]) -> int:
    """How many tokens the layers read, all the same."""
    if not heard:
        raise ValueError("inputs must reach the model's synchronization layers, got a call that used none")
    tokens = {one.call.receive.shape[2] for one in heard}
    if len(tokens) > 1:
        raise ValueError(f"inputs must be one text for all layers, got layers of {sorted(tokens)} tokens")
    return tokens.pop()


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ValueError(f"model must have finite weights, got nan or infinity in {name}")


def run(model: nn.Module, inputs: Any) -> Any:
    """Call the model with a tensor or with keyword arguments, without a cache where it has that choice."""
    named = dict(inputs) if isinstance(inputs, Mapping) else {}
    if "use_cache" in signature(model.forward).parameters:
        named.setdefault("use_cache", False)
    return model(**named) if isinstance(inputs, Mapping) else model(inputs, **named)


def without_heads(model: nn.Module, inputs: Any, tokens: int) -> list[Tensor]:
    """The logits (N, V) with one head switched off, its output 0: layer by layer, head by head."""
    found = []
    with _in_evaluation(model), torch.no_grad():
        for layer in find_layers(model).values():
            for head in range(layer.num_heads):
                handle = layer.out_proj.register_forward_pre_hook(_silence(head, layer.head_dim))
                try:
                    logits = _logits(model, run(model, inputs), tokens)
                finally:
                    handle.remove()
                assert logits is not None
                found.append(logits)
    return found


def _silence(head: int, width: int) -> Callable[..., tuple[Tensor]]:
    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        silent = args[0].clone()
        silent[..., head * width : (head + 1) * width] = 0
        return (silent,)

    return hook


@contextmanager
def _in_evaluation(model: nn.Module) -> Iterator[None]:
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, was in training:
            module.training = was


def _heard(
    name: str, layer: SelectiveSynchronizationAttention, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Heard:
    """The call that `forward` would make of these arguments."""
    given = dict(signature(layer.forward).bind(*args, **kwargs).arguments)
    if given.pop("state", None) is not None:
        raise ValueError(
            f"inputs must be a whole text, got a cached past in {name}: call without one (use_cache=False)"
        )
    if given.get("sequence_ids") is not None:
        raise ValueError(f"inputs must be one text, got several in a row (sequence_ids) in {name}")
    for unused in ("need_weights", "average_attn_weights"):
        given.pop(unused, None)
    phases: list[Tensor] = []
    handle = None
    if layer.phase_proj is not None:
        handle = layer.phase_proj.register_forward_hook(lambda _, __, phase: phases.append(phase))
    try:
        call = layer.operator_call(**given)
    finally:
        if handle is not None:
            handle.remove()
    _check_text(name, call)
    _, heads, tokens, _ = call.receive.shape
    phase = phases[0][0, :tokens].unflatten(-1, (heads, -1)).transpose(0, 1) if phases else None
    return Heard(name, call, layer.coupling.detach(), phase)


def _check_text(name: str, call: Call) -> None:
    """Raise ValueError unless a call is of one text that listens to itself, and finite."""
    batch, _, tokens, _ = call.receive.shape
    if batch != 1 or tokens == 0:
        raise ValueError(f"inputs must be one text of at least one token, got {batch} of {tokens} in {name}")
    if call.send.shape[2] != tokens:
        raise ValueError(
            f"inputs must make {name} listen to the text itself, each token once, got {tokens} receivers and "
            f"{call.send.shape[2]} senders (cross-attention, or a mask that not all receivers agree on)"
        )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in (call.receive, call.send, call.coupling)):
        raise ValueError(f"model must give finite frequencies and couplings, got others in {name}")


def _logits(model: nn.Module, output: Any, tokens: int) -> Tensor | None:
    """The output's logits of next tokens: of a model of transformers that generates, or of any other kind."""
    logits, generates = getattr(output, "logits", None), getattr(model, "can_generate", None)
    if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[:2] != (1, tokens):
        return None
    if generates is not None and not generates():  # of masked tokens, or of tokens' classes
        return None
    return logits[0].float()
