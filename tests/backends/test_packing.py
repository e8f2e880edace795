"""Several texts in one row: each comes out of the operator as if it stood alone."""

import pytest
import torch

import syncattn
from syncattn.backends.call import prepare
from syncattn.backends.select import locked_counts
from syncattn.backends.tiled.tiles import TiledProblem

attention = syncattn.selective_synchronization_attention
BACKENDS = [
    "eager",
    "tiled",
    pytest.param(
        "cpu",
        marks=pytest.mark.skipif(
            syncattn.backends.availability()["cpu"] is not None, reason="the CPU kernel is not built"
        ),
    ),
]
LENGTHS = (3, 1, 70, 9, 64)  # and 5 tokens of padding between them


def problem(symmetric=False, per_query=False):
    g = torch.Generator().manual_seed(0)
    tokens = sum(LENGTHS) + 5
    receive = torch.randn(2, 4, tokens, 5, generator=g, requires_grad=True)
    send = receive if symmetric else torch.randn(2, 2, tokens, 5, generator=g, requires_grad=True)
    value = torch.randn(2, 2, tokens, 6, generator=g, requires_grad=True)
    coupling = torch.rand(*((2, 4, tokens) if per_query else (4,)), generator=g) + 2
    ids = torch.cat([torch.full((n,), 2 * i) for i, n in enumerate(LENGTHS)])
    ids = torch.cat((ids[:4], torch.full((5,), -1), ids[4:]))[None]
    return (receive, send, value, coupling.requires_grad_(), torch.full((4,), 0.05).requires_grad_()), ids


def one_by_one(tensors, ids, options):
    """Each text in a call of its own; rows of padding are 0."""
    receive, send, value, coupling, bandwidth = tensors
    out = value.new_zeros(*receive.shape[:3], value.shape[-1])
    for text in ids[0].unique()[1:]:
        at = ids[0] == text
        own = receive[:, :, at]
        sent = own if send is receive else send[:, :, at]
        kappa = coupling[..., at] if coupling.ndim == 3 else coupling
        part = attention(own, sent, value[:, :, at], kappa, bandwidth, backend="eager", **options)
        out = out.index_copy(2, at.nonzero()[:, 0], part)
    return out


CASES = [
    {"power": 2},
    {"is_causal": True, "frame": "nearest", "power": 2, "self_coupling": False},
    {"top_k": 2, "self_coupling": False, "power": 2},
    {"is_causal": True, "top_k": 3, "frame": "nearest", "edge": 0.1},
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", CASES, ids=lambda x: "+".join(x) or "plain")
@pytest.mark.parametrize("symmetric", [True, False])
def test_each_text_as_if_alone(options, symmetric, backend, monkeypatch):
    if backend == "cpu" and "top_k" in options:
        pytest.skip("it has no top_k")
    monkeypatch.setattr("syncattn.backends.tiled.tiles._CPU_TILE", 2**12)
    tensors, ids = problem(symmetric, per_query=not symmetric)
    leaves = list(dict.fromkeys(tensors))
    weight = torch.linspace(-1, 1, ids.shape[1])[:, None]
    results = []
    for out in (
        attention(*tensors, sequence_ids=ids, backend=backend, **options),
        one_by_one(tensors, ids, options),
    ):
        results.append((out.detach(), *torch.autograd.grad((out * weight).sum(), leaves)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * max(1.0, float(b.abs().max())))
    assert (results[0][0][:, :, ids[0] < 0] == 0).all()


@pytest.mark.parametrize("other", BACKENDS[1:])
def test_masks_dropout_and_ids_of_each_row_are_those_of_eager(other):
    tensors, ids = problem()
    ids = torch.cat((ids, ids.flip(1).clamp(max=0)))
    mask = torch.rand(2, 1, ids.shape[1], ids.shape[1], generator=torch.Generator().manual_seed(1)) < 0.7
    found = []
    for backend in ("eager", other):
        torch.manual_seed(3)
        options = {"attn_mask": mask, "dropout_p": 0.3, "frame": "nearest", "power": 2}
        found.append(attention(*tensors, sequence_ids=ids, backend=backend, **options))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_last_receivers_of_more_senders(backend):
    (receive, send, value, coupling, bandwidth), ids = problem()
    for options in ({}, {"is_causal": True}):
        whole = attention(receive, send, value, coupling, bandwidth, sequence_ids=ids, **options)
        for queries in (30, 70):
            last = receive[:, :, -queries:]
            part = attention(
                last, send, value, coupling, bandwidth, sequence_ids=ids, backend=backend, **options
            )
            torch.testing.assert_close(part, whole[:, :, -queries:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_crosses(backend):
    """What another text holds, or padding, is nothing to a text."""
    (receive, send, value, *others), ids = problem()
    other = (ids[0] == 4) | (ids[0] < 0)
    found = []
    for tensors in ((receive, send, value), (x.where(~other[:, None], 1e3) for x in (receive, send, value))):
        found.append(attention(*tensors, *others, sequence_ids=ids, backend=backend)[:, :, ~other])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_tiles_of_other_texts_are_left_out(monkeypatch):
    monkeypatch.setattr("syncattn.backends.tiled.tiles._CPU_TILE", 1)
    w, ids = torch.randn(1, 1, 4096, 4), torch.arange(4096)[None] // 256
    call = prepare(w, w, w, torch.ones(1), torch.ones(1), sequence_ids=ids)
    blocks = list(TiledProblem(call).blocks())
    assert len(blocks) == 64
    for _, rows, columns in blocks:
        text = rows.start // 256 * 256
        assert [(c.start, c.stop) for c in columns] == [(text, text + 128), (text + 128, text + 256)]


def test_counts_are_those_of_the_texts():
    tensors, ids = problem()
    for options in ({"is_causal": True}, {"frame": "nearest"}):
        _, sync, _ = attention(*tensors, sequence_ids=ids, return_weights=True, **options)
        counts = locked_counts(prepare(*tensors, sequence_ids=ids, **options))
        assert torch.equal(counts, (sync > 0).sum(-1))


def test_who_takes_packed_texts():
    tensors, ids = problem()
    chosen = syncattn.backends.explain(*tensors, sequence_ids=ids)
    assert chosen.backend == ("cpu" if syncattn.backends.availability()["cpu"] is None else "tiled")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([0, 0], TypeError, "sequence_ids must be a torch.Tensor, got list"),
        (torch.zeros(1, 152), ValueError, "sequence_ids must hold integers, got torch.float32"),
        (torch.zeros(152, dtype=torch.int64), ValueError, r"\(B or 1, M\) = \(2, 152\), got \(152,\)"),
        (torch.zeros(1, 9, dtype=torch.int64), ValueError, r"\(B or 1, M\) = \(2, 152\), got \(1, 9\)"),
    ],
)
def test_refused(given, error, message):
    tensors, _ = problem()
    with pytest.raises(error, match=message):
        attention(*tensors, sequence_ids=given)
    receive, send, value, *others = tensors
    with pytest.raises(ValueError, match="sequence_ids needs at least as many senders"):
        attention(
            receive,
            send[:, :, :9],
            value[:, :, :9],
            *others,
            sequence_ids=torch.zeros(1, 9, dtype=torch.int64),
        )


def test_compiled():
    tensors, ids = problem()
    expected = attention(*tensors, sequence_ids=ids, is_causal=True)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors, sequence_ids=ids, is_causal=True), expected)
