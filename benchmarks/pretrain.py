"""A step of pretraining as in ``execution.supervised``, without Ray, against HF Trainer and a hand-written loop.

All train a LlamaForCausalLM from the same weights, on the same samples, in the same precision. The peers get ready-made
tensors. Ours writes its samples in each step, as in a stage. HF Trainer shuffles, so it pads.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measure import Row, alternate, publish
from rayexp.execution import pretrain
from rayexp.models import factory
from rayexp.stages import AdamW, Pretrain
from rayexp.studies.presets import DECODERS, SCALES
from rayexp.tasks.strings import StringTask
from rayexp.tasks.strings.symbols import VOCABULARY
from rayexp.training.batch_loss import LossMeter, rank_loss
from rayexp.training.trainer import Trainer

GEMM_SIZE = 1024


@dataclass(frozen=True)
class Case:
    """One decoder in one precision. steps: number of steps of a round."""

    decoder: str
    precision: str
    batch_samples: int
    steps: int
    rounds: int
    target: float  # speed as a multiple of HF Trainer's


CASES = (
    Case("tiny", "fp32", 256, 4, 9, 1.25),
    Case("tiny", "bf16", 256, 4, 9, 2.2),
    Case("paper", "bf16", 64, 1, 4, 1.4),
)


def run() -> list[Row]:
    torch.set_num_threads(1)
    return [row for case in CASES for row in measured(case)]


def measured(case: Case) -> list[Row]:
    """Time one case, and a matrix product of the same precision in the same rounds."""
    spec = pretraining(case)
    batches = [
        [torch.from_numpy(token_batch.tokens_NT.astype(np.int64)) for token_batch in pretrain.batch(spec, step)]
        for step in range(spec.steps)
    ]
    timed = alternate(
        {
            "ours": our_steps(spec, case.steps),
            "loop": plain_steps(spec, batches, case.steps),
            "HF Trainer": hf_trainer_steps(spec, batches, case.steps),
            "gemm": gemm(case),
        },
        case.rounds,
    )
    tokens = case.steps * sum(tokens_NT.numel() for tokens_NT in batches[0])
    read = case.steps * sum(tokens_NT[:, 1:].numel() for tokens_NT in batches[0])  # the last token is only predicted
    parameters = spec.decoder.parameters(VOCABULARY.size) - VOCABULARY.size * spec.decoder.width
    share = (6 * parameters * read / timed["ours"].median) / (2 * GEMM_SIZE**3 / timed["gemm"].median)
    rows = []
    for peer, target in (("HF Trainer", case.target), ("loop", 1.0)):
        ratio = timed["ours"].faster_than(timed[peer])
        rows.append(
            Row(
                case=f"{case.decoder} {case.precision} : {peer}",
                ours=f"{timed['ours'].rate(tokens, 'tokens')}, {share:.0%} of GEMM",
                peer=timed[peer].rate(tokens, "tokens"),
                ratio=f"{ratio:.2f}",
                target=f">= {target}",
                met=ratio >= target,
            )
        )
    return rows


def pretraining(case: Case) -> Pretrain:
    """Return a pretraining that is as long as the benchmark, including its warm-up turn."""
    optimiser = SCALES["tiny"].pretrain.model_dump() | {"precision": case.precision}
    return Pretrain(
        task=StringTask(axis="composition"),
        decoder=DECODERS[case.decoder],
        ood_ratio=0.01,
        samples=case.batch_samples * case.steps * (case.rounds + 1),
        batch_samples=case.batch_samples,
        optimiser=AdamW.model_validate(optimiser),
        seed=0,
    )


def our_steps(spec: Pretrain, steps: int) -> Callable[[], None]:
    """Return a function that runs ``supervised.train``'s loop, without reports and checkpoints."""
    trainer = Trainer(factory.build(spec.decoder, spec.task.vocabulary, spec.seed), spec.optimiser, spec.steps)
    losses = LossMeter(trainer.device)

    def turn() -> None:
        for _ in range(steps):
            token_batches = pretrain.batch(spec, trainer.completed_steps)
            counted = sum(r.tokens - int(pretrain.loss_start(r).sum()) for r in token_batches)
            trainer.step(
                partial(rank_loss, trainer, losses, r.shard(0, 1), pretrain.loss_start(r), 1 / counted)
                for r in token_batches
            )

    return turn


def plain_steps(spec: Pretrain, batches: list[list[Tensor]], steps: int) -> Callable[[], None]:
    """Return a function that trains with transformers' own loss and torch's own AdamW, at their defaults."""
    model = factory.build(spec.decoder, VOCABULARY, spec.seed)
    settings = spec.optimiser
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    mixed = torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.precision == "bf16")
    remaining = iter(batches)

    def turn() -> None:
        for _ in range(steps):
            token_batches = next(remaining)
            samples = sum(len(tokens_NT) for tokens_NT in token_batches)
            for tokens_NT in token_batches:
                with mixed:
                    loss = model(input_ids=tokens_NT, labels=tokens_NT, use_cache=False).loss
                (loss * len(tokens_NT) / samples).backward()
            nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
            optimiser.step()
            optimiser.zero_grad()

    return turn


def hf_trainer_steps(spec: Pretrain, batches: list[list[Tensor]], steps: int) -> Callable[[], float]:
    """Return a function that runs ``transformers.Trainer`` at its defaults, and times it without its set-up."""
    from transformers import Trainer as HFTrainer
    from transformers import TrainerCallback, TrainingArguments

    class ProgressCallback(TrainerCallback):
        began = ended = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            self.began = self.began or time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            self.ended = time.process_time()

    model = factory.build(spec.decoder, VOCABULARY, spec.seed)
    remaining = iter(batches)

    def turn() -> float:
        samples = [{"tokens": row} for _ in range(steps) for part in next(remaining) for row in part]
        watch = ProgressCallback()
        arguments = TrainingArguments(
            output_dir=mkdtemp(prefix="rayexp-bench-"),
            per_device_train_batch_size=spec.batch_samples,
            max_steps=steps,
            learning_rate=spec.optimiser.learning_rate,
            weight_decay=spec.optimiser.weight_decay,
            bf16=spec.optimiser.precision == "bf16",
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        HFTrainer(model, arguments, padded, train_dataset=samples, callbacks=[watch]).train()  # pyright: ignore[reportArgumentType]
        return watch.ended - watch.began

    return turn


def padded(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return samples of two lengths as one batch, in the usual way of HF Trainer."""
    rows = [sample["tokens"] for sample in samples]
    tokens_NT = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=VOCABULARY.pad)
    mask_NT = tokens_NT != VOCABULARY.pad
    return {
        "input_ids": tokens_NT,
        "attention_mask": mask_NT.long(),
        "labels": tokens_NT.masked_fill(~mask_NT, -100),
    }


def gemm(case: Case) -> Callable[[], Tensor]:
    """Return a square matrix product in the case's precision, as a measure of this core's speed."""
    a = torch.randn(GEMM_SIZE, GEMM_SIZE, dtype=torch.bfloat16 if case.precision == "bf16" else torch.float32)
    return lambda: a @ a


if __name__ == "__main__":
    publish(run())
