"""The sections are measured as `syncattn paper` measures most of them: with one thread."""

import copy
import json
import random
import time

import pytest
import torch

from syncattn.drawing import png, style
from syncattn_lab.paper.run import torch_threads
from syncattn_lab.paper.section import Extent


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with torch_threads(1):
        yield


@pytest.fixture(scope="module", autouse=True)
def a_clock_that_says_anything():
    """By this clock whatever is timed takes from 2 ms to 20 s, at random. All sections' claims must be shown
    all the same: what they hang on is counted. (As no call seems short, none is repeated within a round.)

    Of a module, not of the package: pytest keeps a package's fixtures until the session ends where folders
    have no __init__ files, and tests elsewhere would get this clock."""
    now, drawn = time.perf_counter(), random.Random(0)

    def read():
        nonlocal now
        now += 10 ** drawn.uniform(-2.7, 1.3)
        return now

    with pytest.MonkeyPatch.context() as patch:
        for clock in ("perf_counter", "process_time"):
            patch.setattr(time, clock, read)
        yield


@pytest.fixture(scope="module")
def measured():
    """A section's numbers from a quick measurement, as they come back from JSON."""

    def measure(section, seed=0):
        before = torch.get_rng_state()
        numbers = section.measure(Extent(quick=True, seed=seed), lambda line: None)
        assert torch.equal(torch.get_rng_state(), before)  # nobody else's random numbers change
        return json.loads(json.dumps(numbers))

    return measure


@pytest.fixture
def shown_with():
    """Which of a section's claims are shown, by name, if one number is another."""

    def judge(section, numbers, path, value):
        false = copy.deepcopy(numbers)
        place = false
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        return {claim.name: claim.shown for claim in section.claims(false)}

    return judge


@pytest.fixture
def falls(shown_with):
    """Assert that with one number falsified its claim is not shown, and that all others are."""

    def check(section, numbers, path, value, name):
        shown = shown_with(section, numbers, path, value)
        assert not shown.pop(name)
        assert all(shown.values())

    return check


@pytest.fixture
def drawn():
    """Assert that all of a section's pictures can be drawn."""

    def check(section, numbers):
        for drawing in section.drawings:
            with style():
                assert len(png(drawing.draw(numbers))) > 10_000

    return check
