"""``jobs/sweep.py`` without Ray and vLLM: each trial in this process, one after the other. Seconds at toy scale."""

from unittest import mock

import torch

from rayexp.cli import run as sweep
from rayexp.spec import Execution
from rayexp.stages import grpo, supervised
from rayexp.store import Store
from rayexp.sweep import force
from rayexp.sweep.plan import Plan
from tests.integration.lives import local_crew


def main(arguments: list[str]) -> int:
    """The whole job; returns the exit code."""
    with mock.patch.object(sweep, "run", _run), mock.patch.object(grpo, "crew_for", local_crew):
        return sweep.main(arguments)


def _run(*given: object) -> int:
    """In place of ``sweep.run``. Of what that is given, all but the store matters here."""
    (plan,) = (value for value in given if isinstance(value, Plan))
    (execution,) = (value for value in given if isinstance(value, Execution))
    (asked,) = (value for value in given if isinstance(value, sweep.Sweep))
    torch.set_num_threads(1)
    print(*force.set_aside(force.named(asked.force, plan), plan, Store.of(execution)), sep="\n")
    execution = execution.on(gpus=0)
    for trial in plan.trials:
        if trial.kind == "supervised":
            supervised.run_in_process(trial.stages, execution, lambda report: None)
        else:
            grpo.run(trial.stages[0], trial.stages[1:], execution, lambda report: None)
    return 0
