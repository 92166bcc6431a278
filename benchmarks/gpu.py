"""The pure core on one device, without Ray and vLLM: ``python -m benchmarks.gpu``, on torch 2.11 or later.

It prints for one decoder: training in tokens/s and as a share of the device's own GEMM rate (MFU, from 6 FLOP a
parameter and token), native sampling in tokens/s, and exact Q in prompts/s. With ``--chain FILE`` it also runs a whole
pretraining, SFT and GRPO, and prints its seconds. If it is interrupted or out of time, it saves to FILE, and the next
run continues from there.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor

from rayexp import rng
from rayexp.evaluation.mass import gold_scores
from rayexp.models import devices, factory
from rayexp.rl.learner import GRPOLearner
from rayexp.rl.prompts import Prompts, group_rewards
from rayexp.rl.rollouts import rollout_batches
from rayexp.sampling.torch_sampler import TorchSampler
from rayexp.stages import GRPO, SFT, Pretrain
from rayexp.studies.presets import SCALES, Budget
from rayexp.tasks import TokenBatch
from rayexp.tasks.strings import StringTask
from rayexp.tasks.strings.symbols import VOCABULARY
from rayexp.training.loss import next_token_loss
from rayexp.training.trainer import Trainer

GEMM_SIZE = 8192


@dataclass(frozen=True)
class Arguments:
    """The command line."""

    scale: str = "paper"
    """Decoder and budgets; see rayexp/studies/presets.py."""
    device: str = "auto"
    """auto, cpu or cuda."""
    rounds: int = 20
    """Timed rounds of each measurement."""
    gemm_size: int = GEMM_SIZE
    """Rows and columns of the matrix product that the device is measured with."""
    chain: Path | None = None
    """Checkpoint of a whole chain, which is run if this is given."""
    limit_s: float = 540.0
    """Seconds after which the chain is saved and left."""


def main(arguments: Arguments) -> None:
    device = devices.resolve_device(arguments.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"torch {torch.__version__} on {name}, decoder of the {arguments.scale} scale")
    chain = Chain(SCALES[arguments.scale], device)
    kernels(chain, arguments)
    if arguments.chain:
        run_chain(chain, arguments.chain, arguments.limit_s)


class Chain:
    """One pretraining, SFT and GRPO at an OOD ratio of 1 %, a step at a time."""

    def __init__(self, budget: Budget, device: torch.device) -> None:
        self.task, self.device, self.budget = StringTask(axis="composition"), device, budget
        self.pretrain = Pretrain(
            task=self.task,
            decoder=budget.decoder,
            ood_ratio=0.01,
            samples=budget.pretrain_samples,
            batch_samples=budget.pretrain_batch,
            optimiser=budget.pretrain,
            seed=0,
        )
        self.sft = SFT(init=self.pretrain, samples=budget.sft_samples, optimiser=budget.sft, seed=0)
        self.grpo = GRPO.model_validate(
            {
                "init": self.sft,
                "prompt_role": "ood",
                "kl_beta": 0.1,
                "steps": budget.grpo_steps,
                "prompts_per_step": budget.grpo_prompts_per_step,
                "group_size": budget.grpo_group_size,
                "optimiser": budget.grpo,
                "seed": 0,
                "sampler": "torch",
            }
        )
        self.prompts = Prompts(self.grpo)
        self.model = factory.build(budget.decoder, VOCABULARY, 0, device)

    def trainer(self, stage: Pretrain | SFT) -> Trainer:
        return Trainer(self.model, stage.optimiser, stage.steps)

    def sampler(self) -> TorchSampler:
        return TorchSampler(self.model, precision=self.grpo.optimiser.precision)

    def batch(self, stage: Pretrain | SFT, step: int) -> tuple[list[TokenBatch], bool]:
        """Return the samples of a step, and whether their prompts count in the loss."""
        start = step * stage.batch_samples
        if isinstance(stage, Pretrain):
            return self.task.mixture("pretrain", 0, 0.01, start, min(stage.batch_samples, stage.samples - start)), True
        stop = min(start + stage.batch_samples, stage.samples * stage.epochs)
        numbers = rng.epochs(rng.stream_key(0, "sft order"), stage.samples, start, stop)
        return self.task.of_role("sft", 0, "id", numbers), False

    def learn(self, trainer: Trainer, stage: Pretrain | SFT) -> int:
        """Take one step of the trainer. Return the number of tokens read."""
        token_batches, whole = self.batch(stage, trainer.completed_steps)
        starts = [np.ones_like(r.length_N) if whole else r.prompt_tokens_N for r in token_batches]
        counted = sum(r.tokens - int(start_N.sum()) for r, start_N in zip(token_batches, starts, strict=True))

        def loss(token_batch: TokenBatch, start: int) -> Tensor:
            tokens_NT = torch.from_numpy(token_batch.tokens_NT.astype(np.int64)).to(self.device, non_blocking=True)
            with trainer.precision():
                logits_NTV = trainer.model(input_ids=tokens_NT[:, :-1], use_cache=False).logits
            return next_token_loss(logits_NTV, tokens_NT, start).sum() / counted

        trainer.step([lambda r=r, s=s: loss(r, int(s[0])) for r, s in zip(token_batches, starts, strict=True)])
        return sum(r.tokens_NT[:, 1:].size for r in token_batches)


def kernels(chain: Chain, arguments: Arguments) -> None:
    """Measure and print the rates of the parts."""
    trainer, clock = chain.trainer(chain.pretrain), Clock(chain.device)
    mixed = chain.budget.pretrain.precision == "bf16"
    side = torch.randn(arguments.gemm_size, arguments.gemm_size, device=chain.device)
    side = side.bfloat16() if mixed else side
    gemm = 2 * arguments.gemm_size**3 / clock.median(lambda: side @ side, arguments.rounds)
    tokens = chain.learn(trainer, chain.pretrain)
    rate = tokens / clock.median(lambda: chain.learn(trainer, chain.pretrain), arguments.rounds)
    parameters = chain.budget.decoder.parameters(VOCABULARY.size) - VOCABULARY.size * chain.budget.decoder.width
    share = 6 * parameters * rate / gemm
    print(f"GEMM ({'bf16' if mixed else 'fp32'})      {gemm / 1e12:10.2f} TFLOP/s")
    print(f"training          {rate:10,.0f} tokens/s, {share:.1%} of GEMM")

    sampler = chain.sampler()
    request = chain.prompts.at(0).request(chain.grpo.group_size)
    drawn = sampler.generate(*request)
    seconds = clock.median(lambda: sampler.generate(*request), arguments.rounds)
    drawn_tokens, completions = drawn.length_N.sum(), len(drawn.length_N)
    print(f"sampling          {drawn_tokens / seconds:10,.0f} tokens/s, {completions / seconds:,.0f} completions/s")
    token_batch = chain.task.of_cell("test", 0, chain.task.cells("ood")[0], 0, 1024)
    seconds = clock.median(lambda: gold_scores(chain.model, token_batch), arguments.rounds)
    print(f"exact Q           {1024 / seconds:10,.0f} prompts/s")


class Clock:
    """A timer of a device's work, which waits until the work is done."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def seconds(self, work: Callable[[], object]) -> float:
        started = time.perf_counter()
        work()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - started

    def median(self, work: Callable[[], object], rounds: int) -> float:
        self.seconds(work)
        return float(np.median([self.seconds(work) for _ in range(rounds)]))


def run_chain(chain: Chain, file: Path, limit_s: float) -> None:
    """Continue the whole chain until it is finished or the time is up."""
    saved: dict[str, Any] = {"stage": 0, "seconds": [0.0, 0.0, 0.0], "trainer": None, "init": None}
    if file.exists():
        saved = torch.load(file, map_location=chain.device, weights_only=True)
    else:
        # A fresh model, because the measurements have trained the other one.
        chain.model = factory.build(chain.budget.decoder, VOCABULARY, 0, chain.device)
    deadline = time.monotonic() + limit_s
    names = ("pretraining", "SFT", "GRPO")
    while saved["stage"] < len(names):
        number, stage = saved["stage"], (chain.pretrain, chain.sft, chain.grpo)[saved["stage"]]
        if saved["init"] is not None:
            chain.model.load_state_dict(saved["init"])
        learner = GRPOLearner(stage, chain.model) if isinstance(stage, GRPO) else None
        trainer = learner.trainer if learner else chain.trainer(stage)  # pyright: ignore[reportArgumentType]
        sampler = chain.sampler()  # one for all steps, because it keeps its captured graphs
        if saved["trainer"] is not None:
            trainer.restore(saved["trainer"])
        began = time.monotonic()
        while trainer.completed_steps < stage.steps and time.monotonic() < deadline:
            if learner is None:
                chain.learn(trainer, stage)  # pyright: ignore[reportArgumentType]
                continue
            batch = chain.prompts.at(trainer.completed_steps)
            drawn = sampler.generate(*batch.request(chain.grpo.group_size))
            rewards_PG = group_rewards(chain.task, chain.grpo.rewards, batch, drawn)
            learner.update(rollout_batches(batch, drawn, rewards_PG), max_logprob_mismatch=1.0)
        if chain.device.type == "cuda":
            torch.cuda.synchronize(chain.device)
        saved["seconds"][number] += time.monotonic() - began
        print(f"{names[number]}: step {trainer.completed_steps} of {stage.steps}, {saved['seconds'][number]:.0f} s")
        if trainer.completed_steps < stage.steps:
            torch.save(saved | {"trainer": trainer.state()}, file)
            print(f"out of time; the same command goes on from {file}")
            return
        weights = {name: tensor.clone() for name, tensor in chain.model.state_dict().items()}
        saved = saved | {"stage": number + 1, "trainer": None, "init": weights}
        torch.save(saved, file)
    chain.model.load_state_dict(saved["init"])
    token_batch = chain.task.of_cell("test", 0, chain.task.cells("ood")[0], 0, chain.budget.prompts_per_cell)
    mass = float(np.exp(gold_scores(chain.model, token_batch).log_mass_N).mean())
    print(f"whole chain: {sum(saved['seconds']):.0f} s; mean Q of the OOD cell {mass:.3g}")


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
