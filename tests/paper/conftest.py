"""The sections are measured as `syncattn paper` measures most of them: with one thread."""

import copy

import pytest

from syncattn.paper.run import torch_threads


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    with torch_threads(1):
        yield


@pytest.fixture
def falls():
    """Assert that with one number falsified its claim is not shown, and that all others are."""

    def check(section, numbers, path, value, name):
        false = copy.deepcopy(numbers)
        place = false
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        shown = {claim.name: claim.shown for claim in section.claims(false)}
        assert not shown.pop(name)
        assert all(shown.values())

    return check
