"""A compiled program, read off its text (optimised HLO): launches, bytes moved, exchanges between devices."""

import math
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")
COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
ARRAY = re.compile(r"([a-z]\w*?)(\d*)\[([\d,]*)\]")
ON_CORE = re.compile(r"\w+\[[\d,]*\]\{[^}]*S\(1\)[^}]*\}")  # an array that a TPU keeps beside its cores, not in memory
EXCHANGES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
PARTS = frozenset(["dynamic-slice", "slice", "gather"])  # they read a part of an array
NO_KERNEL = frozenset(
    ["parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "iota", "broadcast"]
)  # the compiler makes none of them a launch of its own


class Instruction(NamedTuple):
    """One line of a program's text. `operands`: names of instructions."""

    name: str
    type: str
    operation: str
    operands: tuple[str, ...]
    line: str

    def called(self, how: str) -> str:
        """The computation that it calls as `to_apply`, `body` or `calls`; "" for none."""
        found = re.findall(rf"{how}=%?([\w.\-]+)", self.line)
        return found[0] if found else ""


class CompiledText(NamedTuple):
    """The instructions of each computation of a program's text, by name."""

    entry: str
    bodies: dict[str, list[Instruction]]

    @staticmethod
    def read(text: str) -> "CompiledText":
        """The program of a text."""
        bodies: dict[str, list[Instruction]] = {}
        entry, body = "", []
        for line in text.splitlines():
            if not line.startswith(" ") and (head := COMPUTATION.match(line)):
                body = bodies.setdefault(head[2], [])
                entry = head[2] if head[1] else entry
            elif found := INSTRUCTION.match(line):
                operands = tuple(re.findall(r"%([\w.\-]+)", found[4].partition(")")[0]))
                body.append(Instruction(found[1], found[2], found[3], operands, line))
        return CompiledText(entry, bodies)

    def added_up(self, of: Callable[[Instruction, dict[str, str]], Counter]) -> Counter:
        """The sum of `of(instruction, type by name)`. A loop counts as often as it runs, of branches the largest.

        Raises `ValueError` for a loop whose number of steps the text does not give.
        """

        @cache
        def count(name: str) -> Counter:
            total: Counter = Counter()
            types = {each.name: each.type for each in self.bodies[name]}
            for each in self.bodies[name]:
                if each.operation == "while":
                    steps = self.steps(each)
                    total.update({key: steps * n for key, n in count(each.called("body")).items()})
                elif each.operation == "call":
                    total.update(count(each.called("to_apply")))
                elif each.operation == "conditional":
                    branches = re.search(r"branch_computations=\{(.*?)\}", each.line)
                    names = branches[1].replace("%", "").split(", ") if branches else []
                    total.update(max(map(count, names), key=lambda one: sum(one.values()), default=Counter()))
                elif each.operation not in NO_KERNEL and not each.operation.endswith("-done"):
                    total.update(of(each, types))
            return total

        return count(self.entry)

    def steps(self, loop: Instruction) -> int:
        """How often a loop runs: as its line says, or from 0 to the constant that its condition compares with.

        Raises `ValueError` where neither is so.
        """
        if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.line):
            return int(known[1])
        condition = {each.name: each for each in self.bodies.get(loop.called("condition"), [])}
        ends = [each for each in condition.values() if "ROOT" in each.line and "direction=LT" in each.line]
        bounds = [condition[name].line for end in ends for name in end.operands[1:] if name in condition]
        found = [int(number) for bound in bounds for number in re.findall(r" constant\((\d+)\)", bound)]
        if len(found) != 1:
            raise ValueError(f"loops of a known number of steps are counted, got {loop.name} without")
        return found[0]

    def launches(self) -> int:
        """Kernel launches. Raises `ValueError` as `added_up`."""
        return self.added_up(lambda each, types: Counter(n=1))["n"]

    def traffic(self) -> int:
        """Bytes that the kernels read from memory and write to it. Raises `ValueError` as `added_up`."""

        def in_memory(body):
            return [each._replace(type=ON_CORE.sub("", each.type)) for each in body]

        seen = CompiledText(self.entry, {name: in_memory(body) for name, body in self.bodies.items()})
        return seen.added_up(lambda each, types: Counter(n=seen.touched(each, types)))["n"]

    def touched(self, kernel: Instruction, types: dict[str, str]) -> int:
        """Bytes that one kernel reads and writes; of an array that it slices or updates in place, the part."""
        inside = self.bodies.get(kernel.called("calls"), [])
        if not inside:
            inside = [kernel._replace(operands=tuple(map(str, range(len(kernel.operands)))))]
            parameters = dict(enumerate(map(str, range(len(kernel.operands)))))
        else:
            numbers = {each.name: re.search(r"parameter\((\d+)\)", each.line) for each in inside}
            parameters = {int(found[1]): name for name, found in numbers.items() if found}
        own = {each.name: each.type for each in inside} | {
            parameters[i]: types.get(name, "") for i, name in enumerate(kernel.operands) if i in parameters
        }
        updates = [each for each in inside if each.operation == "dynamic-update-slice"]
        total = sum(array_bytes(own.get(each.operands[1], "")) for each in updates) or result_bytes(kernel, types)
        for name in parameters.values():
            users = [each for each in inside if name in each.operands]
            if users and all(each.operation in PARTS and each.operands[0] == name for each in users):
                total += sum(array_bytes(each.type) for each in users)
            elif not all(each in updates and each.operands[0] == name for each in users):
                total += array_bytes(own.get(name, ""))
        return total

    def exchanges(self) -> dict[str, tuple[int, int]]:
        """How many exchanges between devices there are of each kind, and the bytes of their results on one device.

        Raises `ValueError` as `added_up`.
        """

        def of(each: Instruction, types: dict[str, str]) -> Counter:
            kind = each.operation.removesuffix("-start")
            if kind not in EXCHANGES:
                return Counter()
            return Counter({kind: 1, f"{kind} bytes": result_bytes(each, types)})

        found = self.added_up(of)
        return {kind: (found[kind], found[f"{kind} bytes"]) for kind in EXCHANGES if kind in found}


def result_bytes(each: Instruction, types: dict[str, str]) -> int:
    """The bytes of an instruction's results. In the type of one that only begins, its operands stand too."""
    size = array_bytes(each.type)
    if each.operation.endswith("-start") and each.type.startswith("("):
        size -= sum(array_bytes(types.get(name, "")) for name in each.operands)
    return size


def array_bytes(text: str) -> int:
    """The bytes of all arrays in an HLO type: `(f32[2,8]{1,0}, s32[])` has 68."""
    sizes = ((int(width or 8), filter(None, shape.split(","))) for _, width, shape in ARRAY.findall(text))
    return sum(width * math.prod(map(int, shape)) for width, shape in sizes) // 8
