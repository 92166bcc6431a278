"""Copies of test items in pretraining: one of every two test items is copied, and the other is its control.

Both halves are of one cell, are answered by the same decoder, and were chosen by a coin. So a larger gain on the copied
half comes from having seen these very items.
"""

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rayexp import rng
from rayexp.tasks.base import TEST_SEED, Task, TokenBatch, in_turn


def is_copied(seed: int, cell: str, item_N: np.ndarray) -> np.ndarray:
    """Return whether each test item of a cell is copied in a seed's pretraining: bool [N], one of items 2j and 2j+1."""
    coin_N = rng.random_bits(rng.stream_key("copied", seed, cell), item_N // 2) % np.uint64(2)
    return (item_N % 2).astype(np.uint64) == coin_N


def copied_items(seed: int, cell: str, items: int) -> np.ndarray:
    """Return the copied items among the first ``items`` test items of a cell: [items / 2]. items: an even number."""
    item_N = np.arange(items, dtype=np.int64)
    return item_N[is_copied(seed, cell, item_N)]


def mixed_with_copies(
    task: Task, split: str, seed: int, start: int, ood_before_N: np.ndarray, items: int
) -> list[TokenBatch]:
    """Return samples from ``start`` on as ``Task.mixed`` does, but with copies of test items as the OOD samples. OOD
    cells alternate, and each cell cycles through its copied items in order."""
    before_N, ood_N = ood_before_N[:-1], np.diff(ood_before_N) > 0
    index_N = start + np.arange(len(before_N), dtype=np.int64)
    of_id = in_turn(task.cells("id"), (index_N - before_N)[~ood_N], index_N[~ood_N])
    batches, cells = task.batches(split, seed, of_id), task.cells("ood")
    for cell, numbers_N in in_turn(cells, before_N[ood_N], index_N[ood_N]):
        copied, turn_N = copied_items(seed, cell, items), before_N[numbers_N - start] // len(cells)
        item_N = copied[turn_N % len(copied)]
        batches += _numbered(task.batches("test", TEST_SEED, [(cell, item_N)]), item_N, numbers_N)
    return batches


def _numbered(batches: Sequence[TokenBatch], item_N: np.ndarray, index_N: np.ndarray) -> list[TokenBatch]:
    """Replace the item numbers of batches by sample numbers. Rows of one item are equal, so any of its numbers will
    do."""
    numbers: dict[int, deque[int]] = defaultdict(deque)
    for item, index in zip(item_N.tolist(), index_N.tolist(), strict=True):
        numbers[item].append(index)
    return [
        replace(batch, index_N=np.array([numbers[item].popleft() for item in batch.index_N.tolist()], dtype=np.int64))
        for batch in batches
    ]
