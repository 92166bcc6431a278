"""A process that compares answers by math-verify: pairs in, a line each; whether they are equal out.

A model may write an answer that takes for ever, such as 9**9**9**9, and only a process can be ended in the middle of a
power. This one ends itself, by an alarm that nobody catches, so that it outlives nobody who waits for it.
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
    """Answer until the other side has ended, or one answer takes longer than its limit."""
    logging.disable(logging.ERROR)  # it warns at every call that it has no limit of its own
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        gold, written = (parse(text, parsing_timeout=0) for text in literal_eval(line))
        equal = verify(gold, written, timeout_seconds=0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(bool(equal), flush=True)


if __name__ == "__main__":
    serve(float(sys.argv[1]))
