"""What is said of the package, and what its archives hold, without building them."""

import importlib.metadata
import os
import re
import runpy
import subprocess
import sys
import tomllib
from email.parser import Parser
from pathlib import Path

import pytest

import syncattn

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
needs_sources = pytest.mark.skipif(not (ROOT / "src").exists(), reason="these are not the sources")


def test_there_is_one_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1] == syncattn.__version__
    assert f"## [{syncattn.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "version" in PROJECT["dynamic"] and "version" not in PROJECT
    if not os.environ.get("PYTHONPATH"):  # else what is imported is not what is installed
        assert importlib.metadata.version("syncattn") == syncattn.__version__


def test_the_classifiers_say_what_the_rest_says():
    classifiers = PROJECT["classifiers"]
    lowest = PROJECT["requires-python"].removeprefix(">=")
    versions = [x.rpartition(" ")[2] for x in classifiers if re.search(r"Python :: 3\.\d+$", x)]
    assert versions[0] == lowest == "3.11" and versions[-1] == "3.14" and len(versions) == 4
    assert "Typing :: Typed" in classifiers and (Path(syncattn.__file__).parent / "py.typed").exists()
    for system in ("Linux", "MacOS", "Windows"):
        assert any(x.startswith("Operating System") and system in x for x in classifiers)


@pytest.fixture
def metadata(monkeypatch):
    """setup.py's arguments."""
    pytest.importorskip("setuptools", minversion="77")
    given = {}
    monkeypatch.setattr("setuptools.setup", given.update)
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    return given


@needs_sources
def test_links_of_the_index_s_page_are_absolute_and_lead_somewhere(metadata):
    text = re.sub(r"^```.*?^```|`[^`\n]+`", "", metadata["long_description"], flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    assert links and all(re.match(r"https://|#", link) for link in links), links
    base = PROJECT["urls"]["Repository"]
    own = [link.removeprefix(base) for link in links if link.startswith(base + "/")]
    assert own
    for link in own:
        kind, version, path = link.strip("/").split("/", 2)
        assert kind in ("raw", "blob") and version == f"v{syncattn.__version__}"
        assert (ROOT / path.partition("#")[0]).exists(), link
        if path.endswith((".png", ".svg", ".gif")):
            assert kind == "raw", link


@needs_sources
def test_what_readme_says_in_code_stays_as_it_is(monkeypatch, tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    monkeypatch.chdir(ROOT)
    make = runpy.run_path("setup.py")["long_description"]
    (tmp_path / "src/syncattn").mkdir(parents=True)
    (tmp_path / "src/syncattn/__init__.py").write_text('__version__ = "1.2"\n')
    (tmp_path / "pyproject.toml").write_text('[project.urls]\nRepository = "https://host/x"\n')
    (tmp_path / "README.md").write_text(
        "[a](docs/a.md#b) ![p\nq](p.png) [![i](i.svg)](LICENSE) `f[0](x)` [c](#c) [d](https://d) "
        "[e](mailto:e)\n"
        '```\ny = f[1](z)\n```\n<img src="p.png"> <a href="docs/a.md">\n'
    )
    monkeypatch.chdir(tmp_path)
    assert make() == (
        "[a](https://host/x/blob/v1.2/docs/a.md#b) ![p\nq](https://host/x/raw/v1.2/p.png) "
        "[![i](https://host/x/raw/v1.2/i.svg)](https://host/x/blob/v1.2/LICENSE) `f[0](x)` "
        "[c](#c) [d](https://d) [e](mailto:e)\n```\ny = f[1](z)\n```\n"
        '<img src="https://host/x/raw/v1.2/p.png"> <a href="https://host/x/blob/v1.2/docs/a.md">\n'
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The files that git keeps, copied, beside files that it does not; the folder is also what is built in.

    Nothing is archived, and no kernel compiled: `egg_info` lists what an sdist takes, `build_py` copies what
    a wheel takes.
    """
    pytest.importorskip("setuptools", minversion="77")
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout of git")
    tree = tmp_path_factory.mktemp("tree")
    command = ["git", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    kept = {name for name in listed if name and (ROOT / name).is_file()}
    strays = {"src/syncattn/backends/cpu/_kernel.so", "tests/__pycache__/a.pyc", "runs/a.txt", ".venv/a.py"}
    for name in kept | strays:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes((ROOT / name).read_bytes() if name in kept else b"")
    command = [sys.executable, "setup.py", "-q", "egg_info", "build_py", "--build-lib", "copied"]
    result = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return tree, kept


def test_the_sdist_is_the_tree(built):
    tree, kept = built
    listed = (tree / "src/syncattn.egg-info/SOURCES.txt").read_text(encoding="utf-8").split("\n")
    files = {name for name in listed if name and ".egg-info/" not in name}
    assert files == kept, (sorted(kept - files)[:20], sorted(files - kept)[:20])


def test_the_metadata_are_those_that_the_index_reads(built):
    said = Parser().parsestr((built[0] / "src/syncattn.egg-info/PKG-INFO").read_text(encoding="utf-8"))
    assert said["Version"] == syncattn.__version__ and said["Description-Content-Type"] == "text/markdown"
    assert len(said.get_all("Project-URL")) == len(PROJECT["urls"])
    assert (
        said["License-Expression"] == "Apache-2.0"
        and said.get_all("License-File") == PROJECT["license-files"]
    )
    assert [x for x in said.get_all("Requires-Dist") if ";" not in x] == PROJECT["dependencies"]


def test_a_wheel_has_the_package_and_its_data_and_not_the_kernel_s_sources(built):
    """Of a shipped model every file."""
    tree, kept = built
    names = {
        path.relative_to(tree / "copied").as_posix()
        for path in (tree / "copied").rglob("*")
        if path.is_file()
    }
    kernel = "syncattn/backends/cpu/kernel/"
    want = {name.removeprefix("src/") for name in kept if name.startswith("src/")}
    assert names == {name for name in want if not name.startswith(kernel)}
    assert {"syncattn/py.typed", "syncattn/explorer/page.js", "syncattn_lab/py.typed"} <= names


@pytest.mark.skipif(not (ROOT / ".github").exists(), reason="installed without the workflows")
def test_the_workflows_try_what_the_classifiers_promise_and_need_no_secret():
    yaml = pytest.importorskip("yaml")
    files = sorted((ROOT / ".github/workflows").glob("*.yml"))
    jobs = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"] for path in files}
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert "secrets." not in text and re.search(
            r"^permissions:\n  contents: read$", text, re.MULTILINE
        ), path
        assert all(re.fullmatch(r"[\w/-]+@v\d+", name) for name in re.findall(r"uses: (.*)", text)), path
    matrix = jobs["tests"]["tests"]["strategy"]["matrix"]
    assert [f"Programming Language :: Python :: {x}" for x in matrix["python"]] == [
        x for x in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", x)
    ]
    assert {name.split("-")[0] for name in matrix["os"]} == {"ubuntu", "macos", "windows"}
