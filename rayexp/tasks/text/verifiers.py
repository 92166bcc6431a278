"""Verifiers of answers: functions of the gold answer and the written one."""

import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from threading import Lock

#: Mark before the answer at the end of a worked solution.
MARK = "####"
INSTALL = 'pip install "rayexp[math]"'
#: Time limit of one answer, because a model may write one whose evaluation never ends, such as 9**9**9**9.
LIMIT_S = 5.0


def exact(gold: str, written: str) -> bool:
    """Return whether an answer equals the gold one, character by character."""
    return written == gold


@lru_cache(maxsize=2**16)
def math(gold: str, written: str) -> bool:
    """Return whether an answer has the value of the gold one, by math-verify. It is wrong if this takes longer than
    ``LIMIT_S``. Raises ValueError if math-verify is not installed."""
    if find_spec("math_verify") is None:
        raise ValueError(f"verifier='math' needs math-verify, which is not installed; run: {INSTALL}")
    return written == gold or _COMPARER.equal(gold, written)


def final(gold: str, written: str) -> bool:
    """Return whether an answer has the same text after its last ``####`` as the gold one, as in GSM8K."""
    (*_, right), (*steps, answer) = gold.split(MARK), written.split(MARK)
    return bool(steps) and answer.replace(",", "").strip() == right.replace(",", "").strip()


VERIFIERS: dict[str, Callable[[str, str], bool]] = {"exact": exact, "math": math, "final": final}


class _Comparer:
    """The process of ``comparer``. It is started when it is first needed, and again if it has ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = Lock()

    def equal(self, gold: str, written: str) -> bool:
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                command = [sys.executable, "-m", "rayexp.tasks.text.comparer", str(LIMIT_S)]
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                if not self._ask("1", "1"):
                    raise RuntimeError(
                        "the process that compares answers by math-verify did not start (exit code "
                        f"{self._process.poll()}); its own error is on standard error"
                    )
            return self._ask(gold, written)

    def _ask(self, gold: str, written: str) -> bool:
        process = self._process
        assert process
        assert process.stdin
        assert process.stdout
        print((gold, written), file=process.stdin, flush=True)
        if not (answer := process.stdout.readline()):
            process.wait()  # no answer, because its alarm ended it
        return answer.strip() == "True"


_COMPARER = _Comparer()
