"""The Triton kernels on a CPU, in Triton's interpreter, with tiles so small that few tokens make several; on
a GPU as they are launched there. The interpreter takes a tenth of a millisecond for each operation on a
tile: everything here is tiny."""

import pytest
import torch

from syncattn.backends.call import prepare

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """The module launch.py, with small tiles where the interpreter runs."""
    if not GPU:
        pytest.importorskip("triton")
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        _mend_interpreter(monkeypatch)
    from syncattn.backends import triton

    if (reason := triton.unavailable()) is not None:
        pytest.skip(reason)
    from syncattn.backends.triton import launch

    if not GPU:
        small_tiles(monkeypatch, launch)
    return launch


def small_tiles(monkeypatch, launch, tile=32, walk=32):
    for table in (launch.FORWARD, launch.BACKWARD):
        for key in table:
            monkeypatch.setitem(table, key, launch.Blocks(tile, walk, 4, 1))


def _mend_interpreter(monkeypatch):
    """Loop bounds under numpy 2.4, which Triton 3.6 does not know (triton#9171); and each function called by
    a kernel prepared once a launch, not once a call."""
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor
    launch = interpreter.GridExecutor.__call__
    prepared = set()

    def with_index(tensor, scope):
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    def launched(self, *args, **kwargs):
        prepared.clear()
        return launch(self, *args, **kwargs)

    def called(self, *args, **kwargs):
        if self.fn not in prepared:
            interpreter._patch_lang(self.fn)
            prepared.add(self.fn)
        return self.rewrite()(*args, **kwargs)

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", with_index)
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launched)
    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", called)


@pytest.fixture
def device():
    return DEVICE


@pytest.fixture
def walked_in_pieces(kernels, monkeypatch):
    """Tiles of which half is walked at a time, as the backward does on a GPU."""
    if not GPU:
        small_tiles(monkeypatch, kernels, 32, 16)


@pytest.fixture
def tiles_of(kernels, monkeypatch):
    """Sets the tokens of a tile and how many are walked at a time, on a GPU as well."""
    return lambda tile, walk: small_tiles(monkeypatch, kernels, tile, walk)


@pytest.fixture
def arguments_of():
    """The operators' arguments of a call, on the device; no seed."""

    def make(inputs, device, **options):
        call = prepare(*inputs, **options)
        tensors = [x.to(device) for x in (call.receive, call.send, call.value, call.coupling, call.bandwidth)]
        if call.symmetric:
            tensors[1] = tensors[0]
        mask = None if call.mask is None else call.mask.to(device)
        nearest, power = call.frame == "nearest", int(call.power)
        flags = (call.is_causal, call.self_coupling, 0.0, nearest, power, call.edge, call.eps, call.symmetric)
        return [*tensors, mask, None, *flags]

    return make
