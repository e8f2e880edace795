"""Forward-mode, torch.func and fake tensors: right through eager, refused by tiled, never silently zero."""

import re

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


def test_transforms_of_what_is_compiled_and_within_it(fresh_compiler):
    """The compiled call must not take a backend whose tangents would be lost: float32, which `cpu` takes."""
    value, *coupled = VALUE.float(), COUPLING.float(), BANDWIDTH.float()

    def compute(frequency):
        return syncattn.selective_synchronization_attention(frequency, frequency, value, *coupled, power=2)

    def push(frequency, tangent):
        return torch.func.jvp(compute, (frequency,), (tangent,))[1]

    def slope(frequency):
        return torch.func.grad(lambda w: compute(w).square().sum())(frequency)

    frequency, tangent = FREQUENCY.float(), TANGENT.float()
    each = torch.stack((frequency, tangent))
    compiled = torch.compile(compute, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(frequency), compute(frequency), atol=1e-6)
    with forward_ad.dual_level():  # after it was compiled without
        got = forward_ad.unpack_dual(compiled(forward_ad.make_dual(frequency, tangent))).tangent
    assert torch.allclose(got, push(frequency, tangent), atol=1e-5) and got.any()
    for function, arguments in ((push, (frequency, tangent)), (torch.vmap(slope), (each,))):
        compiled = torch.compile(function, fullgraph=True, backend="eager")
        assert torch.allclose(compiled(*arguments), function(*arguments), atol=1e-5)


TIMES, TOKENS, SENDERS = 3, 5, 6


def mapped():
    """A call for each of three times, and a mask for each."""
    g = torch.Generator().manual_seed(0)
    receive, send, value = (
        torch.randn(TIMES, 2, 2, n, m, generator=g, dtype=torch.float64)
        for n, m in ((TOKENS, 4), (SENDERS, 4), (SENDERS, 3))
    )
    coupling = 2 + torch.rand(TIMES, 2, 2, TOKENS, generator=g, dtype=torch.float64)
    bandwidth = 0.05 + 0.1 * torch.rand(TIMES, 2, generator=g, dtype=torch.float64)
    mask = torch.rand(TIMES, 1, 1, TOKENS, SENDERS, generator=g) > 0.3
    return receive, send, value, coupling, bandwidth, mask


@pytest.mark.parametrize(
    "options",
    [
        {"power": 2, "frame": "nearest"},
        {"edge": 0.1, "power": 3, "is_causal": True, "self_coupling": False},
        {"top_k": 2, "return_weights": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("float_mask", [False, True])
def test_vmap_of_every_argument(float_mask, options):
    def compute(*call):
        *arguments, mask = call
        mask = torch.where(mask, 0.0, -torch.inf) if float_mask else mask
        out = syncattn.selective_synchronization_attention(*arguments, attn_mask=mask, **options)
        return out if isinstance(out, tuple) else (out,)

    call = mapped()
    each = [compute(*(x[i] for x in call)) for i in range(TIMES)]
    for got, want in zip(torch.vmap(compute)(*call), zip(*each), strict=True):
        torch.testing.assert_close(got, torch.stack(want))
    others = [x[0] for x in call]
    for n in range(6):  # one of them alone
        alone = torch.vmap(lambda x, n=n: compute(*others[:n], x, *others[n + 1 :])[0])(call[n])
        want = [compute(*others[:n], x, *others[n + 1 :])[0] for x in call[n]]
        torch.testing.assert_close(alone, torch.stack(want))


def test_gradients_of_each_sample():
    def loss(*arguments):
        return syncattn.selective_synchronization_attention(*arguments, power=2).square().sum()

    call = mapped()[:5]
    got = torch.vmap(torch.func.grad(loss, argnums=tuple(range(5))))(*call)
    for i in range(TIMES):
        leaves = [x[i].clone().requires_grad_() for x in call]
        for a, b in zip(got, torch.autograd.grad(loss(*leaves), leaves), strict=True):
            torch.testing.assert_close(a[i], b)


def test_bad_values_are_refused_under_transforms_too():
    def attended(n, bad):
        call = list(mapped()[:5])
        call[n] = call[n].clone().index_fill_(0, torch.tensor([1]), bad)
        return torch.vmap(syncattn.selective_synchronization_attention)(*call)

    for n, bad, message in (
        (0, torch.nan, "receive must hold finite frequencies"),
        (3, -2.0, "coupling must be positive and finite, got -2"),
        (4, 0.0, "bandwidth must be positive and finite, got 0"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            attended(n, bad)
    with pytest.raises(ValueError, match="attn_mask is additive"):
        torch.vmap(
            lambda mask: syncattn.selective_synchronization_attention(
                FREQUENCY, FREQUENCY, VALUE, COUPLING, BANDWIDTH, attn_mask=mask
            )
        )(torch.tensor([0.0, 0.5])[:, None])


def test_dropout_under_vmap():
    """One seed for all samples, or one for each: as torch.vmap's `randomness` says."""
    same = torch.stack((FREQUENCY, FREQUENCY))

    def drop(frequency):
        return syncattn.selective_synchronization_attention(
            frequency, frequency, VALUE, COUPLING, BANDWIDTH, dropout_p=0.5
        )

    out = {name: torch.vmap(drop, randomness=name)(same) for name in ("same", "different")}
    assert torch.equal(out["same"][0], out["same"][1])
    assert not torch.equal(out["different"][0], out["different"][1])


def test_tiled_refuses_what_it_has_no_derivative_for():
    with pytest.raises(ValueError, match="no forward-mode"):
        torch.func.jvp(lambda w: attend(w, "tiled"), (FREQUENCY,), (TANGENT,))


def test_fake_tensors_have_shapes_and_no_values():
    for backend in (None, "eager"):
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            assert attend(mode.from_tensor(FREQUENCY), backend).shape == VALUE.shape


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
