"""The rivals on a GPU that take more than a call: FlexAttention's mask, SSA through it, AdaSplash.

SSA through FlexAttention is the operator itself, by means that PyTorch has already: what our kernels must
beat. AdaSplash gets scores that make it as sparse as the operator is.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from syncattn.bench.inputs import Case, Inputs, allowed_rows, count_locked, pick_rows, segment_classes

# Two bfloat16 numbers have 16 bits together, three have all 24 of a float32.
_PIECES = 3
_MOST_UNFUSED = 2048  # tokens: FlexAttention holds N x N matrices where it is not compiled
_ROWS, _TILE = 64, 64
_APART = 4.0  # each coordinate of a class's code: other classes' scores are then far below the threshold
_MISSED = 0.15  # share of the wanted density by which AdaSplash's may differ from it


class Anchor(NamedTuple):
    """One way to compute a case.

    Attributes:
        forward: computes the output from `leaves`, (B, H, N, d).
        leaves: what gets gradients, by name.
        coarse: the leaves whose gradients are rounded too early to be held to our tolerance.
        note: what to record of it.
    """

    forward: Callable[[], Tensor]
    leaves: dict[str, Tensor]
    coarse: tuple[str, ...] = ()
    note: dict[str, Any] = {}  # noqa: RUF012


def leaf(x: Tensor, backward: bool) -> Tensor:
    """A copy that gets gradients if `backward`."""
    return x.detach().clone().requires_grad_(backward)


def seen(case: Case, offset: int, device: torch.device) -> Callable | None:
    """FlexAttention's mask of the pairs that may lock, for the cases whose structure decides it."""
    window = case.window
    if case.structure == "segments":
        classes = segment_classes(case).to(device)
        if case.is_causal:
            return lambda b, h, i, j: (classes[i + offset] == classes[j]) & (j <= i + offset)
        return lambda b, h, i, j: classes[i + offset] == classes[j]
    if not case.is_causal:
        return None
    if window is None:
        return lambda b, h, i, j: j <= i + offset
    return lambda b, h, i, j: (j <= i + offset) & (i + offset - j <= window)


def block_mask(case: Case, queries: int, keys: int, device: torch.device, exact: bool = False) -> Any:
    """FlexAttention's mask of the case, None if it sees all; `exact`: self-coupling left out where it is."""
    from torch.nn.attention.flex_attention import create_block_mask

    offset = keys - queries
    mask = seen(case, offset, device)
    if exact and not case.self_coupling:
        others = mask

        def mask(b, h, i, j):
            apart = i + offset != j
            return apart if others is None else apart & others(b, h, i, j)

    return None if mask is None else create_block_mask(mask, None, None, queries, keys, device=str(device))


def ssa_flex(case: Case, inputs: Inputs, backward: bool) -> Anchor | str:
    """The operator through FlexAttention: an inner product gives -D, `score_mod` log W, softmax W / sum W.

    With frequencies w counted from their mean and scaled by sqrt(2 alpha), the product of (2 w_r,
    -|w_r|^2, 1) and (w_s, 1, -|w_s|^2) is -2 alpha D, and F = exp(-2 alpha D) - 2 alpha D / c with c = 2
    alpha kappa^2, the sharpness. FlexAttention wants one dtype for query, key and value: where that is
    bfloat16, each float32 is split into three, and six of the nine products of such pieces stand side by
    side (m 8: 54 columns, padded to 64), so that -D is as good as in float32. It is compiled as a whole
    on a GPU; on the CPU it is not, which is for tests.

    Two things differ from the operator. Softmax has no eps, which is 1e-8 beside a sum of W. Coupling and
    bandwidth get no gradients: FlexAttention would make them by one atomic addition for each pair. The
    gradients of the frequencies come back in value's dtype, before w_r sum ds is taken from sum ds w_s:
    in bfloat16 they are coarse, the more the farther the frequencies are from their mean (5 to 10 % off
    with drift over 16 to 64 windows). Their errors are recorded, and do not make the result wrong; those of
    output and value do.

    Returns:
        The anchor, or the reason why it cannot take the case.
    """
    device, value_dtype = inputs.value.device, inputs.value.dtype
    if case.frame != "absolute":
        return f"it cannot take this case: its scores know no {case.frame} frame"
    if device.type != "cuda" and case.tokens > _MOST_UNFUSED:
        return "it is timed on GPUs only"
    leaves = {"receive": leaf(inputs.receive, backward)}
    if not inputs.symmetric:
        leaves["send"] = leaf(inputs.send, backward)
    leaves["value"] = leaf(inputs.value, backward)
    bandwidth = inputs.bandwidth.float()
    scale = (2 * bandwidth).sqrt()[:, None, None]
    inverse = 1 / (2 * bandwidth * inputs.coupling.float().square())
    pieces = 1 if value_dtype == torch.float32 else _PIECES
    half = 0.5 * case.power

    def computed(receive: Tensor, send: Tensor, value: Tensor, mask: Any) -> Tensor:
        from torch.nn.attention.flex_attention import flex_attention

        query, key = augmented(receive, send, scale, pieces, value_dtype)

        def log_weight(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            margin = torch.exp(score) + score * inverse[h]
            locked = margin > 0  # 1 in the logarithm of the others: 0 times infinity has no gradient
            log = half * torch.log(torch.where(locked, margin, 1.0))
            return torch.where(locked, log, -math.inf)

        out = flex_attention(query, key, value, score_mod=log_weight, block_mask=mask, scale=1.0)
        assert isinstance(out, Tensor)
        return out

    mask = block_mask(case, inputs.receive.shape[2], inputs.send.shape[2], device, exact=True)
    torch.compiler.reset()  # or the cases before count towards the limit of recompilations
    run = torch.compile(computed, dynamic=False) if device.type == "cuda" else computed

    def forward() -> Tensor:
        return run(leaves["receive"], leaves.get("send", leaves["receive"]), leaves["value"], mask)

    if device.type == "cuda":
        try:  # what is compiled is what will be timed
            with torch.set_grad_enabled(backward):
                forward()
        except Exception as error:  # a compiler's error may be of any kind
            return f"it cannot take this case: {_said(error)}"
    coarse = tuple(name for name in leaves if name != "value") if pieces > 1 else ()
    note = {"gradients": list(leaves), "coarse": list(coarse), "columns": columns(case.freq_dim, pieces)}
    return Anchor(forward, leaves, coarse, note)


def _on_gpu(x: Tensor) -> bool:
    return x.device.type == "cuda"


def _said(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[0].strip()[:300]}"


def columns(freq_dim: int, pieces: int) -> int:
    """How wide query and key are: products of pieces, two norms, padded to a power of two, 16 at least."""
    return max(16, 2 ** math.ceil(math.log2(len(_products(pieces)) * freq_dim + 2 * pieces)))


def _products(pieces: int) -> list[tuple[int, int]]:
    """Which pieces of two numbers are multiplied: what the others would add is beyond the last bit."""
    return [(a, b) for a in range(pieces) for b in range(pieces - a)]


def augmented(
    receive: Tensor, send: Tensor, scale: Tensor, pieces: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Query (B, H, N, C) and key (B, H, M, C) in dtype, whose product is -(scale |w_r - w_s|)^2.

    Args:
        receive, send: (B, H, N, m) and (B, H, M, m).
        scale: (H, 1, 1) float32.
        pieces: numbers of dtype that make up one of float32.
    """
    mean = send.detach().float().mean(2, keepdim=True)  # D is of differences: the smaller, the better
    w_r, w_s = (scale * (each.float() - mean) for each in (receive, send))
    pieces_r, pieces_s = split(2 * w_r, pieces, dtype), split(w_s, pieces, dtype)
    norms_r, norms_s = (split(-w.square().sum(-1, keepdim=True), pieces, dtype) for w in (w_r, w_s))
    products = _products(pieces)
    one_r, one_s = (torch.ones_like(norms[0]) for norms in (norms_r, norms_s))
    query = torch.cat([pieces_r[a] for a, _ in products] + norms_r + [one_r] * pieces, dim=-1)
    key = torch.cat([pieces_s[b] for _, b in products] + [one_s] * pieces + norms_s, dim=-1)
    pad = columns(receive.shape[-1], pieces) - query.shape[-1]
    return F.pad(query, (0, pad)), F.pad(key, (0, pad))


def split(x: Tensor, pieces: int, dtype: torch.dtype) -> list[Tensor]:
    """Tensors of dtype whose sum is x (float32); the first alone has x's gradient.

    The upper half of a float32 is a bfloat16. It is cut off by its bits: compilers take a rounding there
    and back for nothing.
    """
    if pieces == 1:
        return [x.to(dtype)]
    found, rest = [], x.detach()
    for _ in range(pieces - 1):
        upper = (rest.view(torch.int32) & -65536).view(torch.float32)
        found.append(upper)
        rest = rest - upper
    found.append(rest)
    found[0] = found[0] + (x - x.detach())
    return [each.to(dtype) for each in found]


def adasplash(case: Case, inputs: Inputs, backward: bool) -> Anchor | str:
    """AdaSplash's alpha 1.5 entmax attention, of the case's density and, in segments, of its tiles.

    Its sparsity comes from the scores. Query and key are Gaussian, scaled until as many weights are
    positive as pairs lock in the case; where whole tiles lock or not, half of the columns hold a code of
    the token's class instead, so that other classes are below every threshold and it can leave out the
    same tiles. The note has what was counted, in float32, by a plain bisection on rows that were not
    calibrated on.

    Returns:
        The anchor, or the reason why it cannot take the case.
    """
    if importlib.util.find_spec("adasplash") is None:
        return "the package adasplash is not installed"
    if not _on_gpu(inputs.value):
        return "it is timed on GPUs only"
    if case.window is not None:
        return "it has no window"
    if not case.self_coupling or case.queries is not None:
        return "it cannot take this case: as many queries as keys, self-coupling included"
    if case.tokens.bit_count() != 1 or case.head_dim not in (16, 32, 64, 128, 256):
        return "it cannot take this case: N a power of two, d 16, 32, 64, 128 or 256"
    wanted = count_locked(case, inputs, _ROWS, seed=1)
    query, key, counted = entmax_inputs(case, inputs, wanted["density"])
    if abs(counted["density"] - wanted["density"]) > _MISSED * wanted["density"]:
        return f"its density is {counted['density']:.3f}, not {wanted['density']:.3f}"
    leaves = {
        "query": leaf(query, backward),
        "key": leaf(key, backward),
        "value": leaf(inputs.value.contiguous(), backward),
    }
    try:
        package: Any = importlib.import_module("adasplash")
        if case.is_causal:  # its second version is causal only, and takes alpha 1.5 alone
            name, attend = "adasplash_v2", package.adasplash_v2
        else:
            name = "adasplash_v1"

            def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                return package.adasplash_v1(q, k, v, alpha=1.5, is_causal=False)

        with torch.set_grad_enabled(backward):  # whether it takes these sizes at all
            attend(*leaves.values())
    except Exception as error:  # a compiler's error may be of any kind
        return f"it cannot take this case: {_said(error)}"
    try:
        version = importlib.metadata.version("adasplash")
    except importlib.metadata.PackageNotFoundError:
        version = package.__version__
    note = counted | {"function": name, "version": version}
    return Anchor(lambda: attend(*leaves.values()), leaves, note=note)


@torch.no_grad()
def entmax_inputs(case: Case, inputs: Inputs, density: float) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Query and key (B, H, N, d) in value's dtype of this density of entmax weights, and what was counted.

    The counted are density (positive weights over allowed pairs), tiles (the share of tiles of 64 keys in
    which a row has a positive weight), rows, and scale (of the Gaussian columns).
    """
    value = inputs.value
    size = (*inputs.send.shape[:3], case.head_dim)
    generator = torch.Generator(value.device).manual_seed(7)
    raw = [torch.randn(size, generator=generator, device=value.device) for _ in range(2)]
    code = raw[0].new_zeros(case.tokens, 0)
    if case.structure == "segments":
        classes = segment_classes(case)
        signs = torch.randint(
            0, 2, (int(classes.max()) + 1, case.head_dim // 2), generator=torch.Generator().manual_seed(7)
        )
        code = (_APART * (2.0 * signs - 1))[classes].to(value.device)
    code = code.expand(*size[:3], code.shape[-1])
    width = case.head_dim - code.shape[-1]

    def scaled(x: Tensor, scale: float) -> Tensor:
        return torch.cat((code[: len(x), : x.shape[1]], scale * x[..., :width]), dim=-1).to(value.dtype)

    def weights(rows: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        few = slice(0, 1), slice(0, 2)  # heads are alike
        query, key = (scaled(x[few], scale).float() for x in raw)
        scores = query[:, :, rows.to(query.device)] @ key.transpose(-1, -2) / math.sqrt(case.head_dim)
        allowed = allowed_rows(case, inputs, rows).expand_as(scores)
        return positive_weights(scores.masked_fill(~allowed, -math.inf)) & allowed, allowed

    rows = pick_rows(case.tokens, _ROWS, 11)
    low, high = math.log(1e-3), math.log(1e2)
    for _ in range(24):
        middle = 0.5 * (low + high)
        positive, allowed = weights(rows, math.exp(middle))
        if float(positive.sum() / allowed.sum()) > density:
            low = middle
        else:
            high = middle
    scale = math.exp(0.5 * (low + high))
    other = pick_rows(case.tokens, _ROWS, 12)
    positive, allowed = weights(other, scale)
    tiles = F.pad(positive, (0, -case.tokens % _TILE)).unflatten(-1, (-1, _TILE)).any(-1)
    counted = {
        "density": float(positive.sum() / allowed.sum()),
        "tiles": float(tiles.float().mean()),
        "rows": len(other),
        "scale": scale,
    }
    query, key = (scaled(x, scale).contiguous() for x in raw)
    return query, key, counted


def positive_weights(scores: Tensor) -> Tensor:
    """Where the alpha 1.5 entmax of each row (the last dimension) is positive; -inf never is.

    The weights are max(z / 2 - tau, 0)^2; their sum is 1 at tau, which is within 1 below the largest z / 2.
    """
    half = 0.5 * (scores - scores.amax(-1, keepdim=True))
    low, high = (torch.full_like(half[..., :1], end) for end in (-1.0, 0.0))
    for _ in range(26):
        tau = 0.5 * (low + high)
        much = (half - tau).clamp(min=0).square().sum(-1, keepdim=True) >= 1
        low, high = torch.where(much, tau, low), torch.where(much, high, tau)
    return half > 0.5 * (low + high)
