"""A JavaScript engine for the page's arithmetic, and a small layer to look at."""

import json
import re
import shutil
import subprocess
from importlib.resources import files

import pytest
import torch

from syncattn.nn import SelectiveSynchronizationAttention


@pytest.fixture(scope="session")
def javascript(tmp_path_factory, request, browser_path):
    """Runs `script`, in which `A` is the arithmetic and `data` what is given; what it leaves in `result`."""
    node = shutil.which("node")
    if node is None and browser_path is None:
        pytest.skip("no JavaScript engine: neither node nor Chromium is on this machine")
    arithmetic = (files("syncattn.explorer") / "arithmetic.js").read_text(encoding="utf-8")
    # NaN, which JSON has not, becomes null
    plain = "JSON.stringify(result, (_, v) => ArrayBuffer.isView(v) ? Array.from(v) : v)"
    folder = tmp_path_factory.mktemp("script")

    def run(script, data):
        given = f"const A = SyncattnArithmetic, data = {json.dumps(data)}; let result;"
        whole = f"{arithmetic}\n{given}\n{script}\n"
        if node is None:
            return json.loads(
                request.getfixturevalue("browser").run(f"(() => {{{whole} return {plain}; }})()")
            )
        path = folder / "script.js"
        path.write_text(f"{whole}process.stdout.write({plain});", encoding="utf-8")
        done = subprocess.run([node, path], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture
def layer():
    """With a delay on some heads, a token shift and two phases."""
    return SelectiveSynchronizationAttention(24, 3, phase_dim=2, token_shift=True, density_range=(0.2, 0.6))


@pytest.fixture
def inputs():
    return {"query": torch.randn(1, 14, 24), "is_causal": True}


@pytest.fixture(scope="session")
def numbers_in():
    """What a page was given."""

    def numbers_in(page):
        (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.html, re.S)
        return json.loads(found)

    return numbers_in
