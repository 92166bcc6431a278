"""Exact Q of test prompts, against the share of right ones among sampled completions.

One teacher-forced pass gives Q itself. Sampling 64 completions gives a prompt's Q with a standard error of up to 1/16.
It hardly finds a Q below 1/64.
"""

import numpy as np
import torch

from benchmarks.measure import Row, alternate, publish
from rayexp.evaluation.mass import gold_scores
from rayexp.models import factory
from rayexp.sampling.base import prompt_seed
from rayexp.sampling.torch_sampler import TorchSampler
from rayexp.studies.presets import DECODERS
from rayexp.tasks.strings import StringTask
from rayexp.tasks.strings.symbols import VOCABULARY

PROMPTS, COMPLETIONS, ROUNDS = 200, 64, 5
CASES = ("tiny", "small")


def run() -> list[Row]:
    torch.set_num_threads(1)
    return [row(name) for name in CASES]


def row(name: str) -> Row:
    task = StringTask(axis="composition")
    cell = task.cells("ood")[0]
    model = factory.build(DECODERS[name], VOCABULARY, 0)
    token_batch = task.of_cell("test", 0, cell, 0, PROMPTS)
    prompts = token_batch.prompts
    seeds = [prompt_seed("benchmark", i) for i in range(PROMPTS)]
    limits = [task.max_completion_tokens(cell)] * PROMPTS

    def sampled() -> np.ndarray:
        drawn = TorchSampler(model).generate(prompts, seeds, COMPLETIONS, limits)
        solutions = [task.solve(prompt) for prompt in prompts]
        return np.array([task.judge(solutions[i // COMPLETIONS], row).answer for i, row in enumerate(drawn.rows)])

    timed = alternate({"exact": lambda: gold_scores(model, token_batch), "sampled": sampled}, ROUNDS)
    return Row(
        case=f"{name}, {COMPLETIONS} completions",
        ours=timed["exact"].rate(PROMPTS, "prompts"),
        peer=timed["sampled"].rate(PROMPTS, "prompts"),
        ratio=f"{timed['exact'].faster_than(timed['sampled']):.0f}",
    )


if __name__ == "__main__":
    publish(run())
