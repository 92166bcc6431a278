"""The rate at which tasks of text write samples, the padding of their batches, and the samples' share of a step."""

from collections.abc import Sequence
from functools import partial

from benchmarks.measure import Row, alternate, publish
from benchmarks.pretrain import our_steps
from rayexp.stages import Pretrain
from rayexp.studies.grid import decoder_for
from rayexp.studies.presets import SCALES
from rayexp.tasks.text import AXES, GSMTask, TextTask, axis

TARGET = 10_000  # samples/s a core
MOST_PADDING = 0.15  # of the tokens
SAMPLES = 2048
STEPS, ROUNDS = 4, 3


def run() -> list[Row]:
    tasks: list[TextTask] = [*(axis(name) for name in AXES), GSMTask(axis="depth")]
    return [row for task in tasks for row in measured(task)]


def measured(task: TextTask) -> Sequence[Row]:
    """Return a row on a task's samples, and one on training a tiny decoder on them."""
    budget = SCALES["tiny"]
    spec = Pretrain(
        task=task,
        decoder=decoder_for(budget, task),
        ood_ratio=0.1,
        samples=STEPS * budget.pretrain_batch * (ROUNDS + 1),
        batch_samples=budget.pretrain_batch,
        optimiser=budget.pretrain,
        seed=0,
    )
    sides = {
        "samples": partial(task.mixture, "pretrain", 0, 0.1, 0, SAMPLES),
        "training": our_steps(spec, STEPS),
    }
    timed = alternate(sides, ROUNDS)
    batches = task.mixture("pretrain", 0, 0.1, 0, SAMPLES)
    padding = 1 - sum(batch.tokens for batch in batches) / sum(batch.tokens_NT.size for batch in batches)
    rate = SAMPLES / timed["samples"].best
    share = timed["samples"].median * STEPS * spec.batch_samples / SAMPLES / timed["training"].median
    return (
        Row(
            case=f"{task.label}, samples",
            ours=timed["samples"].rate(SAMPLES, "samples"),
            ratio=f"{rate / TARGET:.2f}",
            target=f">= {TARGET:,}/s, or prefetched",
        ),
        Row(
            case=f"{task.label}, padding",
            ours=f"{padding:.1%} of the tokens",
            target=f"<= {MOST_PADDING:.0%}",
            met=padding <= MOST_PADDING,
        ),
        Row(case=f"{task.label}, training", ours=timed["training"].time(), peer=f"samples are {share:.0%} of it"),
    )


if __name__ == "__main__":
    publish(run())
