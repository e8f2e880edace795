"""What the sizes and tokens of a configuration may be."""

from __future__ import annotations

from typing import Any

from syncattn.checks import check_count, short

# What a stored size may be at most, so that a damaged file is refused before anything is built of it. No
# model comes near: the widest of today have some 2^16, and a depth of 1,000 layers has been reached once.
LARGEST = {
    "vocab_size": 2**31 - 1,  # token ids are int32 in many tools
    "hidden_size": 2**20,  # one matrix of this width and height would take 4 TB
    "intermediate_size": 2**24,
    "num_attention_heads": 2**20,
    "num_hidden_layers": 2**11,  # which take a quarter of a minute to build, however narrow
    "freq_dim": 2**16,
    "directed_rank": 2**16,
    "phase_dim": 2**16,
    "axes": 2**10,
    "image_size": 2**20,
    "patch_size": 2**16,
    "num_channels": 2**16,
    "num_input_channels": 2**16,
    "prediction_length": 2**24,
    "top_k": 2**31 - 1,
    "chunk_size_feed_forward": 2**53,
    "num_labels": 2**20,  # each has a name in the configuration
    "max_position_embeddings": 2**53,  # JSON's largest exact integer; nothing is built of it
}


def check_size(name: str, value: Any) -> None:
    """Make sure that a field is an integer, at least 1 and at most `LARGEST`."""
    check_count(name, value)
    if value > LARGEST[name]:
        raise ValueError(f"{name} must be at most {LARGEST[name]}, got {short(value)}")


def check_heads(hidden_size: Any, num_attention_heads: Any) -> None:
    """Make sure that the width can be divided among the heads."""
    check_size("hidden_size", hidden_size)
    check_size("num_attention_heads", num_attention_heads)
    if hidden_size % num_attention_heads:
        raise ValueError(
            "num_attention_heads must divide hidden_size, got num_attention_heads = "
            f"{num_attention_heads} and hidden_size = {hidden_size}"
        )


def check_token(name: str, value: Any, vocab_size: int) -> None:
    """Make sure that a field is a token's id, or None."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < vocab_size:
        raise ValueError(f"{name} must be None or an id below vocab_size = {vocab_size}, got {short(value)}")
