"""The whole chain in one process, which can be told when to die: SIGKILL, as a machine that is gone."""

import os
import signal
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch

from rayexp import files
from rayexp.actors.learner import Learner
from rayexp.learning import decoder
from rayexp.sampling.protocol import Completions
from rayexp.sampling.torch_sampler import TorchSampler
from rayexp.spec import GRPO, Execution
from rayexp.stages import grpo as grpo_stage
from rayexp.stages import pretrain as pretrain_stage
from rayexp.stages import sft as sft_stage
from rayexp.stages import supervised
from tests.integration.chains import evaluate, grpo, pretrain, sft

BASE = pretrain()
TUNED = sft(BASE)
REINFORCED = grpo(TUNED, sampler="torch", steps=5)
STAGES = [BASE, evaluate(BASE), TUNED, evaluate(TUNED), REINFORCED, evaluate(REINFORCED)]
STEPS = [f"{stage.kind} {step}" for stage in (BASE, TUNED, REINFORCED) for step in range(stage.steps)]


class LocalCrew:
    """What ``actors.crew.Crew`` offers, without actors."""

    def __init__(self, spec: GRPO, execution: Execution) -> None:
        self.fleet = self
        self.learner = self
        self._learner = Learner()
        self._learner.begin(spec.model_dump_json(), execution.model_dump_json())
        self._sampler = TorchSampler(decoder.build(spec.root.decoder, seed=0))
        self.sync = self._sampler.sync
        self.generate = self._sampler.generate

    def start(self, *request: Any) -> Callable[[], Any]:
        drawn = self.generate(*request)
        return lambda: drawn

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self._learner, method)(*arguments)

    def weights(self) -> Any:
        return self._learner.weights()

    def require_parity(self, sequences: list[list[int]], expected: Any) -> None:
        pass


def odd_rewards(self: grpo_stage.Task, prompts: Any, completions: Completions) -> np.ndarray:
    """A reward that an untrained decoder does get, so that GRPO has something to learn."""
    return (completions.tokens_NC[:, 0] % 2).astype(np.float32).reshape(len(prompts), -1)


@contextmanager
def local_crew(spec: GRPO, execution: Execution):
    yield LocalCrew(spec, execution)


def live(store: str, at_step: str | None = None, at_operation: int | None = None) -> None:
    """Run what is left of the chain; die before the step ``at_step`` or the given operation on the store."""
    torch.set_num_threads(1)
    operations = 0

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def before_step(kind: str, compute: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(spec: Any, step: int, *rest: Any) -> Any:
            if at_step == f"{kind} {step}":
                die()
            return compute(spec, step, *rest)

        return wrapped

    def counted(limit_s: float, ask: Callable[[], Any], name: str) -> Any:
        nonlocal operations
        operations += 1
        if operations == at_operation:
            die()
        return ask()

    def prompts(self: Any, step: int) -> list[int]:
        if at_step == f"grpo {step}":
            die()
        return numbers(self, step)

    numbers = grpo_stage.Task.numbers
    execution = Execution(store=store, checkpoint_every_s=0, keep_rollouts=True)
    with (
        mock.patch.object(pretrain_stage, "batch", before_step("pretrain", pretrain_stage.batch)),
        mock.patch.object(sft_stage, "batch", before_step("sft", sft_stage.batch)),
        mock.patch.object(grpo_stage.Task, "numbers", prompts),
        mock.patch.object(grpo_stage.Task, "rewards", odd_rewards),
        mock.patch.object(grpo_stage, "crew_for", local_crew),
        mock.patch.object(files, "within", counted),
    ):
        supervised.run_in_process(STAGES[:4], execution, lambda report: None)
        grpo_stage.run(REINFORCED, STAGES[5:], execution, lambda report: None)
