"""The kernels compile for a GPU that is not there: the interpreter takes programs that the compiler
refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).parent / "ahead_of_time.py"


# Of the layer's form, m 16, d 64: instructions of a thread for each pair, a quarter above what was found.
MOST = {"forward_kernel": 14, "receivers_kernel": 28, "senders_kernel": 34}
# Of the layer's form, while a text grows from 5 to 4,096 tokens, or is decoded: with and without lists, their
# order, and whole tiles. One more is an argument that should not be specialized.
VARIANTS = {
    "frame_kernel": 1, "arrange_kernel": 4, "nearest_kernel": 1, "lists_kernel": 2, "order_kernel": 1,
    "forward_kernel": 6,
    "receivers_kernel": 6, "senders_kernel": 6, "nearest_part_kernel": 1, "part_kernel": 1,
    "combine_kernel": 1,
}  # fmt: skip


def test_they_compile_for_hopper_to_few_instructions_on_tensor_cores():
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, str(SCRIPT), "90", "fp32", "layer", "decode", "variants"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if "cannot find" in result.stderr or ("ptxas" in result.stderr and result.returncode):
        pytest.skip(f"ptxas does not run here: {result.stderr[-200:]}")
    assert result.returncode == 0, result.stderr[-3000:] + result.stdout[-3000:]
    found = {}
    first, *lines = map(json.loads, result.stdout.splitlines())
    assert first["variants"] == VARIANTS
    for one in lines:
        assert one["registers"] <= 255 and one["shared"] <= 227 * 1024
        assert one["never set"] == [], one  # the assembler's fault, which wrong results follow from
        if not one.get("for_far"):
            found[one["kernel"]] = one
            assert one["spilled"] <= 128, one
    for name in ("forward_kernel", "receivers_kernel", "senders_kernel", "nearest_kernel"):
        assert found[name]["HGMMA"] > 0, name  # Hopper's own matrix instruction
    for name, most in MOST.items():
        assert found[name]["loop"]["all"] <= most, found[name]
    assert {"lists_kernel", "arrange_kernel", "part_kernel", "combine_kernel"} <= found.keys()
