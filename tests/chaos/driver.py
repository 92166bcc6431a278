"""The sweep's own job, with one more scale: stages that last some seconds, so that they can be hit in the middle."""

import sys
from dataclasses import replace

from rayexp.cli import run as sweep
from rayexp.studies.presets import SCALES

SCALES["chaos"] = replace(SCALES["toy"], name="chaos", pretrain_samples=40_000, sft_samples=2_000, grpo_steps=50)

if __name__ == "__main__":
    sys.exit(sweep.main())
