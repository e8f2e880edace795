"""The sections are measured as `syncattn paper` measures most of them: with one thread."""

import pytest

from syncattn.paper.run import torch_threads


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    with torch_threads(1):
        yield
