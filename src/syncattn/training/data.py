"""Text in, three parts out; everything here is deterministic. Imports nothing slow."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syncattn.training.errors import UserError
from syncattn.training.texts import BUILT_IN, Reader, refuse_repeats, refuse_too_much

if TYPE_CHECKING:
    import torch

PARTS = ("train", "validation", "test")

SPLIT_PERIOD = 20
"""One document in twenty goes to validation and one to test: 90 % / 5 % / 5 %."""

_BORDER = "\x00"
"""Stands between two documents until a part is put together: no text that is read has it."""


@dataclass(frozen=True)
class Corpus:
    """Text in three parts that share nothing.

    Attributes:
        train, validation, test: the text.
        sources: the specs it was read from, paths made absolute.
        notes: in words, what was read and what was left out.
        max_chars, validation_source, test_source, encoding, skip_undecodable: how it was read, see
            `load_corpus`.
        borders: for each part where in it a line's end stands that was put between two documents.
    """

    train: str
    validation: str
    test: str
    sources: tuple[str, ...]
    notes: tuple[str, ...] = ()
    max_chars: int | None = None
    validation_source: str | None = None
    test_source: str | None = None
    encoding: str = "utf-8"
    skip_undecodable: bool = False
    borders: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def documents(self, part: str) -> list[str]:
        """The documents of "train", "validation" or "test", or what of them is in it, in its order."""
        text, begin, found = getattr(self, part), 0, []
        for end in (*self.borders.get(part, ()), len(text)):
            found.append(text[begin:end])
            begin = end + 1
        return [document for document in found if document]

    @property
    def sha256(self) -> str:
        """Hash of the three parts: two machines with the same hash train on the same text."""
        digest = hashlib.sha256()
        for part in (self.train, self.validation, self.test):
            digest.update(part.encode("utf-8") + b"\x00")
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Sources, sizes and hash, as they are written beside every result, for `reload_corpus`."""
        return {
            "sources": list(self.sources),
            "validation_source": self.validation_source,
            "test_source": self.test_source,
            "encoding": self.encoding,
            "skip_undecodable": self.skip_undecodable,
            "notes": list(self.notes),
            "max_chars": self.max_chars,
            "characters": {
                "train": len(self.train),
                "validation": len(self.validation),
                "test": len(self.test),
            },
            "sha256": self.sha256,
        }


def load_corpus(
    specs: Sequence[str | Path],
    max_chars: int | None = None,
    *,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    encoding: str = "utf-8",
    skip_undecodable: bool = False,
) -> Corpus:
    """Read files, folders and built-in corpora, and split them into training, validation and test text.

    Args:
        specs: paths of files or folders, or the names in `BUILT_IN`; each is split by itself
            (`split_documents`), and the parts are concatenated.
        max_chars: keep this many characters of `specs` at most (the earlier ones first); None keeps all.
        validation, test: text of one's own for these parts, one spec each. What is not given is cut off
            `specs`; with both, all of `specs` is for training.
        encoding: of all files. A byte order mark is no part of the text.
        skip_undecodable: leave out files that are not text in that encoding, and say so in the notes.

    Raises:
        UserError: no spec, one that is given twice, no such encoding, a cap that is not positive; or, all
            named at once, paths where nothing is, folders without text, and files that cannot be read, are
            empty, binary, or not text in the encoding.
    """
    if not specs:
        raise UserError("no text given: expected files, folders or one of " + ", ".join(sorted(BUILT_IN)))
    if max_chars is not None and max_chars < 1:
        raise UserError(f"max_chars must be positive, got {max_chars}")
    reader = Reader(encoding, skip_undecodable)
    own = {"validation": validation, "test": test}
    places = [reader.find(spec) for spec in specs]
    own_places = {name: reader.find(spec) for name, spec in own.items() if spec is not None}
    names = {name: place.name for name, place in own_places.items() if place is not None}
    found = [place for place in [*places, *own_places.values()] if place is not None]
    refuse_repeats(found)
    refuse_too_much(found, max_chars)
    texts = [reader.read(place, max_chars) for place in places if place is not None]
    own_texts = {name: reader.read(place) for name, place in own_places.items() if place is not None}
    reader.check()
    for documents, _ in [*texts, *own_texts.values()]:
        if not documents:
            raise UserError(f"nothing is left of a text: {', '.join(reader.skipped)}")

    parts: dict[str, list[str]] = {name: [] for name in PARTS}
    notes: list[str] = []
    held = [name for name in PARTS[1:] if name not in own_texts]
    left = max_chars
    for documents, note in texts:
        if left is not None:
            documents = _cap(documents, left)
            left -= sum(map(len, documents))
        pieces, how = split_documents(documents, held, _BORDER)
        for name in PARTS:
            parts[name].append(pieces[name])
        notes.append("; ".join(filter(None, [note, how])))
    for name, (documents, note) in own_texts.items():
        parts[name] = documents
        notes.append(f"for {name}: {note}")
    if own_texts and held:
        notes.append(f"for {held[0]}: the end of the training text, since none of its own is given")
    if reader.skipped:
        notes.append(f"left out: {', '.join(reader.skipped)}")
    joined = {name: _BORDER.join(filter(None, pieces)) for name, pieces in parts.items()}
    return Corpus(
        **{name: text.replace(_BORDER, "\n") for name, text in joined.items()},
        sources=tuple(place.name for place in found[: len(specs)]),
        notes=tuple(notes),
        max_chars=max_chars,
        validation_source=names.get("validation"),
        test_source=names.get("test"),
        encoding=reader.encoding,
        skip_undecodable=skip_undecodable,
        borders={name: _places_of(_BORDER, text) for name, text in joined.items()},
    )


def reload_corpus(description: dict[str, Any]) -> Corpus:
    """Read a corpus again, as `Corpus.describe` says that it was read.

    Raises:
        UserError: what `load_corpus` raises.
        KeyError, TypeError: it is no description.
    """
    names = ("validation_source", "test_source", "encoding", "skip_undecodable")
    given = {name.removesuffix("_source"): description[name] for name in names if name in description}
    return load_corpus(description["sources"], description["max_chars"], **given)


def split_documents(
    documents: Sequence[str], held: Sequence[str] = PARTS[1:], between: str = "\n"
) -> tuple[dict[str, str], str]:
    """Split documents into training, validation and test text, about 90 / 5 / 5.

    With at least 20 documents, whole ones are held out: of every 20 neighbours in length, one goes to
    validation and one to test, so each part has short and long ones. With fewer, each document is split by
    itself: its last tenth is held out, cut at a line's end where one is near. Where that would leave next to
    nothing (one huge document among many, or tiny ones), the documents are joined first.

    Args:
        held: which of "validation" and "test" are wanted; what is not is training text.
        between: stands between two documents.

    Returns:
        `{"train" | "validation" | "test": text}`, and a sentence where it is not the usual way.
    """
    if len(documents) >= SPLIT_PERIOD:
        why, parts = "few files have most of the text", _by_document(documents, held, between)
        note = ""
    else:
        why = f"fewer than {SPLIT_PERIOD} files"
        pieces = [_by_position(document, held) for document in documents]
        parts = {name: between.join(filter(None, (piece[name] for piece in pieces))) for name in PARTS}
        share = "tenth" if len(held) > 1 else "twentieth"
        note = f"{why}, so each is split: its last {share} is for {' and '.join(held)}"
    if len(documents) < 2 or not held:
        return parts, ""
    if all(len(parts[name]) >= 0.02 * sum(map(len, parts.values())) for name in held):
        return parts, note
    return _by_position(between.join(documents), held), (
        f"{why}: the end of the last ones by name is for {' and '.join(held)}, unless texts of their own are "
        "given (--validation, --test)"
    )


def split_last_tenth(text: str) -> tuple[str, str]:
    """A text without its last tenth, and that tenth, cut at a line's end where one is near."""
    cut = _line_end(text, len(text) * 9 // 10)
    return text[:cut], text[cut:]


def encode_corpus(
    corpus: Corpus, encode: Callable[[str], torch.Tensor], context: int
) -> dict[str, torch.Tensor]:
    """Tokenise the three parts: `{"train" | "validation" | "test": (tokens,) integer}`.

    Raises:
        UserError: a part has fewer tokens than one window, with how many it has and needs.
    """
    tokens = {name: encode(getattr(corpus, name)) for name in PARTS}
    check_lengths(tokens, context)
    return tokens


def encode_documents(
    corpus: Corpus, encode: Callable[[str], torch.Tensor], context: int
) -> dict[str, list[torch.Tensor]]:
    """As `encode_corpus`, document by document: for each part a list of (tokens,) integer.

    Raises:
        UserError: as `encode_corpus`.
    """
    found = {name: [encode(document) for document in corpus.documents(name)] for name in PARTS}
    check_lengths({name: range(sum(map(len, parts))) for name, parts in found.items()}, context)
    return found


def check_lengths(tokens: Mapping[str, Sequence[Any] | torch.Tensor], context: int) -> None:
    """Make sure that each part has a window's tokens at least.

    Raises:
        UserError: one has fewer, with how many it has and needs.
    """
    total = sum(map(len, tokens.values()))
    if min(map(len, tokens.values())) < context:
        counts = ", ".join(f"{name} {len(part):,}" for name, part in tokens.items())
        raise UserError(
            f"the text is shorter than the context needs: it has {total:,} tokens ({counts}), and each part "
            f"needs at least {context} (context={context}), about {context * SPLIT_PERIOD:,} in all: give "
            "more text or a smaller context"
        )


def _by_document(documents: Sequence[str], held: Sequence[str], between: str) -> dict[str, str]:
    by_length = sorted(range(len(documents)), key=lambda i: (len(documents[i]), i))
    places = dict(zip((SPLIT_PERIOD - 1, SPLIT_PERIOD // 2 - 1), reversed(held)))
    part_of = {i: places.get(rank % SPLIT_PERIOD, "train") for rank, i in enumerate(by_length)}
    return {name: between.join(d for i, d in enumerate(documents) if part_of[i] == name) for name in PARTS}


def _by_position(text: str, held: Sequence[str]) -> dict[str, str]:
    """A twentieth from the end for each part that is held out."""
    cuts = [
        0,
        *(_line_end(text, len(text) * (SPLIT_PERIOD - n) // SPLIT_PERIOD) for n in range(len(held), 0, -1)),
    ]
    pieces = [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]
    return dict.fromkeys(PARTS, "") | dict(zip(["train", *held], pieces, strict=True))


def _cap(documents: Sequence[str], characters: int) -> list[str]:
    kept = []
    for document in documents:
        if characters <= 0:
            break
        kept.append(document[:characters])
        characters -= len(kept[-1])
    return kept


def _line_end(text: str, position: int) -> int:
    """The first line end at or after `position`, or `position` itself when none is near."""
    ends = [text.find(end, position, position + 200) for end in ("\n", _BORDER)]
    found = [end for end in ends if end >= 0]
    return min(found) + 1 if found else position


def _places_of(character: str, text: str) -> tuple[int, ...]:
    found, at = [], text.find(character)
    while at >= 0:
        found.append(at)
        at = text.find(character, at + 1)
    return tuple(found)
