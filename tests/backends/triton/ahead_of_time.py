"""Compiles the kernels that calls would launch for a GPU that is not there, and says what they need.

    python ahead_of_time.py [sm, 90] [case ...] [table] [variants]

One line of JSON for each kernel: registers and spilled bytes of a thread, shared memory of a program, and of
the loop over pairs the instructions of a thread for each of its pairs, in all and by what executes them (what
only some tiles need, at the diagonal or with nearest senders in them, is left out). "never set" are the
instructions that read what nothing wrote, a fault of the assembler: the exit status is then 1. The launch
code runs on meta tensors; what it would launch is compiled as Triton's own launcher would, where
TRITON_INTERPRET is not set. "table" is a case for each of launch.py's block sizes.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from machine_code import never_set
from triton._utils import find_paths_if, get_iterable_path
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend
from triton.runtime import jit

HALF = torch.bfloat16
# name: (B, H, N, M, m, d, dtype of receive, dtype of value, options)
CAUSAL = {"is_causal": True, "self_coupling": False, "power": 2}
EVERYTHING = CAUSAL | {"frame": "nearest", "edge": 0.1, "dropout_p": 0.6, "masked": True, "same": True}
CASES = {
    "layer": (2, 8, 4096, 4096, 16, 64, HALF, HALF, CAUSAL | {"frame": "nearest", "same": True}),
    "gated": (2, 8, 4096, 4096, 16, 64, HALF, HALF, CAUSAL | {"frame": "nearest", "same": True, "gated": 1}),
    "gated, m8": (1, 8, 1000, 1000, 8, 64, HALF, HALF, {"frame": "nearest", "power": 2, "gated": 1}),
    "m8": (2, 8, 4096, 4096, 8, 64, torch.float32, HALF, {"power": 2, "same": True}),
    "paper": (2, 8, 1024, 1024, 64, 64, HALF, HALF, {"same": True}),
    "fp32": (1, 8, 1000, 1000, 16, 64, torch.float32, torch.float32, {"edge": 0.01, "dropout_p": 0.1}),
    "wide": (1, 8, 2048, 2048, 128, 128, HALF, torch.float16, {"power": 2, "dropout_p": 0.1}),
    "d128": (2, 8, 4096, 4096, 16, 128, HALF, HALF, CAUSAL | {"frame": "nearest", "same": True}),
    "d256": (1, 8, 1000, 1000, 8, 256, HALF, HALF, {"power": 2, "masked": True}),
    "d256 fp32": (1, 8, 1000, 1000, 8, 256, torch.float32, torch.float32, {"power": 2}),
    "d128 fp32": (1, 8, 1000, 1000, 8, 128, torch.float32, torch.float32, {"power": 2}),
    "m32": (2, 8, 4096, 4096, 32, 64, torch.float32, HALF, {"power": 2}),
    "m16": (2, 8, 4096, 4096, 16, 64, torch.float32, HALF, {"power": 2, "same": True}),
    "largest": (1, 8, 1000, 1000, 128, 256, HALF, HALF, {"power": 2}),
    "largest fp32": (1, 8, 1000, 1000, 128, 256, torch.float32, torch.float32, {"power": 2}),
    "ones": (1, 1, 5, 5, 1, 1, torch.float32, torch.float32, EVERYTHING),
    "ones, directed": (1, 1, 5, 7, 20, 1, HALF, torch.float16, EVERYTHING | {"edge": 0.0, "same": False}),
    "one to one": (1, 1, 1, 1, 1, 1, torch.float32, torch.float32, EVERYTHING),
    "padded": (2, 8, 4096, 4096, 20, 64, HALF, HALF, {"frame": "nearest", "same": True, "masked": "senders"}),
    "packed": (2, 8, 4096, 4096, 16, 64, HALF, HALF, CAUSAL | {"frame": "nearest", "same": True, "texts": 1}),
    "packed, masked": (2, 8, 1000, 1000, 8, 64, HALF, HALF, {"power": 2, "masked": True, "texts": 2}),
    "packed, decode": (4, 8, 1, 4096, 16, 64, HALF, HALF, CAUSAL | {"frame": "nearest", "texts": 4}),
    "sorted": (1, 8, 20000, 30000, 16, 64, HALF, HALF, {"frame": "nearest", "power": 2, "dropout_p": 0.1}),
    "long": (1, 8, 100000, 100000, 16, 64, HALF, HALF, CAUSAL | {"frame": "nearest", "same": True}),
    "decode": (4, 8, 1, 4096, 16, 64, HALF, HALF, CAUSAL | {"frame": "nearest"}),
    # a model's step with a cache of fixed size: the mask says which places are filled
    "fixed": (4, 8, 1, 4096, 16, 64, torch.float32, HALF, {"frame": "nearest", "power": 2, "masked": True}),
}


def of_table():
    """A case for each of the block sizes, with few, some and many coordinates."""
    from syncattn.backends.triton.blocks import BLOCKS

    dtypes = {2: (HALF, HALF), 4: (torch.float32, torch.float32)}
    return {
        f"d{d} m{m} {dtypes[size][1]}": (1, 8, 1000, 1000, m, d, *dtypes[size], {"power": 2})
        for d, size, few in BLOCKS
        for m in ((8,) if few else (64, 128))
    }


def launches(case, backward=True):
    """[(kernel, arguments by name, num_warps, num_stages)] of one call on tensors without content."""
    from syncattn.backends.call import prepare
    from syncattn.backends.triton import passes

    found = []

    def record(self, *args, grid, warmup, **kwargs):
        options = {k: kwargs.pop(k) for k in ("num_warps", "num_stages", "maxnreg") if k in kwargs}
        given = {*self.arg_names[: len(args)], *kwargs}
        assert given == {*self.arg_names}, (self.__name__, given ^ {*self.arg_names})
        found.append((self, dict(zip(self.arg_names, args)) | kwargs, options))

    batch, heads, queries, keys, m, d, freq, dtype, options = case
    options = dict(options)
    made = {"dtype": freq, "device": "meta"}
    receive = torch.empty(batch, heads, queries, m, **made)
    send = receive if options.pop("same", False) else torch.empty(batch, heads, keys, m, **made)
    value = torch.empty(batch, heads, keys, d, dtype=dtype, device="meta")
    law = (torch.empty(heads, device="meta") for _ in ("coupling", "bandwidth"))
    masked, mask = options.pop("masked", None), None  # by pair, or only "senders"
    if masked:
        rows = 1 if masked == "senders" else queries
        mask = torch.empty(1, 1, rows, keys, dtype=torch.bool, device="meta")
    texts, ids = options.pop("texts", None), None  # rows of ids
    gated = options.pop("gated", None)  # whether the nearest senders' D has a gradient
    if texts:
        ids = torch.empty(texts, keys, dtype=torch.int64, device="meta")
    call = prepare(receive, send, value, *law, attn_mask=mask, sequence_ids=ids, **options)
    if call.dropout_p:
        call = call._replace(seed=torch.empty((), dtype=torch.int64, device="meta"))
    run, jit.JITFunction.run = jit.JITFunction.run, record
    try:
        out, *saved = passes.forward(call)
        if backward and queries > 1:
            asked = torch.empty_like(saved[1]) if gated else None
            passes.backward(call, torch.empty_like(out), out, *saved, asked)
    finally:
        jit.JITFunction.run = run
    return found


def specialized(kernel, arguments, target):
    """What Triton's own launcher makes of the arguments: types, what is constant, what is divisible."""
    backend = make_backend(target)
    bind = jit.create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, found, _ = bind(**arguments)
    return backend, bound, found


def compiled(kernel, arguments, options, target):
    backend, bound, found = specialized(kernel, arguments, target)
    types, values = [x[0] for x in found], ["" if x[0] == "constexpr" else x[1] for x in found]
    at = lambda tree, path: get_iterable_path(tree, path)  # noqa: E731
    constants = {x: at([*bound.values()], x) for x in find_paths_if(types, lambda _, t: t == "constexpr")}
    divisible = find_paths_if(values, lambda _, v: isinstance(v, str) and v != "")
    attributes = {x: backend.parse_attr(at(values, x)) for x in divisible}
    signature = dict(zip(kernel.arg_names, types, strict=True))
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=target, options=options)


def dumped(binary, *options):
    """What cuobjdump says of the machine code."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        return [
            subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in options
        ]


def resources(binary):
    """What the machine code of a kernel needs, and how many of some instructions it holds."""
    usage, sass = dumped(binary, "--dump-resource-usage", "--dump-sass")
    found = {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "spilled": int(re.search(r"STACK:(\d+)", usage)[1]),  # nothing else of ours is there
        "shared": binary.metadata.shared,
    }
    for name in ("HGMMA", "HMMA"):
        found[name] = len(re.findall(rf"\s{name}", sass))
    return found | {"never set": never_set(sass), "loop": loop_of(sass)}


PIPES = {
    "tensor": "HGMMA HMMA",
    "special": "MUFU F2F I2F F2I",
    "float": "FFMA FMUL FADD FSETP FSEL FMNMX FSET",
    "memory": "LDS STS LDSM STSM LDGSTS LDG STG LDL STL LDGDEPBAR DEPBAR",
    "waiting": "WARPGROUP BAR WARPSYNC FENCE MEMBAR NOP BRA BSSY BSYNC",
}


def loop_of(sass):
    """The instructions of the longest loop with a product of matrices, by what executes them; empty if there
    is none. What a conditional branch may skip is left out."""
    code = []
    for line in sass.splitlines():
        if found := re.search(r"/\*([0-9a-f]{4,5})\*/\s+(@!?U?P\w+\s+)?([A-Z0-9.]+)([^;]*);", line):
            to = re.search(r"0x([0-9a-f]+)", found[4]) if found[3].startswith("BRA") else None
            code.append((int(found[1], 16), found[2], found[3].split(".")[0], to and int(to[1], 16)))
    loops = [[x for x in code if to <= x[0] <= at] for at, _, _, to in code if to is not None and to < at]
    loop = max((x for x in loops if any("MMA" in y[2] for y in x)), key=len, default=[])
    found, resume = {}, 0
    for at, condition, name, to in loop:
        if at < resume:
            continue
        if condition and to is not None and at < to <= loop[-1][0]:
            resume = to
        pipe = next((p for p, names in PIPES.items() if name in names.split()), "integer")
        found[pipe] = found.get(pipe, 0) + 1
    return found


def per_pair(kernel, loop, arguments, options):
    """The instructions of one turn of a loop, for each pair that a thread has in it."""
    tile = arguments["TILE"]
    pairs = tile.QUERIES.value * (tile.KEYS if kernel == "nearest_kernel" else tile.WALK).value
    share = 32 * options.get("num_warps", 4) / pairs
    found = {"all": sum(loop.values()) * share} | {name: n * share for name, n in sorted(loop.items())}
    return {name: round(n, 2) for name, n in found.items()}


def variants(lengths, decoding, target):
    """How many times each kernel is compiled while a text of the layer's form grows, or is decoded."""
    from syncattn.backends.triton.start import _described

    found, by_key = {}, {}
    for n in lengths:
        options = CAUSAL | {"frame": "nearest", "same": not decoding}
        case = (2, 8, 1 if decoding else n, n, 16, 64, HALF, HALF, options)
        for kernel, arguments, options in launches(case):
            kinds = found.setdefault(kernel.__name__, set())
            kinds.add(kind := str(specialized(kernel, arguments, target)[2]) + str(options))
            constants = {kernel.arg_names[i] for i in kernel.constexprs}
            key = [kernel, *(x for name, x in arguments.items() if name in constants), *options.values()]
            _described(tuple(x for name, x in arguments.items() if name not in constants), key)
            assert by_key.setdefault(tuple(key), kind) == kind, (kernel, "start.py would take another kernel")
    return {name: len(kinds) for name, kinds in found.items()}


def main(sm, names):
    import syncattn  # noqa: F401

    assert "syncattn.backends.triton.passes" not in sys.modules, "importing the package loads the kernels"
    for case in CASES.values():  # that every launch gives a kernel what it takes costs nothing to know
        launches(case)
    target = GPUTarget("cuda", sm, 32)
    if "variants" in names:
        growing = variants([*range(5, 200, 3), 256, 300, 1024, 4096], False, target)
        print(json.dumps({"variants": growing | variants(range(1, 200, 7), True, target)}), flush=True)
    wrong, cases = False, CASES | (table := of_table())
    names = [x for x in names if x not in ("variants", "table")] + [*table] * ("table" in names)
    for name in names or CASES:
        for kernel, arguments, options in launches(cases[name]):
            binary = compiled(kernel, arguments, options, target)
            direct = getattr(arguments.get("TILE"), "DIRECT", None)
            line = {"case": name, "kernel": kernel.__name__, **options, **resources(binary)}
            if "DIRECT" in arguments:  # the launch that few tiles need, beside the one for all others
                line["for_far"] = arguments["DIRECT"] and not direct.value
            if line["loop"]:
                line["loop"] = per_pair(kernel.__name__, line["loop"], arguments, options)
            print(json.dumps(line), flush=True)
            wrong |= bool(line["never set"])
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 90, sys.argv[2:]))
