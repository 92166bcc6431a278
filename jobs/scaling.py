"""Decoders of several depths and widths: ``jobs/sweep.py --study scaling``, with all of its options."""

import sys

from rayexp.cli.run import main

if __name__ == "__main__":
    sys.exit(main(study="scaling"))
