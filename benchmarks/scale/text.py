"""A larger body of text for studies: the Python source of well-known packages, described and split by file.

    python benchmarks/scale/text.py DATA [--sources benchmarks/scale/sources.toml] [--wheels FOLDER]

Fetches the wheels that the list of sources names, by version and hash, with pip, as it is set up on this
machine; one that is there already is not fetched again, so the same command goes on where it stopped. Then
it writes DATA/source.train.txt, source.validation.txt, source.test.txt and, last, source.json: for every
package its name, version, licence, hash and bytes, how many files were left out and why, and the hash of the
result. Nothing is installed or run. The same list gives the same text on every machine.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from syncattn.training.errors import UserError
from syncattn.training.files import disk_errors, fingerprint, staged, write_json
from syncattn_lab.study.held_out import PARTS, joined, split_files

NAME = "source"
SOURCES = Path(__file__).with_name("sources.toml")
_RULES = {
    "suffixes": list,
    "without": list,
    "largest": int,
    "longest_lines": int,
    "most_copied": (int, float),
    "package": list,
}
_PACKAGE = ("name", "version", "licence", "file", "sha256")


def read_sources(path: Path) -> dict[str, Any]:
    """The list of packages, and the rules by which their files are read.

    Raises:
        UserError: unreadable, no TOML, or something in it is missing, unknown or of another kind.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the sources {path}: {error}") from error
    if set(found) != set(_RULES):
        raise UserError(f"{path}: expected {', '.join(_RULES)}, got {', '.join(found) or 'nothing'}")
    for name, kind in _RULES.items():
        if not isinstance(found[name], kind):
            raise UserError(f"{path}: {name} is of another kind, got {found[name]!r}")
    for package in found["package"]:
        if set(package) != set(_PACKAGE) or not all(isinstance(text, str) for text in package.values()):
            raise UserError(f"{path}: a package must have the texts {', '.join(_PACKAGE)}, got {package!r}")
        if Path(package["file"]).name != package["file"]:
            raise UserError(f"{path}: file must be a name without folders, got {package['file']!r}")
    return found


def fetch(packages: Sequence[dict[str, str]], wheels: Path) -> None:
    """Have every package's wheel in `wheels`, whole and with its hash.

    Raises:
        UserError: pip cannot fetch one, or what it fetched is another file.
    """
    with disk_errors(f"cannot write to {wheels}"):
        wheels.mkdir(parents=True, exist_ok=True)
    for number, package in enumerate(packages, 1):
        path, wanted = wheels / package["file"], f"{package['name']}=={package['version']}"
        if path.is_file() and fingerprint(path) == package["sha256"]:
            continue
        print(f"{number} of {len(packages)}: {wanted}", flush=True)
        with disk_errors(f"cannot write to {wheels}"), staged(wheels) as folder:
            with tempfile.NamedTemporaryFile("w", suffix=".txt") as listed:
                listed.write(f"{wanted} --hash=sha256:{package['sha256']}\n")
                listed.flush()
                options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--ignore-requires-python"]
                pip = [
                    sys.executable,
                    "-m",
                    "pip",
                    "download",
                    *options,
                    "-d",
                    str(folder),
                    "-r",
                    listed.name,
                ]
                if subprocess.run(pip, check=False).returncode:
                    raise UserError(f"pip could not fetch {wanted}; the same command goes on from here")
            if not (folder / package["file"]).is_file():
                got = ", ".join(sorted(each.name for each in folder.iterdir()))
                raise UserError(f"{wanted}: expected the file {package['file']}, got {got}")


def files_of(wheel: Path, rules: dict[str, Any]) -> tuple[list[bytes], int]:
    """The text files of a wheel that the rules take, and how many they leave out.

    Raises:
        UserError: it is no zip file, or damaged.
    """
    found, others = [], 0
    try:
        with zipfile.ZipFile(wheel) as archive:
            for entry in sorted(archive.infolist(), key=lambda entry: entry.filename):
                path = PurePosixPath(entry.filename)
                if path.suffix not in rules["suffixes"] or path.parts[0].endswith(".dist-info"):
                    continue
                data = b""
                if entry.file_size <= rules["largest"] and not set(rules["without"]) & set(path.parts):
                    data = _text(archive.read(entry))
                if data and len(data) <= rules["longest_lines"] * (1 + data.count(b"\n")):
                    found.append(data)
                else:
                    others += 1
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot read {wheel}: {error}") from error
    return found, others


def _text(data: bytes) -> bytes:
    """What is UTF-8, with line ends of one kind; b"" for what is not."""
    data = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").strip()
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return b""
    return b"" if b"\x00" in data or b"\r" in data else data


def make(sources: Path, wheels: Path, out: Path) -> dict[str, Any]:
    """Fetch, read, split and write the text; what source.json says.

    Raises:
        UserError: what `read_sources`, `fetch` and `files_of` raise; nothing is left of a part; the disk.
    """
    rules = read_sources(sources)
    with disk_errors(f"cannot write to {out}"):
        out.mkdir(parents=True, exist_ok=True)
    fetch(rules["package"], wheels)
    files, told, others = [], [], 0
    for package in rules["package"]:
        read, skipped = files_of(wheels / package["file"], rules)
        told.append(package | {"files": len(read), "bytes": sum(map(len, read))})
        files += read
        others += skipped
    parts, left_out = split_files(files, rules["most_copied"])
    text, digest = joined(parts)
    if not all(text.values()):
        raise UserError(f"too little text: {len(files)} files of {len(told)} packages leave a part empty")
    about = {
        "about": "Python source of packages, with its docstrings, split by file",
        "packages": told,
        "rules": {name: value for name, value in rules.items() if name != "package"},
        "files": {name: len(parts[name]) for name in PARTS},
        "bytes": {name: len(text[name]) for name in PARTS},
        "left_out": {"too large, not UTF-8, of others or data": others, **left_out},
        "sha256": digest,
        "sha256_of": {name: hashlib.sha256(text[name]).hexdigest() for name in PARTS},
    }
    with disk_errors(f"cannot write to {out}"), staged(out, last=f"{NAME}.json") as folder:
        for name in PARTS:
            (folder / f"{NAME}.{name}.txt").write_bytes(text[name])
        write_json(folder / f"{NAME}.json", about)
        # What was there describes another text as soon as the first part is replaced.
        (out / f"{NAME}.json").unlink(missing_ok=True)
    return about


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder for the text")
    parser.add_argument("--sources", type=Path, default=SOURCES, help="the list of packages")
    parser.add_argument("--wheels", type=Path, help="folder for what is fetched; OUT/wheels if not given")
    given = parser.parse_args()
    try:
        about = make(given.sources, given.wheels or given.out / "wheels", given.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    sizes = ", ".join(f"{name} {size:,}" for name, size in about["bytes"].items())
    print(f"{given.out}: {sizes} bytes; left out: {about['left_out']}; sha256 {about['sha256']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
