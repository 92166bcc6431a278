"""Memory of a learner's gradient with a large vocabulary, with all distributions at once and with a few at a time; and
memory of a training rank, compared with the plan's estimate.

The batch is 64 groups of 8 completions of 128 tokens over 49,152 symbols; the decoder is small beside it. All
distributions at once would be several arrays of 12.9 GB in fp32. That is computed by arithmetic and not tried.
"""

import resource
import subprocess
import sys
import time
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.measure import Row, publish
from rayexp.models import factory
from rayexp.models.config import Decoder
from rayexp.rl.readout import Readout, token_scores
from rayexp.rl.scoring import UniquePrefixes
from rayexp.stages import AdamW
from rayexp.stages.memory import Shape
from rayexp.studies.presets import DECODERS
from rayexp.tasks import TokenBatch, Vocabulary
from rayexp.training.batch_loss import LossMeter, rank_loss
from rayexp.training.trainer import Trainer

SYMBOLS, TOKENS, PROMPT, GROUP = 49_152, 128, 16, 8
GROUPS = (8, 64)
DECODER = Decoder(layers=1, width=64, ff_width=128, heads=2, kv_heads=2, context_tokens=256)
#: Decoder, symbols, rows and tokens of a batch. Its arrays are so large that freed ones go back to the system.
#: Otherwise a process's peak memory says little.
TRAINED = (
    (Decoder(layers=4, width=256, ff_width=704, heads=4, kv_heads=4, context_tokens=64), 100, 1500, 24),
    (DECODERS["paper"], 100, 256, 40),
    (Decoder(layers=6, width=512, ff_width=1408, heads=8, kv_heads=8, context_tokens=256), 20_000, 64, 129),
)
WITHIN = 0.2  # of the arithmetic's result
GROWTH = 1.5  # of the memory, for eight times as many completions
COST = 1.15


class Taken(NamedTuple):
    """Memory and time of a gradient. mib: growth of the peak memory."""

    mib: float
    seconds: float


def run() -> list[Row]:
    few, many = (taken(groups, whole=False) for groups in GROUPS)
    whole = taken(GROUPS[0], whole=True)
    array = GROUPS[1] * GROUP * TOKENS * SYMBOLS * 4 / 2**20
    size = f"{{}} x {GROUP} completions of {TOKENS}"
    return [
        Row(
            case=size.format(GROUPS[0]),
            ours=f"{few.mib:,.0f} MiB",
            peer=f"{whole.mib:,.0f} MiB at once",
            ratio=f"{whole.mib / few.mib:.1f}",
        ),
        Row(
            case="time of it",
            ours=f"{few.seconds:.1f} s",
            peer=f"{whole.seconds:.1f} s at once",
            ratio=f"{few.seconds / whole.seconds:.2f}",
            target=f"<= {COST}",
            met=few.seconds <= COST * whole.seconds,
        ),
        Row(
            case=size.format(GROUPS[1]),
            ours=f"{many.mib:,.0f} MiB",
            peer=f"{array:,.0f} MiB for each array",
            ratio=f"{many.mib / few.mib:.2f}",
            target=f"<= {GROWTH} times",
            met=many.mib <= GROWTH * few.mib,
        ),
        *(training_row(number) for number in range(len(TRAINED))),
    ]


def training_row(number: int) -> Row:
    """Measure two steps of a decoder in a process of its own, and compare with ``rayexp.stages.memory``."""
    decoder, symbols, rows, tokens = TRAINED[number]
    parameters = decoder.parameters(symbols)
    planned = Shape(parameters, decoder.layers, decoder.width, symbols).training(rows * (tokens - 1), 1, False, False)
    ours, peer = in_process("train", number).mib, (planned.total - planned.process) / 2**20
    return Row(
        case=f"training {parameters / 1e6:.0f}M in {decoder.layers} layers, {rows} x {tokens} tokens",
        ours=f"{ours:,.0f} MiB",
        peer=f"{peer:,.0f} MiB planned",
        ratio=f"{ours / peer:.2f}",
        target=f"within {WITHIN:.0%}",
        met=abs(ours / peer - 1) <= WITHIN,
    )


def taken(groups: int, whole: bool) -> Taken:
    """Return the memory and time of a gradient in a process of its own."""
    return in_process("gradient", groups, int(whole))


def in_process(what: str, *numbers: int) -> Taken:
    """Run this file with these arguments, and return its measurement."""
    command = [sys.executable, "-m", "benchmarks.memory", what, *map(str, numbers)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Taken(*map(float, done.stdout.split()[-2:]))


def train(number: int) -> Taken:
    """Take two optimiser steps on random samples. Return their memory and time."""
    decoder, symbols, rows, tokens = TRAINED[number]
    samples = np.random.default_rng(0).integers(3, symbols, (rows, tokens - 1))
    batch = TokenBatch.of([((1,), row.tolist()) for row in samples], np.arange(rows))
    before, started = peak(), time.perf_counter()
    trainer = Trainer(factory.build(decoder, Vocabulary(("",) * symbols), 0), AdamW(learning_rate=1e-4), 2)
    meter = LossMeter(trainer.device)
    for _ in range(2):
        trainer.step([lambda: rank_loss(trainer, meter, batch, np.ones(rows, dtype=np.int64), 1.0)])
    return Taken(peak() - before, time.perf_counter() - started)


def gradient(groups: int, whole: bool) -> Taken:
    """Take the gradient of a loss with an exact KL. Return its memory and time."""
    vocabulary = Vocabulary(("",) * SYMBOLS)
    policy, reference = (factory.build(DECODER, vocabulary, seed) for seed in (0, 1))
    generator = torch.Generator().manual_seed(0)
    prompts_PT = torch.randint(3, SYMBOLS, (groups, PROMPT), generator=generator)
    tokens_NC = torch.randint(3, SYMBOLS, (groups * GROUP, TOKENS), generator=generator)
    mask_NC = torch.ones(tokens_NC.shape)
    before, started = peak(), time.perf_counter()
    prefixes = UniquePrefixes.of(prompts_PT.numpy(), tokens_NC.numpy())
    with torch.no_grad():
        held = Readout.of(reference, prefixes, whole)
    scores = token_scores(Readout.of(policy, prefixes, whole), held, prefixes, tokens_NC, mask_NC, "exact")
    assert scores.kl_NC is not None
    (scores.logprob_NC - scores.kl_NC).mean().backward()
    return Taken(peak() - before, time.perf_counter() - started)


def peak() -> float:
    """Return this process's peak memory in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["gradient", groups, whole]:
            print(*gradient(int(groups), bool(int(whole))))
        case ["train", number]:
            print(*train(int(number)))
        case _:
            publish(run())
