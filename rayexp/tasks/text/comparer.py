"""A process that compares answers with math-verify. It reads a pair a line, and writes whether the two are equal.

A model may write an answer whose evaluation never ends, such as 9**9**9**9. Only a process can be stopped in the middle
of a power. This one ends itself by an alarm that it does not catch, so its reader never waits longer than the limit.
"""

import logging
import resource
import signal
import sys
from ast import literal_eval

from math_verify import parse, verify

#: Memory for one answer.
LIMIT_BYTES = 4 * 2**30


def serve(limit_s: float) -> None:
    """Compare pairs until the input ends. The alarm ends the process if one pair takes longer than ``limit_s``."""
    logging.disable(logging.ERROR)  # math-verify warns at every call without a limit of its own
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        gold, written = (parse(text, parsing_timeout=0) for text in literal_eval(line))
        equal = verify(gold, written, timeout_seconds=0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(bool(equal), flush=True)


if __name__ == "__main__":
    serve(float(sys.argv[1]))
