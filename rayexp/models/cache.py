"""Rows of a decoder's key-value cache.

Shape suffixes: _U rows that are read.
"""

from typing import Any, cast

import numpy as np
from torch import Tensor
from transformers import DynamicCache

#: Rows are read in multiples of so many. A CPU's bf16 kernels are generated for each shape that is new: without this a
#: tiny GRPO step took 1.4 times as long (benchmarks/step.py).
ROW_MULTIPLE = 32


def pad_rows(keys_U: np.ndarray) -> np.ndarray:
    """Repeat the last row up to a multiple of ``ROW_MULTIPLE`` rows. Nothing reads what comes of the repetitions."""
    return np.concatenate([keys_U, np.repeat(keys_U[-1:], -len(keys_U) % ROW_MULTIPLE, axis=0)])


def gather_cache_rows(cache: DynamicCache, row_U: Tensor) -> None:
    """Make row i of the cache what row ``row_U[i]`` was. Where a row is taken several times, gradients add up.

    transformers' ``batch_select_indices`` does the same by indexing, which takes 2.6 times as long on a CPU.
    """
    for layer in cast(list[Any], cache.layers):  # transformers' types know no layer's tensors
        layer.keys = layer.keys.index_select(0, row_U)
        layer.values = layer.values.index_select(0, row_U)
