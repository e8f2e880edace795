"""Text files: which are read, in which encoding, and what is wrong with them. Imports nothing slow."""

from __future__ import annotations

import codecs
import difflib
import importlib
import os
import re
import stat
import sysconfig
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from syncattn.training.errors import UserError

_PROSE = (
    ".txt .text .md .markdown .rst .tex .org .html .css .xml .json .jsonl .yaml .yml .toml .ini .cfg .csv"
)
_CODE = ".py .pyi .c .h .cc .cpp .hpp .rs .go .java .js .ts .sh .sql .r .jl .lua .rb .pl .hs .ml .scala .kt"
TEXT_EXTENSIONS = frozenset(f"{_PROSE} {_CODE}".split())
"""The extensions that are read from a folder (a file given by its own path is read whatever its name)."""

# Generated tables, tests, and what some distributions leave out or patch: without them, two machines with the
# same Python read the same text.
_STDLIB_SKIPPED = (
    "site-packages dist-packages lib-dynload __pycache__ test tests lib2to3 distutils idlelib tkinter "
    "turtledemo ensurepip venv encodings pydoc_data"
)
_STDLIB_SKIPPED_FOLDERS = frozenset(_STDLIB_SKIPPED.split())
_STDLIB_SKIPPED_FILES = frozenset(
    {"site.py", "sitecustomize.py", "usercustomize.py", "sysconfig.py", "turtle.py"}
)
_PYDOC_SECTION = 4000

_BYTE_ORDER_MARKS = {  # that of UTF-32 begins with that of UTF-16
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}

COPIES = 3
"""How often text is held at once: as read, in its parts, as tokens."""


class Reader:
    """Reads texts. What is wrong with any of them waits for `check`, so that all are named at once.

    Args:
        encoding: of the files.
        skip_undecodable: files that are not text in that encoding are left out, and named in `skipped`.

    Raises:
        UserError: no such encoding.
    """

    def __init__(self, encoding: str = "utf-8", skip_undecodable: bool = False) -> None:
        self.encoding = encoding_name(encoding)
        self.skip_undecodable = skip_undecodable
        self.problems: list[str] = []
        self.skipped: list[str] = []
        self._undecodable = False

    def find(self, spec: str | Path) -> Place | None:
        """What `spec` names: a built-in corpus, a file, or the text files of a folder; None: a problem."""
        if str(spec) in BUILT_IN:
            return Place(str(spec), str(spec))
        path = Path(os.path.expanduser(spec))
        try:
            mode = path.stat().st_mode if str(spec) else None
        except (FileNotFoundError, NotADirectoryError):
            mode = None
        except OSError as error:
            self.problems.append(f"cannot read {path}: {error.strerror or error}")
            return None
        if mode is None:
            names = ", ".join(sorted(BUILT_IN))
            self.problems.append(f"no file or folder named {str(spec)!r}, and no built-in corpus ({names})")
            return None
        if not stat.S_ISDIR(mode):
            return Place(str(spec), str(path.absolute()), (path,))
        files, others = [], Counter[str]()
        for file in self._files(path):
            if _is_hidden(file, path):
                others["hidden"] += 1
            elif file.suffix.lower() not in TEXT_EXTENSIONS:
                others[file.suffix.lower() or "no extension"] += 1
            elif file.is_symlink() and not os.path.exists(file):
                others["broken links"] += 1
            else:
                files.append(file)
        left_out = ", ".join(f"{count} {name}" for name, count in sorted(others.items()))
        return Place(str(spec), str(path.absolute()), tuple(files), path, left_out)

    def read(self, place: Place, limit: int | None = None) -> tuple[list[str], str]:
        """The documents of a place, and a sentence on what was read; at most `limit` characters of a file."""
        if place.name in BUILT_IN:
            return BUILT_IN[place.name]()
        if place.folder is None:
            (path,) = place.files
            text = self.text(path, limit)
            if text == "":
                self.problems.append(f"{path} is empty")
            size = "" if text is None else f"{len(text):,}"
            first = "its first " if limit is not None and text is not None and len(text) == limit else ""
            return [text] if text else [], f"{path}: one file, {first}{size} characters" if text else ""
        before = len(self.problems) + len(self.skipped)
        found = [self.text(path, limit) for path in place.files]
        texts, empty = [text for text in found if text], found.count("")
        if not texts and len(self.problems) + len(self.skipped) == before:
            self.problems.append(
                f"no text in the folder {place.folder}: {empty} empty files, left out: "
                f"{place.left_out or 'nothing'}; read from a folder are {' '.join(sorted(TEXT_EXTENSIONS))}"
            )
        note = f"{place.folder}: {len(texts):,} files, {sum(map(len, texts)):,} characters"
        if empty:
            note += f"; {empty} empty"
        return texts, note + (f"; left out by name: {place.left_out}" if place.left_out else "")

    def text(self, path: Path, limit: int | None = None) -> str | None:
        """The file's text, line ends untouched, without a byte order mark; None: a problem, or left out."""
        most = -1 if limit is None else _bytes_for(limit)
        try:
            with path.open("rb") as file:
                data = file.read(most)
        except OSError as error:
            self.problems.append(f"cannot read {path}: {error.strerror or error}")
            return None
        text, why = _decode(data, self.encoding, whole=len(data) != most)
        if text is None:
            if self.skip_undecodable:
                self.skipped.append(f"{path} {why}")
            else:
                self.problems.append(f"{path} {why}")
                self._undecodable = True
            return None
        return text[:limit]

    def check(self) -> None:
        """Refuse what was found to be wrong.

        Raises:
            UserError: with every problem, one a line where there are several.
        """
        if not self.problems:
            return
        hint = ""
        if self._undecodable:
            hint = "train and compare take --encoding NAME, or leave such files out with --skip-undecodable"
        if len(self.problems) == 1:
            raise UserError("; ".join(filter(None, [self.problems[0], hint])))
        lines = "".join(f"\n  {problem}" for problem in self.problems)
        heading = f"{len(self.problems)} texts cannot be used" + (f"; {hint}" if hint else "")
        raise UserError(f"{heading}:{lines}")

    def _files(self, folder: Path) -> list[Path]:
        """All files below a folder in order; of a folder that cannot be read, a problem."""

        def unreadable(error: OSError) -> None:
            if not _is_hidden(Path(error.filename), folder):
                self.problems.append(f"cannot read {error.filename}: {error.strerror or error}")

        walk = os.walk(folder, onerror=unreadable)
        found = (Path(root, name) for root, _, names in walk for name in names)
        return sorted(path for path in found if _is_regular(path))


@dataclass(frozen=True)
class Place:
    """Something that text is read from.

    Attributes:
        given: as the user named it.
        name: the absolute path, or a built-in corpus's name.
        files: the files that are read; none for a built-in corpus.
        folder: what they are in, if that is what was named.
        left_out: how many files of the folder are not text by their names, in words.
    """

    given: str
    name: str
    files: tuple[Path, ...] = ()
    folder: Path | None = None
    left_out: str = ""


def encoding_name(encoding: str) -> str:
    """The name that Python gives a text encoding, such as "utf-8" for "UTF8".

    Raises:
        UserError: there is none of this name, or it is not one of text.
    """
    try:
        found = codecs.lookup(encoding)
        if found._is_text_encoding:
            return found.name
    except (LookupError, ValueError):
        pass
    known = importlib.import_module("encodings.aliases").aliases
    near = difflib.get_close_matches(encoding.lower().replace("-", "_"), [*known, *known.values()], 1)
    raise UserError(
        "encoding must be the name of a text encoding, such as 'utf-8' or 'latin-1'"
        f"{f' (did you mean {near[0]!r}?)' if near else ''}, got {encoding!r}"
    )


def read_text(path: Path) -> str:
    """The whole file as UTF-8, line ends untouched, without a byte order mark.

    Raises:
        UserError: it cannot be read, is UTF-16 or UTF-32, has NUL bytes (binary), or is not UTF-8 (with the
            first bad byte's offset).
    """
    reader = Reader()
    text = reader.text(path)
    reader.check()
    assert text is not None
    return text


def refuse_repeats(places: Sequence[Place]) -> None:
    """Text in two places could be trained on and be validated with.

    Raises:
        UserError: two places are the same, or share a file.
    """
    seen: dict[str, Place] = {}
    for place in places:
        own = [place.name] if place.name in BUILT_IN else [os.path.realpath(path) for path in place.files]
        if place.folder is not None:
            own.append(os.path.realpath(place.folder))
        for name in own:
            if name in seen:
                first, second = seen[name].given, place.given
                file = f", the file {name}" if place.folder != seen[name].folder else ""
                also = "" if first == second else f" (as {first!r}, too)"
                raise UserError(
                    f"the text {second!r} is given twice{also}{file}: it could be in the training and in the "
                    "validation part; give it once"
                )
        seen |= dict.fromkeys(own, place)


def refuse_too_much(places: Sequence[Place], limit: int | None) -> None:
    """All text is held in memory.

    Raises:
        UserError: it has more bytes than this machine's memory could hold.
    """
    sizes = [path.stat().st_size for place in places for path in place.files if path.is_file()]
    total = sum(size if limit is None else min(size, _bytes_for(limit)) for size in sizes)
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return
    if total * COPIES > memory:
        raise UserError(
            f"the text has {total / 2**30:,.1f} GiB and is held {COPIES} times in memory, of which this "
            f"machine has {memory / 2**30:,.1f} GiB: give less text, or a number of characters to read "
            "(max_chars)"
        )


def _bytes_for(characters: int) -> int:
    """No encoding takes more bytes for a character, so a huge file need not be read to its end."""
    return 8 * characters + 64


def _is_regular(path: Path) -> bool:
    """No pipe, device or socket; what cannot be looked at is no exception, so that reading it says why."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _decode(data: bytes, encoding: str, whole: bool) -> tuple[str | None, str]:
    """The text of a file, or None and why it is none; not `whole`: a character may be cut off at the end."""
    label = encoding.upper() if encoding.startswith("utf") else encoding
    if encoding == "utf-8":
        for other, marks in _BYTE_ORDER_MARKS.items():
            if data.startswith(marks):
                return None, f"is {other} (it begins with that byte order mark), expected UTF-8"
        if (position := data.find(b"\x00")) >= 0:
            return None, f"is binary, not text: NUL byte at offset {position}"
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(data, final=whole)
    except UnicodeDecodeError as error:
        bad = f"byte 0x{data[error.start]:02x} at offset {error.start}"
        return None, f"is not {label}: {bad} ({error.reason})"
    except UnicodeError as error:
        return None, f"is not {label}: {error}"
    if (position := text.find("\x00")) >= 0:
        return None, f"is binary, not {label} text: NUL at character {position}"
    if encoding != "utf-8" and (lone := re.search("[\ud800-\udfff]", text)):
        return None, f"is not {label}: half a surrogate pair at character {lone.start()}"
    return text.removeprefix("\ufeff"), ""


def _stdlib() -> tuple[list[str], str]:
    """The standard library's own modules, in the order of their names."""
    root = Path(sysconfig.get_path("stdlib"))
    texts = []
    for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
        *folders, name = path.relative_to(root).parts
        if any(f in _STDLIB_SKIPPED_FOLDERS or f.startswith("config-") for f in folders):
            continue
        if name in _STDLIB_SKIPPED_FILES or name.startswith("_sysconfigdata"):
            continue
        if text := read_text(path):
            texts.append(text)
    if not texts:
        raise UserError(f"the Python standard library's source is not on this machine (looked in {root})")
    return texts, (
        f"stdlib: {len(texts):,} modules of Python {sysconfig.get_python_version()}'s standard library, "
        f"{sum(map(len, texts)):,} characters, without its tests and generated tables"
    )


def _pydoc() -> tuple[list[str], str]:
    """The language reference as `help()` shows it.

    Topics quote each other at length, so a paragraph that already occurred is left out: otherwise validation
    would measure memory. Long and short topics alike are cut into sections of about 4,000 characters.
    """
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    seen: set[str] = set()
    sections, section, size = [], [], 0
    for name in sorted(topics):
        for paragraph in re.split(r"\n\s*\n", topics[name].strip()):
            key = " ".join(paragraph.split())
            if len(key) >= 40 and key in seen:
                continue
            seen.add(key)
            section.append(paragraph)
            size += len(paragraph)
            if size >= _PYDOC_SECTION:
                sections.append("\n\n".join(section) + "\n")
                section, size = [], 0
    if section:
        sections.append("\n\n".join(section) + "\n")
    return sections, (
        f"pydoc: {len(topics)} topics of Python {sysconfig.get_python_version()}'s reference in "
        f"{len(sections)} sections, {sum(map(len, sections)):,} characters, repeated paragraphs left out"
    )


BUILT_IN: dict[str, Callable[[], tuple[list[str], str]]] = {"stdlib": _stdlib, "pydoc": _pydoc}
"""The corpora that every machine with Python has, by name."""
