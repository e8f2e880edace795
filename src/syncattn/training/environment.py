"""What a number was measured with: versions, machine, command."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_NUMERICS = ("torch", "transformers", "tokenizers", "safetensors", "accelerate", "triton", "numpy")
PACKAGES = (*_NUMERICS, "scipy", "tensorboard", "matplotlib", "typer", "rich")


def versions() -> dict[str, str]:
    """Python's, this package's and the used libraries' versions; "not installed" where one is missing."""
    found = {"python": platform.python_version(), "syncattn": package_version("syncattn")}
    found |= {name: package_version(name) for name in PACKAGES}
    return found | {"torch": str(torch.__version__)}  # with its build, such as +cu130, in every wheel


def package_version(name: str) -> str:
    """The installed version of a distribution, or "not installed"."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def machine() -> dict[str, Any]:
    """Operating system, processor, cores, PyTorch's threads, memory and GPUs."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        memory = 0
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(memory / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def command() -> str:
    """The command line, without the path of the program."""
    program = Path(sys.argv[0]).name
    program = "syncattn" if program == "__main__.py" else program  # python -m syncattn
    return shlex.join([program, *sys.argv[1:]])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
