"""How dilated attention is cut into tiles on a TPU: its arrays, its blocks, its kernels' memory."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ratjax_kernels.pallas_call import Kernel, pad_to
from ratjax_kernels.strided_prefill import pallas_kernels
from ratjax_kernels.strided_prefill.pallas_kernels import Rule

_TILES = (128, 256, 512, 1024)
_STEP = 512  # queries that cost as much as a step of the grid
_WIDE = 512  # local windows up to this are met in strips of 128 queries, wider ones in stretches
_AT_ONCE = 256  # far keys: scores of 256 x 1024 are 1 MiB
_VMEM = 48 * 2**20  # a v5p has 64 MiB, others 128


@dataclasses.dataclass(frozen=True)
class Cut:
    """Sizes of a call, its tile of queries, and the rule that its kernels follow."""

    batch: int
    length: int
    heads: int
    kv_heads: int
    channels: int
    dtype: jnp.dtype
    tile: int
    rule: Rule

    @staticmethod
    def of(q, k, dtype, dilation: int, local: int, initial: int) -> "Cut":
        batch, length, heads, channels = q.shape
        local, initial = min(local, length), min(initial, length)
        strip = 128 if local <= _WIDE else pallas_kernels.STRETCH
        tiles = [tile for tile in _TILES if tile >= strip]
        tile = min(tiles, key=lambda tile: -(-length // tile) * (tile + _STEP))
        strided = max(length // dilation - initial // dilation, 0) if dilation > 0 else 0
        lead = -(-local // strip) * strip
        at_once = min(_AT_ONCE, -(-(initial + strided) // 16) * 16)
        rule = Rule(dilation, local, initial, strided, strip, lead, at_once)
        return Cut(batch, length, heads, k.shape[2], channels, jnp.dtype(dtype), tile, rule)

    def problem(self) -> str | None:
        """Why a kernel cannot be lowered; None: all can."""
        kernels = (self.forward(), self.queries(), self.keys())
        return next(filter(None, (kernel.problem() for kernel in kernels)), None)

    @property
    def padded(self) -> int:
        return -(-self.length // self.tile) * self.tile

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def far_keys(self) -> int:
        return self.rule.initial + self.rule.strided

    @property
    def has_far(self) -> bool:
        return self.far_keys > 0

    @property
    def far_rows(self) -> int:
        return -(-self.far_keys // self.rule.at_once) * self.rule.at_once if self.has_far else 0

    @property
    def _first_strided(self) -> int:
        return (self.rule.initial // self.rule.dilation + 1) * self.rule.dilation - 1

    def tiled(self, x):
        """[B, heads, T, D], T padded to whole tiles."""
        return pad_to(x, 2, self.padded)

    def window(self, x):
        """Keys with as many in front of position 0 as a window reaches back."""
        return jnp.pad(x, [(0, 0), (0, 0), (self.rule.lead, self.padded - self.length), (0, 0)])

    def behind(self, x, axis: int):
        """Queries with as many behind the last as a window of them reaches on."""
        return pad_to(x, axis, self.padded + self.rule.lead)

    def far(self, *arrays):
        """[B, G, T, D] each -> its far rows, [B, G, far_rows, D]; nothing where there are none."""
        return [self._far(x) for x in arrays] if self.has_far else []

    def _far(self, x):
        rows = x[:, :, : self.rule.initial]
        if self.rule.strided:
            strided = x[:, :, self._first_strided :: self.rule.dilation]
            rows = jnp.concatenate([rows, strided], axis=2)
        return pad_to(rows, 2, self.far_rows)

    def spread(self, x):
        """The far keys' gradients at their positions, [B, G, T, D], zero elsewhere."""
        rule = self.rule
        out = pad_to(x[:, :, : rule.initial], 2, self.length)
        if rule.strided:
            strided = x[:, :, rule.initial : self.far_keys]
            first = self._first_strided
            behind = self.length - first - (rule.strided - 1) * rule.dilation - 1
            apart, none = (first, behind, rule.dilation - 1), (0, 0, 0)
            out += jax.lax.pad(strided, jnp.zeros((), x.dtype), (none, none, apart, none))
        return out

    def forward(self) -> Kernel:
        """tiles of q, windows of k and v, far k and v -> out, lse [B, H, 1, T]."""
        blocks = _Blocks(self, lambda b, h, i: (b, h, jax.lax.div(h, self.group), i))
        return self._kernel(
            pallas_kernels.forward_kernel,
            "strided_prefill_forward",
            (self.batch, self.heads, self.padded // self.tile),
            (blocks.query(), *[blocks.window()] * 2, *[blocks.far()] * (2 * self.has_far)),
            (blocks.query(), blocks.row()),
            scratch=(pltpu.VMEM((self.channels, self.tile), jnp.float32),),
            products=2,
        )

    def queries(self) -> Kernel:
        """tiles of q, d_out, lse, delta, then as forward -> dq, far dk and dv, near dk and dv."""
        blocks = self._by_key_head()
        far = [blocks.far(jnp.float32)] * (2 * self.has_far)
        near = [] if self.rule.lead else [blocks.key(self._near_dtype)] * 2
        return self._kernel(
            functools.partial(pallas_kernels.queries_kernel, has_far=self.has_far),
            "strided_prefill_queries",
            (self.batch, self.kv_heads, self.padded // self.tile, self.group),
            (
                *[blocks.query()] * 2,
                *[blocks.row()] * 2,
                *[blocks.window()] * 2,
                *[blocks.far()] * (2 * self.has_far),
            ),
            (blocks.query(), *far, *near),
            scratch=(pltpu.VMEM((self.channels, self.tile), jnp.float32),),
            products=5,
        )

    def keys(self) -> Kernel:
        """windows of q, d_out, lse, delta, tiles of k and v -> near dk and dv."""
        blocks = self._by_key_head()
        return self._kernel(
            pallas_kernels.keys_kernel,
            "strided_prefill_keys",
            (self.batch, self.kv_heads, self.padded // self.tile, self.group),
            (*[blocks.query_window()] * 2, *[blocks.row_window()] * 2, *[blocks.key()] * 2),
            (blocks.key(self._near_dtype),) * 2,
            products=4,
        )

    @property
    def _near_dtype(self):
        """Sums over the heads of a group are float32 until they are whole."""
        return self.dtype if self.group == 1 else jnp.dtype(jnp.float32)

    def _by_key_head(self):
        return _Blocks(self, lambda b, g, i, r: (b, g * self.group + r, g, i))

    def _kernel(self, body, name, grid, inputs, outputs, products, scratch=()):
        pairs = self.length * (self.rule.local + 1) + self.far_keys * self.length // 2
        pairs *= self.batch * self.heads
        arrays = [x for x, _ in (*inputs, *outputs)]
        scores = max(self.rule.at_once * self.tile, self.rule.strip * pallas_kernels.STRETCH)
        return Kernel(
            functools.partial(body, self.rule),
            name,
            grid,
            *zip(*inputs, strict=True),
            *zip(*outputs, strict=True),
            scratch=scratch,
            semantics=("parallel", "parallel") + ("arbitrary",) * (len(grid) - 2),
            cost=pl.CostEstimate(
                flops=2 * products * pairs * self.channels,
                transcendentals=pairs,
                bytes_accessed=sum(x.size * x.dtype.itemsize for x in arrays),
            ),
            # Scores, probabilities, their gradients and what products are fed with; sums.
            values=4 * (5 * scores + 2 * self.channels * self.tile),
            vmem=_VMEM,
        )


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """Arrays with their blocks.

    Attributes:
      cut: the sizes.
      at: turns a step's indices into (batch, query head, key head, tile).
    """

    cut: Cut
    at: Callable

    def query(self):
        """A tile of queries."""
        return self._rows(False, self.cut.tile, self.cut.padded, lambda tile: tile)

    def key(self, dtype=None):
        """A tile of keys."""
        return self._rows(True, self.cut.tile, self.cut.padded, lambda tile: tile, dtype)

    def window(self):
        """A tile of keys, and `lead` before it."""
        return self._window(True) if self.cut.rule.lead else self.key()

    def query_window(self):
        """A tile of queries, and `lead` behind it."""
        return self._window(False)

    def far(self, dtype=None):
        """A head's list of far keys, which stays for as long as the head's queries pass."""
        rows = self.cut.far_rows
        return self._rows(True, rows, rows, lambda tile: 0, dtype, pipeline_mode=pl.Buffered(1))

    def row(self):
        """A float32 number a query of a tile."""
        return self._lanes(self.cut.tile, self.cut.padded, lambda tile: tile)

    def row_window(self):
        """A float32 number a query of a window."""
        window = pl.Element(self.cut.tile + self.cut.rule.lead)
        return self._lanes(window, self.cut.padded + self.cut.rule.lead, self._element)

    def _window(self, shared: bool):
        window = pl.Element(self.cut.tile + self.cut.rule.lead)
        return self._rows(shared, window, self.cut.padded + self.cut.rule.lead, self._element)

    def _element(self, tile):
        return tile * self.cut.tile

    def _rows(self, shared: bool, rows, size: int, first, dtype=None, **settings):
        """Of [B, heads, size, D]; `shared` where the heads are those of keys."""
        cut = self.cut

        def index(*step):
            batch, head, key_head, tile = self.at(*step)
            return batch, key_head if shared else head, first(tile), 0

        channels = pl.Element(cut.channels) if isinstance(rows, pl.Element) else cut.channels
        shape = (cut.batch, cut.kv_heads if shared else cut.heads, size, cut.channels)
        array = jax.ShapeDtypeStruct(shape, dtype or cut.dtype)
        return array, pl.BlockSpec((None, None, rows, channels), index, **settings)

    def _lanes(self, lanes, size: int, first):
        """Of [B, H, 1, size]."""
        cut = self.cut

        def index(*step):
            batch, head, _, tile = self.at(*step)
            return batch, head, 0, first(tile)

        one = pl.Element(1) if isinstance(lanes, pl.Element) else 1
        array = jax.ShapeDtypeStruct((cut.batch, cut.heads, 1, size), jnp.float32)
        return array, pl.BlockSpec((None, None, one, lanes), index)
