"""The payment of a completion: the weighted sum of a stage's rewards, which may be anybody's code."""

import math
from collections.abc import Sequence
from numbers import Real

from rayexp.errors import PermanentError, located
from rayexp.rewards.base import Reward
from rayexp.tasks.base import Solution, Task


class RewardError(PermanentError):
    """A reward raised, or returned no finite number. The message names reward, prompt and completion."""


def payment(
    task: Task, rewards: Sequence[Reward], prompt: Sequence[int], solution: Solution, completion: Sequence[int]
) -> float:
    """Return what a completion earns. ``solution`` is that of the prompt. Raises RewardError."""
    return sum(reward.weight * _paid(task, reward, prompt, solution, completion) for reward in rewards)


def _paid(task: Task, reward: Reward, prompt: Sequence[int], solution: Solution, completion: Sequence[int]) -> float:
    try:
        paid = reward(task, solution, completion)
    except Exception as error:
        raise RewardError(
            f"the reward {reward.kind} raised {located(error)}{_case(task, prompt, completion)}"
        ) from error
    if not isinstance(paid, Real) or not math.isfinite(paid):
        raise RewardError(
            f"the reward {reward.kind} returned {paid!r}, which is no finite number{_case(task, prompt, completion)}"
        )
    return float(paid)


def _case(task: Task, prompt: Sequence[int], completion: Sequence[int]) -> str:
    decode = task.vocabulary.decode
    return f"; prompt: {decode(prompt)}; completion: {decode(completion) or 'nothing'}"
