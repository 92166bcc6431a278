"""When an answer is right: functions of the gold answer and of the one to judge."""

import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from threading import Lock

#: Before the answer, at the end of a worked solution.
MARK = "####"
INSTALL = 'pip install "rayexp[math]"'
#: Time for one answer: a model may write one that takes for ever, such as 9**9**9**9.
LIMIT_S = 5.0


def exact(gold: str, written: str) -> bool:
    """Return whether an answer is the gold one, character by character."""
    return written == gold


@lru_cache(maxsize=2**16)
def math(gold: str, written: str) -> bool:
    """Return whether an answer is worth as much as the gold one, by math-verify. One that can't be told within
    ``LIMIT_S`` is wrong. Raises ValueError where math-verify is not installed."""
    if find_spec("math_verify") is None:
        raise ValueError(f"verifier='math' needs math-verify, which is not installed; run: {INSTALL}")
    return written == gold or _COMPARER.equal(gold, written)


def final(gold: str, written: str) -> bool:
    """Return whether what is written behind the last ``####`` is that of the gold answer, as in GSM8K."""
    (*_, right), (*steps, answer) = gold.split(MARK), written.split(MARK)
    return bool(steps) and answer.replace(",", "").strip() == right.replace(",", "").strip()


VERIFIERS: dict[str, Callable[[str, str], bool]] = {"exact": exact, "math": math, "final": final}


class _Comparer:
    """The process of ``comparer``, started when it is first asked, and again where it has ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = Lock()

    def equal(self, gold: str, written: str) -> bool:
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                command = [sys.executable, "-m", "rayexp.tasks.text.comparer", str(LIMIT_S)]
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                if not self._ask("1", "1"):
                    raise RuntimeError("the process that compares answers by math-verify did not start")
            return self._ask(gold, written)

    def _ask(self, gold: str, written: str) -> bool:
        process = self._process
        assert process
        assert process.stdin
        assert process.stdout
        print((gold, written), file=process.stdin, flush=True)
        if not (answer := process.stdout.readline()):
            process.wait()  # it has ended itself
        return answer.strip() == "True"


_COMPARER = _Comparer()
