"""Counter-based random numbers: a draw is a pure function of (key, index), so there is no generator state to save.

Any rank, sampler or resumed run computes exactly the numbers that it needs, in any order. The mixing function is the
finaliser of SplitMix64 (Steele, Lea, Flood, 2014).
"""

import hashlib
from functools import lru_cache

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MUL1 = np.uint64(0xBF58476D1CE4E5B9)
_MUL2 = np.uint64(0x94D049BB133111EB)


@lru_cache(maxsize=4096)
def stream_key(*parts: str | int) -> int:
    """Return a 64-bit key for a named stream, such as ``stream_key(seed, "pretrain")``; no two streams are related."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def splitmix64(z: np.ndarray) -> np.ndarray:
    """Scramble uint64 values by a bijection of the 64-bit integers. Return a new array."""
    z = z.astype(np.uint64, copy=True)
    for shift, multiplier in ((30, _MUL1), (27, _MUL2)):
        z ^= z >> np.uint64(shift)
        z *= multiplier
    z ^= z >> np.uint64(31)
    return z


def random_bits(stream: int, index: np.ndarray, slot: int = 0) -> np.ndarray:
    """Return uniform uint64, one for each entry of ``index``; ``slot`` numbers independent draws at the same index."""
    start = np.uint64(stream_key(stream, slot) if slot else stream)
    return splitmix64((index.astype(np.uint64) + np.uint64(1)) * _GOLDEN + start)


def uniform(stream: int, index: np.ndarray, slot: int = 0) -> np.ndarray:
    """Return uniform float64 in [0, 1), one for each entry of ``index``."""
    return (random_bits(stream, index, slot) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def epochs(stream: int, count: int, start: int, stop: int) -> np.ndarray:
    """Return entries ``start .. stop`` of an endless sequence of epochs, each a fresh shuffle of ``0 .. count-1``."""
    position = np.arange(start, stop, dtype=np.int64)
    out = np.empty(len(position), dtype=np.int64)
    for epoch in np.unique(position // count):
        order = _epoch_order(stream, count, int(epoch))
        inside = position // count == epoch
        out[inside] = order[position[inside] % count]
    return out


@lru_cache(maxsize=4)
def _epoch_order(stream: int, count: int, epoch: int) -> np.ndarray:
    """Return a shuffle of ``0 .. count-1``, cached for all steps of an epoch."""
    order = np.argsort(random_bits(stream_key(stream, "epoch", epoch), np.arange(count)))
    order.flags.writeable = False
    return order
