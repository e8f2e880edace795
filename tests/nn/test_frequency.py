"""Position, delay and detuning: what enters a token's frequency besides its content."""

import math

import pytest
import torch

from syncattn import locking
from syncattn.nn import Frequency

E, H, M = 12, 3, 6


def frequency(**options):
    torch.manual_seed(0)
    return Frequency(E, H, M, **options).double()


def squared_detuning(f, x, position):
    receive, send = f.receive(x, position), f.emit(x, position)
    return (receive[..., :, None, :] - send[..., None, :, :]).square().sum(-1)


@pytest.mark.parametrize("position", ["drift", "own_drift", "rotary"])
def test_only_relative_positions_matter(position):
    f, x = frequency(position=position), torch.randn(2, 9, E, dtype=torch.float64)
    at = torch.arange(9)[None]
    near, far = squared_detuning(f, x, at), squared_detuning(f, x, at + 1000)
    # the angles of a rotation are float32, as everywhere else
    torch.testing.assert_close(near, far, rtol=0, atol=1e-4 if position == "rotary" else 1e-8)
    assert not torch.allclose(near, squared_detuning(f, x, 2 * at))


def test_without_position_the_order_does_not_matter():
    f, x = frequency(position="none"), torch.randn(2, 9, E, dtype=torch.float64)
    a, b = (f.emit(x, at) for at in (torch.arange(9)[None], torch.arange(9).flip(0)[None]))
    assert torch.equal(a, b)
    # a product's rounding may hang on the row that a token is in
    torch.testing.assert_close(f.emit(x.flip(1), torch.arange(9)[None]).flip(2), a, rtol=0, atol=1e-14)


def test_own_drift_separates_content_and_position():
    """D = |W dx|^2 + slope^2 (i - j)^2."""
    f, x = frequency(position="own_drift"), torch.randn(2, 9, E, dtype=torch.float64)
    at = torch.arange(9)
    squared = squared_detuning(f, x, at[None])
    content = f.receive_proj(x).unflatten(-1, (H, M - 1)).transpose(1, 2)
    apart = (content[..., :, None, :] - content[..., None, :, :]).square().sum(-1)
    drift = (f.log_slope.exp()[:, None, None] * (at[:, None] - at)).square()
    torch.testing.assert_close(squared, apart + drift)


def test_drift_moves_along_a_unit_direction():
    f = frequency(position="drift")
    with torch.no_grad():
        f.direction.mul_(7.0)  # its length does not matter
    nothing = torch.zeros(1, 9, E, dtype=torch.float64)
    w = f.emit(nothing, torch.arange(9)[None])
    steps = (w[:, :, 1:] - w[:, :, :-1]).norm(dim=-1)
    torch.testing.assert_close(steps, f.log_slope.exp()[None, :, None].expand_as(steps))


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_slopes_start_at_windows_in_geometric_progression(heads):
    f = Frequency(E, heads, M, window_range=(4.0, 64.0))
    windows = math.sqrt(2 * M) / f.log_slope.exp()
    want = torch.logspace(2, 6, heads, base=2.0) if heads > 1 else torch.tensor([16.0])
    torch.testing.assert_close(windows, want, rtol=1e-5, atol=0)


def test_contents_have_unit_variance_on_layer_normalised_tokens():
    torch.manual_seed(0)
    f = Frequency(64, 8, 16, position="none")
    x = torch.nn.functional.layer_norm(torch.randn(8, 128, 64), (64,))
    assert f.emit(x, torch.zeros(1, 128).long()).var().item() == pytest.approx(1, abs=0.1)


def test_detuning_shifts_what_a_token_listens_to():
    f, x = frequency(detuning=True, position="none"), torch.randn(2, 9, E, dtype=torch.float64)
    at = torch.arange(9)[None]
    assert not f.symmetric and frequency().symmetric and not frequency(directed=True).symmetric
    shift = f.receive(x, at) - f.emit(x, at)
    torch.testing.assert_close(shift, f.detuning[:, None].expand_as(shift))


@pytest.mark.parametrize(("delay", "want"), [(0.0, 0), (0.25, 2), (0.5, 4), (0.75, 6), (1.0, 8)])
def test_the_delayed_heads_are_spread_evenly(delay, want):
    delayed = Frequency(16, 8, 4, delay=delay).delayed
    assert delayed.sum() == want
    if 0 < want < 8:  # both kinds in each half, that is among narrow and among wide windows
        assert delayed[:4].sum() == delayed[4:].sum() == want // 2


def test_delayed_heads_hear_what_the_token_before_emitted():
    f, x, at = frequency(delay=0.5), torch.randn(2, 9, E, dtype=torch.float64), torch.arange(9)[None]
    made = f(None, x, at, at, torch.zeros(1, 1).long())
    emitted = f.emit(x, at)
    assert made.receive is made.emitted and torch.equal(made.emitted, emitted)
    assert made.delayed.tolist() == f.delayed.tolist() == [False, True, False]
    before = made.before(None)
    send = made.send(before, None, None)
    assert torch.equal(send[:, [0, 2]], emitted[:, [0, 2]])
    assert torch.equal(send[:, 1, 1:], emitted[:, 1, :-1])
    nobody = f.emit(torch.zeros(1, 1, E, dtype=torch.float64), torch.tensor([[-1]]))
    torch.testing.assert_close(send[:, 1, 0], nobody[0, 1, 0].expand(2, M))
    torch.testing.assert_close(before, nobody[:, :, 0].expand(2, -1, -1))
    real = torch.tensor([[True] * 9, [False, True, False, True, True, False, False, True, True]])
    send = made.send(before, real, None)[1, 1]
    for j, before in ((3, 1), (4, 3), (7, 4), (8, 7)):
        assert torch.equal(send[j], emitted[1, 1, before])
    torch.testing.assert_close(send[1], nobody[0, 1, 0])
    # a first one within the sequence: nobody, at the place before it
    made = f(None, x, at, at, at)
    send = made.send(made.before(None), None, at != 4)
    nobody = f.emit(torch.zeros(1, 1, E, dtype=torch.float64), torch.tensor([[3]]))
    torch.testing.assert_close(send[:, 1, 4], nobody[0, 1, 0].expand(2, M))
    assert torch.equal(send[:, 1, 5:], emitted[:, 1, 4:-1])


def test_positions_are_in_float32_under_autocast_and_in_half_layers():
    x, at = torch.randn(1, 4, E), torch.tensor([[0, 1, 4097, 4098]])
    for position in ("drift", "own_drift", "rotary"):
        f = Frequency(E, H, M, position=position)
        want = f.emit(x, at)
        with torch.autocast("cpu", torch.bfloat16):
            w = f.emit(x, at)
        assert w.dtype == torch.float32 and (w - want).abs().max() < 0.1
        half = f.bfloat16().emit(x.bfloat16(), at)
        assert half.dtype == torch.float32
        step = (half[:, :, 3] - half[:, :, 2]) - (half[:, :, 1] - half[:, :, 0])
        if position != "rotary":  # equal steps, wherever they are taken: contents differ, the slope does not
            content = f.emit(x.bfloat16(), torch.zeros_like(at))
            content = (content[:, :, 3] - content[:, :, 2]) - (content[:, :, 1] - content[:, :, 0])
            assert (step - content).abs().max() < 2e-3


@pytest.mark.parametrize("delay", [0.0, 1.0])
def test_window_law_of_own_drift(build, tokens, delay):
    """In the absolute frame nothing beyond floor(rho / slope) tokens locks (one more behind a delay), and
    equal tokens lock up to exactly there."""
    options = {"frame": "absolute", "self_coupling": True}
    layer = build(position="own_drift", delay=delay, **options)
    with torch.no_grad():
        layer.frequency.log_slope.copy_(torch.tensor([0.9, 0.3, -0.4, 0.1]))
    rho = locking.locking_radius(layer.coupling, layer.bandwidth)  # r <= 1 only narrows it
    window = (rho / layer.frequency.log_slope.exp()).floor()
    assert (window >= 1).all() and (window < 20).all()
    layer.phase_proj = None  # r = 1
    length = 40
    i, j = torch.arange(length)[:, None], torch.arange(length)
    late = int(delay)
    for x, equal in ((tokens(2, length), False), (tokens(1, 1).expand(1, length, -1).contiguous(), True)):
        _, weights = layer(x, need_weights=True, average_attn_weights=False)
        for h in range(4):
            within = (i - (j - late)).abs() <= window[h]
            locked = (weights[:, h] > 0).any(0)
            assert not (locked & ~within).any()
            if equal:  # the first sender of a delayed head has nobody before it
                assert torch.equal(locked[:, late:], within[:, late:])


def test_every_head_may_have_a_form_of_its_own():
    forms = ["helix", "drift", "drift", "rotary", "none", "own_drift", "own_helix"]
    f = frequency_of(7, position=forms, helix_scales=[2.0, 8.0])
    assert f.log_slope.shape == (3,) and f.direction.shape == (2, M) and f.log_amplitude.shape == (2,)
    windows = torch.logspace(2, 6, 7, base=2.0, dtype=torch.float64)[[1, 2, 5]]  # those of the heads' numbers
    torch.testing.assert_close(math.sqrt(2 * M) / f.log_slope.exp(), windows, rtol=1e-5, atol=0)
    with torch.no_grad():
        f.log_amplitude.copy_(torch.tensor([0.3, -0.2]))
    x, at = torch.randn(2, 9, E, dtype=torch.float64), torch.arange(9)[None]
    made, drifts, helices = f.emit(x, at), 0, 0
    for h, form in enumerate(forms):
        alone = Frequency(E, 1, M, position=form, helix_scales=[2.0, 8.0]).double()
        with torch.no_grad():
            rows = slice(4, M) if form == "own_helix" else slice(alone.content_dim)
            alone.receive_proj.weight.copy_(f.receive_proj.weight.view(7, M, E)[h, rows])
            if "drift" in form:
                alone.log_slope.copy_(f.log_slope[drifts])
            if form == "drift":
                alone.direction.copy_(f.direction[drifts])
            if "helix" in form:
                alone.log_amplitude.copy_(f.log_amplitude[helices])
        drifts, helices = drifts + ("drift" in form), helices + ("helix" in form)
        torch.testing.assert_close(made[:, h : h + 1], alone.emit(x, at), rtol=0, atol=1e-12)


def frequency_of(heads, **options):
    torch.manual_seed(0)
    return Frequency(E, heads, M, **options).double()


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("directed", [True, [True, False, True]], ids=str)
@pytest.mark.parametrize("form", ["drift", "own_helix", "rotary"])
def test_directed_heads_start_as_symmetric_ones(form, directed, rank):
    f = Frequency(12, 3, 8, position=form, directed=directed, directed_rank=rank, bias=True)
    made = f(None, torch.randn(2, 5, 12), torch.arange(5)[None], torch.arange(5)[None], None)
    assert torch.equal(made.receive, made.emitted)
    (made.emitted**3 - made.receive**3).sum().backward()  # what they emit is a map of its own all the same
    apart = f.send_proj.weight if rank is None else f.ask_mix
    assert apart.grad.abs().amax(-1).min() > 0


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("directed", [True, [True, False, True]], ids=str)
def test_a_rank_is_what_directed_heads_ask_beyond_what_they_offer(directed, bounded):
    torch.manual_seed(0)
    given = {"position": "none", "delay": 0.0, "detuning": True, "bounded_content": bounded}
    f = Frequency(12, 3, 8, directed=directed, directed_rank=2, **given).double()
    torch.nn.init.normal_(f.ask_mix)
    x, at = torch.randn(2, 5, 12, dtype=torch.float64), torch.arange(5)[None]
    maps = f.receive_proj.weight.unflatten(0, (3, 8))
    offered, asked = maps @ x.mT[:, None], maps.clone()
    for number, head in enumerate([0, 1, 2] if directed is True else [0, 2]):
        asked[head] += f.ask_mix[number].mT @ f.ask_proj.weight[2 * number : 2 * number + 2]
    expected = [y.mT for y in (asked @ x.mT[:, None], offered)]
    if bounded:
        radius = f.log_radius.exp()[:, None, None]
        expected = [y * (radius / y.norm(dim=-1, keepdim=True)).clamp(max=1) for y in expected]
    expected[0] = expected[0] + f.detuning[:, None]
    made = f(None, x, at, at, None)
    torch.testing.assert_close([made.receive, made.emitted], expected)
    apart = f(x, x, at, at, None)  # in cross-attention
    torch.testing.assert_close([apart.receive, apart.emitted], expected)
    count = sum(p.numel() for p in f.parameters())
    without = sum(p.numel() for p in Frequency(12, 3, 8, **given).parameters())
    assert count == without + len(f.ask_mix) * 2 * (12 + 8) and f.log_sent_radius is None
    assert not f.symmetric


@pytest.mark.parametrize("directed", [False, True, [True, False, True]], ids=str)
def test_longer_contents_are_shortened_to_their_heads_radius(directed):
    options = {"position": "none", "delay": 0.0, "directed": directed}
    f, free = frequency(bounded_content=True, **options), frequency(**options)
    free.load_state_dict(f.state_dict(), strict=False)
    x = torch.randn(2, 40, E, dtype=torch.float64) * torch.linspace(0, 4, 40, dtype=torch.float64)[:, None]
    at = torch.arange(40)[None]
    with torch.no_grad():
        f.log_radius.copy_(torch.tensor([1.0, 2.0, 3.0]).log())
        radii = {"receive": f.log_radius.exp(), "emit": f.log_radius.exp().clone()}
        if directed:
            own = torch.tensor([3.0, 1.5, 0.7] if directed is True else [3.0, 0.7])
            f.log_sent_radius.copy_(own.log())
            radii["emit"][[0, 1, 2] if directed is True else [0, 2]] = own.double()
    assert (f.log_sent_radius is None) == (directed is False)
    for name, radius in radii.items():
        short, long = (getattr(each, name)(x, at) for each in (f, free))
        length, most = long.norm(dim=-1, keepdim=True), radius[:, None, None]
        assert 0.2 < (length > most).double().mean() < 0.95
        torch.testing.assert_close(
            short,
            torch.where(length > most, long / length * most, long),
            check_dtype=False,
            rtol=1e-6,
            atol=0,
        )
        assert torch.equal(short[:, :, 0], torch.zeros_like(short[:, :, 0]))  # what has no content keeps none
    both = f(None, x, at, at, None)
    assert torch.equal(both.receive, f.receive(x, at)) and torch.equal(both.emitted, f.emit(x, at))
    f.emit(x, at).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in f.parameters() if p.grad is not None)
    assert (f.log_sent_radius if directed is True else f.log_radius).grad.abs().max() > 0


def test_at_the_start_hardly_a_content_is_shortened():
    torch.manual_seed(0)
    f = Frequency(64, 4, 16, bounded_content=True)
    x = torch.nn.functional.layer_norm(torch.randn(1, 4000, 64), (64,))
    content = f.receive_proj(x).unflatten(-1, (4, 16))
    assert 0 < (content.norm(dim=-1) > f.log_radius.exp()).float().mean() < 0.01


def test_contents_of_any_size_stay_within_the_radius():
    f = frequency(position="none", bounded_content=True).float()
    x = torch.randn(1, 5, E) * torch.tensor([0.0, 1e-30, 1e-4, 1e4, 1e15])[:, None]
    x.requires_grad_()
    made = f.receive(x, torch.arange(5)[None])
    assert (made.norm(dim=-1) <= f.log_radius.exp()[:, None] * (1 + 1e-6)).all()
    made.sum().backward()
    assert x.grad.isfinite().all() and f.log_radius.grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bounded_content": 1}, TypeError, "bounded_content must be True or False, got 1"),
        (
            {"position": ["drift"]},
            ValueError,
            r"position must be one of .* each of the 3 heads, got \['drift'\]",
        ),
        ({"position": 3 * ["rotatory"]}, ValueError, "position must be one of 'drift', .* got 'rotatory'"),
        ({"position": 7}, ValueError, "position must be one of .* got 7"),
        (
            {"position": "helix", "helix_scales": [1, 2, 3, 4]},
            ValueError,
            "freq_dim of at least 8 .* got 6",
        ),
        ({"position": "helix", "axes": 2}, ValueError, "freq_dim of at least 12 .* got 6"),
        ({"position": "own_helix"}, ValueError, "freq_dim of at least 7 .* got 6"),
        ({"position": "own_drift", "axes": 6}, ValueError, "freq_dim of at least 7, got 6"),
        ({"position": "rotary", "axes": 4}, ValueError, "freq_dim of at least 2 \\* axes = 8, got 6"),
        ({"axes": 0}, ValueError, "axes must be at least 1, got 0"),
        ({"axes": 1.0}, TypeError, "axes must be an integer, got 1.0"),
        ({"helix_scales": []}, TypeError, "helix_scales must be a list of at least one number"),
        ({"helix_scales": [4.0, -1.0]}, ValueError, "helix_scales must be positive and finite, got -1.0"),
    ],
    ids=str,
)
def test_bad_forms(options, error, message):
    with pytest.raises(error, match=message):
        Frequency(E, H, M, **options)
