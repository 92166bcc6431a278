"""Traversal T and shift S on whole arrays of strings.

T moves every letter one edge along a graph of out-degree one; S rotates the string left by one. Letters are 0..25 in
alphabet A, 26..51 in B, and the graph on B is the isomorphic copy of the one on A.

Shape suffixes: _N strings, _L letters of a string, _V the 52 letters, _K operations.
"""

import numpy as np

from rayexp import rng
from rayexp.tasks.strings.symbols import ALPHABET


def hidden_cycle(seed: int) -> np.ndarray:
    """Return next_V of one random 26-cycle (graph G1), with its copy on alphabet B. Every power of T is a bijection."""
    order = np.argsort(rng.random_bits(rng.stream_key(seed, "cycle"), np.arange(ALPHABET)))
    successor = np.empty(ALPHABET, dtype=np.uint8)
    successor[order] = np.roll(order, -1)
    return np.concatenate([successor, successor + ALPHABET]).astype(np.uint8)


def printed_maps(stream: int, index_N: np.ndarray) -> np.ndarray:
    """Return next_NV of a fresh random bijection for each sample (graph G2, printed in the prompt)."""
    slots = index_N[:, None].astype(np.uint64) * np.uint64(ALPHABET) + np.arange(ALPHABET, dtype=np.uint64)
    successor = np.argsort(rng.random_bits(rng.stream_key(stream, "map"), slots), axis=1)
    return np.concatenate([successor, successor + ALPHABET], axis=1).astype(np.uint8)


def traverse(letters_NL: np.ndarray, next_V: np.ndarray, positional: bool) -> np.ndarray:
    """Apply T: move every letter one step along ``next_V`` (or ``next_NV``, one graph for each string).

    ``positional`` is variant C2: letter i takes i steps, i = 1..L, so T and S no longer commute.
    """
    length = letters_NL.shape[1]
    out_NL = letters_NL.copy()
    for step in range(length if positional else 1):
        moved = slice(step, length)
        if next_V.ndim == 1:
            out_NL[:, moved] = next_V[out_NL[:, moved]]
        else:
            out_NL[:, moved] = np.take_along_axis(next_V, out_NL[:, moved].astype(np.intp), axis=1)
    return out_NL


def shift(letters_NL: np.ndarray) -> np.ndarray:
    """Apply S: (x_1, ..., x_L) -> (x_2, ..., x_L, x_1)."""
    return np.roll(letters_NL, -1, axis=1)


def apply(operations: str, letters_NL: np.ndarray, next_V: np.ndarray, positional: bool) -> list[np.ndarray]:
    """Apply operations from left to right. Return the string after each; the last one is the answer."""
    steps: list[np.ndarray] = []
    for operation in operations:
        letters_NL = traverse(letters_NL, next_V, positional) if operation == "T" else shift(letters_NL)
        steps.append(letters_NL)
    return steps
