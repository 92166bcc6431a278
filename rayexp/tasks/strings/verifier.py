"""The verifier of strings, which solves prompts and judges completions.

It shares no code with the generator: it reads a prompt token by token, and applies T and S letter by letter. So there
are two implementations of the task that have to agree.
"""

from collections.abc import Iterable, Sequence
from itertools import takewhile

from rayexp.tasks.base import Verdict
from rayexp.tasks.strings.symbols import COLON, EQUALS, LETTER0, OPERATIONS, SEMICOLON, VOCABULARY

_OPERATION = {token: name for name, token in OPERATIONS.items()}


def solve(prompt: Sequence[int], cycle: Iterable[int], positional: bool) -> list[list[int]]:
    """Return the token ids of the string after each operation of the prompt. Raises ValueError on a malformed prompt.

    cycle: the next letter of each letter, for prompts that show no map. positional: letter i takes i steps.
    """
    tokens = [int(token) for token in prompt]
    try:
        letters, names, printed = _read(tokens)
        successor = dict(enumerate(map(int, cycle))) if printed is None else printed
        steps: list[list[int]] = []
        for name in names:
            if name == "S":
                letters = letters[1:] + letters[:1]
            else:
                letters = [
                    _move(letter, place + 1 if positional else 1, successor) for place, letter in enumerate(letters)
                ]
            steps.append([letter + LETTER0 for letter in letters])
        return steps
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(f"not a prompt of this task: {VOCABULARY.decode(tokens)}") from error


def _read(tokens: list[int]) -> tuple[list[int], list[str], dict[int, int] | None]:
    """Return the letters of a prompt, its operations, and its map; None if it shows no map."""
    if tokens[0] != VOCABULARY.bos or tokens[-1] != EQUALS:
        raise ValueError("no <bos> in front, or no = at the end")
    body, printed = tokens[1:-1], None
    if SEMICOLON in body:
        cut = body.index(SEMICOLON)
        edges = [token - LETTER0 for token in body[:cut]]
        printed, body = dict(zip(edges[::2], edges[1::2], strict=True)), body[cut + 1 :]
    cut = body.index(COLON)
    letters = [token - LETTER0 for token in body[:cut]]
    names = [_OPERATION[token] for token in body[cut + 1 :]]
    if not letters or not names:
        raise ValueError("no letters, or no operations")
    return letters, names, printed


def _move(letter: int, times: int, successor: dict[int, int]) -> int:
    for _ in range(times):
        letter = successor[letter]
    return letter


def judge(steps: Sequence[Sequence[int]], completion: Sequence[int], trace: bool) -> Verdict:
    """Compare a completion (token ids up to and including ``<eos>``) with the string after each operation.

    trace: whether the completion has to contain all of these strings, and not only the last one.
    """
    wanted = [list(step) for step in (steps if trace else steps[-1:])]
    tokens = [int(token) for token in completion]
    if not tokens or tokens[-1] != VOCABULARY.eos:
        return Verdict(answer=False, trace=False, steps_right=0, steps=len(wanted))
    written = _split(tokens[:-1])
    agreeing = takewhile(lambda pair: pair[0] == pair[1], zip(written, wanted, strict=False))
    answer = written[-1] == wanted[-1] if trace else written == wanted
    return Verdict(answer=answer, trace=written == wanted, steps_right=len(list(agreeing)), steps=len(wanted))


def _split(tokens: Sequence[int]) -> list[list[int]]:
    """Split at every ``;``."""
    strings: list[list[int]] = [[]]
    for token in tokens:
        if token == SEMICOLON:
            strings.append([])
        else:
            strings[-1].append(token)
    return strings
