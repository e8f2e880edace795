"""What `never_set` finds in machine code."""

import runpy
from pathlib import Path

import pytest

MODULE = runpy.run_path(str(Path(__file__).parent / "machine_code.py"))
instructions, never_set, uniform_registers = (
    MODULE[name] for name in ("instructions", "never_set", "uniform_registers")
)


def listing(*lines):
    """As cuobjdump prints these instructions, 16 bytes apart."""
    return "\n".join(f"        /*{16 * i:04x}*/    {x} ;   /* 0x0 */" for i, x in enumerate(lines))


# What ptxas 12.8 made of one kernel, shortened: UR54 is an operand's address, UR26 was to be a copy.
WRONG = (
    "UIADD3 UR6, UR29, 0x2000, URZ",
    "USHF.R.U32.HI UR54, URZ, 0x4, UR6",
    "UIADD3 UR26, UP0, UR26, 0x20, URZ",
    "UIADD3.X UR27, UR27, -0x3ffffff0, URZ, UP0, !UPT",
    "HGMMA.64x16x16.F32.BF16 R88, R28, gdesc[UR24].tnspB, R88",
    "EXIT",
)


def test_it_finds_what_is_read_but_never_written():
    code = listing("UMOV UR29, 0x400", *WRONG)
    assert [x.split()[1] for x in never_set(code)] == ["UIADD3", "UIADD3.X"]
    code = listing("UMOV UR29, 0x400", *WRONG[:2], "UMOV UR26, UR54", "UMOV UR27, URZ", *WRONG[2:])
    assert never_set(code) == []


def test_what_some_way_has_set_is_set():
    branch = ("UMOV UR4, 0x1", "@P0 BRA 0x40", "UMOV UR5, UR4", "EXIT", "UIADD3 UR6, UR5, 0x1, URZ", "EXIT")
    assert never_set(listing(*branch)) == ["0x40 UIADD3 UR6, UR5, 0x1, URZ"]
    loop = ("BRA 0x30", "UIADD3 UR6, UR5, 0x1, URZ", "EXIT", "UMOV UR5, 0x1", "@P0 BRA 0x10", "EXIT")
    assert never_set(listing(*loop)) == []


@pytest.mark.parametrize(
    ("instruction", "read", "written"),
    [
        ("ULDC.64 UR8, c[0x0][0x278]", set(), {8, 9}),
        ("UIMAD.WIDE.U32 UR4, UR5, UR8, UR10", {5, 8, 10}, {4, 5}),
        ("UIADD3.64 UR18, UR14, 0x20, URZ", {14, 15}, {18, 19}),
        ("UISETP.GT.U32.AND UP1, UPT, UR11, UR4, UPT", {11, 4}, set()),
        ("R2UR UR16, R32", set(), {16}),
        ("STS.128 [R118+UR29+0x2000], R8", {29}, set()),
        ("LDG.E.128 R4, desc[UR58][R4.64]", {58, 59}, set()),
        ("HGMMA.64x64x16.F32 R56, gdesc[UR48], RZ, !UPT", {48, 49, 50, 51}, set()),
        ("HGMMA.64x16x16.F32.BF16 R96, R24, gdesc[UR48].tnspB, R96", {50, 51}, set()),
        ("BAR.SYNC.DEFER_BLOCKING 0x0", set(), set()),
        ("NOP", set(), set()),
    ],
)
def test_what_an_instruction_reads_and_writes(instruction, read, written):
    assert uniform_registers(*instructions(listing(instruction))) == (read, written)
