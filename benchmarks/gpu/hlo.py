"""What a compiled program reads and writes, counted from its text: every kernel's operands and results, once each.

XLA compiles to kernels (fusions, convolutions, products, copies); between them arrays lie in the device's memory. A
kernel that gathers a few rows is counted with all that it gathers from, and one that reads an operand twice with it
once, so that the sum is a model of the traffic and no measurement.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

SIZES = {"token": 0, "opaque": 0, "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2} | {
    f"{kind}{bits}": bits // 8 for kind in "suf" for bits in (32, 64)
}
# These move nothing: names for what is there already, or the second half of what was counted.
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id")
FREE += ("optimization-barrier",)

COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(.*)$")
ARRAY = re.compile(r"\b(\w+)\[([\d,]*)\]")


class Instruction(NamedTuple):
    """One line of a program."""

    name: str
    type: str  # bf16[256,56,56,64]{3,2,1,0}, or a tuple of such
    operation: str
    operands: list[str]
    rest: str  # attributes


class Kernel(NamedTuple):
    """One of the things that a program does, and how often."""

    name: str
    operation: str
    bytes: int  # of all times
    times: int
    of: str  # the JAX operation it comes from


def computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The computations of a program by name, and the name of the one that it begins with."""
    found: dict[str, list[Instruction]] = {}
    current, entry = "", ""
    for line in text.splitlines():
        if match := COMPUTATION.match(line):
            current = match[2]
            found[current] = []
            entry = current if match[1] else entry
        elif current and (match := INSTRUCTION.match(line)):
            name, kind, operation, operands, rest = match.groups()
            found[current].append(Instruction(name, kind, operation, re.findall(r"%([\w.\-]+)", operands), rest))
    if not entry:
        raise ValueError("this is no text of a compiled program: it has no ENTRY")
    return found, entry


def size(kind: str) -> int:
    """Bytes of a type, such as (f32[2,3]{1,0}, s32[])."""
    arrays = [(dtype, [int(n) for n in shape.split(",") if n]) for dtype, shape in ARRAY.findall(kind)]
    unknown = sorted({dtype for dtype, _ in arrays} - set(SIZES))
    if unknown:
        raise ValueError(f"{kind} holds {', '.join(unknown)}, of which it is not known how many bytes one takes")
    return sum(SIZES[dtype] * math.prod(shape) for dtype, shape in arrays)


def kernels(text: str) -> list[Kernel]:
    """All kernels of a compiled program, loops of a known number of turns unrolled; others count as one turn."""
    found, entry = computations(text)
    return list(_walk(found, entry, 1))


def _walk(found: dict[str, list[Instruction]], name: str, times: int) -> Iterator[Kernel]:
    types = {i.name: i.type for i in found[name]}
    for i in found[name]:
        if i.operation in FREE or i.operation.endswith("-done"):
            continue
        if i.operation == "while":
            turns = re.search(r'"known_trip_count":\{"n":"(\d+)"', i.rest)
            yield from _walk(found, called(i, "body"), times * (int(turns[1]) if turns else 1))
        elif i.operation == "call" or (i.operation == "async-start" and "calls=" in i.rest):
            yield from _walk(found, called(i, "to_apply|calls"), times)
        else:
            result = re.sub(r", u8\[\d*\]\S*\)$", ")", i.type) if i.operation == "custom-call" else i.type  # scratch
            read = sum(size(types.get(o, "")) for o in set(i.operands))
            moved = 2 * read if i.operation == "copy-start" else size(result) + read
            yield Kernel(i.name, _kind(i), times * moved, times, _source(i))


def called(i: Instruction, attribute: str) -> str:
    """The computation that an attribute of an instruction names."""
    match = re.search(rf"(?:{attribute})=%?([\w.\-]+)", i.rest)
    if match is None:
        raise ValueError(f"{i.name}, a {i.operation}, names no computation")
    return match[1]


def _kind(i: Instruction) -> str:
    target = re.search(r'custom_call_target="([^"]+)"', i.rest)
    return target[1].removeprefix("__") if target else i.operation


def _source(i: Instruction) -> str:
    source = re.search(r'op_name="([^"]*)"', i.rest)
    return source[1] if source else ""


# Where a kernel belongs, by the name that flax and JAX give to what it comes from; the first that fits.
PARTS = (
    ("backward", re.compile(r"transpose\(jvp\(Network")),
    ("query forward", re.compile(r"jvp\(Network")),
    ("key forward", re.compile(r"\bNetwork")),
    ("views", re.compile(r"vmap")),
)


def by_part(found: list[Kernel]) -> dict[str, int]:
    """Bytes of the encoders' passes, of the views (crop and augmentation), and of all else: loss, update, copies."""
    sums = dict.fromkeys([name for name, _ in PARTS] + ["rest"], 0)
    for kernel in found:
        sums[next((name for name, pattern in PARTS if pattern.search(kernel.of)), "rest")] += kernel.bytes
    return sums
