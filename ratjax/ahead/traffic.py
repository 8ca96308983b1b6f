"""Bytes that a program moves between its device and the device's main memory."""

from collections.abc import Mapping

from ratjax.ahead.hlo import Instruction, Module, Shape

_FREE = {  # these move nothing, or what they run is counted for itself
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "replica-id", "opt-barrier", "copy-done", "async-start",
    "async-update", "async-done", "slice-done", "all-gather-done", "all-reduce-done",
    "collective-permute-done", "add-dependency", "domain",
}  # fmt: skip
_SLICES = ("dynamic-slice", "slice", "gather")
_PASS_ON = ("bitcast", "reshape", "copy", "convert", "transpose")


def hbm_bytes(module: Module, runs: Mapping[str, int]) -> float:
    """Bytes read and written in one run, if every operation reads and writes its arrays once.

    What a fusion makes on the way does not count, nor do arrays that the compiler placed in a
    scratchpad; of an array that is only sliced or updated in place, the slice counts.

    Args:
      module: the program.
      runs: how often each computation runs (`executions`).
    """
    fused = {
        name
        for body in module.computations.values()
        for instruction in body.values()
        if instruction.opcode not in ("while", "conditional", "call", "async-start")
        for names in instruction.called.values()
        for name in names
    }
    return float(
        sum(
            runs.get(computation, 0) * sum(_moved(module, body, i) for i in body.values())
            for computation, body in module.computations.items()
            if computation not in fused
        )
    )


def _moved(module: Module, body: Mapping[str, Instruction], instruction: Instruction) -> int:
    if instruction.opcode in _FREE:
        return 0
    called = instruction.called.get("calls")
    if instruction.opcode == "fusion" and called:
        read = sum(
            _read_by(module, called[0], index, body[name].shapes)
            for index, name in enumerate(instruction.operands)
        )
        return read + _written_by(module, called[0], module.root(called[0]), instruction.shapes)
    if instruction.opcode in _SLICES:
        return 2 * _in_hbm(instruction.shapes)
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _in_hbm(body[instruction.operands[1]].shapes)
    written = instruction.shapes
    if instruction.opcode in ("copy-start", "slice-start"):
        written = written[-2 if instruction.opcode == "slice-start" else 0 :][:1]
    return sum(_in_hbm(body[name].shapes) for name in instruction.operands) + _in_hbm(written)


def _in_hbm(shapes: tuple[Shape, ...]) -> int:
    return sum(shape.bytes for shape in shapes if shape.in_hbm)


def _read_by(module: Module, computation: str, index: int, shapes: tuple[Shape, ...]) -> int:
    """Bytes that a fusion reads of one argument: of one that it only slices, the slices."""
    whole = _in_hbm(shapes)
    if whole == 0:
        return 0
    part = _part(module, computation, module.parameter(computation, index))
    return whole if part is None else min(part, whole)


def _part(module: Module, computation: str, name: str | None) -> int | None:
    """Bytes of the slices of an array that its users take; None where one takes all of it."""
    total = 0
    for user in module.computations[computation].values():
        if name not in user.operands:
            continue
        first = user.operands.index(name) == 0
        if user.opcode in _SLICES and first:
            total += user.bytes
        elif user.opcode == "dynamic-update-slice" and first:
            continue  # what is written is the update, and counted there
        elif user.opcode == "bitcast":
            part = _part(module, computation, user.name)
            if part is None:
                return None
            total += part
        elif user.opcode == "fusion":
            (inner,) = user.called["calls"]
            part = _part(module, inner, module.parameter(inner, user.operands.index(name)))
            if part is None:
                return None
            total += part
        else:
            return None
    return total


def _written_by(
    module: Module, computation: str, root: Instruction, shapes: tuple[Shape, ...]
) -> int:
    """Bytes that a fusion writes: of an array that it updates in place, the update."""
    body = module.computations[computation]
    if root.opcode == "tuple" and len(root.operands) == len(shapes):
        parts = zip(root.operands, shapes, strict=True)
        return sum(_written_by(module, computation, body[n], (s,)) for n, s in parts)
    if _in_hbm(shapes) == 0:
        return 0
    while root.opcode in _PASS_ON:
        root = body[root.operands[0]]
    if root.opcode == "dynamic-update-slice":
        return body[root.operands[1]].bytes
    if root.opcode == "fusion":
        (inner,) = root.called["calls"]
        return _written_by(module, inner, module.root(inner), shapes)
    return _in_hbm(shapes)
