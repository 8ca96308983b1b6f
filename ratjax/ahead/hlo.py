"""Compiled programs as XLA prints them (`compiled.as_text()`), parsed as far as reports need."""

import dataclasses
import functools
import math
import re

_BITS = {
    "pred": 8, "token": 0, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "f16": 16,
    "bf16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64,
    "c128": 128,
}  # fmt: skip
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_OPCODE = re.compile(r"([a-z][a-z\d\-]*)\(")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|%[\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array.

    Attributes:
      dtype: XLA's name of it.
      dims: sizes of its axes.
      in_hbm: whether it lies in the device's main memory, not in a scratchpad.
    """

    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool = True

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Without the padding of tiled layouts."""
        bits = _BITS.get(self.dtype, 8)  # the many 8-bit floats
        return -(-self.elements * bits // 8)

    def __str__(self):
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: unique within its module.
      opcode: XLA's name of the operation, such as `fusion`.
      shapes: the arrays it gives, a tuple's elements one after the other.
      operands: names of the instructions it reads.
      inside: what stands between its parentheses.
      attributes: everything after them.
      root: whether it is what its computation returns.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    inside: str
    attributes: str
    root: bool

    @property
    def bytes(self) -> int:
        return sum(shape.bytes for shape in self.shapes)

    @functools.cached_property
    def called(self) -> dict[str, tuple[str, ...]]:
        """Computations it runs, by role: `calls`, `to_apply`, `body`, `condition`, ..."""
        return {role: tuple(_NAME.findall(names)) for role, names in _CALLED.findall(self.rest)}

    @property
    def rest(self) -> str:
        """The attributes without what kernels are made of, which may be megabytes."""
        return self.attributes.split(", backend_config=")[0]

    def attribute(self, name: str) -> str | None:
        """The value of `name=value` or `name={value}`."""
        found = re.search(rf"\b{name}=(?:\{{([^}}]*)\}}|([^,\s]+))", self.rest)
        return found and (found[1] if found[1] is not None else found[2])


@dataclasses.dataclass(frozen=True)
class Module:
    """A program.

    Attributes:
      computations: each a list of instructions by name, in the text's order: what is called stands
        before what calls it.
      entry: the name of the one that runs first.
    """

    computations: dict[str, dict[str, Instruction]]
    entry: str

    def parameter(self, computation: str, index: int) -> str | None:
        """The name of the instruction that stands for an argument."""
        return next(
            (
                name
                for name, instruction in self.computations[computation].items()
                if instruction.opcode == "parameter" and instruction.inside == str(index)
            ),
            None,
        )

    def root(self, computation: str) -> Instruction:
        return next(i for i in self.computations[computation].values() if i.root)


def parse(text: str) -> Module:
    """Parses a whole module.

    Raises:
      ValueError: no entry computation in the text.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = None, None
    for line in text.splitlines():
        if not line.startswith(" "):
            header = _HEADER.match(line)
            if header:
                current = computations.setdefault(header[2], {})
                entry = header[2] if header[1] else entry
        elif current is not None and (instruction := _instruction(line)):
            current[instruction.name] = instruction
    if entry is None:
        raise ValueError("no ENTRY computation in the program's text")
    return Module(computations, entry)


def arrays(text: str) -> tuple[Shape, ...]:
    """Every array in a printed shape, such as `(f32[2,3]{1,0}, s32[])`."""
    return tuple(
        Shape(
            dtype,
            tuple(int(size) for size in dims.split(",") if size),
            re.search(r"S\([1-9]", layout) is None,
        )
        for dtype, dims, layout in _ARRAY.findall(text)
    )


def _instruction(line: str) -> Instruction | None:
    name, equals, rest = line.strip().partition(" = ")
    if not equals:
        return None
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode = _OPCODE.match(rest)
    if opcode is None:
        return None
    close = _closing(rest, opcode.end() - 1)
    inside = rest[opcode.end() : close]
    return Instruction(
        name.removeprefix("ROOT ").removeprefix("%"),
        opcode[1],
        arrays(shape),
        tuple(_NAME.findall(inside)) if opcode[1] != "constant" else (),
        inside,
        rest[close + 1 :],
        name.startswith("ROOT "),
    )


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"unbalanced parentheses: {text[:80]}")
