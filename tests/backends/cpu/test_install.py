"""An install without a compiler, with a broken kernel, and what building needs: never torch."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import syncattn
from syncattn.backends import cpu
from syncattn.backends.cpu import library

PACKAGE = Path(cpu.__file__).parents[2]
ROOT = PACKAGE.parents[1]
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
needs_sources = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="installed without its sources")
ASK = """
import sys, torch, syncattn
assert syncattn.__file__.startswith(sys.argv[1]), syncattn.__file__
w = torch.randn(1, 2, 5, 3, requires_grad=True)
call = w, w, torch.randn(1, 2, 5, 4), torch.ones(2), torch.ones(2)
reason = syncattn.backends.availability()["cpu"]
chosen = syncattn.backends.explain(*call)
assert chosen.backend == "tiled" and chosen.reasons["cpu"] == reason, chosen
syncattn.selective_synchronization_attention(*call).sum().backward()
try:
    syncattn.selective_synchronization_attention(*call, backend="cpu")
except ValueError as error:
    assert str(error) == f"backend='cpu' cannot take this call: {reason}", error
else:
    raise AssertionError("it ran")
print(reason)
"""


def reason_given(folder):
    """Why the install in this folder has no native kernel; tiled serves, and says so."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", ASK, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.strip()


def copied(folder):
    """The package without its kernel."""
    ignored = shutil.ignore_patterns("__pycache__", "_kernel.*")
    return Path(shutil.copytree(PACKAGE, folder / "syncattn", ignore=ignored))


@needs_sources
def test_without_a_compiler_the_install_works_and_says_what_it_lacks(tmp_path):
    """No network, a torch that cannot be imported while it builds, and a kernel left by an earlier build.

    pip shows nothing of a build but the wheel's name, and keeps the wheel: the name says what it lacks.
    """
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    (source / "src").mkdir()
    copied(source / "src")
    earlier = source / "built/syncattn/backends/cpu/_kernel.so"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("of other sources")
    (source / "setup.cfg").write_text("[build]\nbuild_lib = built\n")
    no_torch = tmp_path / "blocked" / "torch"
    no_torch.mkdir(parents=True)
    (no_torch / "__init__.py").write_text("raise ImportError('building needs no torch')\n")
    environment = os.environ | {"CC": "/bin/false", "CXX": "/bin/false", "PYTHONPATH": str(no_torch.parent)}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", str(tmp_path)]
    command = [*pip, "wheel", *options, str(source)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    (wheel,) = tmp_path.glob("syncattn-*.whl")
    assert "without_cpu_kernel-py3-none-any" in wheel.name and wheel.name in result.stdout
    assert not earlier.exists()
    installed = tmp_path / "installed"
    shutil.unpack_archive(wheel, installed, "zip")
    reason = reason_given(installed)
    assert "found no C++17 compiler (GCC or Clang) that builds it (/bin/false returned 1)" in reason


@pytest.fixture
def reason_for(monkeypatch):
    """Why there is no native kernel where this file stands in its place."""

    def ask(path):
        monkeypatch.setattr(library, "_PATH", path)
        found = library.load.__wrapped__()
        monkeypatch.setattr(library, "load", lambda: found)
        reason = syncattn.backends.availability()["cpu"]
        w, coupled = torch.randn(1, 2, 5, 3), torch.ones(2)
        chosen = syncattn.backends.explain(w, w, w, coupled, coupled)
        assert chosen.backend == "tiled" and chosen.reasons["cpu"] == reason
        return reason

    return ask


@pytest.mark.parametrize("there_is_one", [True, False])
def test_no_file_is_a_reason_that_names_the_command(there_is_one, reason_for, tmp_path, monkeypatch):
    """pip has cached the wheel without the kernel: the command must not take that one again."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    if there_is_one:
        (tmp_path / "g++").touch(mode=0o755)
    reason = reason_for(tmp_path / "_kernel.so")
    assert "found no C++17 compiler" in reason
    assert "pip install --no-cache-dir --force-reinstall --no-deps ." in reason
    assert (f"There is one now, {tmp_path / 'g++'}" if there_is_one else "Nor is there one now") in reason


def test_on_windows_the_reason_is_windows(reason_for, tmp_path, monkeypatch):
    """No compiler there knows the vector attributes: none is asked for."""
    monkeypatch.setattr(sys, "platform", "win32")
    assert library._not_built() == reason_for(tmp_path / "_kernel.so")
    assert "not for Windows" in library._not_built() and "pip" not in library._not_built()


@needs_sources
@pytest.mark.parametrize("platform, machine", [("linux", "linux-aarch64"), ("win32", "win-amd64")])
def test_what_is_built_is_for_the_machine_that_it_is_built_for(platform, machine, monkeypatch):
    """Another machine is named to Python by a variable; Windows' compiler is not even tried."""
    pytest.importorskip("setuptools", minversion="77")
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr("sysconfig.get_platform", lambda: machine)
    given = {}
    monkeypatch.setattr("setuptools.setup", given.update)
    monkeypatch.setattr("setuptools.Extension", lambda name, sources, **_: (name, sources))
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    if platform == "win32":
        assert given["ext_modules"] == []
        return
    ((_, sources),) = given["ext_modules"]
    assert {Path(path).name for path in sources} == {
        *("library.cpp", "order.cpp", "plain.cpp", "portable.cpp", "token.cpp")
    }


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("readelf"), reason="needs Linux and readelf")
def test_the_kernel_needs_no_library_newer_than_its_wheel_says():
    """manylinux_2_28: glibc 2.28 and the C++ library of GCC 8, whatever the kernel was built on."""
    if isinstance(library.load(), str):
        pytest.skip(f"there is no kernel: {library.load()}")
    shown = subprocess.run(
        ["readelf", "-V", library._PATH], capture_output=True, text=True, check=True
    ).stdout
    newest = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 25), "CXXABI": (1, 3, 11), "GCC": (8,)}
    needed = re.findall(r"Name: (\w+?)_([\d.]+)\s", shown)
    assert needed
    for name, version in needed:
        assert tuple(map(int, version.split("."))) <= newest[name], (name, version)


@pytest.mark.parametrize("content", [b"", b"this is no library", b"\x7fELF"], ids=str)
def test_a_file_that_is_no_library_is_a_reason_not_a_crash(content, reason_for, tmp_path):
    (tmp_path / "_kernel.so").write_bytes(content)
    assert reason_for(tmp_path / "_kernel.so").startswith("its kernel cannot be loaded")


OTHER_KERNELS = {
    "another size": "long long syncattn_problem_bytes(void) { return 8; }",
    "other names": "int of_something_else;",
}


@pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")
@pytest.mark.parametrize("which", OTHER_KERNELS)
def test_a_kernel_of_another_version_is_a_reason_not_a_crash(which, reason_for, tmp_path):
    (tmp_path / "other.c").write_text(OTHER_KERNELS[which])
    command = [COMPILER, "-shared", "-fPIC", tmp_path / "other.c", "-o", tmp_path / "_kernel.so"]
    subprocess.run(command, check=True)
    reason = reason_for(tmp_path / "_kernel.so")
    assert "another version of syncattn" in reason and library.REBUILD in reason


@needs_sources
def test_building_needs_no_torch_and_the_kernel_no_library():
    """setup.py imports setuptools and the standard library, the kernel its own headers and the system's."""
    imported = re.findall(r"^\s*(?:from|import) (\w+)", (ROOT / "setup.py").read_text(), re.MULTILINE)
    assert set(imported) <= {"setuptools", *sys.stdlib_module_names}
    requires = re.search(r"\[build-system\]\nrequires = (.*)", (ROOT / "pyproject.toml").read_text())
    assert requires and "torch" not in requires[1]
    kernel = PACKAGE / "backends/cpu/kernel"
    own = {path.name for path in kernel.iterdir()}
    for path in kernel.iterdir():
        for line in re.findall(r"^\s*#\s*include\s+(.*)", path.read_text(), re.MULTILINE):
            name = line.split("//")[0].strip()
            assert name.strip('"') in own or re.fullmatch(r"<[\w./]+>", name), (path.name, line)
