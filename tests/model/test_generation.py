"""Prefill, decode and generation, for every pattern, against whole-sequence oracles."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from ratjax.config.model import MemoryConfig
from ratjax.config.presets import preset, with_memory
from ratjax.errors import InputError
from ratjax.model import generation as generation_module
from ratjax.sparsity import dense, dilated, moba, quest, snapkv
from ratjax.sparsity.pattern import Both, Pattern, Reads
from tests.decoders import initial

PROMPTS = np.array([37, 16, 5])
NEW = 14
TOTAL = int(PROMPTS.max()) + NEW


def decoder(memory=True, seed=0, init="log_uniform", **changes):
    config = dataclasses.replace(preset("tiny"), **changes)
    if memory:
        config = with_memory(config, MemoryConfig(init=init))
    model = initial(config, seed)
    # At std 0.02 a tiny model attends to everything alike: wider weights make the selection
    # matter, so that a wrong one shows.
    return jax.tree.map(lambda a: a * 3 if a.ndim > 2 else a, model)


def sequences(vocab, seed=1):
    return np.array(jax.random.randint(jax.random.key(seed), (3, TOTAL), 0, vocab), np.int32)


def teacher_forced(model, tokens, pattern, lengths=PROMPTS):
    """Logits of prefill and of each decode step, [B, 1 + NEW, V], on the given tokens."""
    width = int(lengths.max())
    logits, state, reads = jax.jit(model.prefill, static_argnums=(2, 3))(
        tokens[:, :width], jnp.asarray(lengths), pattern, NEW
    )
    decode = jax.jit(model.decode, static_argnums=2)
    found, all_reads = [logits], []
    for step in range(NEW):
        token = tokens[np.arange(len(lengths)), lengths + step][:, None]
        logits, state, step_reads = decode(token, state, pattern)
        found.append(logits)
        all_reads.append(step_reads)
    return np.stack(found, 1), reads, all_reads


@dataclasses.dataclass(frozen=True)
class Oracle(Pattern):
    """Whole-sequence attention under a mask that NumPy builds from the method's rule.

    Runs under `jax.disable_jit`, where the scan over layers hands it concrete arrays. The first
    `prompt` tokens are the prompt. `select_with` and `attend_to` are those of `Swapped`.
    """

    method: str
    prompt: int
    select_with: str = "states"
    attend_to: str = "states"

    @property
    def uses_raw(self):
        return "raw" in (self.select_with, self.attend_to)

    def attend(self, q, k, v, lengths=None, keys=None):
        k, v = (x if self.uses_raw else Both(x, x) for x in (k, v))
        out = self.output(*jax.tree.map(lambda a: np.asarray(a, np.float64), (q, k, v)))
        reads = jnp.zeros(q.shape[0])
        return jnp.asarray(out.astype(np.float32)), Reads(reads, reads)

    def compress(self, *args, **kwargs):
        raise NotImplementedError

    decode = compress

    def output(self, q, k, v):
        """What the sparse phase gives where it runs, dense attention to states elsewhere."""
        dense = np.broadcast_to(oracles.causal_mask(q.shape[1]), (*q.shape[::2], *q.shape[1:2] * 2))
        sparse = self.mask(q, getattr(k, self.select_with))
        read = (getattr(x, self.attend_to) for x in (k, v))
        swapped = oracles.masked_attention(q, *read, sparse)
        if not self.uses_raw:
            return swapped
        usual = oracles.masked_attention(q, k.states, v.states, dense)
        in_prompt = (np.arange(q.shape[1]) < self.prompt)[:, None, None]
        return np.where(in_prompt == (self.method == "moba"), swapped, usual)

    def mask(self, q, k):
        batch, time, heads, _ = q.shape
        mask = np.broadcast_to(oracles.causal_mask(time), (batch, heads, time, time)).copy()
        repeated = oracles.repeat_heads(k, heads)
        n, group = self.prompt, heads // k.shape[2]
        if self.method == "moba":
            mask[:, :, :n, :n] = oracles.moba_mask(q[:, :n], k[:, :n], 8, 3)
        for b, h in np.ndindex(batch, heads):
            if self.method == "quest":
                for t in range(n, time):
                    pages = oracles.quest_pages(q[b, t, h], repeated[b, :, h], t + 1, 8, 3)
                    mask[b, h, t] &= np.isin(np.arange(time) // 8, list(pages))
            if self.method == "snapkv":
                first = h // group * group
                kept = oracles.snapkv_positions(
                    q[b, :, first : first + group], repeated[b, :, h], n, 6, 12
                )
                dropped = [j for j in range(n) if j not in kept]
                mask[b, h, n:, dropped] = False
        return mask


PATTERNS = {
    "quest": quest.Quest(8, 3),
    "moba": moba.MoBA(8, 3),
    "snapkv": snapkv.SnapKV(6, 12),
}


BACKBONES = pytest.mark.parametrize(
    "memory",
    [True, pytest.param(False, marks=pytest.mark.slow)],
    ids=["memory", "attention"],
)


@BACKBONES
@pytest.mark.parametrize("method", PATTERNS)
def test_every_decoded_token_equals_the_oracle(method, memory):
    model = decoder(memory)
    tokens = sequences(model.config.vocab_size)
    found, _, _ = teacher_forced(model, tokens, PATTERNS[method])
    for row, n in enumerate(PROMPTS):
        sequence = tokens[row : row + 1, : n + NEW]
        with jax.disable_jit():
            expected = np.asarray(model(sequence, Oracle(method, int(n))))[0, n - 1 :]
        # The oracle attends in float64; logits here are of order 1.
        np.testing.assert_allclose(found[row], expected, atol=2e-4)
    assert np.abs(found[0] - np.asarray(model(tokens[:1]))[0, 36:]).max() > 1e-2


@BACKBONES
@pytest.mark.parametrize(
    "pattern",
    [
        dense.Dense(),
        dilated.Dilated(4, 3, 2),
        *(
            pytest.param(dilated.Dilated(*sizes), marks=pytest.mark.slow)
            for sizes in ((4,), (-1, 5, 1), (7, 2, 9))
        ),
    ],
)
def test_prefill_equals_decode(pattern, memory):
    model = decoder(memory)
    tokens = sequences(model.config.vocab_size)
    found, prefill_reads, reads = teacher_forced(model, tokens, pattern)
    whole = np.asarray(model(tokens, pattern))
    mask = oracles.causal_mask(TOTAL)
    if isinstance(pattern, dilated.Dilated):
        mask = oracles.dilated_mask(TOTAL, pattern.dilation, pattern.local, pattern.initial)
    for row, n in enumerate(PROMPTS):
        # Summation order differs between a whole sequence and a step: float32 rounding.
        np.testing.assert_allclose(found[row], whole[row, n - 1 : n + NEW], atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(prefill_reads.read[row], mask[:n].sum())
        np.testing.assert_allclose(prefill_reads.visible[row], n * (n + 1) / 2)
        for step, step_reads in enumerate(reads):
            np.testing.assert_allclose(step_reads.read[row], mask[n + step].sum())
            np.testing.assert_allclose(step_reads.visible[row], n + step + 1)


def test_reads_of_each_method():
    model = decoder()
    tokens = sequences(model.config.vocab_size)
    _, prefill, steps = teacher_forced(model, tokens, PATTERNS["quest"])
    np.testing.assert_allclose(prefill.read, prefill.visible)
    # Prompt of 37: 38 valid keys in five pages; page 0, the partial last page and one more.
    np.testing.assert_allclose(steps[0].read[0], 8 + 6 + 8)
    np.testing.assert_allclose(steps[0].visible[0], 38)
    _, prefill, steps = teacher_forced(model, tokens, PATTERNS["snapkv"])
    np.testing.assert_allclose(prefill.read, prefill.visible)
    np.testing.assert_allclose(steps[0].read, np.minimum(PROMPTS, 12) + 1)
    np.testing.assert_allclose(steps[0].visible, PROMPTS + 1)
    _, prefill, steps = teacher_forced(model, tokens, PATTERNS["moba"])
    blocks = np.minimum(np.arange(37) // 8 + 1, 3)
    expected = ((blocks - 1) * 8 + np.arange(37) % 8 + 1).sum()
    np.testing.assert_allclose(prefill.read[0], expected)
    np.testing.assert_allclose(steps[0].read, steps[0].visible)


def test_snapkv_with_a_short_prompt_is_dense():
    model = decoder()
    tokens = sequences(model.config.vocab_size)
    found, _, _ = teacher_forced(model, tokens, snapkv.SnapKV(6, 37))
    expected, _, _ = teacher_forced(model, tokens, dense.Dense())
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("pattern", [dense.Dense(), *PATTERNS.values(), dilated.Dilated(4, 2, 1)])
def test_batched_equals_one_by_one(pattern):
    model = decoder()
    tokens = sequences(model.config.vocab_size)
    together = model.generate(tokens, PROMPTS, max_new_tokens=NEW, pattern=pattern)
    assert together.shape == (3, NEW)
    assert together.dtype == jnp.int32
    for row, n in enumerate(PROMPTS):
        alone = model.generate(tokens[row : row + 1, :n], [n], max_new_tokens=NEW, pattern=pattern)
        np.testing.assert_array_equal(alone[0], together[row])


def test_greedy_tokens_are_the_argmax_of_whole_sequence_logits():
    model = decoder()
    tokens = sequences(model.config.vocab_size)
    out = np.asarray(model.generate(tokens, PROMPTS, max_new_tokens=NEW))
    for row, n in enumerate(PROMPTS):
        sequence = np.concatenate([tokens[row, :n], out[row]])[None]
        logits = model(sequence)[0, n - 1 : -1]
        np.testing.assert_array_equal(out[row], logits.argmax(-1))


def test_stop_token_ends_a_row_and_its_reads():
    model = decoder()
    tokens = sequences(model.config.vocab_size)
    free = model.generation(tokens, PROMPTS, NEW)
    stop = int(free.tokens[0, 3])
    out = model.generation(tokens, PROMPTS, NEW, stop_token=stop)
    for row in range(3):
        expected = np.asarray(free.tokens[row])
        ends = np.flatnonzero(expected == stop)
        if ends.size:
            expected = np.where(np.arange(NEW) > ends[0], stop, expected)
        np.testing.assert_array_equal(out.tokens[row], expected)
    first = int(np.flatnonzero(np.asarray(out.tokens[0]) == stop)[0])
    np.testing.assert_allclose(out.decode.visible[0], sum(37 + 1 + s for s in range(first)))


def test_prompt_lengths_of_one_bucket_share_a_program():
    model = decoder()
    tokens = sequences(model.config.vocab_size)
    model.generate(tokens, [33, 33, 33], max_new_tokens=2)
    compiled = generation_module._generate._cache_size()
    model.generate(tokens, [40, 35, 2], max_new_tokens=2)
    assert generation_module._generate._cache_size() == compiled
    for length in (1, 16, 17, 100, 4000, 4097, 131072):
        assert length <= generation_module.bucket(length) <= max(1.125 * length + 16, 16)


def test_layers_may_differ():
    model = decoder()
    tokens = sequences(model.config.vocab_size)
    same = teacher_forced(model, tokens, (dense.Dense(), dense.Dense()))[0]
    np.testing.assert_array_equal(same, teacher_forced(model, tokens, dense.Dense())[0])
    mixed = teacher_forced(model, tokens, (dense.Dense(), quest.Quest(8, 3)))[0]
    assert np.abs(mixed - same).max() > 1e-3
    whole_quest = teacher_forced(model, tokens, quest.Quest(8, 3))[0]
    assert np.abs(mixed - whole_quest).max() > 1e-3
    with pytest.raises(InputError, match="one for each of 2 layers"):
        model(tokens, (dense.Dense(),))


@pytest.mark.parametrize(
    "method",
    ["quest", *(pytest.param(name, marks=pytest.mark.slow) for name in ("moba", "snapkv"))],
)
def test_random_selectors_do_not_depend_on_the_batch(method):
    random = {
        "quest": quest.Quest(8, 3, selector="random"),
        "moba": moba.MoBA(8, 3, selector="random"),
        "snapkv": snapkv.SnapKV(6, 12, selector="random"),
    }[method]
    model = decoder()
    tokens = sequences(model.config.vocab_size)
    together = model.generate(tokens, PROMPTS, NEW, pattern=random, seed=5)
    alone = model.generate(tokens[:1], PROMPTS[:1], NEW, pattern=random, seed=5, rows=np.array([0]))
    np.testing.assert_array_equal(alone[0], together[0])
    wider = model.generation(
        tokens, PROMPTS, NEW, pattern=random, seed=5, width=2 * tokens.shape[1]
    )
    np.testing.assert_array_equal(wider.tokens, together)
    again = model.generation(tokens, PROMPTS, NEW, pattern=random, seed=5)
    np.testing.assert_array_equal(again.tokens, together)
    original = model.generation(tokens, PROMPTS, NEW, pattern=PATTERNS[method])
    if method == "snapkv":
        np.testing.assert_allclose(again.decode.read, original.decode.read)
    phase = "prefill" if method == "moba" else "decode"
    assert (getattr(again, phase).read < getattr(again, phase).visible)[0]


def test_lengths_outside_the_prompts_are_refused():
    model = decoder()
    tokens = sequences(model.config.vocab_size)
    with pytest.raises(InputError, match="lengths"):
        model.generate(tokens, [0, 3, 3], max_new_tokens=2)
    with pytest.raises(InputError, match="max_new_tokens"):
        model.generate(tokens, PROMPTS, max_new_tokens=0)
