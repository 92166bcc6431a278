"""Completions as arrays, and the seeds of prompts."""

import numpy as np

from rayexp.sampling.base import SEED_STRIDE, Completions, prompt_seed


def test_prompt_seeds_are_far_apart():
    seeds = [prompt_seed(run, step, place) for run in range(5) for step in range(20) for place in range(20)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**62 and seed % SEED_STRIDE == 0 for seed in seeds)


def test_completions_from_rows_and_back():
    rows = [[3, 4, 2], [2]]
    completions = Completions.from_rows(rows, [[-1.0, -2.0, -3.0], [-4.0]], weight_version=1)
    assert completions.rows == rows
    assert completions.mask_NC.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_completions_of_several_samplers_are_those_of_one():
    rows, logprobs = [[4], [5, 2], [3, 4, 2], [2]], [[-0.5], [-1.5, -2.0], [-1.0, -2.0, -3.0], [-4.0]]
    parts = [Completions.from_rows(rows[part], logprobs[part], 7) for part in (slice(1), slice(1, 3), slice(3, 4))]
    joined, whole = Completions.concatenate(parts), Completions.from_rows(rows, logprobs, 7)
    for name, array in vars(whole).items():
        np.testing.assert_array_equal(getattr(joined, name), array, strict=name != "weight_version")
    assert joined.tokens_NC.flags.writeable
