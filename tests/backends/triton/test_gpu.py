"""What only a GPU can show; the rest of this folder runs there too, on its tensors."""

import pytest
import torch

import syncattn
from syncattn.models import OSNConfig, OSNForCausalLM
from syncattn.nn import SelectiveSynchronizationAttention

attention = syncattn.selective_synchronization_attention
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
LAYER = {"frame": "nearest", "power": 2, "is_causal": True, "self_coupling": False}
FORMS = {"layer": LAYER, "paper": {}, "dropout": {"power": 2, "dropout_p": 0.1}}


@pytest.fixture
def call(draw):
    """Inputs on the GPU with gradients; values in bf16."""

    def make(tokens, m=8, d=64, queries=None, structure="drift"):
        fewer = min(tokens, 1000)  # the law is found from all pairs
        *_, coupling, bandwidth = draw(2, 4, fewer, fewer, m, d, density=0.1, structure=structure)
        inputs = draw(2, 4, queries or tokens, tokens, m, d, density=None, structure=structure)
        inputs[2:] = [inputs[2].bfloat16(), coupling, bandwidth]
        return [x.cuda().requires_grad_() for x in inputs]

    return make


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("m_and_d", [(8, 64), (16, 128), (64, 64), (128, 256), (5, 72)], ids=str)
def test_real_sizes_against_the_plain_backend(form, m_and_d, call):
    inputs = call(1000, *m_and_d)
    results = []
    for backend in ("triton", "tiled"):
        torch.manual_seed(0)
        out = attention(*inputs, **FORMS[form], backend=backend)
        results.append([out, *torch.autograd.grad(out.float().square().sum(), inputs)])
    for a, b in zip(*results, strict=True):
        if form == "paper" and a.ndim == 4 and a is not results[0][0]:
            # power 1 has a gradient of 1 / S: in the rows with a pair at the locking edge rounding decides
            off = (a.double() - b.double()).norm(dim=-1) <= 5e-2 * b.double().norm(dim=-1)
            assert off.double().mean() > 0.9
        elif not (form == "paper" and a.ndim < 4):
            assert (a.double() - b.double()).norm() <= 3e-2 * b.double().norm()


@pytest.mark.parametrize("form", FORMS)
def test_the_same_bits_every_time(form, call):
    inputs = call(700)
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        out = attention(*inputs, **FORMS[form], backend="triton")
        results.append([out, *torch.autograd.grad(out.float().sum(), inputs)])
    assert all(map(torch.equal, *results))


def test_several_texts_in_one_row(call):
    inputs = call(1000, 16)
    ids = (torch.arange(1000, device="cuda") // 130)[None]
    results = []
    for backend in ("triton", "tiled"):
        out = attention(*inputs, **LAYER, sequence_ids=ids, backend=backend)
        results.append([out, *torch.autograd.grad(out.float().square().sum(), inputs)])
    for a, b in zip(*results, strict=True):
        assert (a.double() - b.double()).norm() <= 3e-2 * b.double().norm()


def gated_layer(tokens):
    """A layer with a gate of its nearest senders, what it is given, and what a gradient is taken of."""
    layer = SelectiveSynchronizationAttention(256, 4, token_shift=True, nearest_gate=True)
    x = torch.randn(2, tokens, 256)
    return layer, x, lambda layer, x: layer(x, is_causal=True)[0]


def gated_model(tokens):
    """The same of a model in a form of the preset "recall": no position, a convolution."""
    sizes = {"vocab_size": 64, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = OSNForCausalLM(OSNConfig.preset("recall", **sizes, nearest_gate=True, value_residual=True))
    x = model.get_input_embeddings()(torch.randint(64, (2, tokens))).detach()
    return model, x, lambda model, x: model(inputs_embeds=x, use_cache=False).logits


def results_of(make, tokens, narrow, device):
    """Of triton and of eager: the result, and the gradients of the input and of each parameter, by name."""
    torch.manual_seed(0)
    module, x, compute = make(tokens)
    module, x = module.to(device), x.to(device).requires_grad_()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("gate"):
                parameter.normal_()
    leaves = {"input": x, **dict(module.named_parameters())}
    found = []
    for backend in ("triton", "eager"):
        with syncattn.use_backend(backend), torch.autocast(device, torch.bfloat16, enabled=narrow):
            out = compute(module, x)
        gradients = torch.autograd.grad(out.float().square().sum(), list(leaves.values()), allow_unused=True)
        found.append({"out": out.detach(), **dict(zip(leaves, gradients, strict=True))})
    return found


@pytest.mark.parametrize("narrow", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("make", [gated_layer, gated_model])
def test_the_gate_of_the_nearest_sender_in_a_layer_and_in_a_model(make, narrow, device):
    """The kernels and eager see the same frequencies: who is nearest, and how near, is the same of both."""
    got, want = results_of(make, 300, narrow, device)
    of_gates = [x for name, x in want.items() if name.endswith("gate")]
    assert of_gates and all(bool(x.any()) for x in of_gates)
    largest = max(float(x.norm()) for x in want.values() if x is not None)
    for name, a in got.items():
        b = want[name]
        assert (a is None) == (b is None), name
        if narrow and not name.endswith(("out", "input", "gate")):
            continue  # numbers of a head, in which much cancels
        if b is not None:  # one that is 0 but for rounding is held to the others' size
            off = float((a.double() - b.double()).norm()) / max(float(b.norm()), 1e-3 * largest)
            assert off <= (5e-2 if narrow else 5e-3), name


def test_it_takes_calls_by_name(call):
    assert syncattn.backends.explain(*call(16), backend="triton").backend == "triton"


CAPTURED = {
    "layer": LAYER,
    "sorted": {"power": 2},
    "documents": {"attn_mask": torch.arange(500)[:, None] // 100 == torch.arange(500) // 100},
}


@pytest.mark.parametrize(("queries", "form"), [(1, "layer"), *((500, form) for form in CAPTURED)])
def test_nothing_waits_for_the_device_and_a_graph_replays_it(queries, form, call, kernels, monkeypatch):
    monkeypatch.setattr(kernels, "FEWEST_SORTED", 500)
    options = {k: x.cuda() if torch.is_tensor(x) else x for k, x in CAPTURED[form].items()}
    inputs = [x.detach() for x in call(500, queries=queries)]
    want = attention(*inputs, **options, backend="triton")  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        attention(*inputs, **options, backend="triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attention(*inputs, **options, backend="triton")
    out.zero_()
    graph.replay()
    assert torch.equal(out, want)


def test_inductor(call, fresh_compiler):
    inputs = call(300)
    compute = lambda *x: attention(*x, **LAYER, backend="triton")  # noqa: E731
    want, got = compute(*inputs), torch.compile(compute, fullgraph=True)(*inputs)
    assert torch.equal(want, got)
    for a, b in zip(*(torch.autograd.grad(y.float().sum(), inputs) for y in (want, got)), strict=True):
        assert torch.equal(a, b)


def test_memory_is_linear(call):
    peaks = []
    for tokens in (4096, 8192):
        inputs = call(tokens)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        torch.autograd.grad(attention(*inputs, **LAYER, backend="triton").float().sum(), inputs)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 2.5 * peaks[0]
