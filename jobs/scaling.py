"""The paper's decoder at 4, 16 and 32 layers: ``jobs/sweep.py --study scaling``, with all of its options."""

import sys

from rayexp.cli.run import main

if __name__ == "__main__":
    sys.exit(main(study="scaling"))
