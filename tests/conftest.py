"""Settings that every test runs under."""

import contextlib
import importlib.util
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

if not torch.cuda.is_available() and "TRITON_INTERPRET" not in os.environ:
    # Triton makes its own functions for the interpreter, or not, when it is first imported, and torch._dynamo
    # imports it. Which of our kernels run there: backends/triton/conftest.py.
    os.environ["TRITON_INTERPRET"] = "1"
    with contextlib.suppress(ImportError):
        import triton  # noqa: F401
    del os.environ["TRITON_INTERPRET"]

# The tests' tensors are small: a second thread costs more than it brings.
torch.set_num_threads(1)

_COMMON = {
    "deadline": None,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
# "fixed" tries the same few examples every time; HYPOTHESIS_PROFILE=search looks for new ones.
settings.register_profile("fixed", max_examples=60, derandomize=True, **_COMMON)
settings.register_profile("search", max_examples=500, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


_spec = importlib.util.spec_from_file_location("chromium", Path(__file__).with_name("chromium.py"))
_chromium = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_chromium)


@pytest.fixture(scope="session")
def browser_path():
    """A Chromium on this machine; None if there is none."""
    return _chromium.find()


@pytest.fixture(scope="session")
def browser(browser_path):
    """A browser with one page, for all tests."""
    if browser_path is None:
        pytest.skip(f"no browser: none of {', '.join(_chromium.NAMES)} is on this machine")
    found = _chromium.Chromium(browser_path)
    yield found
    found.close()


@pytest.fixture
def fresh_compiler():
    """Nothing compiled before counts towards the limit of recompilations."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def poisoned_memory():
    """Every tensor allocated without a value (torch.empty and its like) holds NaN or the largest integer, so
    that an output which some path forgets to write shows."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all() and torch.empty_like(torch.ones(2)).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextlib.contextmanager
def _default(name):
    if name == "meta":  # stands in for CUDA
        with torch.device(name):
            yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, name))
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.fixture
def same_under_all_defaults():
    """Checks that the tensors which a function returns are the same to the last bit, whatever torch's
    default dtype and default device are; returns them."""

    def check(compute, defaults=("float64", "bfloat16", "float16", "meta")):
        want = compute()
        for name in defaults:
            with _default(name):
                got = compute()
            for a, b in zip(got, want, strict=True):
                assert (a.dtype, a.device) == (b.dtype, b.device), name
                assert torch.equal(a, b), name
        return want

    return check
