"""Tokenisers that need no network, in the form of transformers, so that they are saved with the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from syncattn.training.errors import UserError
from syncattn.training.files import read_object

UNKNOWN = "\ufffd"
"""What a character tokeniser reads in place of a character that its text did not have."""

_CHUNK = 1 << 20
_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def byte_tokenizer(context: int | None = None) -> PreTrainedTokenizerFast:
    """One token per UTF-8 byte, 256 in all; token i is byte i. Any text makes the round trip exactly."""
    tokenizer = Tokenizer(
        models.BPE(vocab={symbol: byte for byte, symbol in enumerate(_byte_symbols())}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _wrap(tokenizer, context)


def char_tokenizer(text: str, context: int | None = None) -> PreTrainedTokenizerFast:
    """One token per character of `text`, in code point order after `UNKNOWN`, which is token 0."""
    characters = [UNKNOWN, *sorted(set(text) - {UNKNOWN})]
    vocabulary = {character: index for index, character in enumerate(characters)}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return _wrap(tokenizer, context, unk_token=UNKNOWN)


def make_tokenizer(kind: str, text: str, context: int | None = None) -> PreTrainedTokenizerBase:
    """`"byte"`, `"char"` (built from `text`), or the path of another: a folder or a tokenizer.json.

    Raises:
        UserError: `kind` is neither a name nor a path with a tokeniser that loads from local files alone.
    """
    if kind == "byte":
        return byte_tokenizer(context)
    if kind == "char":
        return char_tokenizer(text, context)
    return load_tokenizer(kind)


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """A tokeniser from a local folder or tokenizer.json; no network, no remote code.

    Raises:
        UserError: nothing there, or nothing that loads.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(
            f"no tokenizer at {path}: expected 'byte', 'char', or a folder or tokenizer.json on this machine"
        )
    for file in [path / name for name in _FILES] if path.is_dir() else [path]:
        if file.exists() or file.is_symlink():
            read_object(file)
    try:
        tokenizer: PreTrainedTokenizerBase
        if path.is_file():
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path), clean_up_tokenization_spaces=False)
        else:
            tokenizer = AutoTokenizer.from_pretrained(
                str(path), local_files_only=True, trust_remote_code=False
            )
        tokenizer(
            "a", add_special_tokens=False, verbose=False
        )  # a setting of another type shows when it is used
        return tokenizer
    except Exception as error:  # the tokenizers library raises bare Exception for a malformed file
        if path.is_dir() and not (path / _FILES[0]).is_file():
            raise UserError(f"cannot load a tokenizer from {path}: no {_FILES[0]} there") from error
        files = " or ".join(_FILES[:2]) if path.is_dir() else "it"
        raise UserError(
            f"cannot load a tokenizer from {path}, {files} is of another kind: {_first_line(error)}"
        ) from error


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> torch.Tensor:
    """All of `text` as (tokens,), uint8 for bytes and int32 otherwise, with no special tokens added."""
    if is_byte_tokenizer(tokenizer):
        data = bytearray(text, "utf-8")  # frombuffer refuses an empty one
        return torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    # A tokeniser's memory grows with the length of one call, so long text goes in pieces cut at line ends.
    ids: list[int] = []
    for piece in _pieces(text):
        ids.extend(tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"])
    return torch.tensor(ids, dtype=torch.int32)


def is_byte_tokenizer(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether token i is byte i, so that text can be encoded without calling the tokeniser."""
    return len(tokenizer) == 256 and tokenizer.convert_ids_to_tokens(list(range(256))) == _byte_symbols()


def token_labels(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """A short visible label for each token, for the axes of a figure."""
    visible = {" ": "\u2423", "\n": "\u21b5", "\t": "\u21e5", "\r": "\u240d"}
    labels = []
    for token in ids:
        text = tokenizer.decode([token])
        label = "".join(visible.get(c, c if c.isprintable() else "\u00b7") for c in text)
        labels.append(label[:11] + "\u2026" if len(label) > 12 else label or "\u00b7")
    return labels


def _wrap(tokenizer: Tokenizer, context: int | None, **extra: Any) -> PreTrainedTokenizerFast:
    if context is not None:
        extra["model_max_length"] = context
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **extra)


def _byte_symbols() -> list[str]:
    """The printable character that stands for each byte inside the tokenizers library's ByteLevel.

    Printable Latin-1 bytes stand for themselves; the others take the code points from 256 on, in order.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _pieces(text: str) -> list[str]:
    pieces, start = [], 0
    while start < len(text):
        end = min(start + _CHUNK, len(text))
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        pieces.append(text[start:end])
        start = end
    return pieces


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
