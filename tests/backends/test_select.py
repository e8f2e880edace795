"""Which backend takes a call, and why not the others."""

import re
import threading

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import syncattn
from syncattn.backends import select

attention = syncattn.selective_synchronization_attention
explain = syncattn.backends.explain


NATIVE = syncattn.backends.availability()["cpu"] is None
NO_GPU = {"triton": syncattn.backends.availability()["triton"] or "it runs on GPUs, the tensors are on cpu"}


def problem(dtype=torch.float32):
    w = torch.randn(1, 2, 5, 3, dtype=dtype)
    coupled = torch.ones(2, dtype=dtype)
    return w, w, torch.randn(1, 2, 5, 4, dtype=dtype), coupled, coupled


def test_the_first_that_can_takes_the_call_and_the_rest_say_why_not():
    assert list(select.BACKENDS) == [
        "triton",
        "cpu",
        "tiled",
        "eager",
    ]  # in order of preference, the definition last
    chosen = explain(*problem(torch.float64))
    assert chosen.backend == "tiled"
    assert set(chosen.reasons) == {"triton", "cpu", "eager"}
    assert chosen.reasons["eager"] == "tiled is preferred"
    assert str(chosen).splitlines()[0] == "tiled: takes this call"
    assert str(chosen).splitlines()[3] == "eager: tiled is preferred"
    if NATIVE:
        assert chosen.reasons["cpu"] == "it computes in float32, this call needs float64"
        chosen = explain(*problem())
        assert chosen.backend == "cpu"
        assert chosen.reasons == NO_GPU | {"tiled": "cpu is preferred", "eager": "cpu is preferred"}


def test_asked_for_by_name():
    chosen = explain(*problem(torch.float64), backend="eager")
    assert chosen.backend == "eager"
    assert chosen.reasons["tiled"] == "not asked for (backend='eager')"
    assert chosen.reasons["cpu"] != chosen.reasons["tiled"]  # what it cannot do comes before what it may not


def test_refusals():
    chosen = explain(*problem(), return_weights=True)
    assert chosen.backend == "eager"
    assert "return_weights" in chosen.reasons["tiled"]
    for function in (explain, attention):
        with pytest.raises(ValueError, match=r"backend='tiled' cannot take this call: .*return_weights"):
            function(*problem(), return_weights=True, backend="tiled")


@pytest.mark.skipif(not NATIVE, reason="the native kernel is not built")
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"return_weights": True}, r"it never holds S and P \(return_weights=True\)"),
        ({"power": 3}, r"it has powers 1 and 2, got 3"),
        ({"power": 1.5}, r"it has powers 1 and 2, got 1\.5"),
        ({"top_k": 2}, r"it has no top_k"),
        ({"dtype": torch.float64}, r"it computes in float32, this call needs float64"),
        ({"freq_dim": 513}, r"it takes a freq_dim of up to 512, got 513"),
    ],
    ids=str,
)
def test_what_the_native_kernel_refuses_is_refused_by_name(options, reason):
    options = dict(options)
    receive, send, *others = problem(options.pop("dtype", torch.float32))
    if freq_dim := options.pop("freq_dim", None):
        receive = send = torch.randn(1, 2, 5, freq_dim)
    for function in (explain, attention):
        with pytest.raises(ValueError, match="backend='cpu' cannot take this call: " + reason):
            function(receive, send, *others, backend="cpu", **options)
    chosen = explain(receive, send, *others, **options)
    assert chosen.backend == ("eager" if "return_weights" in options else "tiled")
    assert re.match(reason, chosen.reasons["cpu"])


def test_a_backend_that_is_not_available_says_so(monkeypatch):
    gone = dict.fromkeys(("triton", "cpu", "tiled"), "it has gone fishing")
    for name in gone:
        backend = select.BACKENDS[name]._replace(unavailable=lambda: "it has gone fishing")
        monkeypatch.setitem(select.BACKENDS, name, backend)
    assert syncattn.backends.availability() == gone | {"eager": None}
    chosen = explain(*problem())
    assert chosen.backend == "eager" and chosen.reasons == gone
    with pytest.raises(ValueError, match="cannot take this call: it has gone fishing"):
        attention(*problem(), backend="tiled")


def test_availability():
    availability = syncattn.backends.availability()
    assert list(availability) == list(select.BACKENDS)
    assert availability["tiled"] is None and availability["eager"] is None
    assert availability["cpu"] is None or "kernel" in availability["cpu"]


def test_explain_computes_nothing():
    """It answers for tensors that hold nothing, and for sizes that no memory holds."""
    w = torch.empty(8, 64, 2**20, 16, device="meta")
    value = torch.empty(8, 64, 2**20, 64, device="meta")
    coupled = torch.empty(64, device="meta")
    assert explain(w, w, value, coupled, coupled).backend == "tiled"
    out = attention(w[:1, :, :64], w[:1, :, :64], value[:1, :, :64], coupled, coupled)
    assert out.device.type == "meta" and out.shape == (1, 64, 64, 64)


def test_used_for_the_calls_that_name_none():
    best = explain(*problem()).backend
    with syncattn.use_backend("eager"):
        assert explain(*problem()).backend == "eager"
        assert explain(*problem(), backend="tiled").backend == "tiled"
        with syncattn.use_backend("tiled"):
            assert explain(*problem()).backend == "tiled"
            with pytest.raises(ValueError, match=r"backend='tiled' cannot take this call: .*return_weights"):
                attention(*problem(), return_weights=True)
        assert explain(*problem()).backend == "eager"
    with pytest.raises(RuntimeError, match="mine"), syncattn.use_backend("eager"):
        raise RuntimeError("mine")
    assert explain(*problem()).backend == best


def asked_for():
    return explain(*problem()).backend


def in_a_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_blocks_of_threads_that_overlap():
    """Each thread goes by its own; others by the one that was entered last and is open; nothing stays."""
    best, seen = asked_for(), []
    first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()

    def first():
        with syncattn.use_backend("eager"):
            first_in.set()
            second_in.wait()
            seen.append(asked_for())
        seen.append(asked_for())
        first_out.set()

    def second():
        first_in.wait()
        with syncattn.use_backend("tiled"):
            seen.append(asked_for())
            second_in.set()
            first_out.wait()
            seen.append(asked_for())

    threads = [threading.Thread(target=function) for function in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [
        "tiled",
        "eager",
        "tiled",
        "tiled",
    ]  # the first one, out of its own block: by the second's
    assert asked_for() == in_a_thread(asked_for) == best


def test_a_block_closed_by_another_thread_and_blocks_closed_out_of_order():
    best = asked_for()
    one, two = syncattn.use_backend("eager"), syncattn.use_backend("tiled")
    one.__enter__()
    assert in_a_thread(lambda: two.__enter__() or asked_for()) == "tiled" and asked_for() == "eager"
    one.__exit__(None, None, None)
    assert asked_for() == "tiled"
    two.__exit__(None, None, None)
    assert asked_for() == in_a_thread(asked_for) == best
    one, two = (syncattn.use_backend("eager") for _ in range(2))
    one.__enter__(), two.__enter__(), one.__exit__(None, None, None)
    assert asked_for() == "eager"
    two.__exit__(None, None, None)
    assert asked_for() == best


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_forward_runs_again_on_the_same_backend(reentrant, monkeypatch):
    """Also where autograd does so on another thread."""
    ran = []
    for name, backend in list(select.BACKENDS.items()):

        def run(call, name=name, run=backend.run):
            ran.append(name)
            return run(call)

        monkeypatch.setitem(select.BACKENDS, name, backend._replace(run=run))
    receive, _, *others = problem()
    receive.requires_grad_()
    with syncattn.use_backend("eager"):
        out = checkpoint(lambda w: attention(w, w, *others), receive, use_reentrant=reentrant)
        in_a_thread(out.sum().backward)
    assert ran == ["eager", "eager"] and receive.grad is not None


def test_a_block_within_a_compiled_function(fresh_compiler):
    receive, _, *others = problem()

    def compute(w):
        with syncattn.use_backend("eager"):
            return attention(w, w, *others)

    compiled = torch.compile(compute, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(receive), compute(receive))
    assert asked_for() == explain(*problem()).backend and asked_for() != "eager"


def test_what_cannot_be_used():
    for wrong in ("flash", None, ["cpu"]):
        with pytest.raises(ValueError, match=r"backend must be one of .*, got " + re.escape(repr(wrong))):
            syncattn.use_backend(wrong).__enter__()
    for wrong in ("flash", 3, ["cpu"]):
        with pytest.raises(ValueError, match=r"backend must be None or one of .*, got "):
            explain(*problem(), backend=wrong)
    for name, reason in syncattn.backends.availability().items():
        if reason is not None:
            with pytest.raises(ValueError, match=f"backend='{name}' cannot run here: {re.escape(reason)}"):
                syncattn.use_backend(name).__enter__()


def test_a_compiled_layer_follows(fresh_compiler):
    layer = syncattn.nn.SelectiveSynchronizationAttention(8, 2).eval()
    x = torch.randn(1, 5, 8)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for name in ("eager", "tiled", "eager"):
        with syncattn.use_backend(name):
            assert torch.equal(compiled(x)[0], layer(x)[0])
    with syncattn.use_backend("cpu" if NATIVE else "tiled"), torch.no_grad():
        assert torch.equal(compiled(x)[0], layer(x)[0])
