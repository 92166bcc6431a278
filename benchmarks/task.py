"""The rate at which a task writes samples. Calls of numpy bound small batches, and its arithmetic large ones."""

from functools import partial

from benchmarks.measure import Row, alternate, publish
from rayexp.tasks import Task
from rayexp.tasks.strings import StringTask

TARGET = 1_000_000  # samples/s, so that one core feeds any GPU
ROUND_SAMPLES = 2**16
BATCHES = (1024, 65536)


def run() -> list[Row]:
    """Time samples of four letters, on the axis with the most cells in a mixture."""
    task = StringTask(axis="composition")
    timed = alternate({str(batch): partial(write, task, batch) for batch in BATCHES}, rounds=25)
    return [
        Row(
            case=f"mixture, batch {batch}",
            ours=timed[str(batch)].rate(ROUND_SAMPLES, "samples"),
            ratio=f"{ROUND_SAMPLES / timed[str(batch)].best / TARGET:.2f}",
            target=">= 1,000,000/s",
            met=ROUND_SAMPLES / timed[str(batch)].best >= TARGET,
        )
        for batch in BATCHES
    ]


def write(task: Task, batch: int) -> None:
    """Write a round's samples in the batches of pretraining."""
    for start in range(0, ROUND_SAMPLES, batch):
        task.mixture("pretrain", 0, 0.01, start, batch)


if __name__ == "__main__":
    publish(run())
