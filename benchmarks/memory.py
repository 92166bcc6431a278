"""Memory and time of a learner's gradient with a large vocabulary: all distributions at once, and a few at a time.

64 groups of 8 completions of 128 tokens over 49,152 symbols, on a decoder that is small beside them. Held at once, they
would be several arrays of 12.9 GB in fp32, which is not tried; that is said by arithmetic.
"""

import resource
import subprocess
import sys
import time
from typing import NamedTuple

import torch

from benchmarks.measure import Row, publish
from rayexp.models import factory
from rayexp.models.config import Decoder
from rayexp.rl.readout import Readout, token_scores
from rayexp.rl.scoring import UniquePrefixes
from rayexp.tasks import Vocabulary

SYMBOLS, TOKENS, PROMPT, GROUP = 49_152, 128, 16, 8
GROUPS = (8, 64)
DECODER = Decoder(layers=1, width=64, ff_width=128, heads=2, kv_heads=2, context_tokens=256)
GROWTH = 1.5  # of the memory, where there are eight times as many completions
COST = 1.15


class Taken(NamedTuple):
    """Memory and time of a gradient. mib: above what there is before it."""

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
    ]


def taken(groups: int, whole: bool) -> Taken:
    """Return what a gradient takes, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", str(groups), str(int(whole))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Taken(*map(float, done.stdout.split()[-2:]))


def gradient(groups: int, whole: bool) -> Taken:
    """Take the gradient of a loss with an exact KL, and return what that took."""
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
    """Return the most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(*gradient(int(sys.argv[1]), bool(int(sys.argv[2]))))
    else:
        publish(run())
