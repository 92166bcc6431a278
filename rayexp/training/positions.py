"""Randomised positions of training samples (Ruoss et al., 2023, arXiv 2305.16843), against extrapolation in length.

A training sample stands at random increasing positions from a range that is longer than every sample. So training on
short samples shows the positions of long ones. Here the range has 4 places for each token of the task's longest sample,
and RoPE gets a place divided by 4. The positions 0, 1, 2, ... are then those of the longest sample at equal distances
in the range.

Unlike in the paper, which draws positions anew, completions are always drawn, scored and measured at 0, 1, 2, ...:

1. At random positions an exact Q would depend on the draw.
2. For the longest sample they are the mean of random positions.
3. A prefix has the same positions as the whole.
4. Stock transformers and vLLM read models at these positions.

At scale tiny on the axis length, with one seed, mean Q of the two ID cells is 0.76 and 0.77 at them, and 0.76 and 0.75
at random positions.

Shape suffixes: _N samples, _T tokens, _R places of the range.
"""

from dataclasses import replace

import numpy as np

from rayexp import rng
from rayexp.tasks import TokenBatch

PLACES_A_TOKEN = 4


def with_random_positions(batch: TokenBatch, stream: int, longest: int) -> TokenBatch:
    """Return the samples at random increasing positions below ``longest``, the tokens of the task's longest sample. The
    positions are a function of the stream and of the number of each sample."""
    places, tokens = longest * PLACES_A_TOKEN, batch.tokens_NT.shape[1]
    slots_NR = batch.index_N[:, None] * places + np.arange(places)
    chosen_NT = np.argpartition(rng.random_bits(stream, slots_NR), tokens - 1, axis=1)[:, :tokens]
    positions_NT = np.sort(chosen_NT, axis=1).astype(np.float32) / PLACES_A_TOKEN
    return replace(batch, positions_NT=positions_NT)
