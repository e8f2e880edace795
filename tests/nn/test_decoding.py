"""One token after a cached past, computed the short way: the bits of `forward`'s long way, or left to it."""

import copy

import pytest
import torch

import syncattn
from syncattn.backends import availability
from syncattn.nn import IncrementalState, SelectiveSynchronizationAttention
from syncattn.nn import attention as attention_file
from syncattn.nn.groups import in_groups

pytestmark = pytest.mark.skipif(availability()["cpu"] is not None, reason="the short way is the CPU kernel's")
# a helix, or a mix, is left to the frequency module; values must be as wide as the kernel wants them
FORMS = {
    "default": {},
    "token shift": {"token_shift": True},
    "width 2": {"short_convolution": 2, "directed": True, "value_rotation": 100.0},
    "no delay": {"delay": 0.0},
    "several phases": {"phase_dim": 3},
    "no order parameter": {"order_parameter": False},
    "directed": {"directed": True},
    "directed, detuned": {"directed": True, "detuning": True},
    "directed by a rank": {"directed": True, "directed_rank": 2, "nearest_gate": True},
    "directed by a rank, bounded": {"directed": True, "directed_rank": 3, "bounded_content": True},
    "one head directed by a rank": {"directed": [False, True], "directed_rank": 2},
    "directed, bounded": {
        "directed": True,
        "bounded_content": True,
        "token_shift": True,
        "nearest_gate": True,
    },
    "one head directed": {"directed": [True, False]},
    "bounded": {"bounded_content": True},
    "helix": {"position": "helix", "value_rotation": 100.0},
    "mixed": {"position": ["drift", "none"]},
    "gate": {"nearest_gate": True, "token_shift": True},
    "gate, turned": {"nearest_gate": True, "value_rotation": 100.0},
    "published": {"frame": "absolute", "power": 1, "self_coupling": True, "parametrisation": "softplus"},
}


class Ways:
    """Counts which tokens went the short way; may close it."""

    def __init__(self, monkeypatch):
        self.short, self.closed, way = 0, False, attention_file.next_token

        def next_token(*arguments):
            out = None if self.closed else way(*arguments)
            self.short += out is not None
            return out

        monkeypatch.setattr(attention_file, "next_token", next_token)


@pytest.fixture
def ways(monkeypatch):
    return Ways(monkeypatch)


def make(**options):
    torch.manual_seed(0)
    layer = SelectiveSynchronizationAttention(32, 2, **options).eval()
    send_proj, ask_mix = layer.frequency.send_proj, layer.frequency.ask_mix
    for numbers in (layer.shift, layer.gate, None if send_proj is None else send_proj.weight, ask_mix):
        if numbers is not None:
            torch.nn.init.normal_(numbers)
    return layer


def decode(layer, x, first, state=None):
    """The layer over x, `first` tokens at once and the others singly; and the state."""
    state = state or IncrementalState()
    with torch.no_grad():
        parts = x.split([first, *[1] * (x.shape[1] - first)], dim=1)
        return torch.cat([layer(part, is_causal=True, state=state)[0] for part in parts], 1), state


def assert_same_state(found, expected):
    for name in ("send", "value", "phase_sum", "last_input", "last_emitted", "count"):
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None) and (one is None or torch.equal(one, other)), name
    assert found.nbytes == expected.nbytes


@pytest.mark.parametrize("batch", (1, 3))
@pytest.mark.parametrize("form", FORMS)
def test_gives_the_bits_of_the_long_way(form, batch, ways):
    layer, x = make(**FORMS[form]), torch.randn(batch, 12, 32)
    found, state = decode(layer, x, 4)
    assert ways.short == 7  # the second call makes room for the others
    ways.closed = True
    expected, other = decode(layer, x, 4)
    assert torch.equal(found, expected)
    assert_same_state(state, other)
    assert state.checked == other.checked == 12


@pytest.mark.parametrize("name", ("receive_proj", "send_proj", "ask_proj"))
@pytest.mark.parametrize(
    "lay", (lambda y: y.mT.contiguous().mT, lambda y: y.bfloat16(), lambda y: y[..., :1] + 0 * y)
)
def test_projections_may_lay_out_their_results_as_they_like(name, lay, ways):
    options = {"directed": True, "directed_rank": 3 if name == "ask_proj" else None}
    layer, x = make(**options), torch.randn(3, 12, 32)
    getattr(layer.frequency, name).register_forward_hook(lambda module, given, y: lay(y))
    found, _ = decode(layer, x, 4)
    ways.closed = True
    assert torch.equal(found, decode(layer, x, 4)[0])


@pytest.mark.parametrize("gate", (False, True))
@pytest.mark.parametrize("directed", ({}, {"directed": True}, {"directed": True, "directed_rank": 2}))
def test_groups_of_heads_forget_alike(gate, directed, ways):
    layer = make(window_range=(2.0, 4.0), nearest_gate=gate, **directed)
    x = torch.randn(1, 1100, 32)
    outs = []
    for ways.closed in (False, True):
        windows = in_groups(torch.tensor([20.0, 2000.0]), evict=True)
        out, state = decode(layer, x, 1015, IncrementalState(windows=windows))
        assert len(state.groups) == 2 and state.forgets
        outs.append(out)
    assert ways.short == 84 - 1  # one of them looks what can be forgotten
    assert torch.equal(*outs)


@pytest.mark.parametrize(
    "change",
    (
        lambda layer: layer.raw_coupling.add_(0.5),
        lambda layer: layer.raw_bandwidth.add_(0.5),
        lambda layer: layer.raw_coupling.data.add_(0.5),  # which no version counts
        lambda layer: layer.frequency.direction.data.neg_(),
        lambda layer: setattr(layer.raw_bandwidth, "data", layer.raw_bandwidth.data + 0.5),
        lambda layer: layer.value_proj.weight.data.mul_(0.5),
        lambda layer: layer.frequency.log_slope.add_(0.5),
        lambda layer: layer.frequency.direction.neg_(),
        lambda layer: layer.load_state_dict(make(window_range=(9.0, 20.0)).state_dict(), assign=True),
        lambda layer: setattr(layer, "power", 1),
        lambda layer: setattr(layer, "frame", "absolute"),
    ),
)
def test_a_layer_that_changes_is_read_anew(change, ways):
    x, outs = torch.randn(1, 12, 32), []
    for ways.closed in (False, True):
        layer = make()
        before, state = decode(layer, x[:, :8], 4)
        with torch.no_grad():
            change(layer)
        outs.append(torch.cat((before, decode(layer, x[:, 8:], 1, state)[0]), 1))
    assert ways.short == 7 and torch.equal(*outs)


def test_a_gate_is_read_at_each_token(ways):
    x, outs = torch.randn(1, 12, 32), []
    for ways.closed in (False, True):
        layer = make(nearest_gate=True)
        before, state = decode(layer, x[:, :8], 4)
        layer.gate.data.add_(0.5)
        after, state = decode(layer, x[:, 8:10], 1, state)
        layer.gate = torch.nn.Parameter(layer.gate.detach() - 1.0)
        outs.append(torch.cat((before, after, decode(layer, x[:, 10:], 1, state)[0]), 1))
    assert ways.short == 7 and torch.equal(*outs)


def test_hooks_and_adapters_are_called(ways):
    layer, x, called = make(), torch.randn(1, 12, 32), []
    _, state = decode(layer, x[:, :8], 4)
    for module in (layer.frequency, layer.value_proj, layer.phase_proj, layer.out_proj):
        module.register_forward_hook(lambda module, *_: called.append(module))
    decode(layer, x[:, 8:9], 1, state)
    assert ways.short == 4 and len(called) == 4


@pytest.mark.parametrize("name", ("forward", "__call__"))
def test_classes_that_somebody_changed_compute_as_he_wants(name, ways, monkeypatch):
    layer, x = make(), torch.randn(1, 12, 32)
    _, state = decode(layer, x[:, :8], 4)
    own, kind = getattr(torch.nn.Linear, name), torch.nn.Module if name == "__call__" else torch.nn.Linear

    def doubled(self, *given, **named):
        out = own(self, *given, **named)
        return 2 * out if isinstance(self, torch.nn.Linear) else out

    monkeypatch.setattr(kind, name, doubled)
    found = decode(layer, x[:, 8:], 1, copy.copy(state))[0]
    ways.closed = True
    assert torch.equal(found, decode(layer, x[:, 8:], 1, state)[0])
    assert ways.short == 6  # products alone are left to the modules


class OfItsOwn(torch.nn.Parameter):
    """A type of tensor, as quantising and sharding have them."""


def offload(layer):
    """Bring the frequency's tensors for its calls alone, as accelerate's hooks do."""
    frequency, held = layer.frequency, dict(layer.frequency.named_parameters())
    own, forward = {name: p.to("meta") for name, p in held.items() if "." not in name}, frequency.forward

    def loaded(*arguments):
        for name in own:
            frequency._parameters[name] = held[name]
        out = forward(*arguments)
        for name, p in own.items():
            frequency._parameters[name] = torch.nn.Parameter(p)
        return out

    for name, p in own.items():
        frequency._parameters[name] = torch.nn.Parameter(p)
    frequency.forward = loaded


@pytest.mark.parametrize(
    "change",
    (
        offload,
        lambda layer: layer._parameters.update(raw_coupling=OfItsOwn(layer.raw_coupling.detach())),
    ),
)
def test_tensors_that_stand_nowhere_are_not_looked_at(change, ways):
    layer, x = make(), torch.randn(1, 12, 32)
    expected, _ = decode(layer, x, 4)
    change(layer)
    found, _ = decode(layer, x, 4)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("bad", (float("nan"), float("inf")))
def test_bad_numbers_are_refused_and_nothing_changes(bad, ways):
    layer, x = make(token_shift=True), torch.randn(1, 12, 32)
    _, state = decode(layer, x[:, :8], 4)
    before = copy.copy(state)
    with pytest.raises(ValueError, match="receive must hold finite frequencies"):
        decode(layer, torch.full((1, 1, 32), bad), 1, state)
    assert_same_state(state, before)
    found = decode(layer, x[:, 8:], 1, state)[0]
    assert torch.equal(found, decode(layer, x, 4)[0][:, 8:])


def test_a_layer_that_fails_at_its_end_leaves_the_past(ways):
    layer, x = make(token_shift=True), torch.randn(1, 12, 32)
    _, state = decode(layer, x[:, :8], 4)
    before = copy.copy(state)

    def fail(*_):
        raise RuntimeError("at the end")

    handle = layer.out_proj.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="at the end"):
        decode(layer, x[:, 8:9], 1, state)
    handle.remove()
    assert_same_state(state, before)
    assert torch.equal(decode(layer, x[:, 8:], 1, state)[0], decode(layer, x, 4)[0][:, 8:])


@pytest.mark.parametrize(
    "other",
    (
        {"top_k": 3},
        {"power": 3},
        {"short_convolution": 3, "token_shift": False},
        {"nearest_gate": True, "frame": "absolute"},
    ),
)
def test_other_layers_are_left_to_the_long_way(other, ways):
    decode(make(**other), torch.randn(1, 8, 32), 4)
    assert ways.short == 0


def test_other_calls_are_left_to_the_long_way(ways):
    layer, x = make(), torch.randn(2, 1, 32)
    _, state = decode(layer, torch.randn(2, 8, 32), 4)
    assert ways.short == 3
    with torch.no_grad():
        layer(x, is_causal=True, state=copy.copy(state), need_weights=True)
        layer(x, is_causal=True, state=copy.copy(state), key_padding_mask=torch.tensor([[True], [False]]))
        layer(x, is_causal=True, state=copy.copy(state), positions=torch.full((1, 1, 1), 9))
        with syncattn.use_backend("tiled"):
            layer(x, is_causal=True, state=copy.copy(state))
        with torch.autocast("cpu", torch.bfloat16):
            layer(x, is_causal=True, state=copy.copy(state))
        recorded = copy.copy(state)
        recorded.steps = []
        layer(x, is_causal=True, state=recorded)
        with pytest.raises(ValueError, match="batch"):
            layer(x[:1], is_causal=True, state=state)
    layer(x, is_causal=True, state=copy.copy(state))[0].sum().backward()
    assert ways.short == 3


def test_what_was_prepared_is_not_copied(ways):
    _, state = decode(make(), torch.randn(1, 8, 32), 4)
    assert state.decoding is not None and copy.deepcopy(state).decoding is None
