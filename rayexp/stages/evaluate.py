"""Measurement, as a value."""

from typing import ClassVar, Literal

from rayexp.config import Count, Seed
from rayexp.stages.base import ChildStage, Pool


class Evaluate(ChildStage):
    """Measurement of one stage on every ID, OOD and probe cell: exact where the right completion is unique, and from
    samples as well where it is not.

    The test prompts depend on nothing but the task, so all stages of a study answer the same ones. seed: of the
    completions that are sampled.
    """

    version: ClassVar[int] = 4  # since then results hold the log-probability of each gold token
    pool: ClassVar[Pool] = "measure"
    name: ClassVar[str] = "measurement"
    kind: Literal["evaluate"] = "evaluate"
    prompts_per_cell: Count = 200
    sampled_completions: Count = 16
    seed: Seed = 0

    @property
    def steps(self) -> int:
        return 1

    @property
    def rows(self) -> int:
        """Test prompts of all cells."""
        return self.prompts_per_cell * len(self.root.task.roles())

    @property
    def flops(self) -> float:
        draws = 1 + (0 if self.root.task.unique else self.sampled_completions)
        return draws * self.flops_per_pass(self.rows)
