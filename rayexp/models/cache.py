"""Rows of a decoder's key-value cache.

Shape suffixes: _U rows that are read.
"""

import math
from typing import Any, cast

import numpy as np
from torch import Tensor
from transformers import DynamicCache

#: More than 128 rows are padded to a multiple of this; fewer to a multiple of a quarter of the power of two below their
#: number. A CPU's bf16 kernels are generated anew for each new shape. Without padding, a tiny GRPO step took 1.4 times
#: as long (benchmarks/step.py).
ROW_MULTIPLE = 32


def pad_rows(keys_U: np.ndarray) -> np.ndarray:
    """Repeat the last row up to ``padded(len(keys_U))`` rows. The results of the repeated rows are never used."""
    return np.concatenate([keys_U, np.repeat(keys_U[-1:], padded(len(keys_U)) - len(keys_U), axis=0)])


def padded(rows: int) -> int:
    """Return the padded number of rows, which is less than a quarter larger."""
    multiple = min(ROW_MULTIPLE, max(1, 2 ** (rows - 1).bit_length() // 8))
    return math.ceil(rows / multiple) * multiple


def gather_cache_rows(cache: DynamicCache, row_U: Tensor) -> None:
    """Replace row i of the cache by row ``row_U[i]``. The gradients of a row that is taken several times add up.

    transformers' ``batch_select_indices`` does the same by indexing, which takes 2.6 times as long on a CPU.
    """
    for layer in cast(list[Any], cache.layers):  # transformers' types declare no tensors of a layer
        layer.keys = layer.keys.index_select(0, row_U)
        layer.values = layer.values.index_select(0, row_U)
