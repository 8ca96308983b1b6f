"""How often each computation of a program runs."""

import collections

from ratjax.ahead.hlo import Instruction, Module

# Their computations were counted where the operation started.
_CONTINUATIONS = ("async-update", "async-done")


def executions(module: Module) -> tuple[dict[str, int], int]:
    """How often each computation runs in one run of the program, on one device.

    XLA's own cost analysis counts the body of a loop once. Here a loop's body counts as often as
    the loop turns, of a conditional every branch counts.

    Returns:
      (runs by computation, how many loops' numbers of turns are not in the text: those count once).
    """
    runs: dict[str, int] = collections.Counter({module.entry: 1})
    unknown = 0
    for name in reversed(module.computations):
        for instruction in module.computations[name].values():
            if runs[name] == 0 or instruction.opcode in _CONTINUATIONS:
                continue
            times = 1
            if instruction.opcode == "while":
                turns = trip_count(module, name, instruction)
                unknown += turns is None
                times = 1 if turns is None else turns
            for called in instruction.called.values():
                for computation in called:
                    runs[computation] += runs[name] * times
    return dict(runs), unknown


def trip_count(module: Module, computation: str, loop: Instruction) -> int | None:
    """How often a loop turns, if it counts from a constant up to a constant."""
    (condition,) = loop.called["condition"]
    found = _bound(module, condition)
    if found is None:
        return None
    index, bound = found
    start = _constant(module, computation, loop.operands[0], index)
    return None if start is None else max(bound - start, 0)


def _bound(module: Module, condition: str) -> tuple[int, int] | None:
    """(the element of the loop's state that is counted, the number it stays below)."""
    body = module.computations[condition]
    root = module.root(condition)
    if root.opcode == "fusion":  # the comparison, with the constant inside or beside it
        (inner,) = root.called["calls"]
        compare = module.root(inner)
        outer = dict(enumerate(root.operands))

        def resolve(name: str) -> Instruction:
            instruction = module.computations[inner][name]
            if instruction.opcode == "parameter":
                return body[outer[int(instruction.inside)]]
            return instruction

    else:
        compare, resolve = root, body.__getitem__
    if compare.opcode != "compare" or compare.attribute("direction") != "LT":
        return None
    left, right = (resolve(name) for name in compare.operands)
    if left.opcode != "get-tuple-element" or right.opcode != "constant":
        return None
    return int(left.attribute("index")), int(right.inside)


def _constant(module: Module, computation: str, name: str, index: int) -> int | None:
    """Element `index` of the tuple `name`, if it is a constant."""
    body = module.computations[computation]
    found = body[name]
    if found.opcode != "tuple":
        return None
    found = body[found.operands[index]]
    while found.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
        found = body[found.operands[0]]
    return int(found.inside) if found.opcode == "constant" else None
