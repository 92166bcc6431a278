"""One GRPO step, 64 prompts x 8 completions, beta 0.04, one update: ours in one process, and TRL's with HF generate.

Both sample, judge, score the reference, learn and pass the new weights on, with the same decoder and prompts. Ours does
the work of a stage without the messages between its actors (see docs/performance.md for a whole stage).

The sampler is the native one, or vLLM, which is a stage's default. The difference is vLLM's bookkeeping in Python for
every request and token.

Decoders have had pretraining and SFT, as before GRPO, or are fresh. No two completions of a fresh decoder are alike.
That is the worst case for ours, which reads common prefixes of a group once.

Further rows compare steps with other settings to a control without them, with the native sampler in fp32: a critic, the
filters, and rewards for letters and steps.
"""

import copy
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers import PreTrainedModel

from benchmarks.measure import Row, Samples, alternate, publish
from rayexp.config import RunConfig
from rayexp.execution.supervised import run_in_process
from rayexp.models import factory, io
from rayexp.rewards.answer import Answer
from rayexp.rewards.letters import Letters
from rayexp.rewards.letters_sum import LettersSum
from rayexp.rewards.shaped import Shaped
from rayexp.rewards.steps import Steps
from rayexp.rl import learner as policies
from rayexp.rl.learner import GRPOLearner
from rayexp.rl.prompts import PromptBatch, Prompts, group_rewards
from rayexp.rl.resampling import resampled
from rayexp.rl.rollouts import rollout_batches
from rayexp.rl.unsolved import UnsolvedPrompts
from rayexp.sampling.base import Completions, Sampler
from rayexp.sampling.torch_sampler import TorchSampler
from rayexp.sampling.vllm_sampler import VLLMSampler
from rayexp.stages import GRPO, SFT, Pretrain
from rayexp.store.artifacts import Store
from rayexp.studies.presets import DECODERS, SCALES
from rayexp.tasks.strings import StringTask
from rayexp.tasks.strings.symbols import VOCABULARY

PROMPTS, GROUP, BETA = 64, 8, 0.04


@dataclass(frozen=True)
class Case:
    """One decoder. trained: on the budget of the tiny scale, with 1 % OOD samples; else fresh. traces: whether
    completions have the string after every operation."""

    decoder: str
    rounds: int
    trained: bool = False
    traces: bool = False

    @property
    def name(self) -> str:
        return f"{self.decoder}, {'trained' if self.trained else 'fresh'}"


CASES = (Case("tiny", 5, trained=True), Case("tiny", 5), Case("paper", 2))
#: Settings of steps that are compared with the control, and those that need traces.
CONDITIONS: dict[str, dict[str, Any]] = {
    "critic": {"advantage": "critic"},
    "resample": {"filter": "resample"},
    "unsolved": {"filter": "unsolved"},
    "letters": {"rewards": (Letters(),)},
    "letters_sum": {"rewards": (LettersSum(),)},
    "answer+shaped": {"rewards": (Answer(), Shaped())},
}
OF_TRACES: dict[str, dict[str, Any]] = {"steps": {"rewards": (Steps(),)}}
PRECISIONS = ("fp32", "bf16")
#: A stage's defaults.
DEFAULT = "default (vLLM, fp32)"
#: Speed as a multiple of TRL's: at the same precision, and of our faster precision against TRL in fp32.
SAME, FASTEST = 2.5, 4.0


@dataclass
class Parts:
    """Seconds of each part of our step, summed over steps."""

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
    trained = CASES[0]
    return [
        *(row for case in CASES for row in measured(case)),
        *beside_control(trained, CONDITIONS),
        *beside_control(replace(trained, traces=True), OF_TRACES),
    ]


def measured(case: Case) -> list[Row]:
    model = initial(case)
    specs = {precision: reinforcement(case, precision) for precision in PRECISIONS}
    samplers: dict[str, tuple[str, Sampler]] = {
        f"native, {precision}": (precision, TorchSampler(copy.deepcopy(model), precision=precision))
        for precision in PRECISIONS
    }
    samplers[DEFAULT] = ("fp32", VLLMSampler(model.config, sequence_tokens=specs["fp32"].root.sequence_tokens))
    parts = {name: Parts() for name in samplers}
    sides: dict[str, Callable[[], object]] = {f"TRL {name}": trl_steps(spec, model) for name, spec in specs.items()}
    for name, (precision, sampler) in samplers.items():
        sides[name] = our_steps(specs[precision], model, sampler, parts[name])
    timed = alternate(sides, case.rounds)
    native = [name for name in samplers if name != DEFAULT]
    fastest = min(native, key=lambda name: timed[name].median)
    compared = [(name, f"TRL {samplers[name][0]}", SAME) for name in native]
    compared += [(fastest, "TRL fp32", FASTEST), (DEFAULT, "TRL fp32", None)]
    rows = []
    for ours, peer, target in compared:
        ratio = timed[ours].faster_than(timed[peer])
        rows.append(
            Row(
                case=f"{case.name}, {ours} : {peer}",
                ours=per_step(timed[ours]),
                peer=per_step(timed[peer]),
                ratio=f"{ratio:.2f}",
                target="" if target is None else f">= {target}",
                met=None if target is None else ratio >= target,
            )
        )
    rows += [Row(case=f"{case.name}, {name}, parts", ours=timer.shares()) for name, timer in parts.items()]
    return rows


def beside_control(case: Case, conditions: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Return a row for each condition: the speed of its step as a multiple of the control's."""
    model, specs = initial(case), conditions_of(case, conditions)
    sides = {name: our_steps(spec, model, TorchSampler(copy.deepcopy(model)), Parts()) for name, spec in specs.items()}
    timed = alternate(sides, 2 * case.rounds)
    peer, kind = per_step(timed["control"]), "trained, traces" if case.traces else "trained"
    return [
        Row(
            case=f"{case.decoder}, {kind}, {name} : control",
            ours=per_step(timed[name]),
            peer=peer,
            ratio=f"{timed[name].faster_than(timed['control']):.2f}",
        )
        for name in conditions
    ]


def conditions_of(case: Case, conditions: Mapping[str, Mapping[str, Any]]) -> dict[str, GRPO]:
    """Return the stages of the control and of each condition, by name."""
    control = reinforcement(case, "fp32")
    changed = {name: GRPO.model_validate({**vars(control), **changes}) for name, changes in conditions.items()}
    return {"control": control} | changed


def per_step(samples: Samples) -> str:
    return f"{samples.median:.2f} s ±{samples.spread:.0%}"


def reinforcement(case: Case, precision: str) -> GRPO:
    budget = SCALES["tiny"]
    optimiser = budget.grpo.model_dump() | {"precision": precision}
    return GRPO.model_validate(
        {
            "init": supervised(case),
            "prompt_role": "ood",
            "kl_beta": BETA,
            "steps": 1000,
            "prompts_per_step": PROMPTS,
            "group_size": GROUP,
            "optimiser": type(budget.grpo).model_validate(optimiser),
            "seed": 0,
            "sampler": "torch",
        }
    )


def supervised(case: Case) -> SFT:
    """Return the stage from which a step starts."""
    budget = SCALES["tiny"]
    base = Pretrain(
        task=StringTask(axis="composition", completion_format="trace" if case.traces else "answer"),
        decoder=DECODERS[case.decoder],
        ood_ratio=0.01,
        samples=budget.pretrain_samples,
        batch_samples=budget.pretrain_batch,
        optimiser=budget.pretrain,
        seed=0,
    )
    return SFT(init=base, samples=budget.sft_samples, optimiser=budget.sft, seed=0)


def initial(case: Case) -> PreTrainedModel:
    """Return the decoder before the first step."""
    stage = supervised(case)
    if not case.trained:
        return factory.build(stage.root.decoder, VOCABULARY, seed=0)
    with TemporaryDirectory(prefix="rayexp-bench-") as folder:
        run_config = RunConfig(store=folder, device="cpu")
        run_in_process([stage.root, stage], run_config, progress=lambda _: None)
        with Store.of(run_config).model(stage.id) as saved:
            return io.load(saved)


def our_steps(
    spec: GRPO, model: PreTrainedModel, sampler: Sampler, parts: Parts, tokens: int | None = None
) -> Callable[[], None]:
    """Return a function that takes one step of a stage, timed by parts. tokens: most tokens in one piece of the
    gradient."""
    learner = GRPOLearner(spec, copy.deepcopy(model))
    prompts, step = UnsolvedPrompts(spec, {}) if spec.only_unsolved else Prompts(spec), 0
    read = policies.Readout.of

    def timed_read(model: Any, *arguments: Any) -> Any:
        if model is not learner.reference:
            return read(model, *arguments)
        with parts.time("reference"):
            return read(model, *arguments)

    def drawn(batch: PromptBatch) -> tuple[Completions, np.ndarray]:
        with parts.time("rollout"):
            completions = sampler.generate(*batch.request(spec.group_size))
        with parts.time("reward"):
            return completions, group_rewards(spec.root.task, spec.rewards, batch, completions)

    def turn() -> None:
        nonlocal step
        with parts.time("sync"):
            sampler.sync(learner.weights(), step)
        with parts.time("rollout"):
            batch = prompts.at(step)
        completions, rewards_PG = drawn(batch)
        if spec.resamples:
            completions, rewards_PG, _ = resampled(batch, completions, rewards_PG, drawn)
        before = parts.seconds.get("reference", 0.0)
        with parts.time("learn"), mock.patch.object(policies.Readout, "of", timed_read):
            learner.update(rollout_batches(batch, completions, rewards_PG, tokens), 1e9)
        parts.seconds["learn"] -= parts.seconds["reference"] - before
        with parts.time("reward"):
            prompts.record(batch, completions)
        step += 1

    return turn


def trl_steps(spec: GRPO, model: PreTrainedModel, pieces: int = 1) -> Callable[[], float]:
    """Return a function that takes one step of TRL's GRPOTrainer, and times it without its set-up. pieces: number of
    pieces in which the gradient is computed."""
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from transformers import AutoTokenizer, TrainerCallback
    from trl.trainer.grpo_config import GRPOConfig  # pyright: ignore[reportMissingImports]
    from trl.trainer.grpo_trainer import GRPOTrainer  # pyright: ignore[reportMissingImports]

    task, first = spec.root.task, Prompts(spec).at(0)
    folder = mkdtemp(prefix="rayexp-bench-")
    io.save(model, task.vocabulary, Path(folder))
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    texts = [task.vocabulary.decode(prompt) for prompt in first.prompts]
    assert tokenizer(texts)["input_ids"] == first.prompts, "TRL would read other prompts"
    solutions = {
        text: task.solution(prompt, gold) for text, prompt, gold in zip(texts, first.prompts, first.gold, strict=True)
    }
    data = Dataset.from_list([{"prompt": text} for text in texts])

    def reward(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        pairs = zip(prompts, completion_ids, strict=True)
        return [float(task.judge(solutions[prompt], row).answer) for prompt, row in pairs]

    class ProgressCallback(TrainerCallback):
        seconds = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            self.seconds -= time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            self.seconds += time.process_time()

    def turn() -> float:
        watch = ProgressCallback()
        arguments = GRPOConfig(
            output_dir=mkdtemp(prefix="rayexp-bench-"),
            model_init_kwargs={"dtype": "float32"},
            per_device_train_batch_size=spec.prompts_per_step * spec.group_size // pieces,
            gradient_accumulation_steps=pieces,
            num_generations=spec.group_size,
            max_completion_length=max(first.max_tokens),
            beta=spec.kl_beta,
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
