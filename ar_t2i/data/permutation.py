"""Randomness as a function of position: any process can compute any part of it, and none is kept in memory."""

import hashlib
from collections.abc import Sequence

import numpy as np

ROUNDS = 8


def permuted(positions: np.ndarray, size: int, key: Sequence[int]) -> np.ndarray:
    """Where a random permutation of 0 .. size - 1 sends some positions.

    A Feistel network on the next even number of bits; what falls outside is sent on until it falls inside ("cycle
    walking", Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002).

    Args:
        positions: (n,) integers in 0 .. size - 1.
        size: of the permutation.
        key: tells permutations apart.

    Returns:
        (n,) int64; all positions together give each number once.
    """
    half = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = _words(key, ROUNDS)
    values = np.asarray(positions).astype(np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        left, right = values[outside] >> half, values[outside] & mask
        for round_key in keys:
            left, right = right, left ^ (_mixed(right ^ round_key) & mask)
        values[outside] = (left << half) | right
        outside = values >= size
    return values.astype(np.int64)


def uniform(indices: np.ndarray, epochs: np.ndarray, seed: int) -> np.ndarray:
    """A random number in [0, 1) for each row in each epoch, (n,) float64."""
    (key,) = _words((seed,), 1)
    mixed = _mixed(np.asarray(indices).astype(np.uint64) ^ _mixed(np.asarray(epochs).astype(np.uint64) ^ key))
    return (mixed >> np.uint64(11)) * 2.0**-53


def _words(key: Sequence[int], count: int) -> np.ndarray:
    """Words of 64 bits from a key."""
    digest = hashlib.blake2b(repr(tuple(key)).encode(), digest_size=8 * count).digest()
    return np.frombuffer(digest, dtype="<u8")


def _mixed(values: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer: each bit of the result depends on all bits (Steele, Lea and Flood 2014)."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
