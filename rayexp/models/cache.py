"""Rows of a decoder's key-value cache.

Shape suffixes: _U rows that are read.
"""

import math
from typing import Any, cast

import numpy as np
from torch import Tensor
from transformers import DynamicCache

#: Rows are read in multiples of so many where there are more than 128 of them, and of a quarter of the power of two
#: below their number where there are fewer. A CPU's bf16 kernels are generated for each shape that is new: where each
#: number of rows was one, a tiny GRPO step took 1.4 times as long (benchmarks/step.py).
ROW_MULTIPLE = 32


def pad_rows(keys_U: np.ndarray) -> np.ndarray:
    """Repeat the last row up to ``padded(len(keys_U))`` rows. Nothing reads what comes of the repetitions."""
    return np.concatenate([keys_U, np.repeat(keys_U[-1:], padded(len(keys_U)) - len(keys_U), axis=0)])


def padded(rows: int) -> int:
    """Return the number of rows that are read for so many: less than a quarter more."""
    multiple = min(ROW_MULTIPLE, max(1, 2 ** (rows - 1).bit_length() // 8))
    return math.ceil(rows / multiple) * multiple


def gather_cache_rows(cache: DynamicCache, row_U: Tensor) -> None:
    """Make row i of the cache what row ``row_U[i]`` was. Where a row is taken several times, gradients add up.

    transformers' ``batch_select_indices`` does the same by indexing, which takes 2.6 times as long on a CPU.
    """
    for layer in cast(list[Any], cache.layers):  # transformers' types know no layer's tensors
        layer.keys = layer.keys.index_select(0, row_U)
        layer.values = layer.values.index_select(0, row_U)
