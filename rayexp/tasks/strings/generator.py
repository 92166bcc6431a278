"""Samples of strings. Sample i of a split is a pure function of (seed, split, i): no data file, no loader state.

Strings are held out by a hash: a fixed tenth of them belongs only to the split ``test``, in every alphabet and cell. So
no stage can ever have trained on a test string.

Shape suffixes: _N samples, _L letters, _T tokens, _E edges, _V the 52 letters.
"""

import numpy as np

from rayexp import rng
from rayexp.tasks.strings import operations
from rayexp.tasks.strings.axes import Cell
from rayexp.tasks.strings.symbols import ALPHABET, COLON, EQUALS, LETTER0, OPERATIONS, SEMICOLON, VOCABULARY

HELD_OUT_ONE_IN = 10


def write(
    cell: Cell, split: str, seed: int, index_N: np.ndarray, cycle: np.ndarray | None, positional: bool, trace: bool
) -> np.ndarray:
    """Return tokens_NT of samples of one cell: ``<bos> [map ;] x : operations = y [; y ...] <eos>``.

    cycle: the hidden graph; None: every prompt shows a fresh one. positional: letter i takes i steps of a traversal.
    trace: the completion has the string after every operation, and not only the last one.
    """
    stream = rng.stream_key(seed, split)
    letters_NL = _strings(stream, split == "test", cell.length, index_N)
    if cell.foreign:
        letters_NL += np.uint8(ALPHABET) * _chosen(stream, index_N, cell.length, cell.foreign)
    successor = operations.printed_maps(stream, index_N) if cycle is None else cycle
    steps = operations.apply(cell.operations, letters_NL, successor, positional)
    written: list[np.ndarray | int] = [VOCABULARY.bos]
    if cycle is None:
        written += [_edge_list(stream, index_N, successor, cell) + LETTER0, SEMICOLON]
    written += [letters_NL + LETTER0, COLON, *(OPERATIONS[operation] for operation in cell.operations), EQUALS]
    for number, step_NL in enumerate(steps if trace else steps[-1:]):
        written += [SEMICOLON, step_NL + LETTER0] if number else [step_NL + LETTER0]
    written.append(VOCABULARY.eos)
    column_N1 = np.ones((len(index_N), 1), dtype=np.uint8)
    blocks = [block * column_N1 if isinstance(block, int) else block for block in written]
    return np.concatenate(blocks, axis=1, dtype=np.uint8, casting="unsafe")


def _strings(stream: int, held_out: bool, length: int, index_N: np.ndarray) -> np.ndarray:
    """Return letters_NL, uniform over the strings that are held out, or over those that are not. Redraw the others."""
    base = np.uint64(ALPHABET)
    code_N = rng.random_bits(stream, index_N) % base ** np.uint64(length)
    wrong = np.flatnonzero(_is_held_out(code_N, length) != held_out)
    attempt = 0
    while len(wrong):
        attempt += 1
        code_N[wrong] = rng.random_bits(stream, index_N[wrong], slot=attempt) % base ** np.uint64(length)
        wrong = wrong[_is_held_out(code_N[wrong], length) != held_out]
    letters_NL = np.empty((len(index_N), length), dtype=np.uint8)
    for position in range(length):
        code_N, letters_NL[:, position] = np.divmod(code_N, base)
    return letters_NL


def _is_held_out(code_N: np.ndarray, length: int) -> np.ndarray:
    """Return whether each string, given as a base-26 number, is a test string. This depends on no seed."""
    return rng.random_bits(rng.stream_key("held out", length), code_N) % np.uint64(HELD_OUT_ONE_IN) == 0


def _chosen(stream: int, index_N: np.ndarray, length: int, count: int) -> np.ndarray:
    """Return bool [N, L] with ``count`` random positions true in each row."""
    slots = index_N[:, None].astype(np.uint64) * np.uint64(length) + np.arange(length, dtype=np.uint64)
    rank_NL = np.argsort(np.argsort(rng.random_bits(rng.stream_key(stream, "foreign"), slots), axis=1), axis=1)
    return rank_NL < count


def _edge_list(stream: int, index_N: np.ndarray, next_NV: np.ndarray, cell: Cell) -> np.ndarray:
    """Return the map as letters ``from to from to ...`` in random order, for the alphabets of the string."""
    size = ALPHABET
    first, last = (0, size) if cell.foreign == 0 else (size, 2 * size) if cell.foreign == cell.length else (0, 2 * size)
    width = last - first
    slots = index_N[:, None].astype(np.uint64) * np.uint64(2 * size) + np.arange(width, dtype=np.uint64)
    source_NE = first + np.argsort(rng.random_bits(rng.stream_key(stream, "edges"), slots), axis=1)
    pairs = np.stack([source_NE, np.take_along_axis(next_NV, source_NE, axis=1)], axis=2)
    return pairs.reshape(len(index_N), 2 * width).astype(np.uint8)
