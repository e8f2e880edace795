"""torch's default dtype and default device change no result."""

import ast
import math
from pathlib import Path

import pytest
import torch
from torch.utils._device import _device_constructors

import syncattn
from syncattn import kuramoto, locking
from syncattn.models import OSNConfig, OSNForCausalLM
from syncattn.nn import SelectiveSynchronizationAttention

SOURCE = Path(syncattn.__file__).parent
FILES = [
    *(SOURCE / f"{name}.py" for name in ("functional", "locking", "special_functions")),
    *(path for folder in ("backends", "nn", "kuramoto") for path in (SOURCE / folder).rglob("*.py")),
]
FACTORIES = {function.__name__ for function in _device_constructors()} - {"range"} | {"normal"}
LEGACY = {f"{name}Tensor" for name in ("", "Half", "BFloat16", "Float", "Double", "Int", "Long", "Bool")}


def hidden_defaults(source):
    """The calls that leave a dtype or a device to torch's defaults."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        function = ast.unparse(node.func)
        name = function.removeprefix("torch.")
        given = {keyword.arg for keyword in node.keywords}  # None: **something
        numbers = [isinstance(x, ast.Constant | ast.UnaryOp) for x in node.args]
        if (
            (name in FACTORIES and not {"dtype", "device"} <= given and None not in given)
            or (name in LEGACY and function != name)
            or (name == "Generator" and not node.args and "device" not in given)
            or (name == "where" and numbers[1:] == [True, True])  # two numbers have the default dtype
        ):
            yield ast.unparse(node)


def test_every_factory_names_dtype_and_device():
    """Native code and kernels write where they are told to: a buffer of another dtype, or on another device,
    is memory that is not theirs."""
    found = {str(path): list(hidden_defaults(path.read_text())) for path in FILES}
    assert not {path: calls for path, calls in found.items() if calls}
    assert len(FILES) > 30


@pytest.mark.parametrize(
    "line",
    [
        "torch.empty(3)",
        "torch.empty(3, dtype=d)",
        "from torch import zeros; zeros(3, device=d)",
        "torch.as_tensor(x)",
        "torch.Generator()",
        "torch.where(x, 1.0, -1.0)",
        "torch.FloatTensor(3)",
    ],
)
def test_the_search_finds(line):
    assert list(hidden_defaults(line))
    assert not list(hidden_defaults("torch.empty(3, dtype=d, device=e); torch.zeros(3, **f); x.new_zeros(3)"))


def test_closed_forms(same_under_all_defaults):
    numbers = torch.tensor([0.1, 0.4, 0.9])

    def compute():
        return [
            locking.locking_radius(numbers, 0.5),
            locking.synchronization(numbers, 2.0, 0.3, 0.1),
            locking.lambert_w0(numbers),
            locking.gaussian_density(numbers, 300),
            locking.gaussian_radius(numbers, 300),
            *locking.calibrate(numbers, 16, 100.0),
            *locking.calibrate_from_detuning(numbers[None], 0.5, 100.0),
            locking.density_ladder(0.1, 0.5, 3, dtype=torch.float32, device="cpu"),
            syncattn.order_parameter(numbers.view(1, 1, 3, 1), is_causal=True),
        ]

    same_under_all_defaults(compute)


def test_numbers_alone_give_the_default_dtype_on_the_default_device():
    with torch.device("meta"):
        assert locking.locking_radius(2.0, 0.5).is_meta and locking.density_ladder(0.1, 0.5, 1).is_meta
        with pytest.raises(ValueError, match="coupling must be positive"):
            locking.locking_radius(-2.0, 0.5)


def test_oscillators(same_under_all_defaults):
    phase, frequency = torch.linspace(0, 1, 5), torch.linspace(-0.5, 1, 5)

    def compute():
        run = kuramoto.simulate(phase, frequency, 0.7, duration=0.2, pairs=True)
        quantiles = kuramoto.midpoint_quantiles(kuramoto.gaussian(), 5)
        return [run.phase, run.order_parameter, quantiles, kuramoto.vector_fixed_point(frequency[None], 2.0)]

    same_under_all_defaults(compute)


def gradients_of(module, out):
    module.zero_grad()
    out.float().square().mean().backward()
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


@pytest.mark.parametrize("causal", [True, False])
def test_a_layer(causal, same_under_all_defaults):
    """Built and run: the same weights, output, gradients and densities."""
    x = torch.randn(2, 30, 24)
    mask = torch.arange(30) >= torch.tensor([[30], [21]])

    def compute():
        torch.manual_seed(0)
        layer = SelectiveSynchronizationAttention(24, 4, token_shift=True, device="cpu", dtype=torch.float32)
        weights = [p.detach().clone() for p in layer.state_dict().values()]
        out, _ = layer(x, key_padding_mask=mask, is_causal=causal)
        layer.calibrate_(x, is_causal=causal, density_range=(0.3, 0.6))
        return [
            *weights,
            out.detach(),
            *gradients_of(layer, out),
            layer.locked_density(x),
            layer.raw_coupling,
        ]

    same_under_all_defaults(compute)


def test_a_model(same_under_all_defaults):
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = OSNForCausalLM(OSNConfig(**sizes))
    ids = torch.arange(24)[None]

    def compute():
        out = model(ids, labels=ids)
        return [out.logits, out.loss, *gradients_of(model, out.logits)]

    same_under_all_defaults(compute)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_model_made_of_the_default_dtype(dtype):
    """Its parameters have it, and it starts and answers as one of float32 does, up to rounding."""
    sizes = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids, losses = torch.arange(24)[None], []
    for default in (torch.float32, dtype):
        torch.set_default_dtype(default)
        try:
            torch.manual_seed(0)
            model = OSNForCausalLM(OSNConfig(**sizes))
            loss = model(ids, labels=ids).loss
            loss.backward()
        finally:
            torch.set_default_dtype(torch.float32)
        assert {p.dtype for p in model.parameters()} == {default}
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        losses.append(loss.item())
    assert losses[1] == pytest.approx(math.log(32), rel=0.2)
    assert dtype == torch.float64 or losses[1] == pytest.approx(losses[0], rel=0.01)  # it draws other numbers


def test_a_model_made_on_the_meta_device():
    with torch.device("meta"):
        model = OSNForCausalLM(OSNConfig(vocab_size=32, hidden_size=32, num_hidden_layers=1))
    assert all(x.is_meta for x in model.state_dict().values())
