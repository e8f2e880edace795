"""Text from a trained model."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from syncattn.training.errors import UserError
from syncattn.training.options import Sampling


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
