"""One GRPO step, 64 prompts x 8 completions, beta 0.04, one update: ours in one process, and TRL's with HF generate.

Both sample, judge, score the reference, learn and hand the new weights on, with the same decoder and prompts. Ours is
what a stage does between its actors, which add their messages (see docs/performance.md for a whole stage).
"""

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Row, Samples, alternate, publish
from rayexp.learning import decoder
from rayexp.learning import policy as policies
from rayexp.learning.policy import PolicyLearner, rollout_batches
from rayexp.presets import DECODERS, SCALES
from rayexp.sampling.torch_sampler import TorchSampler
from rayexp.spec import GRPO, SFT, Pretrain
from rayexp.stages.grpo import Task
from rayexp.world import Verifier, World, vocabulary

PROMPTS, GROUP, BETA = 64, 8, 0.04


@dataclass(frozen=True)
class Case:
    """One decoder. targets: times as fast as TRL in fp32, at the same precision and in bf16."""

    decoder: str
    rounds: int
    targets: tuple[float, float] = (2.5, 4.0)


CASES = (Case("tiny", 3),)


@dataclass
class Parts:
    """Seconds that each part of our step took, all steps together."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def time(self, name: str):
        started = time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - started

    def shares(self) -> str:
        total = sum(self.seconds.values())
        return ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in self.seconds.items())


def run() -> list[Row]:
    torch.set_num_threads(1)
    return [row for case in CASES for row in measured(case)]


def measured(case: Case) -> list[Row]:
    parts = {precision: Parts() for precision in ("fp32", "bf16")}
    sides: dict[str, Callable[[], object]] = {
        precision: our_steps(reinforcement(case, precision), timer) for precision, timer in parts.items()
    }
    timed = alternate(sides | {"TRL": trl_steps(reinforcement(case, "fp32"))}, case.rounds)
    rows = []
    for precision, target in zip(parts, case.targets, strict=True):
        ratio = timed[precision].faster_than(timed["TRL"])
        rows.append(
            Row(
                case=f"{case.decoder} {precision} : TRL fp32",
                ours=per_step(timed[precision]),
                peer=per_step(timed["TRL"]),
                ratio=f"{ratio:.2f}",
                target=f">= {target}",
                met=ratio >= target,
            )
        )
    rows += [Row(case=f"{case.decoder} {name} breakdown", ours=timer.shares()) for name, timer in parts.items()]
    return rows


def per_step(samples: Samples) -> str:
    return f"{samples.median:.2f} s ±{samples.spread:.0%}"


def reinforcement(case: Case, precision: str) -> GRPO:
    budget = SCALES["tiny"]
    base = Pretrain(
        world=World("composition"),
        decoder=DECODERS[case.decoder],
        ood_ratio=0.01,
        samples=128,
        batch_samples=128,
        optimiser=budget.pretrain,
        seed=0,
    )
    optimiser = budget.grpo.model_dump() | {"precision": precision}
    return GRPO.model_validate(
        {
            "init": SFT(init=base, samples=128, optimiser=budget.sft, seed=0),
            "prompts": "ood",
            "kl_beta": BETA,
            "steps": 1000,
            "prompts_per_step": PROMPTS,
            "group_size": GROUP,
            "optimiser": type(budget.grpo).model_validate(optimiser),
            "seed": 0,
            "sampler": "torch",
        }
    )


def our_steps(spec: GRPO, parts: Parts) -> Callable[[], None]:
    """One step of a stage a turn, timed by parts."""
    learner = PolicyLearner(spec, decoder.build(spec.root.decoder, seed=0))
    sampler = TorchSampler(decoder.build(spec.root.decoder, seed=0))
    task, step = Task(spec), 0
    score = policies.group_logprobs

    def timed_score(model: Any, *arguments: Any) -> Any:
        if model is not learner.reference:
            return score(model, *arguments)
        with parts.time("reference"):
            return score(model, *arguments)

    def turn() -> None:
        nonlocal step
        with parts.time("sync"):
            sampler.sync(learner.weights(), step)
        with parts.time("rollout"):
            prompts = task.prompts(step)
            completions = sampler.generate(prompts, task.seeds(step), GROUP, task.max_tokens(step))
        with parts.time("reward"):
            rewards_PG = task.rewards(prompts, completions)
        before = parts.seconds.get("reference", 0.0)
        with parts.time("learn"):
            policies.group_logprobs = timed_score
            learner.update(rollout_batches(task.numbers(step), prompts, completions, rewards_PG), 1e9)
            policies.group_logprobs = score
        parts.seconds["learn"] -= parts.seconds["reference"] - before
        step += 1

    return turn


def trl_steps(spec: GRPO) -> Callable[[], float]:
    """One step of TRL's GRPOTrainer a turn; what it sets up before the step is left out."""
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl.trainer.grpo_config import GRPOConfig  # pyright: ignore[reportMissingImports]
    from trl.trainer.grpo_trainer import GRPOTrainer  # pyright: ignore[reportMissingImports]

    symbols = {symbol: i for i, symbol in enumerate(vocabulary.SYMBOLS)}
    words = Tokenizer(WordLevel(symbols | {"<unused>": len(symbols)}, unk_token="<unused>"))
    words.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left"
    )
    task, verifier = Task(spec), Verifier(spec.root.world)
    texts = [vocabulary.decode(prompt) for prompt in task.prompts(0)]
    data = Dataset.from_list([{"prompt": text} for text in texts])

    def reward(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        pairs = zip(prompts, completion_ids, strict=True)
        return [float(verifier.judge(vocabulary.encode(prompt), row).answer) for prompt, row in pairs]

    class Watch(TrainerCallback):
        seconds = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            self.seconds -= time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            self.seconds += time.process_time()

    folder = mkdtemp(prefix="rayexp-bench-")
    decoder.save(decoder.build(spec.root.decoder, seed=0), Path(folder))

    def turn() -> float:
        watch = Watch()
        arguments = GRPOConfig(
            output_dir=mkdtemp(prefix="rayexp-bench-"),
            model_init_kwargs={"dtype": "float32"},
            per_device_train_batch_size=PROMPTS * GROUP,
            num_generations=GROUP,
            max_completion_length=int(np.max(task.max_tokens(0))),
            beta=BETA,
            loss_type="grpo",
            learning_rate=spec.optimiser.learning_rate,
            max_steps=1,
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            gradient_checkpointing=False,
        )
        GRPOTrainer(folder, reward, arguments, data, processing_class=tokenizer, callbacks=[watch]).train()
        return watch.seconds

    return turn


if __name__ == "__main__":
    publish(run())
