"""The operator's inputs for one case: frequencies of a given structure, of a density that is counted."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from syncattn import locking

SHARPNESS = 100.0  # c = 2 alpha kappa^2, as the layers start with
CLUSTERS, CLUSTER_SPREAD = 32, 0.25
# Of the contents alone, inside the window of a drifting head: dense, which is the hardest case for us.
DRIFT_DENSITY = 0.9
# Of the layer's form: windows as shares of the text, and the ratio of the first head's density to the last's.
LAYER_WINDOWS, LAYER_SPREAD = (1 / 64, 1 / 4), 0.1
SEGMENT = 128  # tokens in a row that lock to the same others: twice the kernels' tiles, FlexAttention's block
# Of frequencies and values. "mixed" is what a layer under bf16 autocast has whose frequencies carry position.
DTYPES = {
    "fp32": (torch.float32, torch.float32),
    "bf16": (torch.bfloat16, torch.bfloat16),
    "mixed": (torch.float32, torch.bfloat16),
}
_CALIBRATION_ROWS = 64
_TILE = 64


@dataclass(frozen=True)
class Case:
    """One setting of the operator.

    Args:
        name: as the tables show it.
        structure: "unstructured" (Gaussian), "clustered" (32 clusters), "drift" (an own coordinate that
            grows with position, so that a token sees `window` tokens back), "layer" (as the default layer
            starts on a text of `tokens`: each head's contents drift along a direction among their
            coordinates, by their own spread within windows of 1/64 to 1/4 of the text in geometric
            progression, so do the heads' densities, 1 to 10, and every second head is delayed) or
            "segments" (an own coordinate for each of 1 / `tiles` classes, to which segments of 128 tokens
            belong in random order, so that whole tiles of pairs lock or do not).
        density: wanted fraction of locked pairs, of all heads; not used with drift and segments.
        directed: send frequencies of their own, instead of the receive frequencies themselves.
        queries: N if not `tokens`: then they sit at the end, as in a cached decode.
    """

    name: str
    tokens: int
    freq_dim: int = 8
    head_dim: int = 64
    heads: int = 8
    batch: int = 1
    structure: str = "unstructured"
    density: float | None = None
    window: int | None = None
    tiles: float | None = None
    directed: bool = False
    is_causal: bool = False
    self_coupling: bool = True
    frame: str = "absolute"
    power: float = 2
    dtype: str = "fp32"
    queries: int | None = None

    def options(self) -> dict[str, Any]:
        """The operator's keyword arguments."""
        names = ("is_causal", "self_coupling", "frame", "power")
        return {name: getattr(self, name) for name in names}

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Inputs(NamedTuple):
    """The operator's tensors: (B, H, N, m), (B, H, M, m), (B, H, M, d), (H,), (H,)."""

    receive: Tensor
    send: Tensor
    value: Tensor
    coupling: Tensor
    bandwidth: Tensor

    @property
    def symmetric(self) -> bool:
        return self.send is self.receive


def make_inputs(case: Case, device: str = "cpu", seed: int = 0) -> Inputs:
    """Random inputs of the case's structure, with coupling and bandwidth of its density.

    Gaussian frequencies in the absolute frame are calibrated by the closed form, all others on a sample of
    rows. The frequencies are rounded to the case's dtype first, so that every contender and the check see the
    same numbers.
    """
    generator = torch.Generator(device).manual_seed(seed)
    shape = (case.batch, case.heads, case.tokens)

    def gaussian(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    radius = None
    centres = gaussian(case.heads, CLUSTERS, case.freq_dim)

    def frequencies() -> Tensor:
        if case.structure == "unstructured":
            return gaussian(*shape, case.freq_dim)
        if case.structure == "clustered":
            member = torch.randint(CLUSTERS, shape, generator=generator, device=device)
            head = torch.arange(case.heads, device=device)[None, :, None]
            return centres[head, member] + CLUSTER_SPREAD * gaussian(*shape, case.freq_dim)
        if case.structure == "drift":
            assert radius is not None and case.window is not None
            # floor(rho / slope) = window, with room for rounding on both sides.
            position = radius / (case.window + 0.5) * torch.arange(case.tokens, dtype=torch.float64)
            content = gaussian(*shape, case.freq_dim - 1)
            return torch.cat((content, position.float().to(device).expand(shape)[..., None]), dim=-1)
        if case.structure == "layer":
            windows = case.tokens * locking.density_ladder(*LAYER_WINDOWS, case.heads, device=device)
            direction = torch.nn.functional.normalize(gaussian(case.heads, 1, case.freq_dim), dim=-1)
            step = (2 * case.freq_dim) ** 0.5 / windows[:, None, None] * direction
            return gaussian(*shape, case.freq_dim) + torch.arange(case.tokens, device=device)[:, None] * step
        if case.structure == "segments":
            assert radius is not None
            place = (4 * radius * segment_classes(case)).float().to(device)  # others are out of reach
            return torch.cat((gaussian(*shape, case.freq_dim - 1), place.expand(shape)[..., None]), dim=-1)
        raise ValueError(
            "structure must be 'unstructured', 'clustered', 'drift', 'layer' or 'segments', "
            f"got {case.structure!r}"
        )

    if case.structure in ("drift", "segments"):
        radius = float(locking.gaussian_radius(DRIFT_DENSITY, max(case.freq_dim - 1, 1)))
    dtype, value_dtype = DTYPES[case.dtype]
    send = frequencies().to(device, dtype)
    receive = frequencies().to(device, dtype) if case.directed else send
    if case.structure == "layer":
        before = torch.cat((-send[:, 1::2, :1], send[:, 1::2, :-1]), dim=2)  # the first is like nobody else
        send = send.clone()
        send[:, 1::2] = before
    if case.queries is not None:
        receive = receive[:, :, case.tokens - case.queries :].contiguous()
    value = gaussian(*shape, case.head_dim).to(device, value_dtype)

    if radius is not None:
        coupling, bandwidth = locking.coupling_from_radius(torch.tensor(radius), SHARPNESS)
    elif case.structure == "unstructured" and case.frame == "absolute":
        assert case.density is not None
        coupling, bandwidth = locking.calibrate(torch.tensor(case.density), case.freq_dim, SHARPNESS)
    else:
        assert case.density is not None
        draft = Inputs(receive, send, value, torch.ones(case.heads), torch.ones(case.heads))
        rows = pick_rows(receive.shape[2], _CALIBRATION_ROWS, seed + 1)
        detuning, allowed = row_detuning(case, draft, rows)
        pairs = [d[a].cpu() for d, a in zip(detuning.transpose(0, 1), allowed.transpose(0, 1))]
        wanted = torch.full((case.heads,), case.density)
        if case.structure == "layer":
            wanted = locking.density_ladder(LAYER_SPREAD, 1.0, case.heads)
            # with one partner a row's gradient is exactly 0, and nothing can be held to it
            wanted = (wanted * case.density / wanted.mean()).clamp(min=8 / case.tokens, max=1)
        fitted = [
            locking.calibrate_from_detuning(head[None], float(density), SHARPNESS)
            for head, density in zip(pairs, wanted)
        ]
        coupling, bandwidth = (torch.cat(each).float() for each in zip(*fitted))
    coupling, bandwidth = (x.expand(case.heads).contiguous().to(device) for x in (coupling, bandwidth))
    return Inputs(receive, send, value, coupling, bandwidth)


def segment_classes(case: Case) -> Tensor:
    """The class of each token in structure "segments", (N,) int64: the same for every seed."""
    assert case.tiles is not None
    segments = torch.arange(math.ceil(case.tokens / SEGMENT))
    generator = torch.Generator().manual_seed(5)
    order = torch.randperm(len(segments), generator=generator)
    return (order % round(1 / case.tiles)).repeat_interleave(SEGMENT)[: case.tokens]


def pick_rows(total: int, count: int, seed: int) -> Tensor:
    """Row numbers (count,) int64, ascending, drawn without replacement; all of them if there are no more."""
    if total <= count:
        return torch.arange(total)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(total, generator=generator)[:count].sort().values


def row_detuning(case: Case, inputs: Inputs, rows: Tensor) -> tuple[Tensor, Tensor]:
    """D of some rows with every key, and which pairs are allowed: both (B, H, R, M), D in float64.

    In the nearest frame D counts from the row's smallest allowed one.
    """
    receive = inputs.receive[:, :, rows.to(inputs.receive.device)].double()
    send = inputs.send.double()
    detuning = receive.new_zeros(*receive.shape[:3], send.shape[2])
    for k in range(send.shape[-1]):  # a coordinate at a time: no (R, M, m) temporary
        detuning += (receive[..., :, None, k] - send[..., None, :, k]).square()
    allowed = allowed_rows(case, inputs, rows).expand_as(detuning)
    if case.frame == "nearest":
        detuning = detuning - detuning.masked_fill(~allowed, math.inf).amin(-1, keepdim=True)
    return detuning, allowed


def allowed_rows(case: Case, inputs: Inputs, rows: Tensor) -> Tensor:
    """(1, 1, R, M) bool: which keys these rows may attend to, True = may."""
    queries, keys = inputs.receive.shape[2], inputs.send.shape[2]
    i = (rows + keys - queries)[:, None]
    j = torch.arange(keys)
    allowed = torch.ones(len(rows), keys, dtype=torch.bool)
    if case.is_causal:
        allowed &= j <= i
    if not case.self_coupling:
        allowed &= j != i
    return allowed[None, None].to(inputs.receive.device)


def row_margin(case: Case, inputs: Inputs, rows: Tensor) -> tuple[Tensor, Tensor]:
    """F of some rows, and which pairs are allowed: (B, H, R, M), float64."""
    detuning, allowed = row_detuning(case, inputs, rows)
    coupling = inputs.coupling.double()[:, None, None]
    bandwidth = inputs.bandwidth.double()[:, None, None]
    return locking.locking_margin(detuning.masked_fill(~allowed, 0.0), coupling, bandwidth), allowed


@torch.no_grad()
def count_locked(case: Case, inputs: Inputs, count: int, seed: int) -> dict[str, Any]:
    """The density, counted in float64 on a random sample of rows of every head and sequence.

    Returns:
        rows: how many; density: locked over allowed pairs; of_all_pairs: locked over N x M; per_head: the
        smallest and the largest head's density; keys_per_row: locked keys of a row, on average; farthest: the
        largest distance, in tokens, of two that lock; tiles: the share of tiles of 64 keys, whole or cut, in
        which a row has a locked one.
    """
    rows = pick_rows(inputs.receive.shape[2], count, seed + 2)
    margin, allowed = row_margin(case, inputs, rows)
    locked = (margin > 0) & allowed
    queries, keys = inputs.receive.shape[2], inputs.send.shape[2]
    distance = ((rows + keys - queries)[:, None] - torch.arange(keys)).abs().to(locked.device)
    tiles = torch.nn.functional.pad(locked, (0, -keys % _TILE)).unflatten(-1, (-1, _TILE)).any(-1)
    heads = locked.sum((0, 2, 3)).double() / allowed.sum((0, 2, 3)).clamp(min=1)
    return {
        "rows": len(rows),
        "density": float(locked.sum().double() / allowed.sum().clamp(min=1)),
        "of_all_pairs": float(locked.double().mean()),
        "per_head": [float(heads.min()), float(heads.max())],
        "keys_per_row": float(locked.sum(-1).double().mean()),
        "farthest": int((distance * locked.any(0).any(0)).max()),
        "tiles": float(tiles.double().mean()),
    }
