"""When an answer is right: functions of the gold answer and of the one to judge."""

import logging
from collections.abc import Callable
from importlib.util import find_spec

#: Before the answer, at the end of a worked solution.
MARK = "####"
INSTALL = 'pip install "rayexp[math]"'


def exact(gold: str, written: str) -> bool:
    """Return whether an answer is the gold one, character by character."""
    return written == gold


def math(gold: str, written: str) -> bool:
    """Return whether an answer is worth as much as the gold one, by math-verify. Raises ValueError where that is not
    installed."""
    if find_spec("math_verify") is None:
        raise ValueError(f"verifier is 'math', and math-verify is not installed; run: {INSTALL}")
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of the limit below at every call
    # Without a limit of time, which it would set by a signal that only a main thread may have.
    return bool(verify(parse(gold, parsing_timeout=0), parse(written, parsing_timeout=0), timeout_seconds=0))


def final(gold: str, written: str) -> bool:
    """Return whether what is written behind the last ``####`` is that of the gold answer, as in GSM8K."""
    (*_, right), (*steps, answer) = gold.split(MARK), written.split(MARK)
    return bool(steps) and answer.replace(",", "").strip() == right.replace(",", "").strip()


VERIFIERS: dict[str, Callable[[str, str], bool]] = {"exact": exact, "math": math, "final": final}
