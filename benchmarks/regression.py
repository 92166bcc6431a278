"""Regressions of speed: ratios that hold on any machine, measured in half a minute. CI fails if one has halved."""

from functools import partial

import numpy as np
import torch

from benchmarks import evaluation, pretrain
from benchmarks.measure import Row, Samples, alternate, publish
from benchmarks.rollouts import GROUP, hf_generate, questions
from benchmarks.step import Case, reinforcement
from rayexp.models import factory
from rayexp.rl.scoring import UniquePrefixes, completion_logprobs, group_logprobs
from rayexp.sampling.torch_sampler import TorchSampler
from rayexp.studies.presets import DECODERS
from rayexp.tasks.strings import StringTask
from rayexp.tasks.strings.symbols import VOCABULARY

ROUNDS = 5
#: Ratios at the last inspection, by name. Half of one fails.
RECORDED = {
    "pretraining : a loop": 1.0,
    "learner : each completion by itself": 2.0,
    "the same, three quarters copies": 4.0,
    "TorchSampler : HF generate": 2.2,
    "exact Q : sampling": 40.0,
}


def run() -> list[Row]:
    torch.set_num_threads(1)
    found = dict(zip(RECORDED, (pretraining(), learning(), learning(GROUP // 4), sampling(), measuring()), strict=True))
    rows = []
    for name, recorded in RECORDED.items():
        ratio, floor = found[name], recorded / 2
        rows.append(Row(name, f"once {recorded:g}", ratio=f"{ratio:.2f}", target=f">= {floor:g}", met=ratio >= floor))
    return rows


def pretraining() -> float:
    """Return the speed of a step of a stage, as a multiple of that of a hand-written loop."""
    case = pretrain.Case("tiny", "fp32", 256, 2, ROUNDS, 0.0)
    spec = pretrain.pretraining(case)
    batches = [
        [
            torch.from_numpy(token_batch.tokens_NT.astype(np.int64))
            for token_batch in pretrain.pretrain.batch(spec, step)
        ]
        for step in range(spec.steps)
    ]
    return ratio(pretrain.our_steps(spec, case.steps), pretrain.plain_steps(spec, batches, case.steps))


def learning(different: int = GROUP) -> float:
    """Return the speed of scoring completions with shared prefixes, as a multiple of scoring each with its own prompt;
    gradients included. different: number of different completions of a group."""
    model = factory.build(DECODERS["tiny"], VOCABULARY, 0)
    prompts, _, limits = questions(StringTask(axis="composition"))
    prompts_PT = torch.tensor(prompts)
    shape = (len(prompts) * different, limits[0])
    tokens_NC = torch.randint(8, 34, shape, generator=torch.Generator().manual_seed(0))
    tokens_NC = tokens_NC.repeat_interleave(GROUP // different, dim=0)
    whole_NT = torch.cat([prompts_PT.repeat_interleave(GROUP, dim=0), tokens_NC], dim=1)
    prefixes = UniquePrefixes.of(prompts_PT.numpy(), tokens_NC.numpy())
    return ratio(
        lambda: group_logprobs(model, prefixes).sum().backward(),
        lambda: completion_logprobs(model, whole_NT[:, :-1], limits[0]).sum().backward(),
    )


def sampling() -> float:
    spec = reinforcement(Case("tiny", ROUNDS), "fp32")
    model = factory.build(spec.root.decoder, VOCABULARY, 0)
    prompts, seeds, limits = questions(spec.root.task)
    ours = partial(TorchSampler(model).generate, prompts, seeds, GROUP, limits)
    return ratio(ours, hf_generate(model, prompts, limits[0]))


def measuring() -> float:
    return float(evaluation.row("tiny").ratio)


def ratio(ours, peer) -> float:
    timed: dict[str, Samples] = alternate({"ours": ours, "peer": peer}, ROUNDS)
    return timed["ours"].faster_than(timed["peer"])


if __name__ == "__main__":
    publish(run())
