"""What is timed: one attention problem, solved by SDPA, by our backends, by the published formulation."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import syncattn
from syncattn.backends import availability, explain
from syncattn.bench import anchors
from syncattn.bench.anchors import leaf
from syncattn.bench.inputs import Case, Inputs
from syncattn.bench.plan import BACKWARD, FORWARD
from syncattn.bench.published import needed_bytes, published_attention

SDPA, PUBLISHED, TILED = "sdpa", "published", "tiled"
FLASH, FLEX = "flash", "flex"
SSA_FLEX, ADASPLASH = "ssa-flex", "adasplash"
GRAPH = "+graph"  # after a name: its forward, captured in a CUDA graph
_SHARE_OF_MEMORY = 0.7  # of what is free, that one contender may take


class Contender(NamedTuple):
    """One way to compute a case.

    Attributes:
        name: a backend's, "sdpa" or "published".
        forward: computes the output from `leaves`; (B, H, N, d), or (B, N, H, d) if `heads_last`.
        leaves: the tensors that get gradients, by name.
        heads_last: the layout of its output and of its leaves with four dimensions.
        ours: held to the definition before it is timed.
        heavy: gets few rounds and may take longer, for it is far slower than the others.
        checked: held to the definition as ours are, for it computes the same.
        coarse: leaves whose gradients are compared, and need only be finite.
        note: what to record about it.
    """

    name: str
    forward: Callable[[], Tensor]
    leaves: dict[str, Tensor]
    heads_last: bool = False
    ours: bool = False
    heavy: bool = False
    checked: bool = False
    coarse: tuple[str, ...] = ()
    note: dict[str, Any] = {}  # noqa: RUF012

    def runner(self, passes: str, cotangent: Tensor) -> Callable[[], object]:
        """A call of the forward, or of forward and backward; cotangent (B, H, N, d)."""
        if passes == FORWARD:

            def run_forward() -> Tensor:
                with torch.no_grad():
                    return self.forward()

            return run_forward
        given = cotangent.transpose(1, 2).contiguous() if self.heads_last else cotangent
        leaves = tuple(self.leaves.values())
        return lambda: torch.autograd.grad(self.forward(), leaves, given)


def backend_names(device: str) -> list[str]:
    """Our backends that can run here, in order of preference; not the definition, which is the judge."""
    names = [name for name, reason in availability().items() if reason is None and name != "eager"]
    # A GPU backend that is installed cannot take CPU tensors, and the other way round.
    x = torch.zeros(1, 1, 2, 1, device=device)
    one = torch.ones(1, device=device)
    return [name for name in names if _refusal(name, (x, x, x, one, one), {}) is None]


def make(name: str, case: Case, inputs: Inputs, passes: tuple[str, ...]) -> Contender | str:
    """The contender of this name, or the reason why it cannot take part in these passes."""
    backward = BACKWARD in passes
    if name.endswith(GRAPH):
        if backward or inputs.value.device.type != "cuda":
            return "graphs are timed on GPUs only, forward"
        made = make(name.removesuffix(GRAPH), case, inputs, passes)
        return made if isinstance(made, str) else _captured(made)
    if name == SDPA:
        return _sdpa(case, inputs, backward)
    if name in (FLASH, FLEX):
        return _on_gpu(name, case, inputs, backward)
    if name in (SSA_FLEX, ADASPLASH):
        return _anchor(name, case, inputs, backward)
    if name == PUBLISHED:
        return _published(case, inputs, backward)
    return _ours(name, case, inputs, backward)


def _sdpa(case: Case, inputs: Inputs, backward: bool) -> Contender:
    """Softmax attention of the same sizes: N queries, M keys, heads as wide as the values."""
    generator = torch.Generator(inputs.value.device).manual_seed(7)
    value = leaf(inputs.value, backward)
    size = (*inputs.receive.shape[:3], case.head_dim)
    query, key = (
        torch.randn(each, generator=generator, device=value.device).to(value) for each in (size, value.shape)
    )
    leaves = {"query": leaf(query, backward), "key": leaf(key, backward), "value": value}
    # One query at the end of a cache sees all of it: causal without a mask, which SDPA is faster without.
    causal = case.is_causal and case.queries != 1
    return Contender(
        SDPA,
        lambda: F.scaled_dot_product_attention(
            leaves["query"], leaves["key"], leaves["value"], is_causal=causal
        ),
        leaves,
    )


def _on_gpu(name: str, case: Case, inputs: Inputs, backward: bool) -> Contender | str:
    """SDPA with nothing but FlashAttention allowed; or FlexAttention, compiled, with the case's window."""
    if inputs.value.device.type != "cuda":
        return "it is timed on GPUs only"
    plain = _sdpa(case, inputs, backward)
    query, key, value = plain.leaves.values()
    causal = case.is_causal and case.queries != 1
    if name == FLASH:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        def forward() -> Tensor:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                return F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    else:
        from torch.nn.attention.flex_attention import flex_attention

        block_mask = anchors.block_mask(case, query.shape[2], key.shape[2], query.device)
        torch.compiler.reset()  # or the shapes before count towards the limit of recompilations
        compiled = torch.compile(flex_attention, dynamic=False)

        def forward() -> Tensor:
            return compiled(query, key, value, block_mask=block_mask)

    try:  # whether it takes these sizes at all
        with torch.set_grad_enabled(backward):  # what is compiled is what will be timed
            forward()
    except Exception as error:  # a compiler's error may be of any kind
        return f"it cannot take this case: {first_line(error)}"
    return Contender(name, forward, plain.leaves)


def _anchor(name: str, case: Case, inputs: Inputs, backward: bool) -> Contender | str:
    """SSA through FlexAttention, which is held to the definition; or AdaSplash."""
    if backward and inputs.value.device.type != "cuda":
        return "it is timed on GPUs only"
    made = (anchors.ssa_flex if name == SSA_FLEX else anchors.adasplash)(case, inputs, backward)
    if isinstance(made, str):
        return made
    checked = name == SSA_FLEX
    return Contender(name, made.forward, made.leaves, checked=checked, coarse=made.coarse, note=made.note)


def _captured(made: Contender) -> Contender | str:
    """The contender, whose forward replays what it did once: the device's time, without Python's."""
    try:
        with torch.no_grad():
            beside = torch.cuda.Stream()
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):  # compiled and warm before it is captured
                for _ in range(3):
                    made.forward()
            torch.cuda.current_stream().wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = made.forward()
    except Exception as error:
        return f"it cannot be captured: {first_line(error)}"

    def replay() -> Tensor:
        graph.replay()
        return out

    return made._replace(name=made.name + GRAPH, forward=replay)


def first_line(error: BaseException) -> str:
    """An error in one line: what it says, with its kind if that is not RuntimeError."""
    said = (str(error).strip().splitlines() or [""])[0]
    return said if type(error) is RuntimeError and said else f"{type(error).__name__}: {said}"


def _ours(name: str, case: Case, inputs: Inputs, backward: bool) -> Contender | str:
    receive = leaf(inputs.receive, backward)
    leaves = {"receive": receive}
    if not inputs.symmetric:
        leaves["send"] = leaf(inputs.send, backward)
    leaves["value"] = leaf(inputs.value, backward)
    leaves["coupling"] = leaf(inputs.coupling, backward)
    leaves["bandwidth"] = leaf(inputs.bandwidth, backward)
    send = leaves.get("send", receive)
    arguments = (receive, send, leaves["value"], leaves["coupling"], leaves["bandwidth"])
    options = case.options()
    refusal = _refusal(name, arguments, options)
    if refusal is not None:
        return refusal

    def forward() -> Tensor:
        out = syncattn.selective_synchronization_attention(*arguments, **options, backend=name)
        assert isinstance(out, Tensor)
        return out

    return Contender(name, forward, leaves, ours=True)


def _refusal(name: str, arguments: tuple[Tensor, ...], options: dict) -> str | None:
    try:
        explain(*arguments, **options, backend=name)
    except ValueError as error:
        return str(error)
    return None


def _published(case: Case, inputs: Inputs, backward: bool) -> Contender | str:
    as_published = (
        not case.is_causal
        and inputs.symmetric
        and case.self_coupling
        and (case.frame, case.power, case.dtype) == ("absolute", 1, "fp32")
    )
    if not as_published:
        return "the published formulation is symmetric, not causal, power 1, absolute frame, float32"
    needed, free = needed_bytes(case.batch, case.heads, case.tokens, backward), free_bytes(inputs.receive)
    if needed > _SHARE_OF_MEMORY * free:
        return f"it holds N x N matrices, about {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB are free"
    leaves = {
        "receive": leaf(inputs.receive.transpose(1, 2).contiguous(), backward),
        "value": leaf(inputs.value.transpose(1, 2).contiguous(), backward),
        "coupling": leaf(inputs.coupling, backward),
        "bandwidth": leaf(inputs.bandwidth, backward),
    }
    return Contender(
        PUBLISHED,
        lambda: published_attention(*leaves.values()),
        leaves,
        heads_last=True,
        ours=True,
        heavy=True,
    )


def free_bytes(like: Tensor) -> int:
    """Memory that can still be allocated on a tensor's device."""
    if like.device.type == "cuda":
        return torch.cuda.mem_get_info(like.device)[0]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
