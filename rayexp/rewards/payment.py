"""The rewards of a group's completions: the weighted sum of a stage's rewards, which may be a user's code."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Real

from rayexp.errors import PermanentError, located
from rayexp.rewards.base import DrawReward, Reward
from rayexp.tasks.base import Solution, Task


class RewardError(PermanentError):
    """A reward that raised, or returned no finite number. The message names reward, prompt and completion."""


def group_payments(
    task: Task,
    rewards: Sequence[Reward],
    prompt: Sequence[int],
    solution: Solution,
    completions: Sequence[Sequence[int]],
    seeds: Sequence[int],
) -> list[float]:
    """Return the reward of each completion of a prompt. ``seeds``: one for each draw.

    A ``DrawReward`` judges each draw; any other reward each distinct completion once. Raises RewardError.
    """
    rows = [tuple(completion) for completion in completions]

    def paid_by(reward: Reward) -> list[float]:
        if isinstance(reward, DrawReward):
            draws = zip(rows, seeds, strict=True)
            return [
                _paid(task, reward, partial(reward.of_draw, seed=seed), prompt, solution, row) for row, seed in draws
            ]
        paid = {row: _paid(task, reward, reward, prompt, solution, row) for row in dict.fromkeys(rows)}
        return [paid[row] for row in rows]

    return [sum(amounts) for amounts in zip(*map(paid_by, rewards), strict=True)]


def _paid(
    task: Task,
    reward: Reward,
    judge: Callable[[Task, Solution, Sequence[int]], float],
    prompt: Sequence[int],
    solution: Solution,
    row: tuple[int, ...],
) -> float:
    """Return the weighted reward of a completion. judge: the reward itself, or its judgement of one draw."""
    try:
        paid = judge(task, solution, list(row))
    except Exception as error:
        raise RewardError(f"the reward {reward.kind} raised {located(error)}{_case(task, prompt, row)}") from error
    if not isinstance(paid, Real) or not math.isfinite(paid):
        raise RewardError(
            f"the reward {reward.kind} returned {paid!r} instead of a finite number{_case(task, prompt, row)}"
        )
    return reward.weight * float(paid)


def _case(task: Task, prompt: Sequence[int], completion: Sequence[int]) -> str:
    decode = task.vocabulary.decode
    return f"; prompt: {decode(prompt)}; completion: {decode(completion) or 'nothing'}"
