"""Make a release: the sdist and the wheels, checked, installed in empty environments, and tested there.

Needs Python 3.11 or later, a C++ compiler, the package index, and for the other machine's wheel its compiler
(Debian: g++-aarch64-linux-gnu, g++-x86-64-linux-gnu). Nothing is uploaded. `make release` runs it.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
MACHINES = ("x86_64", "aarch64")
POLICY = "manylinux_2_28"
# Of a minute or two: what an install can get wrong. --tests takes others, such as `tests` for all.
FAST = (
    *(
        "tests/test_functional.py",
        "tests/test_locking.py",
        "tests/test_public_surface.py",
        "tests/test_imports.py",
    ),
    *("tests/backends/cpu", "tests/backends/test_select.py", "tests/backends/test_call.py"),
    *("tests/test_packaging.py", "tests/test_cli.py"),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where sdist and wheels go")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build/release", help="for all else; emptied first"
    )
    parser.add_argument(
        "--python", action="append", help="try the wheel on this Python too (may be repeated)"
    )
    parser.add_argument("--tests", nargs="*", default=FAST, help="of the sdist, to run in each environment")
    parser.add_argument("--build-only", action="store_true", help="build and check, install nothing")
    given = parser.parse_args()
    work, out = given.work.absolute(), given.out.absolute()
    shutil.rmtree(work, ignore_errors=True)
    (work / "made").mkdir(parents=True)

    tools = environment(work / "tools", sys.executable)
    say("tools")
    pip(tools, "install", "--requirement", ROOT / "packaging/requirements.txt")
    sdist = make_sdist(tools, work)
    tree = unpack(sdist, work / "tree")
    wheels = [made for machine in MACHINES if (made := make_wheel(tools, work, sdist, machine))]
    run(tools / "python", "-m", "twine", "check", "--strict", sdist, *wheels)

    if not given.build_only:
        native = next((wheel for wheel in wheels if platform.machine() in wheel.name), None)
        for python in [sys.executable, *(given.python or [])] if native else []:
            try_out(work, python, native, tree, given.tests, kernel=True)
        try_out(work, sys.executable, sdist, tree, given.tests, kernel=False)

    out.mkdir(parents=True, exist_ok=True)  # only now: what is there passed
    for path in (sdist, *wheels):
        shutil.copy(path, out)
        say(f"{out / path.name}: {path.stat().st_size / 1e6:.2f} MB")
    print("upload, when it is time: python -m twine upload", *(out / path.name for path in (sdist, *wheels)))


def make_sdist(tools, work):
    """From what git keeps or would keep, so that nothing else that lies about gets in."""
    say("sdist")
    clean = work / "clean"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
    )
    if listed.returncode:  # an unpacked sdist
        shutil.copytree(ROOT, clean, ignore=shutil.ignore_patterns("build", "dist", ".venv", "__pycache__"))
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():  # may have been deleted
            (clean / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, clean / name)
    build(tools, "--sdist", clean, work / "made")
    (made,) = (work / "made").glob("*.tar.gz")
    return made


def make_wheel(tools, work, sdist, machine):
    """A machine's wheel, built from the sdist; None, and why, where its compiler is missing."""
    say(f"wheel for {machine}")
    settings = {"_PYTHON_HOST_PLATFORM": f"linux-{machine}"}
    if machine != platform.machine():
        prefix = f"{machine.replace('_', '-')}-linux-gnu-"
        settings |= {"CC": f"{prefix}gcc", "CXX": f"{prefix}g++"}
        if not shutil.which(settings["CXX"]):
            say(f"no wheel for {machine}: there is no {settings['CXX']} here (a package of Debian's)")
            return None
    option = f"-C--build-option=--plat-name={POLICY}_{machine}"
    build(tools, "--wheel", unpack(sdist, work / machine), work / "made", option, settings=settings)
    (made,) = (work / "made").glob(f"*-py3-none-{POLICY}_{machine}.whl") or [None]
    names = zipfile.ZipFile(made).namelist()
    assert "syncattn/backends/cpu/_kernel.so" in names, names
    assert not [name for name in names if name.endswith((".h", ".cpp", ".o"))], names
    shown = run(tools / "python", "-m", "auditwheel", "show", made, capture=True)
    found = shown.split('platform tag: "')[1].split('"')[0]
    say(f"auditwheel: {found}")
    newest = tuple(map(int, POLICY.split("_")[1:]))
    assert found.startswith("manylinux_") and tuple(map(int, found.split("_")[1:3])) <= newest, shown
    return made


def try_out(work, python, package, tree, tests, kernel):
    """Install in an environment of its own, and run tests there."""
    version = run(python, "--version", capture=True).split()[1]
    name = f"{version}-{'wheel' if kernel else 'sdist-without-compiler'}"
    say(f"trying {package.name} on Python {version}" + ("" if kernel else " without a compiler"))
    here = environment(work / name, python)
    settings = {} if kernel else {"CC": "/bin/false", "CXX": "/bin/false"}
    constraints = tree / "constraints.txt"
    pip(here, "install", "--constraint", constraints, "torch")
    pip(here, "install", "--constraint", constraints, f"{package}[dev]", "--no-cache-dir", settings=settings)
    elsewhere = work / "elsewhere"  # where no file of the project can be imported by chance
    elsewhere.mkdir(exist_ok=True)
    said = run(here / "syncattn", "doctor", capture=True, cwd=elsewhere)
    print(said)
    words = " ".join(said.split())
    wanted = "the cpu kernel uses" if kernel else "(/bin/false returned 1)"
    assert wanted in words and f"causal layer on cpu uses {'cpu' if kernel else 'tiled'}" in words, said
    shutil.rmtree(tree / "src", ignore_errors=True)  # the tests see what is installed, not this
    command = [here / "python", "-m", "pytest", "--numprocesses", "logical", "--maxprocesses", "4", *tests]
    settings = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    run(*command, "--dist", "worksteal", "-rs", cwd=tree, settings=settings)


def build(tools, kind, source, out, *options, settings=None):
    log = run(
        *(tools / "python", "-m", "build", "--no-isolation", kind, "--outdir", out, *options, source),
        capture=True,
        settings=settings,
    )
    print(log.splitlines()[-1])


def environment(folder, python):
    """A new virtual environment's folder of programs."""
    run(python, "-m", "venv", folder)
    return folder / "bin"


def pip(programs, *arguments, settings=None):
    run(
        programs / "python",
        "-m",
        "pip",
        "--quiet",
        "--disable-pip-version-check",
        *arguments,
        settings=settings,
    )


def unpack(sdist, folder):
    """The one folder in an sdist."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (tree,) = folder.iterdir()
    return tree


def run(*command, cwd=None, settings=None, capture=False):
    """Run a command without this process's view of packages; what it printed, if it is captured."""
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CC", "CXX")} | (
        settings or {}
    )
    command = [str(part) for part in command]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} if capture else {}
    result = subprocess.run(command, cwd=cwd, env=variables, **output)
    if result.returncode:
        sys.exit(f"{result.stdout or ''}\nrelease: {' '.join(command)} returned {result.returncode}")
    return result.stdout


def say(text):
    print(f"== {text}", flush=True)


if __name__ == "__main__":
    main()
