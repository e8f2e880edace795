"""Text from a trained model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from syncattn.training.errors import UserError
from syncattn.training.options import check_seed


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        max_new_tokens: length of the continuation.
        temperature: of the distribution that is sampled from; below 1 is more cautious.
        top_k: sample among this many likeliest tokens only; None takes all.
        greedy: always take the likeliest token instead of sampling.
        seed: of the sampling; below 2**32.
    """

    max_new_tokens: int = 200
    temperature: float = 0.8
    top_k: int | None = None
    greedy: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for name in ("max_new_tokens", "top_k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, not {value}")
        if not 0 < self.temperature < float("inf"):
            raise UserError(
                f"temperature must be positive, not {self.temperature}; greedy takes the likeliest token"
            )


def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, sampling: Sampling | None = None
) -> str:
    """The continuation of `prompt`, without the prompt itself.

    Raises:
        UserError: see `encode_prompt`.
    """
    sampling = sampling or Sampling()
    input_ids = encode_prompt(tokenizer, prompt).to(model.device)
    choice: dict[str, Any] = (
        {"do_sample": False} if sampling.greedy else {"do_sample": True, "temperature": sampling.temperature}
    )
    if sampling.top_k is not None and not sampling.greedy:
        choice["top_k"] = min(sampling.top_k, model.config.vocab_size)
    elif not sampling.greedy:
        choice["top_k"] = 0  # transformers' own default is 50
    set_seed(sampling.seed)
    with torch.inference_mode():
        output = model.generate(  # type: ignore[operator]
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=sampling.max_new_tokens,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
            **choice,
        )
    # Decoded together, then cut: one character may span the border between prompt and continuation.
    text, start = (str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in (output[0], input_ids[0]))
    return text.removeprefix(start)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> torch.Tensor:
    """A prompt as (1, tokens) int64, without special tokens.

    Raises:
        UserError: it is empty, has bytes that are no UTF-8, or characters that the tokeniser does not know.
    """
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:  # Python keeps the bytes of such an argument as lone surrogates
        raise UserError(
            f"the prompt is not UTF-8 text: {prompt[error.start]!r} at position {error.start} is no character"
        ) from error
    encoded = tokenizer(prompt, add_special_tokens=False, return_tensors="pt", verbose=False)
    input_ids: torch.Tensor = encoded["input_ids"].long()
    if not prompt or input_ids.numel() == 0:
        raise UserError("the prompt is empty: the model needs at least one token to go on from")
    if tokenizer.unk_token_id is not None and (input_ids == tokenizer.unk_token_id).any():
        known = tokenizer.get_vocab()
        unknown = sorted({character for character in prompt if character not in known})
        raise UserError(
            f"the prompt has characters that the model's text did not have: {' '.join(map(repr, unknown))}"
        )
    return input_ids
