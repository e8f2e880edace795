"""Files in three parts that share next to nothing: how every larger body of text here is split."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence

PARTS = ("train", "validation", "test")
HELD_EVERY = 20
"""Of so many files one is for validation and one for test."""
LONG_LINE = 30
"""Bytes; shorter lines, such as "return None", are everywhere."""
MOST_SHARED = 0.25
"""Of a held-out file's long lines, those that the training text may have too."""


def split_files(
    files: Iterable[bytes], most_copied: float = 1.0
) -> tuple[dict[str, list[bytes]], dict[str, int]]:
    """Files in training, validation and test text, and how many were left out, by the reason in words.

    The same files give the same parts on every machine, in whatever order they come: they are put in order by
    the hash of what they hold, equal ones are taken once, and every tenth is held out. Packages copy from
    each other, so a held-out file with more than `MOST_SHARED` of its long lines in the training text is left
    out.

    Args:
        most_copied: a training file with more than this share of its long lines in the training files before
            it is left out, too; 1 keeps all that are not equal to another.
    """
    found: dict[bytes, bytes] = {}
    equal = 0
    for data in files:
        digest = hashlib.sha256(data).digest()
        equal += digest in found
        found[digest] = data
    held_at = {HELD_EVERY // 2 - 1: "validation", HELD_EVERY - 1: "test"}
    parts: dict[str, list[bytes]] = {name: [] for name in PARTS}
    for index, digest in enumerate(sorted(found)):
        parts[held_at.get(index % HELD_EVERY, "train")].append(found[digest])
    wanted = None
    if most_copied >= 1:  # then only lines of held-out files are looked for, which takes less memory
        wanted = {line for name in PARTS[1:] for data in parts[name] for line in long_lines(data)}
    known: set[bytes] = set()
    train = []
    for data in parts["train"]:
        lines = long_lines(data)
        if most_copied >= 1 or _share(lines, known) <= most_copied:
            train.append(data)
            known.update(lines if wanted is None else wanted.intersection(lines))
    left_out = {"equal to another": equal}
    if most_copied < 1:
        left_out["mostly in another"] = len(parts["train"]) - len(train)
    held = 0
    parts["train"] = train
    for name in PARTS[1:]:
        kept = [data for data in parts[name] if _share(long_lines(data), known) <= MOST_SHARED]
        held += len(parts[name]) - len(kept)
        parts[name] = kept
    return parts, left_out | {"held out, but mostly in the training text": held}


def joined(parts: dict[str, list[bytes]]) -> tuple[dict[str, bytes], str]:
    """Each part as one text, a line's end between two files, and the hash of all of it."""
    text = {name: b"\n".join(parts[name]) for name in PARTS}
    return text, hashlib.sha256(b"".join(part + b"\x00" for part in text.values())).hexdigest()


def long_lines(data: bytes) -> list[bytes]:
    """A file's lines of `LONG_LINE` bytes and more, without the space around them."""
    return [line for line in map(bytes.strip, data.split(b"\n")) if len(line) >= LONG_LINE]


def _share(lines: Sequence[bytes], known: Collection[bytes]) -> float:
    return sum(line in known for line in lines) / len(lines) if lines else 0.0
