"""Randomised positions of training samples (Ruoss et al., 2023, arXiv 2305.16843), against extrapolation in length.

A sample of any length stands at random increasing positions out of a range that is longer than every sample, so that
the positions of long samples have been seen in training on short ones. Here the range has 4 places for each token of
the longest sample of the task, and RoPE is told a place divided by 4: the positions 0, 1, 2, ... are the even spread of
the longest sample over the range. They are what completions are drawn, scored and measured at, where the paper draws
positions anew: a random one would make a number of what is exact, the even spread is their mean for the longest sample,
a prefix has the positions that the whole has, and stock transformers and vLLM read models at these positions.
Seen at scale tiny on the axis length, one seed: mean Q of the two ID cells is 0.76 and 0.77 at them, and 0.76 and 0.75
at random positions.

Shape suffixes: _N samples, _T tokens, _R places of the range.
"""

from dataclasses import replace

import numpy as np

from rayexp import rng
from rayexp.tasks import TokenBatch

PLACES_A_TOKEN = 4


def with_random_positions(batch: TokenBatch, stream: int, longest: int) -> TokenBatch:
    """Return the samples at random increasing positions below ``longest``, the tokens of the task's longest sample: a
    function of the stream and of the number of each sample."""
    places, tokens = longest * PLACES_A_TOKEN, batch.tokens_NT.shape[1]
    slots_NR = batch.index_N[:, None] * places + np.arange(places)
    chosen_NT = np.argpartition(rng.random_bits(stream, slots_NR), tokens - 1, axis=1)[:, :tokens]
    positions_NT = np.sort(chosen_NT, axis=1).astype(np.float32) / PLACES_A_TOKEN
    return replace(batch, positions_NT=positions_NT)
