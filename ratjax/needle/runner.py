"""The device's side of an evaluation: one cache, batch after batch, setting after setting."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Float32, Int32

from ratjax.config.needle import NeedleConfig, Setting
from ratjax.model import Decoder, staged
from ratjax.model.generation import prompt_keys
from ratjax.needle.batching import Batch
from ratjax.needle.hits import WATCHED
from ratjax.needle.settings import pattern_of
from ratjax.shapes import PromptKeys
from ratjax.sharding import on_mesh, sizes_of
from ratjax.sparsity.dense import Dense
from ratjax.sparsity.pattern import Pattern


def parts(mesh: Mesh | None) -> int:
    """How many parts a batch is cut into."""
    return 1 if mesh is None else sizes_of(mesh).batch_shards


@dataclasses.dataclass(frozen=True)
class Group:
    """Settings that share a prefill, by their places among all settings."""

    prefill: Pattern
    seed: int
    places: tuple[int, ...]


def groups(settings: Sequence[Setting]) -> list[Group]:
    """Every setting in one group, in order of appearance.

    A random selector that draws in prefill has a prefill of its own for each seed.
    """
    shared: dict[tuple[Pattern, int], list[int]] = {}
    for place, setting in enumerate(settings):
        kind = pattern_of(setting).prefills_as
        seed = 0 if kind == Dense() else setting.selector_seed
        shared.setdefault((kind, seed), []).append(place)
    return [
        Group(
            staged.prefill_pattern(pattern_of(settings[place]) for place in places),
            seed,
            tuple(places),
        )
        for (_, seed), places in shared.items()
    ]


@dataclasses.dataclass(frozen=True)
class Answers:
    """A batch's answers under one setting.

    Attributes:
      place: which setting.
      tokens: generated, the stop token and what follows it included.
      reads: entries read and visible in prefill, then read and visible in decoding, row by row.
      prefill_seconds: time that the batch's prefill took, shared or not.
      decode_seconds: time that the answers took.
      compiled: whether one of the two times holds a compilation.
      hits: which heads of which layers hit, where that was asked for (`ratjax.needle.hits`).
    """

    place: int
    tokens: Int32[np.ndarray, "B N"]
    reads: Float32[np.ndarray, "B 4"]
    prefill_seconds: float
    decode_seconds: float
    compiled: bool
    hits: Bool[np.ndarray, "L B H"] | None = None


class Runner:
    """Runs batches on the first device, or on all of a mesh.

    Args:
      model: the decoder, on the mesh where there is one.
      config: batch sizes, answer length, and whether hit rates are wanted.
      settings: all of them; answers name them by their places.
      stop: the token that ends an answer.
      answer_tokens: of the longest right answer; for hit rates and steered selections.
      mesh: devices that share out each batch and the model's heads; every process of theirs
        runs the same batches and gets all answers.

    Attributes:
      programs: what has been compiled so far: (phase, batch shape, pattern).
    """

    def __init__(
        self,
        model: Decoder,
        config: NeedleConfig,
        settings: Sequence[Setting],
        stop: int,
        answer_tokens: int = 0,
        mesh: Mesh | None = None,
    ):
        everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())
        self._put = partial(jax.device_put, device=everywhere)
        self._keys = on_mesh(mesh, jax.jit(prompt_keys, static_argnames="seed"))
        self._read, self._answer, self._watch = (
            on_mesh(mesh, step) for step in (staged.prefill, staged.answer, staged.watch)
        )
        self._model, self._settings, self._stop = model, tuple(settings), self._put(np.int32(stop))
        self._rows, self._new = config.prefill_batch * parts(mesh), config.tokens_to_generate
        self._answer_tokens = min(answer_tokens, self._new)
        self._hit_rates = config.hit_rates
        self._storage = None
        self.programs: set[tuple] = set()

    def run(self, batch: Batch, group: Group, wanted: Sequence[int]) -> Iterator[Answers]:
        """Prefills a batch once and answers it under the settings at the places `wanted`."""
        keys = self._keys(self._put(batch.numbers), seed=group.seed)
        compiling = self._first("prefill", batch, group.prefill)
        started = time.perf_counter()
        prefilled = self._prefill(batch, group.prefill, keys)
        prefill_seconds = time.perf_counter() - started
        try:
            for place in wanted:
                setting = self._settings[place]
                pattern = pattern_of(setting)
                first = self._first("decode", batch, pattern.decodes_as)
                keys = self._keys(self._put(batch.numbers), seed=setting.selector_seed)
                answers, needed = map(self._put, batch.targets(self._answer_tokens))
                golden = needed if setting.golden else None
                started = time.perf_counter()
                tokens, reads, prefilled = self._answer(
                    self._model, prefilled, keys, self._stop, pattern, self._new, golden
                )
                tokens = np.asarray(tokens)
                decode_seconds = time.perf_counter() - started
                entries = np.stack([*prefilled.reads[:2], *reads[:2]], 1)
                hits = None
                if self._hit_rates and setting.method in WATCHED:
                    hits, prefilled = self._watch(
                        self._model, prefilled, keys, answers, needed, pattern, self._new
                    )
                    hits = np.asarray(hits)
                yield Answers(
                    place,
                    tokens,
                    entries,
                    prefill_seconds,
                    decode_seconds,
                    compiling or first,
                    hits,
                )
        finally:
            self._storage = prefilled.cache

    def _prefill(self, batch: Batch, pattern: Pattern, keys: PromptKeys) -> staged.Prefilled:
        storage, self._storage = self._storage, None
        prefilled = self._read(
            self._model,
            self._put(batch.tokens),
            self._put(batch.lengths),
            keys,
            pattern,
            self._new,
            self._rows or len(batch.lengths),
            storage,
        )
        return jax.block_until_ready(prefilled)

    def _first(self, phase: str, batch: Batch, pattern: Pattern) -> bool:
        program = (phase, batch.tokens.shape, pattern)
        found = program not in self.programs
        self.programs.add(program)
        return found
