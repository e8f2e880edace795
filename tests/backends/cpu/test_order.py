"""The native kernel where it reads tokens in another order than the caller's (k-d order), and where it weighs
each pair of a symmetric call once: both against the definition."""

import os

import pytest
import torch

import syncattn
from syncattn import locking
from syncattn.backends.call import prepare
from syncattn.backends.cpu import library, problem

attention = syncattn.selective_synchronization_attention
MISSING = syncattn.backends.availability()["cpu"]
pytestmark = [
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
    pytest.mark.usefixtures("poisoned_memory"),
]
NEAREST = {"frame": "nearest", "power": 2}
FORMS = [{}, {"power": 2}, {"edge": 0.05}, {"power": 2, "edge": 0.05}, {"frame": "nearest"}, NEAREST]


@pytest.fixture
def decisions(monkeypatch):
    """Whether each call was put in order; any call is large enough to ask."""
    taken = []

    def order(*arguments):
        taken.append(library_order(*arguments))
        return taken[-1]

    library_order = library.order
    monkeypatch.setattr(library, "order", order)
    monkeypatch.setattr(problem, "_PAIRS_WORTH_ORDERING", 1)
    return taken


@pytest.fixture
def in_order(decisions, within_rounding):
    """`within_rounding` of a call that must be put in order, forward and backward."""

    def check(inputs, options):
        decisions.clear()
        within_rounding(inputs, options, "cpu")
        assert decisions == [True]

    return check


@pytest.fixture
def cores(monkeypatch):
    return lambda count: monkeypatch.setattr(os, "cpu_count", lambda: count)


def clusters(batch, heads, queries, keys, m, d, *, same=False, spread=0.5, by_query=True):
    """Shuffled tokens in four clusters far apart; within one most pairs lock, and some do not."""
    g = torch.Generator().manual_seed(queries + 7 * keys + m)
    tokens = max(queries, keys)
    centre = 10 * torch.arange(4)[:, None] + torch.randn(4, m, generator=g)
    number = torch.randint(4, (batch, heads, tokens), generator=g)
    w = centre[number] + spread * torch.randn(batch, heads, tokens, m, generator=g)
    receive = w[:, :, tokens - queries :].contiguous()
    send = w[:, :, tokens - keys :] + 0.1 * torch.randn(batch, heads, keys, m, generator=g)
    value = torch.randn(batch, heads, keys, d, generator=g)
    radius = torch.full((heads,), 1.5 * m**0.5).double()
    coupling, bandwidth = locking.coupling_from_radius(radius, torch.linspace(1, 5, heads).double())
    if by_query:
        coupling = coupling[:, None] * (1 + 0.2 * torch.rand(batch, heads, queries, generator=g))
    return [receive, receive if same else send, value, coupling.float(), bandwidth.float()]


@pytest.mark.parametrize("options", FORMS, ids=str)
@pytest.mark.parametrize("m", [1, 2, 3])
def test_receivers_and_senders_of_every_number(m, options, in_order):
    for queries, keys in ((200, 200), (100, 300), (300, 110), (129, 257)):
        in_order(clusters(1, 2, queries, keys, m, 5), options)
    in_order(clusters(2, 1, 150, 150, m, 16, same=True), options)


@pytest.mark.parametrize("options", [{}, {"power": 2, "edge": 0.05}], ids=str)
@pytest.mark.parametrize("count", [1, 10**6])
@pytest.mark.parametrize("self_coupling", [True, False])
def test_symmetric_calls_in_order(self_coupling, count, options, in_order, cores):
    """Each pair weighed once, and from both sides."""
    cores(count)
    for batch, heads, tokens, m in ((1, 1, 200, 1), (2, 2, 129, 2), (1, 3, 150, 3)):
        inputs = clusters(batch, heads, tokens, tokens, m, 7, same=True, by_query=False)
        in_order(inputs, options | {"self_coupling": self_coupling})


@pytest.mark.parametrize("options", [{"power": 2}, NEAREST, {"edge": 0.1, "dropout_p": 0.3}], ids=str)
def test_nobody_meets_itself_wherever_it_stands(options, in_order):
    options = options | {"self_coupling": False}
    for queries, keys in ((150, 150), (100, 230)):
        in_order(clusters(2, 2, queries, keys, 2, 5), options)
    in_order(clusters(1, 2, 170, 170, 2, 5, same=True), options)


@pytest.mark.parametrize(("send_heads", "value_heads"), [(6, 1), (1, 6), (2, 3), (3, 2), (1, 1), (6, 2)])
@pytest.mark.parametrize("options", [{"power": 2}, NEAREST | {"dropout_p": 0.2}], ids=str)
def test_grouped_heads(send_heads, value_heads, options, in_order):
    """One sequence of centres for all heads: each head still has an order of its own."""
    receive, send, value, coupling, bandwidth = clusters(2, 6, 120, 200, 2, 7)
    in_order([receive, send[:, :send_heads], value[:, :value_heads], coupling, bandwidth], options)


@pytest.mark.parametrize("options", [{"power": 2}, NEAREST, {"dropout_p": 0.3}], ids=str)
@pytest.mark.parametrize("shape", [(2, 1, 1, 230), (1, 3, 1, 230), (2, 3, 1, 1), (1, 1, 1, 230)], ids=str)
def test_a_mask_of_keys_follows_them(shape, options, in_order):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 0.4
    mask[0, 0] = True
    inputs = clusters(2, 3, 140, 230, 2, 5)
    in_order(inputs, options | {"attn_mask": mask})
    in_order(inputs, options | {"attn_mask": mask.mT.contiguous().mT.expand(2, -1, 1, -1)})


TEXTS = {
    "texts": [70, 65, 165],
    "padding": [-10, 100, 1, -29, 130, -30],
    "interrupted": [90, -20, 90, 100],
}


def texts_in_row(lengths):
    """Ids (1, M); a negative length is so much padding, in "interrupted" within the first text."""
    ids, number = [], 0
    for length in lengths:
        number += length > 0 and length != 90
        ids += [number if length > 0 else -1] * abs(length)
    return torch.tensor([ids])


@pytest.mark.parametrize("options", [{}, NEAREST | {"self_coupling": False}, {"dropout_p": 0.3}], ids=str)
@pytest.mark.parametrize("name", TEXTS)
def test_texts_in_a_row_are_put_in_order_each(name, options, decisions, within_rounding):
    ids = texts_in_row(TEXTS[name])
    for queries in (300, 220):
        decisions.clear()
        options = options | {"sequence_ids": ids}
        within_rounding(clusters(2, 2, queries, 300, 2, 5), options, "cpu")
        assert decisions and any(decisions)
    options["sequence_ids"] = torch.cat((ids, texts_in_row([300])))  # each row has its own
    within_rounding(clusters(2, 2, 300, 300, 2, 5), options, "cpu")


@pytest.mark.parametrize("count", [1, 10**6])
def test_texts_of_symmetric_calls_in_order(count, decisions, within_rounding, cores):
    cores(count)
    inputs = clusters(1, 2, 300, 300, 2, 7, same=True, by_query=False)
    for name, lengths in TEXTS.items():
        decisions.clear()
        within_rounding(inputs, {"power": 2, "sequence_ids": texts_in_row(lengths)}, "cpu")
        assert any(decisions), name


def test_only_long_texts_are_looked_at(decisions, monkeypatch):
    """As rows of their own are, and tiles of the tree are tiles of the row."""
    monkeypatch.setattr(problem, "_PAIRS_WORTH_ORDERING", 100)
    inputs = clusters(1, 2, 500, 500, 2, 5, same=True)
    ids = texts_in_row([50, 199, 251])
    order = problem.describe(prepare(*inputs, sequence_ids=ids), None).order
    assert decisions == [True]
    assert order.receive is not None and torch.equal(order.receive, order.send)
    stay = torch.arange(249, dtype=torch.int32)
    assert (order.send[..., :249] == stay).all()
    assert torch.equal(order.send[..., 249:].sort(-1).values, torch.arange(249, 500).int().expand(1, 2, -1))
    own = inputs[0][:, :, 249:].contiguous()
    alone = problem.describe(prepare(own, own, own, inputs[3][..., 249:], inputs[4]), None).order.send
    begins = 256 - 249  # of the row's first tile that is the text's alone
    assert torch.equal(order.send[..., 256:] - 249, alone[..., : 251 - begins])


@pytest.mark.parametrize("frame", ["absolute", "nearest"])
def test_dropout_drops_the_pairs_that_the_caller_numbers(frame, in_order):
    for p in (0.1, 0.7):
        in_order(clusters(2, 3, 150, 210, 2, 5), {"dropout_p": p, "frame": frame, "power": 2})
    in_order(clusters(2, 2, 170, 170, 3, 5, same=True), {"dropout_p": 0.4, "frame": frame})


@pytest.mark.parametrize("options", [NEAREST, {"frame": "nearest", "edge": 0.1}], ids=str)
@pytest.mark.parametrize("copies", [2, 10, 40])
def test_of_equally_near_senders_the_callers_earliest_takes_back_the_frame(
    copies, options, evaluate, decisions
):
    g = torch.Generator().manual_seed(copies)
    words = 300 // copies  # in four clusters; those of one lock
    vocabulary = 20 * torch.arange(words)[:, None] % 80 + 0.5 * torch.randn(words, 2, generator=g)
    send = vocabulary[torch.randint(len(vocabulary), (300,), generator=g)][None, None]
    receive = vocabulary[torch.randint(len(vocabulary), (130,), generator=g)] + 0.3
    value = torch.randn(1, 1, 300, 3, generator=g)
    inputs = [receive[None, None], send, value, *locking.coupling_from_radius(torch.tensor([1.5]), 3.0)]
    options = options | {"eps": 1.0}  # without it equal weights would have no gradient
    for extra in ({}, {"dropout_p": 0.2}, {"attn_mask": torch.arange(300) % 3 > 0}):
        want = evaluate([x.double() for x in inputs], options | extra, "eager")
        got = evaluate(inputs, options | extra, "cpu")
        for a, b in zip((got[0], *got[1]), (want[0], *want[1]), strict=True):
            assert (a.double() - b).abs().max() <= 2e-5 * b.abs().max()
    assert decisions == [True] * 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_inputs(dtype, in_order):
    inputs = clusters(2, 2, 170, 170, 2, 20, same=True)
    receive, value = inputs[0].to(dtype), inputs[2].to(dtype)
    in_order([receive, receive, value, *inputs[3:]], {"power": 2})
    in_order([receive, receive + 0.1, inputs[2], *inputs[3:]], NEAREST)


@pytest.mark.parametrize("d", [1, 16, 17, 40, 64])
def test_any_number_of_value_columns(d, in_order):
    in_order(clusters(1, 2, 130, 190, 2, d), {"power": 2})


@pytest.mark.parametrize("shape", ["(H,)", "(B, H)", "one row for all"])
def test_couplings_of_every_shape(shape, in_order):
    """Few tokens a head: all of them have to be moved off the locking edge together."""
    receive, send, value, coupling, bandwidth = clusters(2, 2, 100, 110, 2, 5)
    coupling = {
        "(H,)": coupling[0, :, 0],
        "(B, H)": coupling[:, :, 0],
        "one row for all": coupling[:1].expand(2, 2, 100),
    }[shape]
    in_order([receive, send, value, coupling, bandwidth], {"power": 2})


@pytest.mark.parametrize(
    "options", [{"power": 2}, NEAREST | {"dropout_p": 0.3, "self_coupling": False}], ids=str
)
def test_compiled_and_unrecorded_calls_give_the_same_bits(options, decisions, evaluate, fresh_compiler):
    """no_grad and inference_mode, which pass by the dispatcher, and torch.compile."""
    inputs = clusters(2, 2, 130, 190, 2, 5)
    want, _ = evaluate(inputs, options, "cpu")
    for mode in (torch.no_grad, torch.inference_mode):
        torch.manual_seed(0)
        with mode():
            assert torch.equal(attention(*inputs, **options, backend="cpu"), want)
    options = options | {"dropout_p": 0.0}  # its seed may be another once compiled
    function = torch.compile(
        lambda *x: attention(*x, **options, backend="cpu").square(), fullgraph=True, backend="aot_eager"
    )
    leaves = [x.clone().requires_grad_() for x in inputs]
    plain = attention(*leaves, **options, backend="cpu").square()
    compiled = function(*leaves)
    assert torch.equal(compiled, plain)
    for a, b in zip(*(torch.autograd.grad(x.sum(), leaves) for x in (compiled, plain)), strict=True):
        assert torch.equal(a, b)
    assert decisions == [True] * 5


@pytest.mark.parametrize("count", [1, 10**6])
@pytest.mark.parametrize("same", [True, False])
def test_the_same_bits_for_any_number_of_threads(same, count, decisions, cores, evaluate):
    cores(count)
    before = torch.get_num_threads()
    inputs = clusters(2, 3, 200, 200, 2, 5, same=same, by_query=not same)
    try:
        for options in ({"power": 2}, NEAREST, {"edge": 0.1, "dropout_p": 0.3}):
            results = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                out, gradients = evaluate(inputs, options, "cpu")
                results.append((out, *gradients))
            for result in results[1:]:
                assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))
    finally:
        torch.set_num_threads(before)
    assert decisions == [True] * 9


def test_calls_that_order_cannot_or_need_not_help_stand_as_given(decisions, within_rounding):
    receive, send, value, coupling, bandwidth = inputs = clusters(1, 2, 150, 200, 2, 5)
    by_row = torch.rand(1, 1, 150, 200, generator=torch.Generator().manual_seed(0)) > 0.3
    within_rounding(inputs, {"is_causal": True}, "cpu")
    within_rounding(inputs, {"attn_mask": by_row}, "cpu")
    assert decisions == []  # not even asked
    within_rounding([receive, send, value, 100 * coupling, bandwidth / 1e4], {"power": 2}, "cpu")
    assert decisions == [False]  # most pairs lock
    g = torch.Generator().manual_seed(0)
    wide = [torch.randn(1, 2, n, 16, generator=g) for n in (150, 200)]
    coupled = locking.coupling_from_radius(torch.full((2,), 4.0), 0.1)
    within_rounding([*wide, value, *coupled], {"power": 2}, "cpu")
    assert decisions == [False, False]  # too many coordinates: halves are no nearer
    line = clusters(1, 1, 200, 200, 1, 5)[0].sort(2).values
    coupled = locking.coupling_from_radius(torch.ones(1), 5.0)
    within_rounding([line, line, value[:, :1], *coupled], {"power": 2}, "cpu")
    assert decisions == [False] * 3  # they are in order


def test_put_back_is_the_inverse_of_arrange():
    g = torch.Generator().manual_seed(0)
    order = torch.stack([torch.randperm(7, generator=g) for _ in range(12)]).view(2, 6, 7).int()
    for heads in (1, 2, 6):
        x = torch.randn(2, heads, 7, 3, generator=g)
        full = x.repeat_interleave(6 // heads, 1)
        arranged = problem.arrange(x, order)
        assert torch.equal(arranged, full.gather(2, order.long()[..., None].expand(2, 6, 7, 3)))
        assert torch.equal(problem.put_back(arranged, order), full)
    assert torch.equal(problem.put_back(arranged[..., 0], order), full[..., 0])
    assert problem.put_back(x, None) is x


def test_every_order_is_a_permutation(decisions, monkeypatch, fresh_compiler):
    """Also of tokens of which many are the same, or NaN, or infinite; both of a symmetric call are one."""
    seen = []
    choose = problem._choose
    monkeypatch.setattr(problem, "_choose", lambda *x: seen.append(choose(*x)) or seen[-1])
    call = torch.compile(lambda *x: attention(*x, backend="cpu"), backend="eager", dynamic=True)
    for queries, keys, m in ((300, 65, 1), (200, 200, 2), (150, 310, 3)):
        inputs = clusters(2, 2, queries, keys, m, 3)
        call(*inputs)
        call(inputs[0].round(), inputs[1].round(), *inputs[2:])
        for bad in (torch.nan, torch.inf):
            odd = inputs[1].clone()
            odd[0, 0, ::9, 0] = bad
            odd[1, 1, 1::9, m - 1] = -bad
            call(inputs[0], odd, *inputs[2:])
    assert sum(decisions) > 6
    inputs = clusters(2, 2, 190, 190, 2, 3, same=True)
    attention(*inputs, backend="cpu")
    assert torch.equal(*seen[-1])
    for numbers in (x for order in seen for x in order if x.numel()):
        want = torch.arange(numbers.shape[-1], dtype=torch.int32).expand(numbers.shape)
        assert torch.equal(numbers.sort(-1).values, want)


SIZES = [1, 2, 23, 24, 25, 63, 64, 65, 66, 127, 128, 129, 200]
DENSITIES = [0.0, 0.01, 0.2, 0.5, 1.0]


def gaussian(tokens, density, m=3, d=5):
    """A symmetric call of which this share of the pairs of different tokens locks."""
    g = torch.Generator().manual_seed(tokens)
    w = torch.randn(2, 1, tokens, m, generator=g)
    apart = torch.cat([torch.pdist(x[0].double()) for x in w]) if tokens > 1 else torch.ones(1).double()
    radius = {0.0: 0.9 * apart.min(), 1.0: 1.5 * apart.max()}.get(density, apart.quantile(density))
    coupled = (x.float() for x in locking.coupling_from_radius(radius[None], 2.0))
    return [w, w, torch.randn(2, 1, tokens, d, generator=g), *coupled]


@pytest.mark.parametrize("count", [1, 10**6])
@pytest.mark.parametrize("tokens", SIZES)
def test_symmetric_calls_of_any_size_and_density(tokens, count, within_rounding, cores):
    """As one task a head, each pair weighed once, and as many tasks, each pair weighed twice."""
    cores(count)
    for k, density in enumerate(DENSITIES):
        options = FORMS[(k + tokens) % 4] | {"self_coupling": (k + tokens) % 3 > 0}  # in the absolute frame
        within_rounding(gaussian(tokens, density), options, "cpu")


@pytest.mark.parametrize("d", [1, 16, 33, 64, 130])
@pytest.mark.parametrize("m", [1, 14, 16, 20])
def test_symmetric_calls_of_any_width(m, d, within_rounding, cores):
    cores(1)
    for density in (0.05, 0.6):
        within_rounding(gaussian(70, density, m, d), FORMS[(m + d) % 4], "cpu")


@pytest.mark.parametrize("value_heads", [1, 2, 4])
def test_symmetric_calls_with_fewer_value_heads(value_heads, within_rounding, cores):
    cores(1)
    inputs = clusters(2, 4, 90, 90, 2, 5, same=True, by_query=False)
    within_rounding([*inputs[:2], inputs[2][:, :value_heads], *inputs[3:]], {"power": 2}, "cpu")


def test_the_symmetric_form_is_taken_where_it_should_be(cores, monkeypatch):
    """Only if every head is a task's worth of work, and nothing tells the two sides of a pair apart."""
    taken = []
    forward = library.forward
    monkeypatch.setattr(library, "forward", lambda call: taken.append(bool(call.symmetric)) or forward(call))
    w, _, value, coupling, bandwidth = gaussian(30, 0.5)
    rows = coupling.expand(2, 1, 30).contiguous()
    mask = torch.ones(1, 1, 1, 30, dtype=torch.bool)
    for count in (2, 3):
        cores(count)
        for send, kappa, options in (
            (w, coupling, {}),
            (w, coupling.expand(2, 1), {"self_coupling": False}),
            (w.clone(), coupling, {}),
            (w, rows, {}),
            (w, coupling, {"is_causal": True}),
            (w, coupling, {"attn_mask": mask}),
            (w, coupling, {"dropout_p": 0.1}),
            (w, coupling, {"frame": "nearest"}),
        ):
            attention(w, send, value, kappa, bandwidth, **options, backend="cpu")
    assert taken == [True, True] + [False] * 14
