"""Forward-mode, torch.func and fake tensors: right through eager, refused by tiled, never silently zero."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

import syncattn

FREQUENCY, TANGENT = torch.randn(2, 1, 2, 6, 4, dtype=torch.float64).unbind()
VALUE = torch.randn(1, 2, 6, 3, dtype=torch.float64)
COUPLING, BANDWIDTH = torch.full((2,), 3.0).double(), torch.full((2,), 0.1).double()


def attend(frequency, backend=None):
    return syncattn.selective_synchronization_attention(
        frequency, frequency, VALUE, COUPLING, BANDWIDTH, power=2, backend=backend
    )


def test_forward_mode_is_the_directional_derivative():
    step = 1e-6
    want = (attend(FREQUENCY + step * TANGENT) - attend(FREQUENCY - step * TANGENT)) / (2 * step)
    _, tangent = torch.func.jvp(attend, (FREQUENCY,), (TANGENT,))
    assert torch.allclose(tangent, want, atol=1e-6)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(attend(forward_ad.make_dual(FREQUENCY, TANGENT))).tangent
    assert torch.allclose(tangent, want, atol=1e-6)


def test_func_grad_and_vmap():
    frequency = FREQUENCY.clone().requires_grad_()
    (want,) = torch.autograd.grad(attend(frequency).square().sum(), frequency)
    assert torch.allclose(torch.func.grad(lambda w: attend(w).square().sum())(FREQUENCY), want)
    several = torch.stack((FREQUENCY, TANGENT))
    assert torch.allclose(torch.vmap(attend)(several), torch.stack([attend(w) for w in several]))


def test_tiled_refuses_what_it_has_no_derivative_for():
    with pytest.raises(ValueError, match="no forward-mode"):
        torch.func.jvp(lambda w: attend(w, "tiled"), (FREQUENCY,), (TANGENT,))


def test_fake_tensors_have_shapes_and_no_values():
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert attend(mode.from_tensor(FREQUENCY)).shape == VALUE.shape


@pytest.mark.parametrize("scale", [1e10, 1e12])
def test_far_frequencies_still_lock_to_the_nearest(scale):
    out = {}
    for backend in ("eager", "tiled"):
        out[backend] = syncattn.selective_synchronization_attention(
            FREQUENCY * scale, FREQUENCY * scale, VALUE, COUPLING, BANDWIDTH, frame="nearest", backend=backend
        )
    assert torch.allclose(out["eager"], VALUE) and torch.allclose(out["tiled"], VALUE)


def test_frequencies_beyond_all_bounds_are_refused():
    with pytest.raises(ValueError, match="receive must hold finite frequencies"):
        attend(FREQUENCY * 1e16)


def test_a_bandwidth_near_the_largest_number_locks_equals_only():
    out = syncattn.selective_synchronization_attention(
        FREQUENCY.float(), FREQUENCY.float(), VALUE.float(), COUPLING.float(), torch.full((2,), 3e38)
    )
    assert torch.allclose(out, VALUE.float())
