"""What PyTorch's own encoder reads of an attention layer in it, to see whether to fuse all of it away."""

from __future__ import annotations

from typing import Any


class _NotPacked:
    """Stands where PyTorch's encoder looks for packed projections. Among its arguments it takes what brings
    functions of its own for a reason not to fuse them."""

    requires_grad = True

    @classmethod
    def __torch_function__(cls, *_: Any) -> Any:
        return NotImplemented


class NeverFused:
    """PyTorch's encoder and its layers read these of a `self_attn`, to see whether a fused kernel of theirs
    may take the place of all of it. It may not: the first two say so to a layer and to an encoder that is
    made of such layers, the third to an encoder whose layers were changed after it was made."""

    _qkv_same_embed_dim = False
    in_proj_bias = None
    in_proj_weight = _NotPacked()
