"""Groups that are drawn again because they teach nothing: all of their members have the same reward.

Shape suffixes: _N completions (prompts times group, a group's members side by side), _P prompts, _G members of a group.
"""

from collections.abc import Callable

import numpy as np

from rayexp.rl.prompts import PromptBatch
from rayexp.sampling.base import Completions

#: Most draws of one group, the first included. Without a limit, a prompt that is never answered, or always, would be
#: drawn for ever.
MOST_DRAWS = 8


def without_variance(rewards_PG: np.ndarray) -> np.ndarray:
    """Return whether the members of each group all have the same reward: [P]."""
    return rewards_PG.min(axis=1) == rewards_PG.max(axis=1)


def resampled(
    batch: PromptBatch,
    completions: Completions,
    rewards_PG: np.ndarray,
    draw: Callable[[PromptBatch], tuple[Completions, np.ndarray]],
) -> tuple[Completions, np.ndarray, int]:
    """Draw the groups without variance again until there is none, each ``MOST_DRAWS`` times at most.

    ``draw`` returns completions of prompts, and their rewards. A group that still has no variance stays in the step as
    it was drawn last, and teaches nothing. Return the completions and rewards of the step, and the number of
    completions that were drawn for it.
    """
    rewards_PG, group, drawn = rewards_PG.copy(), rewards_PG.shape[1], rewards_PG.size
    for attempt in range(1, MOST_DRAWS):
        flat_P = np.flatnonzero(without_variance(rewards_PG))
        if not len(flat_P):
            break
        others, rewards_PG[flat_P] = draw(batch.again(flat_P.tolist(), attempt))
        row_N = np.arange(rewards_PG.size).reshape(rewards_PG.shape)
        row_N[flat_P] = rewards_PG.size + np.arange(len(flat_P) * group).reshape(-1, group)
        completions = Completions.concatenate([completions, others]).take(row_N.reshape(-1))
        drawn += len(flat_P) * group
    return completions, rewards_PG, drawn
