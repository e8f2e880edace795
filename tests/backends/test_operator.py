"""The custom operators: one schema, in which a call arrives as it was sent."""

import pytest
import torch

from syncattn.backends.call import Call, prepare
from syncattn.backends.cpu import operator as cpu
from syncattn.backends.operator import SCHEMA, pack, unpack
from syncattn.backends.tiled import operator as tiled

OPTIONS = {
    "plain": {"power": 2},
    "everything": {
        "frame": "nearest",
        "is_causal": True,
        "self_coupling": False,
        "dropout_p": 0.2,
        "edge": 0.1,
    },
}
needs_kernel = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))


def make(options, dtype=torch.float32, layout="contiguous"):
    g = torch.Generator().manual_seed(0)
    receive, send, value = (torch.randn(2, 2, 9, n, generator=g).to(dtype) for n in (3, 3, 5))
    if layout == "transposed":
        receive, send, value = (
            x.transpose(1, 2).contiguous().transpose(1, 2) for x in (receive, send, value)
        )
    coupling, bandwidth = torch.rand(2, 2, 9, generator=g) + 1, torch.full((2,), 0.1)
    mask = torch.rand(1, 1, 9, 9, generator=g) > 0.2
    call = prepare(receive, send, value, coupling, bandwidth, attn_mask=mask, **options)
    return call._replace(seed=torch.tensor(5)) if call.dropout_p else call


def test_the_schema_names_the_fields_of_a_call():
    names = [argument.split()[-1] for argument in SCHEMA.split(", ")]
    assert names == list(Call._fields[:-2])


@pytest.mark.parametrize("name", OPTIONS)
def test_unpack_is_the_inverse_of_pack(name):
    call = make(OPTIONS[name])
    assert all(a is b or a == b for a, b in zip(unpack(*pack(call)), call, strict=True))


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("backend", ["tiled", pytest.param("cpu", marks=needs_kernel)])
def test_custom_operators_keep_their_contracts(backend, name, dtype, layout):
    """Schema, shapes, strides and dtypes of fake tensors, autograd registration, dynamic shapes."""
    if backend == "cpu" and dtype == torch.float64:
        pytest.skip("it computes in float32")
    operator = {"tiled": tiled, "cpu": cpu}[backend].OPERATOR
    options = OPTIONS[name] | ({"top_k": 3} if backend == "tiled" and name == "everything" else {})
    tensors = [x.detach() for x in make(options, dtype, layout)[:5]]
    options = make(options, dtype, layout)[5:-2]
    arguments = (*(x.clone().requires_grad_() for x in tensors), *options)
    torch.library.opcheck(operator.forward, arguments)
    with torch.no_grad():
        out, *saved = operator.forward(*arguments)
    nearest = saved[operator.nearest - 1]
    for grad in (None, torch.ones_like(nearest) if nearest.numel() else None):
        backward = (torch.randn_like(out), grad, out.detach(), *saved, *tensors, *options)
        torch.library.opcheck(operator.backward, backward, test_utils=("test_schema", "test_faketensor"))
