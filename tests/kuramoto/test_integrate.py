"""The Kuramoto equation and both ways of integrating it."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from syncattn import kuramoto
from syncattn.kuramoto.vector import vector_derivative


def random(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_derivative_is_the_sum_over_all_pairs():
    phase, frequency = random(3, 7, scale=2.0), random(3, 7, seed=1)
    kernel, coupling = random(3, 7, 7, seed=2).abs(), torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    for given in (kernel, None):
        found = kuramoto.derivative(phase, frequency, coupling, given)
        for b in range(3):
            for i in range(7):
                total = sum(
                    (1.0 if given is None else float(kernel[b, i, j]))
                    * math.sin(float(phase[b, j] - phase[b, i]))
                    for j in range(7)
                )
                expected = float(frequency[b, i] + coupling[b] / 7 * total)
                assert float(found[b, i]) == pytest.approx(expected, abs=1e-13)


def test_the_order_parameter_is_the_length_of_the_mean():
    phase = random(2, 5, 9, scale=3.0)
    expected = np.abs(np.exp(1j * phase.numpy()).mean(-1))
    np.testing.assert_allclose(kuramoto.order_parameter(phase), expected, atol=1e-14)
    assert kuramoto.order_parameter(torch.zeros(4)).shape == ()


def test_both_integrators_agree_and_the_fixed_step_is_of_fourth_order():
    phase, frequency, kernel = random(2, 8), random(2, 8, seed=1), random(2, 8, 8, seed=2)
    kernel = kernel.abs() + kernel.abs().mT
    exact = kuramoto.solve(phase, frequency, 1.5, kernel, times=torch.tensor([4.0]))[0]
    errors = []
    for step in (0.2, 0.1, 0.05):
        run = kuramoto.simulate(phase, frequency, 1.5, kernel, duration=4.0, step=step)
        errors.append(float((run.phase - exact).abs().max()))
    assert errors[-1] < 1e-6
    assert all(10 < a / b < 24 for a, b in pairwise(errors))  # 2 ** 4


def test_solve_gives_the_phases_at_the_times_asked_for():
    times = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)
    phase, frequency = random(3), random(3, seed=1)
    found = kuramoto.solve(phase, frequency, 0.0, times=times)
    torch.testing.assert_close(found, phase + times[:, None] * frequency, atol=1e-9, rtol=0)


def test_the_means_are_those_of_the_trajectory():
    phase, frequency = random(2, 4), random(2, 4, seed=1)
    run = kuramoto.simulate(
        phase, frequency, 0.7, duration=3.0, settle=1.0, step=0.01, every=2, pairs=True, trajectory=True
    )
    late = run.trajectory[run.times > 1.0 + 1e-9]  # (T, 2, 4)
    assert len(late) == 150 and run.times[-1] == pytest.approx(4.0)
    np.testing.assert_allclose(run.order_parameter, np.abs(np.exp(1j * late.numpy()).mean(-1)).mean(0))
    difference = late[..., :, None] - late[..., None, :]
    torch.testing.assert_close(run.mean_cosine, difference.cos().mean(0))
    at_one = run.trajectory[(run.times - 1.0).abs() < 1e-9][0]
    torch.testing.assert_close(run.mean_frequency, (run.phase - at_one) / 3.0)
    torch.testing.assert_close(run.trajectory[0], phase)


def test_leading_dimensions_broadcast():
    phase, frequency, coupling = random(5), random(3, 1, 5, seed=1), torch.tensor([0.5, 2.0])
    run = kuramoto.simulate(phase, frequency, coupling, duration=1.0)
    assert run.phase.shape == (3, 2, 5) and run.order_parameter.shape == (3, 2)
    alone = kuramoto.simulate(phase, frequency[1, 0], 2.0, duration=1.0)
    torch.testing.assert_close(run.phase[1, 1], alone.phase)
    assert run.mean_cosine is None and run.trajectory is None


def test_without_coupling_everybody_keeps_their_own_frequency():
    frequency = random(6)
    run = kuramoto.simulate(torch.zeros(6), frequency, 0.0, duration=5.0, settle=2.5)
    torch.testing.assert_close(run.mean_frequency, frequency)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"phase": torch.zeros(3)}, "equal N"),
        ({"phase": torch.zeros(4, dtype=torch.long)}, "phase must be a floating tensor"),
        ({"frequency": torch.full((4,), math.nan)}, "frequency must be finite"),
        ({"coupling": math.inf}, "coupling must be finite"),
        ({"kernel": torch.ones(3, 3)}, "kernel must have shape"),
        ({"kernel": torch.ones(2, 4, 4), "coupling": torch.ones(3)}, "must broadcast"),
        ({"duration": 0.0}, "duration must be positive"),
        ({"step": -1.0}, "step must be positive"),
        ({"settle": -1.0}, "settle must be finite"),
        ({"every": 0}, "every must be an integer"),
        ({"coupling": "strong"}, "coupling must be a number"),
        ({"coupling": None}, "coupling must be a number"),
        ({"duration": "long"}, "duration must be a number"),
        ({"phase": [0.0] * 4}, "phase must be a floating tensor, got list"),
        ({"coupling": 60.0}, "take at most 0.0333"),
        ({"coupling": -60.0, "kernel": torch.ones(4, 4)}, "take at most 0.0333"),
        ({"coupling": torch.tensor([1.0, 1e4])}, "take at most 0.0002"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    good = {"phase": torch.zeros(4), "frequency": torch.zeros(4), "coupling": 1.0, "duration": 1.0}
    with pytest.raises((TypeError, ValueError), match=message):
        kuramoto.simulate(**good | change)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (torch.tensor([1.0, 0.5]), "times must be increasing"),
        (torch.tensor([math.nan]), "times must be finite"),
        (torch.tensor([1.0, math.inf]), "times must be finite"),
        ([1.0], "times must be a floating tensor"),
    ],
)
def test_times_must_be_finite_and_increase(times, message):
    with pytest.raises((TypeError, ValueError), match=message):
        kuramoto.solve(torch.zeros(2), torch.zeros(2), 1.0, times=times)


def test_solve_takes_what_requires_a_gradient():
    frequency = random(3).requires_grad_()
    times = torch.ones(1, dtype=torch.float64)
    found = kuramoto.solve(torch.zeros(3), frequency, torch.tensor(1.0, requires_grad=True), times=times)
    torch.testing.assert_close(found, kuramoto.solve(torch.zeros(3), frequency.detach(), 1.0, times=times))


@pytest.mark.parametrize("form", ["all to all", "two sides", "sparse"])
def test_the_longest_step_that_is_taken_is_stable(form):
    """Locked networks at 2 / rate: they relax to the steady state that a short step gives."""
    kernel = {"all to all": None, "two sides": torch.ones(10, 10), "sparse": torch.zeros(10, 10)}[form]
    rate = 40.0
    if form == "two sides":
        kernel[:5, :5] = kernel[5:, 5:] = 0.0  # its fastest relaxation is at K, its row sums are N / 2
    elif form == "sparse":
        for n in range(9):
            kernel[n, n + 1] = kernel[n + 1, n] = 1.0
        rate = 40.0 * 2 * 2 / 10
    phase, frequency = random(10), 0.1 * random(10, seed=1)
    frequency = frequency - frequency.mean()
    long = kuramoto.simulate(phase, frequency, 40.0, kernel, settle=20.0, duration=2.0, step=2.0 / rate)
    short = kuramoto.simulate(phase, frequency, 40.0, kernel, settle=20.0, duration=2.0, step=0.2 / rate)
    torch.testing.assert_close(long.phase, short.phase, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="step is too long"):
        kuramoto.simulate(phase, frequency, 40.0, kernel, duration=2.0, step=2.2 / rate)


def test_a_duration_below_any_step():
    phase, frequency = random(3), random(3, seed=1)
    run = kuramoto.simulate(phase, frequency, 1.0, duration=1e-12, settle=1e-12)
    assert float(run.order_parameter) == pytest.approx(float(kuramoto.order_parameter(phase)))
    r = kuramoto.simulate_order_parameter(phase, frequency, 1.0, duration=1e-12)
    assert float(r) == pytest.approx(float(kuramoto.order_parameter(phase)))
    end = kuramoto.simulate_vector(phase, frequency, 1.0, duration=1e-12)
    torch.testing.assert_close(end, phase)


def test_what_is_no_phase_has_no_order_parameter():
    for given in (torch.zeros(0), torch.tensor(1.0), [0.0], torch.zeros(3, dtype=torch.long)):
        with pytest.raises((TypeError, ValueError), match="phase must"):
            kuramoto.order_parameter(given)


def test_wrong_vector_arguments_are_named():
    good, bad = torch.zeros(3), torch.tensor([0.0, math.nan, 0.0])
    calls = {
        "difference must be finite": lambda: kuramoto.simulate_vector(bad, good, 1.0, duration=1.0),
        "detuning must be finite": lambda: kuramoto.simulate_vector(good, bad, 1.0, duration=1.0),
        "coupling must be a number": lambda: kuramoto.simulate_vector(good, good, "1", duration=1.0),
        "step is too long": lambda: kuramoto.simulate_vector(good, good, 50.0, duration=1.0),
        "detuning must be a floating": lambda: kuramoto.vector_fixed_point([0.0], 1.0),
        "coupling must be finite": lambda: kuramoto.vector_eigenvalues(good, math.nan),
    }
    for message, call in calls.items():
        with pytest.raises((TypeError, ValueError), match=message):
            call()


def test_the_vector_form_has_its_fixed_point_and_eigenvalues():
    detuning = 0.3 * random(6, 5)
    length = np.linalg.norm(detuning.numpy(), axis=-1)
    assert length.min() > 0.1 and length.max() < 2.0
    coupling = torch.full((6,), 2.0, dtype=torch.float64)
    point = kuramoto.vector_fixed_point(detuning, coupling)
    np.testing.assert_allclose(np.linalg.norm(point, axis=-1), np.arcsin(length / 2.0))
    np.testing.assert_allclose(vector_derivative(point, detuning, coupling), 0.0, atol=1e-14)
    end = kuramoto.simulate_vector(torch.zeros(6, 5), detuning, coupling, duration=40.0)
    torch.testing.assert_close(end, point, atol=1e-8, rtol=0)

    shift = 1e-6
    for b in range(6):
        jacobian = np.empty((5, 5))
        for d in range(5):
            there = torch.zeros(5, dtype=torch.float64)
            there[d] = shift
            ahead = vector_derivative(point[b] + there, detuning[b], 2.0)
            jacobian[:, d] = (ahead - vector_derivative(point[b] - there, detuning[b], 2.0)) / (2 * shift)
        along, across = kuramoto.vector_eigenvalues(detuning[b], 2.0).tolist()
        expected = np.sort([along] + 4 * [across])
        np.testing.assert_allclose(np.sort(np.linalg.eigvals(jacobian).real), expected, atol=1e-8)


def test_the_vector_form_turns_with_the_coordinates_and_is_a_pair_in_one():
    detuning, start = random(4, 3), 0.5 * random(4, 3, seed=1)
    turn = torch.linalg.qr(random(3, 3, seed=2)).Q
    end = kuramoto.simulate_vector(start, detuning, 1.0, duration=2.0)
    turned = kuramoto.simulate_vector(start @ turn, detuning @ turn, 1.0, duration=2.0)
    torch.testing.assert_close(turned, end @ turn)
    one = vector_derivative(start[:, :1], detuning[:, :1], 0.7)
    torch.testing.assert_close(one, detuning[:, :1] - 0.7 * start[:, :1].sin())
    assert kuramoto.vector_fixed_point(torch.tensor([3.0, 4.0]), 2.0).isnan().all()
    assert kuramoto.vector_fixed_point(torch.zeros(2), 2.0).tolist() == [0.0, 0.0]
