"""Float64 NumPy versions of every operation, written from the definitions with plain loops."""

import jax.numpy as jnp
import numpy as np

from tests.compiled import compiled

run = compiled


def normal(rng, shape, dtype=jnp.float32, scale=1.0):
    """Random numbers made by NumPy, which compiles nothing."""
    return jnp.asarray((scale * rng.standard_normal(shape)).astype(dtype))


def poisoned(x, keep):
    """`x` with NaN where `keep` (broadcast from the left) is false."""
    x = np.asarray(x)
    keep = np.asarray(keep).reshape(*keep.shape, *(1,) * (x.ndim - keep.ndim))
    return jnp.asarray(np.where(keep, x, np.array(np.nan, x.dtype)))


def as64(x):
    return np.asarray(x, dtype=np.float64)


def logistic(x):
    return 1.0 / (1.0 + np.exp(-as64(x)))


def decay_scan(gates, k, v, k_0=None, v_0=None):
    gates, k, v = as64(gates), as64(k), as64(v)
    keep = logistic(gates)
    state_k = np.zeros_like(k[:, 0]) if k_0 is None else as64(k_0)
    state_v = np.zeros_like(v[:, 0]) if v_0 is None else as64(v_0)
    out_k, out_v = np.empty_like(k), np.empty_like(v)
    for t in range(k.shape[1]):
        state_k = keep[:, t] * state_k + (1 - keep[:, t]) * k[:, t]
        state_v = keep[:, t] * state_v + (1 - keep[:, t]) * v[:, t]
        out_k[:, t], out_v[:, t] = state_k, state_v
    return out_k, out_v, state_k, state_v


def attend(q, k, v, rows):
    """Attention of each query over its own list of keys.

    Args:
      q: [B, T, H, D]; k, v: [B, S, G, D].
      rows: (b, t, h) -> the key positions query t of head h reads.

    Returns:
      ([B, T, H, D] the result, [B, T, H, D] the same average of |v|, the scale of its roundings).
    """
    q, k, v = as64(q), as64(k), as64(v)
    group = q.shape[2] // k.shape[2]
    out, scale = np.zeros_like(q), np.zeros_like(q)
    for b, t, h in np.ndindex(q.shape[:3]):
        keys = list(rows(b, t, h))
        if not keys:
            continue
        scores = k[b, keys, h // group] @ q[b, t, h] / np.sqrt(q.shape[3])
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        out[b, t, h] = weights @ v[b, keys, h // group]
        scale[b, t, h] = weights @ np.abs(v[b, keys, h // group])
    return out, scale


def assert_attention_close(have, want, scale):
    """float32 to a few roundings; bfloat16 to two of its own, of the probabilities and the result.

    Rounding each probability (relative 2^-9 on average, 2^-8 at most) moves the result by no more
    than that share of the same average of |v|; rounding the result by at most 2^-8 of itself.
    """
    bound = (2**-7 if have.dtype == "bfloat16" else 2e-6) * scale + 1e-6
    error = np.abs(as64(have) - want)
    worst = np.max(error / bound)
    assert worst <= 1, f"error {error.max():.3g} is {worst:.3g} times the bound"
