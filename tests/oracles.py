"""Brute-force statements of which entries a query reads, in NumPy float64 and plain loops.

Written from the methods' rules alone, sharing no code with the package: they exist to be
obviously right, at any cost in time.
"""

import math

import numpy as np


def repeat_heads(x: np.ndarray, heads: int) -> np.ndarray:
    """[B, S, G, D] to [B, S, H, D]: query head h reads key/value head h // (H / G)."""
    return np.repeat(x, heads // x.shape[2], axis=2)


def masked_attention(q, k, v, mask) -> np.ndarray:
    """softmax over the entries where mask [B, H, T, S] is true; [B, T, H, D] in float64.

    Entries outside the mask are never multiplied, so NaN there cannot spread.
    """
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    k, v = repeat_heads(k, q.shape[2]), repeat_heads(v, q.shape[2])
    out = np.zeros(q.shape)
    for b, h, t in np.ndindex(mask.shape[:3]):
        read = np.flatnonzero(mask[b, h, t])
        if read.size:
            scores = k[b, read, h] @ q[b, t, h] / math.sqrt(q.shape[-1])
            weights = np.exp(scores - scores.max())
            out[b, t, h] = weights @ v[b, read, h] / weights.sum()
    return out


def best(scores: dict[int, float], forced: set[int], count: int) -> set[int]:
    """`count` candidates: forced ones, then by score, equal scores by lower index."""
    free = sorted((c for c in scores if c not in forced), key=lambda c: (-scores[c], c))
    return forced | set(free[: max(count - len(forced), 0)])


def quest_pages(q, k, length, page_size, pages, force_first=True, force_current=True):
    """Pages one query head reads: q [D], k [S, D] of its key/value head."""
    current = (length - 1) // page_size
    scores = {}
    for page in range(current + 1):
        keys = k[page * page_size : min((page + 1) * page_size, length)].astype(np.float64)
        low, high = keys.min(0), keys.max(0)
        scores[page] = float(np.maximum(q * low, q * high).sum())
    forced = ({0} if force_first else set()) | ({current} if force_current else set())
    return best(scores, forced, pages)


def moba_blocks(q, k, position, block_size, blocks, force_first=True):
    """Blocks one query attends to: q [D], k [S, D]."""
    current = position // block_size
    scores = {
        block: float(
            k[block * block_size : (block + 1) * block_size].astype(np.float64).mean(0) @ q
        )
        for block in range(current)
    }
    forced = {current} | ({0} if force_first else set())
    return best(scores, forced, blocks)


def moba_mask(q, k, block_size, blocks, force_first=True) -> np.ndarray:
    """[B, H, T, T] for a whole MoBA prefill."""
    batch, time, heads, _ = q.shape
    k = repeat_heads(np.asarray(k), heads)
    mask = np.zeros((batch, heads, time, time), bool)
    for b, h, t in np.ndindex(mask.shape[:3]):
        for block in moba_blocks(
            np.asarray(q)[b, t, h], k[b, :, h], t, block_size, blocks, force_first
        ):
            mask[b, h, t, block * block_size : min((block + 1) * block_size, t + 1)] = True
    return mask


def dilated_mask(time, dilation, local, initial) -> np.ndarray:
    """[T, T] of the released rule."""
    mask = np.zeros((time, time), bool)
    for i in range(time):
        for j in range(i + 1):
            strided = dilation > 0 and (j + 1) % dilation == 0
            mask[i, j] = strided or i - j <= local or j < initial
    return mask


def snapkv_positions(q, k, length, window, capacity, kernel_size=5, pooling="avg"):
    """Kept positions of one key/value head: q [T, R, D] of its query heads, k [S, D]."""
    q, k = np.asarray(q, np.float64), np.asarray(k, np.float64)
    votes = np.zeros(length)
    for position in range(max(length - window, 0), length):
        for head in range(q.shape[1]):
            scores = k[: position + 1] @ q[position, head] / math.sqrt(q.shape[-1])
            weights = np.exp(scores - scores.max())
            votes[: position + 1] += weights / weights.sum() / q.shape[1]
    prefix = max(length - window, 0)
    half = kernel_size // 2
    padded = np.concatenate([np.zeros(half), votes[:prefix], np.zeros(half)])
    windows = [padded[i : i + kernel_size] for i in range(prefix)]
    pooled = [w.mean() if pooling == "avg" else w.max() for w in windows]
    chosen = best(dict(enumerate(pooled)), set(), capacity - window)
    if length <= capacity:
        return set(range(length))
    return chosen | set(range(prefix, length))


def causal_mask(time: int) -> np.ndarray:
    return np.tril(np.ones((time, time), bool))
