"""Counting locked pairs: every backend that counts, against eager's S, pair for pair."""

import pytest
import torch

from syncattn.backends import counting, eager
from syncattn.backends.call import prepare
from syncattn.backends.select import BACKENDS, locked_counts, use_backend
from syncattn.locking import coupling_from_radius

COUNTING = [
    pytest.param(name, marks=pytest.mark.skipif(backend.unavailable() is not None, reason="not here"))
    for name, backend in BACKENDS.items()
    if backend.locked_counts is not None
]


def random_call(seed, **options):
    """A call of odd shapes whose frequencies repeat, as tokens do, with couplings that lock some of it."""
    g = torch.Generator().manual_seed(seed)

    def pick(*numbers):
        return numbers[int(torch.randint(len(numbers), (1,), generator=g))]

    batch, heads, m = pick(1, 2), pick(2, 4), options.pop("m", None) or pick(1, 2, 3, 5, 16, 17, 40)
    queries, keys = options.pop("tokens", None) or pick((1, 1), (1, 70), (37, 37), (30, 130), (130, 131))
    dtype = options.pop("dtype", torch.float32)
    table = torch.randn(50, m, generator=g, dtype=torch.float64)
    receive, send = (
        table[torch.randint(50, (batch, h, n), generator=g)]
        + pick(0.0, 0.01) * torch.arange(n)[:, None]
        + pick(0.0, 0.1) * torch.randn(batch, h, n, m, generator=g)
        for h, n in ((heads, queries), (pick(heads, heads // 2), keys))
    )
    receive, send = receive.to(dtype), send.to(dtype)
    if options.pop("symmetric", False):
        send = receive
    coupling = torch.rand(batch, heads, queries, generator=g).to(dtype) * (2 * m) ** 0.5 + 0.1
    coupling = pick(coupling, coupling[..., 0], coupling[0, :, 0])
    bandwidth = torch.rand(heads, generator=g).to(dtype) + 0.01
    value = torch.randn(batch, heads, send.shape[2], 3, generator=g).to(dtype)
    return prepare(receive, send, value, coupling, bandwidth, **options)


def eager_counts(call):
    _, sync, _ = eager.run(call._replace(return_weights=True, dropout_p=0.0, seed=None))
    return (sync > 0).sum(-1)


def masks(queries, keys, seed):
    g = torch.Generator().manual_seed(seed)
    free = torch.rand(1, 1, queries, keys, generator=g) < 0.6
    return {"none": None, "by key": free[:, :, :1], "free": free, "by row": free[..., :1]}


@pytest.mark.parametrize("name", COUNTING)
@pytest.mark.parametrize("frame", ["nearest", "absolute"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_counts_are_eagers(name, frame, causal, seed):
    call = random_call(seed, frame=frame)
    queries, keys = call.receive.shape[2], call.send.shape[2]
    for mask in masks(queries, keys, seed).values():
        for self_coupling in (True, False):
            one = call._replace(mask=mask, is_causal=causal, self_coupling=self_coupling)
            assert torch.equal(BACKENDS[name].locked_counts(one), eager_counts(one))
            allowed = eager.allowed_pairs(one).sum(-1)
            assert torch.equal(counting.allowed_counts(one).expand_as(allowed), allowed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("frame", ["nearest", "absolute"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_in_every_dtype(dtype, frame, symmetric):
    for seed in range(4):
        call = random_call(
            seed, dtype=dtype, frame=frame, symmetric=symmetric, tokens=(90, 90), is_causal=seed % 2 == 0
        )
        assert torch.equal(locked_counts(call), eager_counts(call))


@pytest.mark.parametrize("name", COUNTING)
@pytest.mark.parametrize("frame", ["nearest", "absolute"])
def test_pairs_on_the_very_edge(name, frame):
    """Couplings with which a pair of every row is as near to locking as float32 can tell."""
    for seed in range(6):
        call = random_call(seed, frame=frame, tokens=(130, 130), m=16)
        heads = call.receive.shape[1]
        send = call.send.repeat_interleave(heads // call.send.shape[1], 1)
        squared = torch.cdist(call.receive.double(), send.double()).square()
        if frame == "nearest":
            squared = squared - squared.amin(-1, keepdim=True)
        chosen = squared.sort(-1).values[..., 20]
        kappa = chosen.sqrt() * torch.exp(call.bandwidth.double()[:, None] * chosen)
        call = call._replace(coupling=kappa.float())
        assert torch.equal(BACKENDS[name].locked_counts(call), eager_counts(call))


@pytest.mark.parametrize("name", COUNTING)
def test_extremes(name):
    """Nobody there, nobody allowed, couplings at their bounds, frequencies that are all equal or far away."""
    count = BACKENDS[name].locked_counts
    for frame in ("nearest", "absolute"):
        call = random_call(3, frame=frame, tokens=(70, 70), m=5)
        nobody = call._replace(mask=torch.zeros(1, 1, 1, 70, dtype=torch.bool))
        assert int(count(nobody).sum()) == 0
        for coupling in (1e-10, 1.0, 1e15):
            for bandwidth in (1e-30, 1.0, 1e30):
                one = call._replace(
                    coupling=torch.full_like(call.coupling, coupling),
                    bandwidth=torch.full_like(call.bandwidth, bandwidth),
                )
                assert torch.equal(count(one), eager_counts(one)), (coupling, bandwidth)
                equal = one._replace(receive=one.receive * 0 + 3, send=one.send * 0 + 3)
                assert torch.equal(count(equal), eager_counts(equal))
        far = call._replace(receive=call.receive * 1e12, send=call.send * 1e12)
        assert torch.equal(count(far), eager_counts(far))
        for queries, keys in ((0, 5), (5, 0)):
            empty = call._replace(receive=call.receive[:, :, :queries], send=call.send[:, :, :keys])
            empty = empty._replace(value=call.value[:, :, :keys], coupling=call.coupling[:, :, :1])
            assert torch.equal(count(empty), torch.zeros(empty.receive.shape[:3], dtype=torch.int64))


def test_top_k_and_whatever_backend_is_asked_for():
    for seed in range(6):
        call = random_call(seed, top_k=4, frame="nearest" if seed % 2 else "absolute")
        with use_backend("eager"):
            assert torch.equal(locked_counts(call), eager_counts(call))


@pytest.mark.parametrize("name", COUNTING)
@pytest.mark.parametrize("window", [63, 64, 100, 128])
@pytest.mark.parametrize("start", [0, 100_000])
def test_a_window_along_no_coordinate(name, window, start):
    """Equal contents that drift along a direction of their own: exactly the window locks, wherever tiles end
    and however far out the text is."""
    g = torch.Generator().manual_seed(window)
    way = torch.nn.functional.normalize(torch.randn(7, generator=g), dim=0) * 0.25
    place = ((start + torch.arange(1300))[:, None] * way).expand(1, 2, -1, -1).contiguous()
    coupling, bandwidth = coupling_from_radius(torch.full((2,), 0.25 * (window + 0.2)), 10.0)
    call = prepare(place, place, place, coupling, bandwidth, is_causal=True, self_coupling=False)
    counts = BACKENDS[name].locked_counts(call)
    assert torch.equal(counts, torch.arange(1300).clamp(max=window).expand(1, 2, -1))


@pytest.mark.parametrize("name", COUNTING)
def test_inputs_stay_as_they_are(name):
    call = random_call(1, frame="nearest", tokens=(130, 131))
    before = [x.clone() for x in call[:5]]
    BACKENDS[name].locked_counts(call)
    assert all(torch.equal(x, y) for x, y in zip(call[:5], before, strict=True))
