"""What a compiled program does, read from its text: matrix products, and exchanges between devices.

Everything is counted as often as the loops around it run; XLA's own analysis takes the body of a loop once.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "f64": 8}

_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_CALL = re.compile(r"(?:body|to_apply|calls)=%?([\w.-]+)")
_WHILE = re.compile(r" while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)")
_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONSTANT = re.compile(r"%?([\w.-]+) = [su]32\[\]\S* constant\((\d+)\)")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_DEFINED = re.compile(r"%?([\w.-]+) = \w+\[([\d,]*)\]")
_OPERAND = r"(?:\w+\[[\d,]*\]\S* )?%?([\w.-]+)"
_PRODUCT = re.compile(rf"= \w+\[([\d,]*)\]\S* (convolution|dot)\({_OPERAND}, {_OPERAND}\)(.*)")
_EXCHANGE = re.compile(rf"= (.*?) ({'|'.join(COLLECTIVES)})(-start)?\(")
_CHANNEL = re.compile(r"channel_id=(\d+)")


class Program(NamedTuple):
    """The lines of each computation of a program, and how often each computation runs."""

    computations: dict[str, list[str]]
    times: Counter[str]


@dataclass(frozen=True)
class Collective:
    """One kind of exchange between devices: what it yields on each, and how often one step makes it."""

    kind: str
    shape: str
    times: int
    bytes: int  # of all times together


def parse(text: str) -> Program:
    """A compiled program from its text."""
    computations: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name = header[1]
            computations[name] = []
        elif name and line.startswith(" "):
            computations[name].append(line)
    calls: dict[str, list[tuple[str, int]]] = {name: [] for name in computations}
    for name, lines in computations.items():
        for line in lines:
            trips = _trips(line, computations)
            calls[name] += [(callee, trips) for callee in _CALL.findall(line) if callee in computations]
    times: Counter[str] = Counter()

    def visit(name: str, count: int) -> None:
        times[name] += count
        for callee, trips in calls[name]:
            visit(callee, count * trips)

    if entry := re.search(r"^ENTRY %?([\w.-]+)", text, re.MULTILINE):
        visit(entry[1], 1)
    return Program(computations, times)


def _trips(line: str, computations: dict[str, list[str]]) -> int:
    """How often a line runs what it calls: 1 unless it is a loop that counts up to a number, by 1 or another."""
    loop = _WHILE.search(line)
    if loop is None:
        return 1
    if known := _KNOWN.search(line):
        return int(known[1])
    condition, body = ("\n".join(computations[name]) for name in loop.groups())
    constants = dict(_CONSTANT.findall(f"{condition}\n{body}"))
    test = re.search(r"ROOT .* compare\(%?([\w.-]+), %?([\w.-]+)\), direction=LT", condition)
    if test is None or test[2] not in constants:
        return 1
    step = 1
    counter = re.search(rf"%?{re.escape(test[1])} = .* get-tuple-element\(.*index=(\d+)", condition)
    state = re.search(r"ROOT .* tuple\(([^)]*)\)", body)
    if counter and state:
        after = state[1].split("%")[1 + int(counter[1])].split(",")[0]
        added = re.search(rf"%{re.escape(after)} = [su]32\[\]\S* add\(%?[\w.-]+, %?([\w.-]+)\)", body)
        step = int(constants.get(added[1], 1)) if added else 1
    return math.ceil(int(constants[test[2]]) / step)


def product_flops(program: Program) -> float | None:
    """FLOPs of the matrix products on one device. What kernels do is not seen; None where products are calls of
    a library (on GPUs)."""
    lines = [(line, program.times[name]) for name, lines in program.computations.items() for line in lines]
    if any("__cublas$" in line for line, _ in lines):
        return None
    shapes = {match[1]: _sizes(match[2]) for line, _ in lines if (match := _DEFINED.search(line))}
    return float(sum(times * _flops(line, shapes) for line, times in lines))


def _flops(line: str, shapes: dict[str, list[int]]) -> int:
    match = _PRODUCT.search(line)
    if match is None:
        return 0
    out, left, right, rest = _sizes(match[1]), shapes[match[3]], shapes[match[4]], match[5]
    if match[2] == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)
        return 2 * math.prod(out) * math.prod(left[axis] for axis in _sizes(contracted[1] if contracted else ""))
    # TPUs write products as convolutions, whose windows may reach beyond the array: that costs nothing.
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", rest)
    assert labels is not None
    total = 2 * out[labels[3].index("b")] * out[labels[3].index("f")] * right[labels[2].index("i")]
    spatial = sorted(label for label in labels[3] if label.isdigit())
    for axis, label in enumerate(spatial):
        names = ("stride", "lhs_dilate", "rhs_dilate", "pad")
        stride, left_dilation, right_dilation, before = (_window(rest, name, axis) for name in names)
        query = np.arange(out[labels[3].index(label)])[:, None] * stride
        read = query + np.arange(right[labels[2].index(label)]) * right_dilation - before
        inside = (read >= 0) & (read <= (left[labels[1].index(label)] - 1) * left_dilation)
        total *= int((inside & (read % left_dilation == 0)).sum())
    return total


def _window(text: str, name: str, axis: int) -> int:
    """A setting of a convolution's window along an axis, its first number; as if it were not there by default."""
    match = re.search(rf"\b{name}=([-\dx_]+)", text)
    return int(match[1].split("x")[axis].split("_")[0]) if match else int(name != "pad")


def collectives(program: Program) -> list[Collective]:
    """The exchanges of a compiled program, each with how often it is made, the largest sum of bytes first."""
    channels: dict[str, tuple[str, str, int]] = {}  # one exchange may be spread over several fusions
    for name, lines in program.computations.items():
        for number, line in enumerate(lines):
            if exchange := _EXCHANGE.search(line):
                arrays = [f"{kind}[{sizes}]" for kind, sizes in _ARRAY.findall(exchange[1]) if sizes]
                if exchange[3]:  # yields its operands too, before its results
                    arrays = arrays[len(arrays) // 2 :]
                channel = _CHANNEL.search(line)
                key = channel[1] if channel else f"{name} {number}"
                most = max(program.times[name], channels[key][2] if key in channels else 0)
                channels[key] = (exchange[2], " ".join(arrays), most)
    times: Counter[tuple[str, str]] = Counter()
    for kind, shape, count in channels.values():
        times[kind, shape] += count
    made = [Collective(kind, shape, count, count * _bytes(shape)) for (kind, shape), count in times.items()]
    return sorted(made, key=lambda collective: -collective.bytes)


def _bytes(shape: str) -> int:
    return sum(BYTES.get(kind, 4) * math.prod(_sizes(sizes)) for kind, sizes in _ARRAY.findall(shape))


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",") if size]
