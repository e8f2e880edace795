"""What the machine code of a kernel says of the assembler: registers that nothing has set.

The assembler that Triton brings (ptxas 12.8) leaves out, now and then, the instruction that sets a uniform
register from which it computes descriptors of matrices for the tensor cores: a product of what lies
somewhere, or an access outside of memory, and nothing else tells of it. So the code is read: what an
instruction reads of uniform registers must have been written on some way to it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_LINE = re.compile(r"/\*([0-9a-f]{4,5})\*/\s+(@!?U?P\w+\s+)?([A-Z0-9][\w.]*)([^;]*);")
# Instructions with a uniform register as their first operand that is one, which they write.
_WRITES = re.compile(r"(U(?!ISETP|PLOP3|BL)[A-Z0-9]+|R2UR|S2UR|REDUX|CREDUX|VOTEU|LDCU)$")
_DESCRIPTOR = re.compile(r"(g?)desc\[UR(\d+)\]")
_UNIFORM = re.compile(r"\bUR(\d+)\b(\.64)?")


class Instruction(NamedTuple):
    """One of the disassembler's lines."""

    at: int
    condition: str  # "@P0", or empty
    name: str
    operands: str
    to: int | None  # where a branch goes


def instructions(sass: str) -> list[Instruction]:
    """Of what cuobjdump says."""
    found = []
    for line in sass.splitlines():
        if one := _LINE.search(line):
            at, condition, name, operands = one.groups()
            to = re.search(r"0x([0-9a-f]+)", operands) if name.split(".")[0] in ("BRA", "CALL") else None
            goes = int(to[1], 16) if to else None
            found.append(Instruction(int(at, 16), (condition or "").strip(), name, operands.strip(), goes))
    return found


def uniform_registers(one: Instruction) -> tuple[set[int], set[int]]:
    """The numbers of those that an instruction reads, and writes."""
    name, *kinds = one.name.split(".")
    operands = [x.strip() for x in one.operands.split(",")]
    written: set[int] = set()
    first = 0
    if _WRITES.match(name):
        width = 2 if {"64", "WIDE"} & {*kinds} else 4 if "128" in kinds else 1
        for place, operand in enumerate(operands):
            if found := re.fullmatch(r"UR(\d+)", operand):
                written = {*range(int(found[1]), int(found[1]) + width)}
            if found or operand == "URZ":
                first = place + 1
                break
            if not re.fullmatch(r"!?U?P\w+", operand):
                break
    read: set[int] = set()
    for operand in operands[first:]:
        for of_matrices, number in _DESCRIPTOR.findall(operand):
            n = int(number)
            if of_matrices and re.match(r"-?R\d", operands[1]):  # the left side is in registers
                read |= {n + 2, n + 3}
            else:
                read |= {*range(n, n + (4 if of_matrices else 2))}
        for number, pair in _UNIFORM.findall(_DESCRIPTOR.sub("", operand)):
            wide = pair or (name.startswith("U") and "64" in kinds)
            read |= {*range(int(number), int(number) + (2 if wide else 1))}
    return read, written


def never_set(sass: str) -> list[str]:
    """The instructions that read a uniform register which none has written on any way to them."""
    code = instructions(sass)
    place = {one.at: i for i, one in enumerate(code)}
    effects = [uniform_registers(one) for one in code]
    known: list[frozenset[int] | None] = [None] * len(code)  # what may be set when it starts
    todo = [(0, frozenset[int]())]
    while todo:
        i, here = todo.pop()
        while i < len(code):
            before = known[i]
            if before is not None and here <= before:
                break
            known[i] = here = here | (before or frozenset())
            here = here | effects[i][1]
            one = code[i]
            name = one.name.split(".")[0]
            if one.to in place:
                todo.append((place[one.to], here))
            may_skip = one.condition or re.match(r"!?U?P\d", one.operands)
            if name in ("BRA", "EXIT", "RET") and not may_skip:
                break
            i += 1
    return [
        f"{one.at:#x} {one.name} {one.operands}"
        for one, (read, _), here in zip(code, effects, known, strict=True)
        if here is not None and read - here
    ]
