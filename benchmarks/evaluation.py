"""Exact Q of test prompts, against sampling completions and counting the right ones.

One teacher-forced pass gives Q itself. Sampling gives each prompt's Q with a standard error of up to 1/16 from 64
completions, and a Q below 1/64 hardly at all.
"""

import numpy as np
import torch

from benchmarks.measure import Row, alternate, publish
from rayexp.evaluation.mass import gold_scores
from rayexp.models import decoder
from rayexp.sampling.base import prompt_seed
from rayexp.sampling.torch_sampler import TorchSampler
from rayexp.studies.presets import DECODERS
from rayexp.tasks.strings import Corpus, Verifier, World

PROMPTS, COMPLETIONS, ROUNDS = 200, 64, 5
CASES = ("tiny", "small")


def run() -> list[Row]:
    torch.set_num_threads(1)
    return [row(name) for name in CASES]


def row(name: str) -> Row:
    world = World("composition")
    cell = world.cells.ood[0]
    model, verifier = decoder.build(DECODERS[name], 0), Verifier(world)
    token_batch = Corpus(world, 0).cell("test", cell, 0, PROMPTS)
    prompts = [prompt.tolist() for prompt in token_batch.prompts]
    seeds = [prompt_seed("benchmark", i) for i in range(PROMPTS)]
    budgets = [world.completion_budget(cell)] * PROMPTS

    def sampled() -> np.ndarray:
        drawn = TorchSampler(model).generate(prompts, seeds, COMPLETIONS, budgets)
        return np.array([verifier.judge(prompts[i // COMPLETIONS], row).answer for i, row in enumerate(drawn.rows)])

    timed = alternate({"exact": lambda: gold_scores(model, token_batch), "sampled": sampled}, ROUNDS)
    return Row(
        case=f"{name}, {COMPLETIONS} completions",
        ours=timed["exact"].rate(PROMPTS, "prompts"),
        peer=timed["sampled"].rate(PROMPTS, "prompts"),
        ratio=f"{timed['exact'].faster_than(timed['sampled']):.0f}",
    )


if __name__ == "__main__":
    publish(run())
