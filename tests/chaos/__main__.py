"""Faults against a real sweep: ``python -m tests.chaos --faults 9 --seed 1 2 3``.

Prints a table and exits with 1 if a row of the results was lost or differs from the undisturbed sweep's.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import tyro

from tests.chaos.bench import Bench
from tests.chaos.campaign import Campaign, schedule, table
from tests.fixtures.s3 import S3Server


@dataclass
class Arguments:
    """A seeded fault campaign in a cluster of several nodes on this host."""

    faults: int = 9
    """Faults for each seed."""
    seed: tuple[int, ...] = (1, 2, 3)
    """Seeds; each decides a schedule."""
    chains: int = 2
    """Chains of a sweep, 1 or 2."""


def main() -> int:
    arguments = tyro.cli(Arguments, description=__doc__)
    folder = Path(mkdtemp(prefix="rayexp-chaos-"))
    print(f"logs and stores: {folder}")
    with S3Server() as s3:
        os.environ.update(s3.environment())
        s3.make_bucket("chaos")
        with Bench(arguments.chains) as bench:
            campaign = Campaign(bench, s3, folder)
            print(f"undisturbed: {campaign.undisturbed_s:.0f} s, weights and results on record")
            strikes = [row for seed in arguments.seed for row in campaign.run(schedule(arguments.faults, seed), seed)]
    print(table(strikes))
    bad = sum((row.rows_lost or 0) + (row.rows_differ or 0) for row in strikes)
    print(f"{len(strikes)} faults over {len(arguments.seed)} seeds: {bad} rows lost or different")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
