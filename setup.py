"""Builds the native CPU kernel: a C library of its own, for ctypes, without torch's headers or Python's.

It is optional: without a C++ compiler the package installs all the same, and says at run time what it lacks
(`syncattn doctor`). Installers show nothing of what a build prints, but they show the wheel's name: there it
says so too. Everything else about the package is in pyproject.toml.
"""

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NAME = "syncattn.backends.cpu._kernel"
KERNEL = Path("src/syncattn/backends/cpu/kernel")
COMMON = ["-std=c++17", "-O3", "-g1", "-fPIC", "-fvisibility=hidden"]
COMMON += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]  # GCC's own vector headers set these off
# One object for each instruction set; which one runs is decided on the machine that runs it.
FLAGS = {"library.cpp": [], "order.cpp": [], "plain.cpp": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    FLAGS["avx2.cpp"] = ["-mavx2", "-mfma"]
    FLAGS["avx512.cpp"] = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"]


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

    def build_extension(self, ext):
        self._remove_earlier()  # in the folder that the wheel is made from

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
        self.compiler.link_shared_object(objects, target, extra_postargs=["-pthread"], target_lang="c++")


class NameWheel(bdist_wheel):
    """A wheel without the kernel is for every machine, and has a build tag that says what it lacks.

    Where a cache holds one of each, installers take that with the kernel: its tags are more special.
    """

    def run(self):
        self.run_command("build")
        self.skip_build = True
        if not Path(self.get_finalized_command("build_ext").get_ext_fullpath(NAME)).exists():
            self.distribution.ext_modules = None
            self.root_is_pure, self.build_number = True, "0.without_cpu_kernel"
        super().run()


setup(
    ext_modules=[
        Extension(
            NAME,
            sources=[str(KERNEL / name) for name in FLAGS],
            depends=[str(path) for path in KERNEL.glob("*.h")],
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernel, "bdist_wheel": NameWheel},
)
