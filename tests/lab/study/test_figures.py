"""The quality study's pictures: drawn where there is something to draw, whatever is missing."""

import runpy
from pathlib import Path

import pytest

from syncattn.training.figures import COLOURS
from syncattn_lab.study import figures
from syncattn_lab.study.marks import INK, colours
from syncattn_lab.study.summary import as_groups, size_cells

MADE = runpy.run_path(str(Path(__file__).with_name("lines.py")))
line, study = MADE["line"], MADE["study"]
PNG = b"\x89PNG"


def only(*lines):
    (group,) = as_groups([each | {"order": order} for order, each in enumerate(lines)])
    return group


def draw(group):
    """All that can be drawn of a group, by function."""
    task = group.tasks[0]
    drawn = {name: getattr(figures, name)(group) for name in ("differences", "ablation", "density")}
    drawn |= {name: getattr(figures, name)(group, task) for name in ("curves", "extrapolation", "rates")}
    drawn["accuracies"] = figures.accuracies(group, next(iter(group.cells.values())).task_kind)
    for variants in size_cells([group]).values():
        drawn["sizes"] = figures.sizes(variants)
    return drawn


@pytest.fixture(scope="module")
def groups():
    return {group.name: group for group in as_groups(study())}


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("comparison", {"curves", "differences", "extrapolation", "rates"}),
        ("ablation", {"ablation"}),
        ("density", {"density"}),
        ("stability", {"rates"}),
        ("recall", {"accuracies"}),
        ("induction", {"accuracies"}),
    ],
)
def test_each_kind_has_its_pictures(groups, name, kinds):
    drawn = draw(groups[name])
    assert all(drawn[kind].startswith(PNG) for kind in kinds)


def test_sizes_are_drawn_over_groups(groups):
    (variants,) = size_cells(list(groups.values())).values()
    assert list(variants) == ["osn", "rotary-delay"]
    assert [cell.parameters for cell in variants["osn"]] == [36_000, 116_444, 244_000, 420_000]
    assert figures.sizes(variants).startswith(PNG)


def test_one_size_or_one_task_needs_no_picture(groups):
    assert figures.accuracies(groups["digits"], "digits") is None
    (variants,) = size_cells([groups["size-32"]]).values()
    assert figures.sizes(variants) is None


def test_all_diverged_or_a_single_run():
    for kind in ("comparison", "ablation", "density", "stability", "size"):
        for failed in (True, False):
            drawn = draw(only(line(kind=kind, diverged=failed)))
            if failed:
                assert set(drawn.values()) == {None}
    several = [line(kind="stability", rate=rate, diverged=True) for rate in (0.01, 0.1)]
    assert figures.rates(only(*several), "stdlib").startswith(PNG)


def test_missing_cells_leave_holes():
    lines = [
        line(),
        line(task="pydoc"),
        line(variant="rotary"),
        line(task="pydoc", variant="rotary", diverged=True),
        line(variant="alibi", history=[]),
    ]
    group = only(*lines)
    for name in ("differences", "ablation", "density"):
        assert getattr(figures, name)(group).startswith(PNG)
    assert figures.curves(group, "pydoc").startswith(PNG)


def test_colours_are_the_comparisons_and_differ(groups):
    found = colours(groups["comparison"].cells.values())
    assert found["osn"] == COLOURS["osn"] and found["rotary"] == COLOURS["rotary"]
    assert found["alibi"] == COLOURS["alibi"]
    assert len(set(found.values())) == len(found)
    many = colours(groups["stability"].cells.values())
    assert len(set(many.values())) == len(many) and INK not in many.values()


def test_same_lines_give_the_same_bytes(groups):
    assert figures.differences(groups["comparison"]) == figures.differences(groups["comparison"])
