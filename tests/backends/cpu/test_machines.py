"""The kernel's own test, kernel_test.cpp, on each instruction set: on this machine, else under qemu-user.

What is run here is what was built and installed, at full optimisation; for ARM the sources are compiled anew.
Under any of them the numbers are those of `plain` on this machine, but for rounding. What cannot be run is
skipped, and says so: `pytest -rs tests/backends/cpu/test_machines.py`.
"""

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from syncattn.backends.cpu import library

TEST = Path(__file__).parent / "kernel_test.cpp"
# The structs come with the sources, which a wheel does not have.
KERNEL = library._PATH.parent / "kernel"
CASES = "8"
COMPILER = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++") or shutil.which("clang++")
CROSS = shutil.which("aarch64-linux-gnu-g++")
# of the first processor of Intel's that had it
SETS = {"plain": None, "avx2": "Haswell", "avx512": "Skylake-Server"}
pytestmark = [
    pytest.mark.skipif(platform.system() != "Linux", reason="needs Linux"),
    pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler"),
    pytest.mark.skipif(not KERNEL.exists(), reason="installed without the kernel's sources"),
]


def emulator(machine):
    return shutil.which(f"qemu-{machine}") or shutil.which(f"qemu-{machine}-static")


def compile_all(commands):
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(
            lambda job: subprocess.run([*map(str, job)], capture_output=True, text=True), commands
        )
    for result in results:
        assert result.returncode == 0, result.stderr[-3000:]


def run(command, instance, folder):
    """Run the test on one instance; the numbers that it computed."""
    out = folder / f"{instance}.numbers"
    command = [str(part) for part in (*command, CASES, instance, out)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    assert f"{CASES} cases, 0 failures, {CASES} runs" in result.stdout
    return torch.frombuffer(bytearray(out.read_bytes()), dtype=torch.float64)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The test, linked to the installed kernel."""
    if isinstance(library.load(), str):
        pytest.skip(f"there is no kernel: {library.load()}")
    made = tmp_path_factory.mktemp("native") / "kernel_test"
    link = [library._PATH, f"-Wl,-rpath,{library._PATH.parent}", "-pthread", "-o", made]
    compile_all([[COMPILER, "-std=c++17", "-O1", "-w", f"-I{KERNEL}", TEST, *link]])
    return made


@pytest.fixture(scope="module")
def plain(program):
    """What `plain` computes on this machine."""
    return run([program], "plain", program.parent)


def same_but_for_rounding(got, want):
    """The sums are of float32 numbers in another order; near the locking edge slopes are steep."""
    assert got.shape == want.shape and torch.isfinite(got).all()
    assert (got - want).abs().max() <= 3e-5 * want.abs().max()
    assert (got - want).norm() <= 1e-5 * want.norm()


@pytest.mark.parametrize("instance", SETS)
def test_on_this_kind_of_machine(instance, program, plain, tmp_path):
    """Where the processor has the instructions it runs them itself."""
    if instance != "plain" and platform.machine() != "x86_64":
        pytest.skip(f"{instance} could not be run: this is no x86-64 machine")
    if instance not in library.instances():
        pytest.skip(f"{instance} could not be run on this processor, which lacks it")
    same_but_for_rounding(run([program], instance, tmp_path), plain)


@pytest.mark.parametrize("instance", ["plain", "avx2"])  # qemu knows no AVX-512
def test_on_another_processor_of_this_kind(instance, program, plain, tmp_path):
    """Of two kinds: one that has AVX2 and no more, and one that has neither."""
    if platform.machine() != "x86_64" or not emulator("x86_64"):
        pytest.skip(
            f"{instance} could not be run under qemu: needs x86-64 and qemu-x86_64 (Debian: qemu-user)"
        )
    command = [emulator("x86_64"), "-cpu", SETS[instance] or "Nehalem", program]
    known = subprocess.run([*map(str, command), "1", instance], capture_output=True, text=True)
    if "0 failures, 0 runs" in known.stdout:
        pytest.skip(f"{instance} could not be run: this qemu does not know it (7.2 does)")
    same_but_for_rounding(run(command, instance, tmp_path), plain)


def test_on_arm(program, plain, tmp_path):
    """NEON: the sources compiled for aarch64. As they are installed they are optimised further."""
    if not CROSS or not emulator("aarch64"):
        pytest.skip("NEON could not be run: needs Debian's g++-aarch64-linux-gnu and qemu-user")
    sources = [*(KERNEL / name for name in ("library.cpp", "order.cpp", "plain.cpp", "token.cpp")), TEST]
    objects = [tmp_path / f"{path.stem}.o" for path in sources]
    flags = ["-std=c++17", "-O1", "-w", f"-I{KERNEL}"]
    compile_all([CROSS, *flags, "-c", path, "-o", to] for path, to in zip(sources, objects, strict=True))
    made = tmp_path / "kernel_test"
    compile_all([[CROSS, *objects, "-static", "-pthread", "-o", made]])
    same_but_for_rounding(run([emulator("aarch64"), made], "plain", tmp_path), plain)
