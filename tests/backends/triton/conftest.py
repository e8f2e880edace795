"""The Triton kernels on a CPU, in Triton's interpreter, with tiles so small that few tokens make several; on
a GPU as they are launched there. The interpreter takes a tenth of a millisecond for each operation on a
tile: everything here is tiny."""

import sys
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

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
    from syncattn.backends.triton import operator

    if (reason := operator.unavailable()) is not None:
        pytest.skip(reason)
    from syncattn.backends.triton import launch

    if not GPU:
        small_tiles(monkeypatch)
    return launch


def small_tiles(monkeypatch, queries=32, walk=32, keys=None):
    from syncattn.backends.triton.blocks import BLOCKS, Blocks, Kernels

    blocks = Blocks(queries, keys or queries, walk, 4, 2)
    for key in BLOCKS:
        monkeypatch.setitem(BLOCKS, key, Kernels(blocks, blocks, blocks))


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
        small_tiles(monkeypatch, 32, 16)


@pytest.fixture
def tiles_of(kernels, monkeypatch):
    """Sets the tokens of a tile, how many are walked at a time, and the tokens of a tile of senders if they
    are others, on a GPU as well."""
    return lambda *sizes: small_tiles(monkeypatch, *sizes)


@pytest.fixture
def call_of():
    """A checked call, on the device; no seed."""

    def make(inputs, device, **options):
        call = prepare(*inputs, **options)
        tensors = [x if x is None else x.to(device) for x in call[:6]]
        if call.symmetric:
            tensors[1] = tensors[0]
        return call._make([*tensors, *call[6:]])

    return make


class Rows(NamedTuple):
    """A group of arguments, as the kernels take them."""

    base: Any
    batch: int
    head: int
    token: int


class Compiled:
    """A compiled kernel that notes what it is started with."""

    function, packed_metadata = 1, 2

    def __init__(self):
        self.started = []

    def run(self, *arguments):
        self.started.append(arguments)


class Kernel:
    """What Triton makes of a function: launched with a grid, it gives what it compiled."""

    def __init__(self):
        self.arg_names = ["x", "rows", "tokens", "eps", "BLOCK"]
        self.fn = lambda: None
        self.compiled = []

    def __getitem__(self, grid):
        def launch(*arguments, **constants):
            self.compiled.append(Compiled())
            return self.compiled[-1]

        return launch


@pytest.fixture
def stubs():
    """Kernels that are started and do nothing, for tests of how the host starts them."""
    return SimpleNamespace(Kernel=Kernel, Rows=Rows)


class Argument(NamedTuple):
    """A tensor of a launch, as its kernel may use it."""

    name: str
    base: int  # its first element's address
    size: int  # bytes of an element
    elements: np.ndarray  # which of the places from base on are elements of the tensor: bool
    storage: int  # the address of its storage,
    length: int  # and how many bytes that has


# In the upper bits of a pointer stands which argument it came from: addresses of a process have 47.
_TAG = np.uint64(48)


@pytest.fixture
def checked_addresses(kernels, monkeypatch):
    """A list of what kernels and torch did that is no error here and one on a GPU: memory read that nobody
    wrote, and written twice, or read and written, by one launch. An access beyond the elements of the tensor
    that its pointer was made from fails at once."""
    if GPU:
        pytest.skip("about the interpreter")
    from triton.runtime import interpreter

    from syncattn.backends.triton import passes

    found: list[str] = []
    written: dict = {}  # storages allocated without values: which elements were written since, by first byte
    launch: dict = {}

    def report(argument, what):
        message = f"{_place()}: {argument.name}: {what}"
        if message not in found:
            found.append(message)

    def begin(self, args, kwargs):
        names = []
        for name, x in zip(self.arg_names, args):
            if isinstance(x, torch.Tensor):
                names.append(name)
            elif isinstance(x, tuple):  # a group of arguments
                fields = zip(x._fields, x, strict=True)
                names += [f"{name}.{field}" for field, y in fields if isinstance(y, torch.Tensor)]
        assert not any(isinstance(x, torch.Tensor) for x in kwargs.values())
        launch.update(names=names, arguments=[], writers={}, readers={})
        return list(args), kwargs  # on the host already

    def converted(x):
        result = convert(x)
        if isinstance(x, torch.Tensor):
            arguments = launch["arguments"]
            arguments.append(_argument_of(launch["names"][len(arguments)], x))
            result.handle.data = result.handle.data + (np.uint64(len(arguments)) << _TAG)
        return result

    def checked(pointers, mask, size):
        """The untagged pointers; the argument, and the offsets in its storage of what is not masked."""
        tag = int(pointers.data.flat[0] >> _TAG)
        assert tag and (pointers.data >> _TAG == tag).all(), "these pointers came from no tensor"
        argument = launch["arguments"][tag - 1]
        real = pointers.data - (np.uint64(tag) << _TAG)
        assert size == argument.size, f"{argument.name} has elements of {argument.size} bytes, not {size}"
        used = real[np.broadcast_to(mask.data.astype(bool), real.shape)].astype(np.int64)
        place, rest = np.divmod(used - argument.base, size)
        outside = (place < 0) | (place >= len(argument.elements)) | (rest != 0)
        outside[~outside] = ~argument.elements[place[~outside]]
        if outside.any():
            where = np.unique(place[outside])[:8].tolist()
            raise AssertionError(
                f"{_place()}: {argument.name}: {outside.sum()} of {len(place)} accesses are"
                f" outside of its elements, at {where} of {len(argument.elements)}"
            )
        return interpreter.TensorHandle(real, pointers.dtype), argument, used - argument.storage

    def this_program(who, argument):
        """Its number, from 1 on, and who among the programs of the launch did it to each byte."""
        x, y, z = interpreter.interpreter_builder.grid_idx
        _, rows, columns = interpreter.interpreter_builder.grid_dim
        if argument.storage not in launch[who]:
            launch[who][argument.storage] = np.zeros(argument.length, np.int32)
        return 1 + (x * rows + y) * columns + z, launch[who][argument.storage]

    def loaded(self, pointers, mask, *rest):
        size = np.dtype(interpreter._get_np_dtype(pointers.get_element_ty())).itemsize
        pointers, argument, offsets = checked(pointers, mask, size)
        if argument.storage in written and not written[argument.storage][offsets].all():
            report(argument, "reads what nobody wrote")
        program, readers = this_program("readers", argument)
        if this_program("writers", argument)[1][offsets].any():
            report(argument, "reads what the same launch wrote")
        readers[offsets] = np.where((readers[offsets] == 0) | (readers[offsets] == program), program, -1)
        return load(self, pointers, mask, *rest)

    def stored(self, pointers, value, mask, *rest):
        pointers, argument, offsets = checked(pointers, mask, value.data.itemsize)
        program, writers = this_program("writers", argument)
        if writers[offsets].any() or len(np.unique(offsets)) < len(offsets):
            report(argument, "is written twice")
        readers = this_program("readers", argument)[1][offsets]
        if ((readers != 0) & (readers != program)).any():
            report(argument, "is written after another program has read it")
        writers[offsets] = program
        if argument.storage in written:
            written[argument.storage][offsets] = True
        return store(self, pointers, value, mask, *rest)

    def watched(run):
        def ran(*arguments):
            with _Watch(written, found):
                results = run(*arguments)
            for i, x in enumerate(results):
                if not _is_written(written, x):
                    found.append(f"{run.__name__}: not all of result {i} was written")
            written.clear()
            return results

        return ran

    convert = interpreter._implicit_cvt
    load = interpreter.InterpreterBuilder.create_masked_load
    store = interpreter.InterpreterBuilder.create_masked_store
    monkeypatch.setattr(interpreter, "_implicit_cvt", converted)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_load", loaded)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_store", stored)
    monkeypatch.setattr(interpreter.GridExecutor, "_init_args_hst", begin)
    monkeypatch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *_: None)
    for run in (passes.forward, passes.backward):
        monkeypatch.setattr(passes, run.__name__, watched(run))
    return found


def _argument_of(name, x):
    span = 1 + sum((n - 1) * stride for n, stride in zip(x.shape, x.stride())) if x.numel() else 0
    elements = np.zeros(span, bool)
    if x.numel():
        strides = [stride * elements.itemsize for stride in x.stride()]
        np.lib.stride_tricks.as_strided(elements, x.shape, strides)[...] = True
    storage = x.untyped_storage()
    return Argument(name, x.data_ptr(), x.element_size(), elements, storage.data_ptr(), storage.nbytes())


def _place():
    """The innermost line of a kernel that is being interpreted, and the kernel."""
    frame, places = sys._getframe(), []
    while frame is not None:
        if "/syncattn/backends/triton/" in frame.f_code.co_filename:
            places.append(f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}")
        if frame.f_code.co_name.endswith("_kernel"):
            return f"{frame.f_code.co_name} {' < '.join(places)}"
        frame = frame.f_back
    return " < ".join(places)


def _first_bytes(flags, x):
    """Of the flags of a storage's bytes those of each element of x, its first byte's, in x's shape."""
    strides = [stride * x.element_size() for stride in x.stride()]
    return np.lib.stride_tricks.as_strided(flags[x.storage_offset() * x.element_size() :], x.shape, strides)


def _is_written(written, x):
    storage = x.untyped_storage().data_ptr()
    return x.numel() == 0 or storage not in written or bool(_first_bytes(written[storage], x).all())


class _Watch(TorchDispatchMode):
    """Keeps which elements torch writes of the storages that it allocates without values, and reports the
    operations that read others. A class, as torch wants a mode to be."""

    def __init__(self, written, found):
        super().__init__()
        self.written, self.found = written, found

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tensors = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        aliased = [(x, a.alias_info) for x, a in zip(args, function._schema.arguments)]
        changed = [x for x, alias in aliased if alias is not None and alias.is_write]
        views = any(x.alias_info is not None and not x.alias_info.is_write for x in function._schema.returns)
        if "empty" not in str(function) and not views:
            for x in tensors:
                if not any(x is y for y in changed) and not _is_written(self.written, x):
                    self.found.append(f"{function} reads what nobody wrote")
        result = function(*args, **(kwargs or {}))
        for x in changed:
            if x.numel() and x.untyped_storage().data_ptr() in self.written:
                _first_bytes(self.written[x.untyped_storage().data_ptr()], x)[...] = True
        known = {x.untyped_storage().data_ptr() for x in tensors}
        for x in torch.utils._pytree.tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.numel() and x.untyped_storage().data_ptr() not in known:
                storage = x.untyped_storage()
                self.written.pop(storage.data_ptr(), None)
                if "empty" in str(function):
                    self.written[storage.data_ptr()] = np.zeros(storage.nbytes(), bool)
        return result
