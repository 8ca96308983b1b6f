"""Programs read from their text: hand-made ones, and what XLA makes of real ones."""

import jax
import jax.numpy as jnp
import pytest

from ratjax.ahead.arithmetic import matmul_flops
from ratjax.ahead.collectives import collectives
from ratjax.ahead.custom_calls import Kernel, kernels
from ratjax.ahead.executions import executions
from ratjax.ahead.hlo import arrays, parse
from ratjax.ahead.traffic import hbm_bytes
from tests.ahead.programs import LOOP


@pytest.fixture(scope="module")
def loop():
    module = parse(LOOP)
    runs, unknown = executions(module)
    assert unknown == 0
    return module, runs


def test_shapes():
    scratch, whole, scalar = arrays("(f32[2,3]{1,0:T(8,128)S(1)}, bf16[5]{0}, /*index=2*/pred[])")
    assert [x.bytes for x in (scratch, whole, scalar)] == [24, 10, 1]
    assert [x.in_hbm for x in (scratch, whole, scalar)] == [False, True, True]
    assert str(scratch) == "f32[2,3]"


def test_bodies_of_loops_run_as_often_as_the_loop_turns(loop):
    module, runs = loop
    assert module.entry == "main"
    assert (runs["main"], runs["body"], runs["product"]) == (1, 12, 12)
    assert module.root("body").opcode == "tuple"


def test_a_loop_that_counts_to_no_constant_counts_once():
    text = LOOP.replace("%turns = s32[] constant(12)", "%turns = s32[] copy(%turn)")
    runs, unknown = executions(parse(text))
    assert (runs["body"], unknown) == (1, 1)


def test_exchanges(loop):
    module, runs = loop
    found = {c.kind: c for c in collectives(module, runs, devices=8)}
    gather = found["all-gather"]
    assert (gather.group, gather.count, gather.bytes) == (4, 12, 64 * 32 * 2)
    assert gather.received == 12 * 64 * 32 * 2 * 3 / 4
    scatter = found["reduce-scatter"]  # not the all-reduce that it is written as
    assert (scatter.group, scatter.count, scatter.received) == (8, 1, 64 * 32 * 4 * 7 / 8)
    assert found["collective-permute"].received == 8 * 32 * 4
    assert "all-reduce" not in found


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups=[2,4]<=[8]", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
        ("replica_groups={}", 8),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}", 8),
        ("replica_groups=mesh['axis_0'=8] {'axis_0':(1)2}", 2),
    ],
)
def test_every_notation_of_groups(groups, size):
    text = LOOP.replace("replica_groups={{0,1,2,3,4,5,6,7}}", groups)
    module = parse(text)
    found = collectives(module, executions(module)[0], devices=8)
    assert next(c.group for c in found if c.kind == "reduce-scatter") == size


def test_kernels(loop):
    assert kernels(*loop) == [Kernel("my_kernel", sites=1, runs=12, flops=12_000.0)]


def test_slices_and_updates_move_their_part(loop):
    weights, product, operand = 64 * 8 * 2, 128 * 32 * 2, 128 * 64 * 2
    gathered = 64 * 32 * 2
    turn = (
        (weights + 4 + weights)  # a slice and its index read, one layer written
        + (weights + gathered)
        + (operand + gathered)  # the result stays in the scratchpad ...
        + product  # ... from where the kernel reads it
        + (product + 4 + product)  # the update is read, and only it is written
        + 3 * 4  # counting: two numbers read, one written
        + 2 * 4
        + 1  # and compared
    )
    outside = 2 * 4 + 2 + 12 * product + (64 * 32 * 4 + 8 * 32 * 4) + 2 * 8 * 32 * 4
    assert hbm_bytes(*loop) == 12 * turn + outside


def compiled_text(function, *shapes):
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    compiled = jax.jit(function).lower(*args).compile()
    return parse(compiled.as_text()), compiled.cost_analysis()["flops"]


def test_products_cost_what_xla_says():
    module, flops = compiled_text(lambda a, b: a @ b, (48, 64), (64, 80))
    assert matmul_flops(module, executions(module)[0]) == flops == 2 * 48 * 64 * 80


def test_a_scan_costs_its_turns():
    """XLA's own count has the body once; the text here is that of the CPU's compiler."""

    def scan(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    module, once = compiled_text(scan, (32, 64), (7, 64, 64))
    runs, unknown = executions(module)
    assert unknown == 0
    assert matmul_flops(module, runs) == 7 * 2 * 32 * 64 * 64
    assert once < 2 * 2 * 32 * 64 * 64


@pytest.mark.parametrize(
    ("left", "right", "out", "window", "labels", "products"),
    [
        # x @ w for [2, 512, 1024] and [1024, 8, 128], the heads a window
        (
            "2,512,1024,1",
            "1024,8,128,1",
            "2,512,8,128",
            "size=1x8 pad=0_0x7_7 rhs_reversal=0x1",
            "0bf1_i1o0->0b1f",
            2 * 512 * 1024 * 8 * 128,
        ),
        # scores of 8 queries and 512 keys, for 2 sequences and 8 heads: each meets its own alone
        (
            "2,8,8,128",
            "2,512,8,128",
            "2,8,8,512",
            "size=2x8 stride=1x7 lhs_dilate=2x8",
            "0b1f_0o1i->01bf",
            2 * 8 * 8 * 512 * 128,
        ),
    ],
)
def test_products_that_tpus_write_as_convolutions(left, right, out, window, labels, products):
    text = f"""
ENTRY %main (a: f32[{left}], b: f32[{right}]) -> f32[{out}] {{
  %a = f32[{left}]{{0}} parameter(0)
  %b = f32[{right}]{{0}} parameter(1)
  ROOT %c = f32[{out}]{{0}} convolution(%a, %b), window={{{window}}}, dim_labels={labels}
}}
"""
    assert matmul_flops(parse(text), {"main": 1}) == 2 * products


def test_a_program_without_entry_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        parse("HloModule nothing\n")
