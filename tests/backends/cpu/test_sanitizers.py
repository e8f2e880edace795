"""The kernel's own test, cpu/kernel_test.cpp, under the address, undefined and thread sanitizers."""

import os
import runpy
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from syncattn.backends import cpu

KERNEL = Path(cpu.__file__).parent / "kernel"
SETUP = KERNEL.parents[4] / "setup.py"
TEST = Path(__file__).parent / "kernel_test.cpp"
COMPILER = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++") or shutil.which("clang++")
# -Og: compiles in three fifths of the time of -O1, and runs twenty times as fast as -O0
COMMON = ["-std=c++17", "-Og", "-g1", "-fno-omit-frame-pointer", "-w"]
SANITIZERS = {
    "address,undefined": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}
pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler"),
    pytest.mark.skipif(not SETUP.exists(), reason="syncattn was not installed from its sources"),
]


def kernel_flags(monkeypatch):
    """Each source and its own flags, as setup.py has them."""
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    monkeypatch.chdir(SETUP.parent)
    return runpy.run_path(str(SETUP))["FLAGS"]


def compile_all(jobs):
    def compile_one(job):
        return subprocess.run([str(x) for x in job], capture_output=True, text=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for result in pool.map(compile_one, jobs):
            assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_no_sanitizer_has_anything_to_report(sanitizer, tmp_path, monkeypatch):
    flags = SANITIZERS[sanitizer]
    probe = tmp_path / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    built = subprocess.run([COMPILER, *flags, str(probe), "-o", str(tmp_path / "probe")], capture_output=True)
    if built.returncode or subprocess.run([tmp_path / "probe"], capture_output=True).returncode:
        pytest.skip(f"this compiler has no {sanitizer} sanitizer")

    sources = [(KERNEL / name, own) for name, own in kernel_flags(monkeypatch).items()] + [(TEST, [])]
    objects = [tmp_path / f"{path.stem}.o" for path, _ in sources]
    compile_all(
        [COMPILER, *COMMON, *flags, *own, f"-I{KERNEL}", "-c", path, "-o", to]
        for (path, own), to in zip(sources, objects, strict=True)
    )
    program = tmp_path / "kernel_test"
    compile_all([[COMPILER, *flags, *objects, "-pthread", "-o", program]])
    result = subprocess.run([program, "25"], capture_output=True, text=True)
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    assert "25 cases, 0 failures" in result.stdout and "Sanitizer" not in result.stderr
