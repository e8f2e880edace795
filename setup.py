"""Builds the native CPU kernel: a C library of its own, for ctypes, without torch's headers or Python's.

It is optional: without a C++ compiler the package installs all the same, and says at run time what it lacks
(`syncattn doctor`). Installers show nothing of what a build prints, but they show the wheel's name: there it
says so too. Everything else about the package is in pyproject.toml, but for the text that the package index
shows: README.md with its relative links made absolute.
"""

import os
import platform
import re
import sys
import sysconfig
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if sys.platform == "darwin":  # for this machine's processor alone: the instances of another would not compile
    os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}")
    os.environ.setdefault("_PYTHON_HOST_PLATFORM", f"macosx-11.0-{platform.machine()}")

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NAME = "syncattn.backends.cpu._kernel"
KERNEL = Path("src/syncattn/backends/cpu/kernel")
COMMON = ["-std=c++17", "-O3", "-g1", "-fPIC", "-fvisibility=hidden"]
COMMON += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]  # GCC's own vector headers set these off
# One object for each instruction set; which one runs is decided on the machine that runs it.
FLAGS = {"portable.cpp": [], "library.cpp": [], "order.cpp": [], "plain.cpp": []}
FLAGS["token.cpp"] = ["-ffp-contract=off"]  # the bits of PyTorch's separate sums and products
# Python's own variable for building for another machine, _PYTHON_HOST_PLATFORM=linux-aarch64, changes it.
MACHINE = sysconfig.get_platform().rpartition("-")[2]
if MACHINE in ("x86_64", "amd64"):
    FLAGS["avx2.cpp"] = ["-mavx2", "-mfma", "-mpopcnt"]
    FLAGS["avx512.cpp"] = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"]
LINK = ["-pthread"]
if sys.platform == "linux":
    LINK += ["-Wl,--wrap=exp", "-Wl,--wrap=_ZSt28__throw_bad_array_new_lengthv"]  # portable.cpp says why
# GCC's and Clang's vector attributes are not known to Windows' compiler.
HAS_KERNEL = sys.platform != "win32"


def shortly(error):
    """What went wrong, without the options of the command that did."""
    found = error
    while found is not None and not hasattr(found, "cmd"):
        found = found.__cause__ or found.__context__
    text = f"{found.cmd[0]} returned {found.returncode}" if found else str(error)
    return " ".join(text.split())[:200]


class BuildKernel(build_ext):
    """Compiles each source with its own flags, and names the library without Python's ABI tag."""

    def get_ext_filename(self, fullname):
        return f"{Path(*fullname.split('.'))}.so"

    def get_export_symbols(self, ext):
        return ext.export_symbols  # there is no PyInit_*

    def run(self):
        self._remove_earlier()  # in the sources, if it is built in place
        super().run()

    def _remove_earlier(self):
        """If this build fails, what an earlier one left must not pass for the kernel of these sources."""
        Path(self.get_ext_fullpath(NAME)).unlink(missing_ok=True)
        self._reason().unlink(missing_ok=True)

    def build_extension(self, ext):
        self._remove_earlier()  # in the folder that the wheel is made from
        try:
            self._build_kernel(ext)
        except Exception as error:  # the install goes on without, and says at run time what stands here
            reason = self._reason()
            reason.parent.mkdir(parents=True, exist_ok=True)
            reason.write_text(f"{shortly(error)}\n", encoding="utf-8")
            raise

    def _reason(self):
        return Path(self.get_ext_fullpath(NAME)).with_suffix(".txt")

    def _build_kernel(self, ext):
        def compile_one(name):
            return self.compiler.compile(
                [str(KERNEL / name)],
                output_dir=self.build_temp,
                depends=ext.depends,
                extra_postargs=[*COMMON, *FLAGS[name]],
            )

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # the longest first
            objects = [o for found in pool.map(compile_one, reversed(FLAGS)) for o in found]
        target = self.get_ext_fullpath(NAME)
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        # An install in place keeps its lines of source, for profilers and sanitizers.
        strip = [] if self.inplace or sys.platform != "linux" else ["-Wl,-s"]
        self.compiler.link_shared_object(objects, target, extra_postargs=[*LINK, *strip], target_lang="c++")


class NameWheel(bdist_wheel):
    """A wheel with the kernel is for every Python, for the kernel knows nothing of it; one without is for
    every machine too, and has a build tag that says what it lacks.

    Where a cache holds one of each, installers take that with the kernel: its tags are more special.
    """

    def run(self):
        self.run_command("build")
        self.skip_build = True
        if not Path(self.get_finalized_command("build_ext").get_ext_fullpath(NAME)).exists():
            self.distribution.ext_modules = None
            self.root_is_pure, self.build_number = True, "0.without_cpu_kernel"
        super().run()

    def get_tag(self):
        python, abi, platform_tag = super().get_tag()
        return ("py3", "none", platform_tag) if not self.root_is_pure else (python, abi, platform_tag)


def long_description():
    """README.md with links and images that also work where it is shown alone."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    source = Path("src/syncattn/__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.*)"$', source, re.MULTILINE)[1]
    base = project["urls"]["Repository"]

    def absolute(link):
        kind = "raw" if link["image"] else "blob"
        return f"{link['before']}{base}/{kind}/v{version}/{link['path']}{link['after']}"

    relative = r"(?P<path>(?!#|/|[a-z][a-z0-9+.-]*:)[^)\s\"]+)"
    markdown = rf"(?P<before>(?P<image>!?)\[[^\[\]]*\]\(){relative}(?P<after>\))"
    inner = rf"(?P<before>(?P<image>)\]\(){relative}(?P<after>\))"  # what is left: a link around an image
    html = rf"(?P<before>(?:(?P<image>src)|href)=\"){relative}(?P<after>\")"
    # split at code, which stays as it is: every other piece is code
    text = Path("README.md").read_text(encoding="utf-8")
    pieces = re.split(r"(^```.*?^```|`[^`\n]+`)", text, flags=re.MULTILINE | re.DOTALL)
    for k in range(0, len(pieces), 2):
        for pattern in (markdown, inner, html):
            pieces[k] = re.sub(pattern, absolute, pieces[k])
    return "".join(pieces)


setup(
    long_description=long_description(),
    long_description_content_type="text/markdown",
    ext_modules=[
        Extension(
            NAME,
            sources=[str(KERNEL / name) for name in FLAGS],
            depends=[str(path) for path in KERNEL.glob("*.h")],
            language="c++",
            optional=True,
        )
    ]
    if HAS_KERNEL
    else [],
    cmdclass={"build_ext": BuildKernel, "bdist_wheel": NameWheel},
)
