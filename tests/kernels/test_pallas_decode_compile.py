"""Decode's TPU kernels through the TPU's compiler, alone, over several chips and as a program."""

from tests.kernels.pallas_devices import compiled, compiles_for_tpus

ALONE = """
    from functools import partial
    from ratjax_kernels import (
        append, dense_decode, page_bounds, page_scores, paged_decode, quest_decode,
    )

    tpu = dict(implementation="pallas_tpu")

    def slots_first(x):
        return jnp.swapaxes(x, -3, -2)

    def bounds(k, lengths, page):
        return tuple(map(slots_first, page_bounds(slots_first(k), lengths, page, **tpu)))

    def scores(q, low, high, layer):
        return page_scores(q, slots_first(low), slots_first(high), layer=layer, **tpu)

    def paged(q, k, v, lengths, ids, layer, page):
        k, v = slots_first(k), slots_first(v)
        return paged_decode(q, k, v, lengths, ids, page, layer=layer, **tpu)

    def quest(q, k, v, low, high, lengths, layer, page, pages):
        k, v, *sides = map(slots_first, (k, v, low, high))
        return quest_decode(q, k, v, lengths, *sides, page, pages, layer=layer, **tpu)

    def dense(q, k, v, lengths, layer, *mask):
        k, v = slots_first(k), slots_first(v)
        mask = dict(zip(["mask"], mask))
        return dense_decode(q, k, v, lengths, layer=layer, **mask, **tpu)

    def grow(k, v, low, high, lengths, new, layer, page):
        k, v, *sides = map(slots_first, (k, v, low, high))
        grown = append(k, v, lengths, new, new, sides, page, layer=layer, **tpu)
        return tuple(map(slots_first, grown))

    def all_of(batch, slots, heads, kv_heads, channels, page, pages, dtype=jnp.bfloat16):
        narrow = partial(array, dtype=dtype)
        q, new = (narrow(batch, 1, h, channels) for h in (heads, kv_heads))
        cache = narrow(2, batch, kv_heads, slots, channels)
        side = narrow(2, batch, kv_heads, -(-slots // page), channels)
        lengths, layer = integers(batch), integers()
        one = narrow(batch, kv_heads, slots, channels)
        report(partial(bounds, page=page), one, lengths)
        report(scores, q, side, side, layer)
        ids = integers(batch, heads, pages)
        report(partial(paged, page=page), q, cache, cache, lengths, ids, layer)
        report(dense, q, cache, cache, lengths, layer)
        report(dense, q, cache, cache, lengths, layer, array(batch, slots, dtype=jnp.bool))
        choosing = partial(quest, page=page, pages=pages)
        report(choosing, q, cache, cache, side, side, lengths, layer)
        grow_page = partial(grow, page=page)
        donated = dict(donate_argnums=(0, 1, 2, 3))
        report(grow_page, cache, cache, side, side, lengths, new, layer, **donated)

    for slots, kv_heads in ((4096, 32), (32768, 32), (32768, 8)):
        all_of(2, slots, 32, kv_heads, 128, 64, 16)
    all_of(1, 32768, 32, 8, 128, 16, 128)
    all_of(3, 4000, 12, 6, 64, 32, 5, jnp.float32)
"""


@compiles_for_tpus
def test_each_kernel_compiles(chip):
    reports = compiled(chip, ALONE)
    assert [kernels for kernels, _ in reports] == [1, 1, 1, 1, 1, 3, 1] * 5
    # Lists and masks are made anew, never anything like the cache. (Where a program begins, XLA
    # has narrow heads in another order.)
    assert max(temporary for _, temporary in reports[:-7]) < 4 * 2**20


CHOICE = """
    from ratjax_kernels.paged_decode import pallas_select

    def choose(scores, lengths):
        return pallas_select.select(scores, lengths, 16, 64, True, True)

    # As many pages as all heads can have at once, and those of a context of a million tokens.
    for pages, parts in ((19968, 1), (65536, 4)):
        scores = array(2, 32, pages, dtype=jnp.float32)
        assert pallas_select.kernel(scores, 16, 64, True, True).grid == (2, parts)
        report(choose, scores, integers(2))
"""


@compiles_for_tpus
def test_choice_of_many_pages_compiles(chip):
    assert [kernels for kernels, _ in compiled(chip, CHOICE)] == [1, 1]


SPREAD = """
    from ratjax_kernels import append, dense_decode, quest_decode

    P = PartitionSpec
    tpu = dict(implementation="pallas_tpu")

    def step(q, new, k, v, low, high, lengths, layer):
        stacks = [jnp.swapaxes(x, 2, 3) for x in (k, v, low, high)]
        k, v, low, high = append(*stacks[:2], lengths, new, new, stacks[2:], 64, layer=layer, **tpu)
        out, ids = quest_decode(q, k, v, lengths + 1, low, high, 64, 16, layer=layer, **tpu)
        out += dense_decode(q, k, v, lengths + 1, layer=layer, **tpu)
        return out, ids, *(jnp.swapaxes(x, 2, 3) for x in (k, v, low, high))

    heads = [P(None, None, "x")] * 6 + [P(), P()]
    spread = jax.shard_map(
        step, mesh=mesh, in_specs=tuple(heads),
        out_specs=(P(None, None, "x"), P(None, "x"), *[P(None, None, "x")] * 4),
    )
    apart = [NamedSharding(mesh, spec) for spec in heads]
    cache, side = (2, 2, 8, 4096, 128), (2, 2, 8, 64, 128)
    shapes = [(2, 1, 32, 128), (2, 1, 8, 128), cache, cache, side, side]
    arrays = [array(*shape, sharding=s) for shape, s in zip(shapes, apart)]
    report(
        spread, *arrays, integers(2, sharding=apart[6]), integers(sharding=apart[7]),
        donate_argnums=(2, 3, 4, 5),
    )
"""


@compiles_for_tpus
def test_heads_spread_over_chips(chip):
    """A shard of the heads a chip, as tensor parallelism splits them; two of eight KV heads."""
    ((kernels, temporary),) = compiled(chip, SPREAD)
    assert kernels == 5  # append, scores, selection, paged, dense
    assert temporary < 4 * 2**20


LOOP = """
    from ratjax_kernels import append, page_bounds, quest_decode

    layers, batch, slots, heads, kv_heads, page = 4, 2, 8192, 32, 8, 64
    tpu = dict(implementation="pallas_tpu")

    def generate(q, k, v):
        k, v = 2 * k, 3 * v  # a prompt's, as a model computes them
        lengths = jnp.full((batch,), slots - 100, jnp.int32)
        low, high = jax.vmap(lambda k: page_bounds(k, lengths, page, **tpu))(k)

        def layer(l, carry):
            q, k, v, low, high, lengths = carry
            new = q[:, :, :kv_heads]
            k, v, low, high = append(
                k, v, lengths, new, new, (low, high), page, layer=l, **tpu
            )
            out, _ = quest_decode(q, k, v, lengths + 1, low, high, page, 16, layer=l, **tpu)
            return out, k, v, low, high, lengths

        def token(t, carry):
            *carry, lengths = jax.lax.fori_loop(0, layers, layer, carry)
            return *carry, lengths + 1

        return jax.lax.fori_loop(0, 10, token, (q, k, v, low, high, lengths))[0]

    cache = array(layers, batch, slots, kv_heads, 128)
    report(generate, array(batch, 1, heads, 128), cache, cache)
"""


@compiles_for_tpus
def test_a_decode_loop_moves_no_cache(chip):
    """The loop carries the cache in the order that the kernels read: there is one of it.

    A copy inside the loop, in whatever order, would need memory of its own.
    """
    ((kernels, temporary),) = compiled(chip, LOOP)
    assert kernels == 5  # bounds, then append, scores, selection, paged in the loop
    cache = 2 * 4 * 2 * 8192 * 8 * 128 * 2
    assert temporary < 1.1 * cache  # the bounds take a 64th more
