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
    """One decoder."""

    decoder: str
    rounds: int


CASES = (Case("tiny", 5), Case("paper", 2))
PRECISIONS = ("fp32", "bf16")
#: Times as fast as TRL at the same precision, and in our faster precision as TRL in fp32.
SAME, FASTEST = 2.5, 4.0


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
    parts = {precision: Parts() for precision in PRECISIONS}
    sides: dict[str, Callable[[], object]] = {}
    for precision, timer in parts.items():
        spec = reinforcement(case, precision)
        sides |= {precision: our_steps(spec, timer), f"TRL {precision}": trl_steps(spec)}
    timed = alternate(sides, case.rounds)
    fastest = min(PRECISIONS, key=lambda precision: timed[precision].median)
    compared = [(precision, f"TRL {precision}", SAME) for precision in PRECISIONS] + [(fastest, "TRL fp32", FASTEST)]
    rows = []
    for ours, peer, target in compared:
        ratio = timed[ours].faster_than(timed[peer])
        rows.append(
            Row(
                case=f"{case.decoder} {ours} : {peer}",
                ours=per_step(timed[ours]),
                peer=per_step(timed[peer]),
                ratio=f"{ratio:.2f}",
                target=f">= {target}",
                met=ratio >= target,
            )
        )
    rows += [Row(case=f"{case.decoder} {name}, parts", ours=timer.shares()) for name, timer in parts.items()]
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
    sampler = TorchSampler(decoder.build(spec.root.decoder, seed=0), precision=spec.optimiser.precision)
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
            completions = sampler.generate(*task.request(step))
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
            bf16=spec.optimiser.precision == "bf16",
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            log_level="error",
            disable_tqdm=True,
            gradient_checkpointing=False,
        )
        GRPOTrainer(folder, reward, arguments, data, processing_class=tokenizer, callbacks=[watch]).train()
        return watch.seconds

    return turn


if __name__ == "__main__":
    publish(run())
