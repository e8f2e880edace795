"""One vector for a text: the mean of its tokens' hidden states, or the last one; embeddings of sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from syncattn.checks import check_count, check_flag, short


def mean_pooling(
    hidden: Tensor, attention_mask: Tensor | None = None, sequence_ids: Tensor | None = None
) -> Tensor:
    """The mean of the real tokens' hidden states, (B, D), or of each text's, (T, D).

    Args:
        hidden: (B, N, D), `last_hidden_state`. The mean is taken in float32 at least, and has hidden's dtype.
        attention_mask: (B, N), nonzero or True for real tokens; None: all are. A text without any gives 0.
        sequence_ids: of several texts in a row, as the models take them, (B or 1, N): there is then a mean
            for each of the T texts that have tokens, row after row. How many they are is read.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: a shape is another.
    """
    real = _real(hidden, attention_mask)
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    if sequence_ids is not None:
        places, number, texts = _texts(hidden, real, sequence_ids)
        total = hidden.new_zeros(texts, hidden.shape[2], dtype=dtype)
        total = total.index_add(0, number, hidden.flatten(0, 1)[places].to(dtype))
        return (total / number.bincount(minlength=texts)[:, None]).to(hidden.dtype)
    if real is None:
        return hidden.mean(1, dtype=dtype).to(hidden.dtype)
    total = torch.where(real[..., None], hidden, 0).sum(1, dtype=dtype)
    return (total / real.sum(1, keepdim=True).clamp(min=1)).to(hidden.dtype)


def last_pooling(
    hidden: Tensor, attention_mask: Tensor | None = None, sequence_ids: Tensor | None = None
) -> Tensor:
    """The hidden state of each text's last real token, (B, D): of a causal model, the one that saw all.

    Args:
        hidden, attention_mask, sequence_ids: as `mean_pooling` takes them. A text without real tokens gives
            0; with sequence_ids the result is (T, D), of the texts that have some.

    Raises:
        TypeError, ValueError: as `mean_pooling`.
    """
    real = _real(hidden, attention_mask)
    if sequence_ids is not None:
        places, number, texts = _texts(hidden, real, sequence_ids)
        last = places.new_zeros(texts).scatter_reduce(0, number, places, "amax")
        return hidden.flatten(0, 1)[last]
    if real is None:
        return hidden[:, -1]
    number = torch.arange(real.shape[1], dtype=torch.int64, device=real.device)
    last = torch.where(real, number, 0).amax(1)[:, None, None].expand(-1, 1, hidden.shape[2])
    return torch.where(real.any(1, keepdim=True), hidden.gather(1, last)[:, 0], 0)


@torch.no_grad()
def sentence_embeddings(
    model: torch.nn.Module,
    tokenizer: Any,
    sentences: str | Sequence[str],
    *,
    batch_size: int = 32,
    normalize: bool = False,
    max_length: int | None = None,
) -> Tensor:
    """Embeddings of sentences: the mean over each one's last hidden states. As sentence-transformers' encode.

    Long and short sentences are put in batches of their like, and padded; the order of the result is the
    sentences'. The model is in eval mode meanwhile.

    Args:
        model: a model without a head (`OSNModel`, or any that `AutoModel` loads) that takes input_ids and
            attention_mask. A bidirectional one is meant: of a causal one's states the first know little.
        tokenizer: a tokenizer of transformers. It needs no padding token.
        sentences: one, or several.
        batch_size: how many go through the model at a time.
        normalize: scale each to length 1: a dot product is then the cosine.
        max_length: longer sentences are cut off after so many tokens; None: they are not.

    Returns:
        (n, D) float32 on the model's device, or (D,) for one sentence. A sentence without tokens gives 0.

    Raises:
        TypeError, ValueError: sentences are no strings, batch_size or max_length no positive integers.

    Example:
        >>> model = OSNModel(OSNConfig(is_causal=False))
        >>> found = sentence_embeddings(model, byte_tokenizer(), ["to lock", "to drift"], normalize=True)
        >>> cosine = found @ found.T
    """
    texts = [sentences] if isinstance(sentences, str) else list(sentences)
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"sentences must be a string or several, got one that is {short(text)}")
    check_count("batch_size", batch_size)
    check_flag("normalize", normalize)
    if max_length is not None:
        check_count("max_length", max_length)
    device = next(model.parameters()).device
    cut = {"truncation": True, "max_length": max_length} if max_length is not None else {}
    ids = [tokenizer(text, verbose=False, **cut)["input_ids"] for text in texts]
    by_length = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    found: list[Tensor] = [torch.empty(0)] * len(ids)  # replaced below, every one
    training = model.training
    try:
        model.eval()
        for start in range(0, len(ids), batch_size):
            chosen = by_length[start : start + batch_size]
            tokens, real = _padded([ids[i] for i in chosen], device)
            hidden = model(input_ids=tokens, attention_mask=real).last_hidden_state.float()
            for i, vector in zip(chosen, mean_pooling(hidden, real)):
                found[i] = vector
    finally:
        model.train(training)
    if not found:
        width = model.get_input_embeddings().weight.shape[1]  # type: ignore[operator, union-attr]
        return torch.empty(0, width, dtype=torch.float32, device=device)
    vectors = torch.stack(found)
    vectors = F.normalize(vectors, dim=-1) if normalize else vectors
    return vectors[0] if isinstance(sentences, str) else vectors


def _padded(rows: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids (B, N), padded with 0 on the right to at least one token, and 1 for the real ones, else 0."""
    width = max(1, *map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], dtype=torch.int64, device=device)
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64, device=device)
    number = torch.arange(width, dtype=torch.int64, device=device)
    return ids, (number < lengths[:, None]).long()


def _texts(hidden: Tensor, real: Tensor | None, sequence_ids: Any) -> tuple[Tensor, Tensor, int]:
    """(places (R,) int64 of the real tokens among the batch's, their texts' numbers (R,) from 0, T)."""
    if not isinstance(sequence_ids, Tensor):
        raise TypeError(f"sequence_ids must be a tensor, got {type(sequence_ids).__name__}")
    batch, tokens = hidden.shape[:2]
    if sequence_ids.shape not in ((batch, tokens), (1, tokens)):
        raise ValueError(
            f"sequence_ids must have shape (B or 1, N) = ({batch}, {tokens}), got {tuple(sequence_ids.shape)}"
        )
    ids = sequence_ids.to(hidden.device).expand(batch, tokens)
    there = ids >= 0 if real is None else real & (ids >= 0)
    row, column = there.nonzero(as_tuple=True)
    own = ids[row, column]
    begins = torch.ones_like(own, dtype=torch.bool)
    begins[1:] = (own[1:] != own[:-1]) | (row[1:] != row[:-1])
    return row * tokens + column, begins.cumsum(0) - 1, int(begins.sum())


def _real(hidden: Any, attention_mask: Any) -> Tensor | None:
    for name, given in (("hidden", hidden), ("attention_mask", attention_mask)):
        if not isinstance(given, Tensor) and (name == "hidden" or given is not None):
            raise TypeError(f"{name} must be a tensor, got {type(given).__name__}")
    if hidden.ndim != 3 or hidden.shape[1] == 0:
        raise ValueError(f"hidden must be (B, N, D), of at least one token, got {tuple(hidden.shape)}")
    if attention_mask is None:
        return None
    if attention_mask.shape != hidden.shape[:2]:
        raise ValueError(
            f"attention_mask must have shape (B, N) = {tuple(hidden.shape[:2])}, got "
            f"{tuple(attention_mask.shape)}"
        )
    return attention_mask.to(hidden.device) != 0
