"""Rows that correctness is checked on have a gradient that rounding cannot turn into another one."""

from dataclasses import replace

import pytest
import torch

from syncattn import locking, selective_synchronization_attention
from syncattn.bench import checking
from syncattn.bench.checking import errors, row_clearance, truth, verdict
from syncattn.bench.contenders import Contender
from syncattn.bench.inputs import Case, Inputs, make_inputs, pick_rows, row_detuning
from syncattn.bench.plan import BACKWARD

LAYER = Case(
    "layer",
    tokens=256,
    heads=2,
    head_dim=16,
    freq_dim=8,
    structure="drift",
    window=16,
    is_causal=True,
    frame="nearest",
    self_coupling=False,
)


def at_the_edge(case: Case, row: int) -> Inputs:
    """Inputs whose first head has a sender of this row a millionth of rho^2 within the locking edge."""
    inputs = make_inputs(case)
    detuning, allowed = row_detuning(case, inputs, torch.tensor([row]))
    radius = locking.locking_radius(inputs.coupling.double(), inputs.bandwidth.double())
    near = detuning[0, 0, 0].masked_fill(~allowed[0, 0, 0], torch.inf)
    square = float(near[(near / radius[0] ** 2 - 1).abs().argmin()]) * (1 + 1e-6)
    coupling, bandwidth = locking.coupling_from_radius(torch.tensor(square**0.5), 100.0)
    heads = inputs.coupling.shape
    return inputs._replace(coupling=coupling.expand(heads).clone(), bandwidth=bandwidth.expand(heads).clone())


def rounded(case: Case, inputs: Inputs) -> Contender:
    """The definition in float64, with another rho^2 by 4 millionths: what an error of 2^-18 in D does."""
    leaves = {"receive": inputs.receive.double()}
    leaves |= {name: getattr(inputs, name).double() for name in ("value", "coupling", "bandwidth")}
    for leaf in leaves.values():
        leaf.requires_grad_()

    def forward():
        frequencies = leaves["receive"] * (1 + 2e-6)
        own = leaves["value"], leaves["coupling"], leaves["bandwidth"]
        return selective_synchronization_attention(
            frequencies, frequencies, *own, **case.options(), backend="eager"
        )

    return Contender("rounded", forward, leaves)


def test_a_pair_at_the_locking_edge_is_rounding_and_its_row_is_not_checked(monkeypatch):
    row = int(pick_rows(LAYER.tokens, 1, 4)[0])
    inputs = at_the_edge(LAYER, row)
    assert row_clearance(LAYER, inputs, torch.tensor([row])) < 2e-6
    right = truth(LAYER, inputs, 1, 0, True)
    assert right.rows.tolist() != [row]
    found = errors(rounded(LAYER, inputs), right, BACKWARD)
    assert found["receive"] < 1e-4 and verdict(found, "fp32") is None

    # the row that was drawn first: one pair in or out, of which the output says nothing
    monkeypatch.setattr(checking, "_CANDIDATES", 1)
    right = truth(LAYER, inputs, 1, 0, True)
    assert right.rows.tolist() == [row]
    found = errors(rounded(LAYER, inputs), right, BACKWARD)
    assert found["out"] < 1e-4 and found["receive"] > 1e-2


def test_a_tie_of_the_nearest_senders_is_not_clear():
    inputs = make_inputs(LAYER)
    rows = torch.tensor([100, 200])
    detuning, allowed = row_detuning(LAYER, inputs, rows)
    nearest = detuning[0, 0, 0].masked_fill(~allowed[0, 0, 0], torch.inf).argmin()
    receive = inputs.receive.clone()
    other = nearest - 1
    receive[:, 0, other] = receive[:, 0, nearest]
    tied = inputs._replace(receive=receive, send=receive)
    assert row_clearance(LAYER, tied, rows)[0] == 0
    assert row_clearance(replace(LAYER, frame="absolute"), tied, rows)[0] > 0


@pytest.mark.parametrize("power", [1, 2])
def test_rows_are_as_many_as_wanted_and_those_drawn_first_where_they_are_clear(power):
    case = replace(LAYER, power=power)
    inputs = make_inputs(case)
    for count in (8, 300):
        rows = checking._rows_off_the_edge(case, inputs, count, 0)
        assert len(rows) == min(count, case.tokens) and len(set(rows.tolist())) == len(rows)
        drawn = pick_rows(case.tokens, count, 4)
        if power == 2:
            clear = drawn[row_clearance(case, inputs, drawn) >= checking._CLEAR]
            assert set(clear.tolist()) <= set(rows.tolist())


def test_the_first_row_hears_nobody():
    clearance = row_clearance(LAYER, make_inputs(LAYER), torch.tensor([0, 1]))
    assert clearance[0] == torch.inf and clearance[1] == 1
