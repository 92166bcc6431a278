"""The verifiable reward: does a completion end in the right string?

The verifier shares no code with the generator. It reads a prompt as text, applies T and S letter by letter, and
compares: two implementations of the world that have to agree.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rayexp.tasks.strings import operations, vocabulary
from rayexp.tasks.strings.corpus import World

_OPERATION = {token: name for name, token in vocabulary.OPERATIONS.items()}


@dataclass(frozen=True)
class Verdict:
    """answer: the final string is right, and ended by ``<eos>``. trace: every step before it is right as well."""

    answer: bool
    trace: bool


class Verifier:
    """Judges completions of prompts of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        cycle = operations.hidden_cycle(world.seed)
        self._cycle = {source: int(target) for source, target in enumerate(cycle)}

    def solve(self, prompt: Sequence[int]) -> list[list[int]]:
        """Token ids of the string after each operation of the prompt. Raises ValueError on a malformed prompt."""
        try:
            return self._solve([int(token) for token in prompt])
        except (KeyError, ValueError, IndexError) as error:
            raise ValueError(f"not a prompt of this world: {vocabulary.decode(prompt)}") from error

    def _solve(self, tokens: list[int]) -> list[list[int]]:
        if tokens[0] != vocabulary.BOS or tokens[-1] != vocabulary.EQUALS:
            raise ValueError("no <bos> in front, or no = at the end")
        body = tokens[1:-1]
        successor = self._cycle
        if vocabulary.SEMICOLON in body:
            cut = body.index(vocabulary.SEMICOLON)
            edges = [token - vocabulary.LETTER0 for token in body[:cut]]
            successor, body = dict(zip(edges[::2], edges[1::2], strict=True)), body[cut + 1 :]
        cut = body.index(vocabulary.COLON)
        letters = [token - vocabulary.LETTER0 for token in body[:cut]]
        names = [_OPERATION[token] for token in body[cut + 1 :]]
        if not letters or not names:
            raise ValueError("no letters, or no operations")
        steps: list[list[int]] = []
        for name in names:
            if name == "S":
                letters = letters[1:] + letters[:1]
            else:
                letters = [self._move(letter, position, successor) for position, letter in enumerate(letters)]
            steps.append([letter + vocabulary.LETTER0 for letter in letters])
        return steps

    def _move(self, letter: int, position: int, successor: dict[int, int]) -> int:
        for _ in range(position + 1 if self._world.traversal == "positional" else 1):
            letter = successor[letter]
        return letter

    def judge(self, prompt: Sequence[int], completion: Iterable[int]) -> Verdict:
        """Compare a completion (token ids up to and including ``<eos>``) with the solution of its prompt."""
        tokens = [int(token) for token in completion]
        if not tokens or tokens[-1] != vocabulary.EOS:
            return Verdict(answer=False, trace=False)
        written = _split(tokens[:-1])
        steps = self.solve(prompt)
        if self._world.samples == "answer":
            right = written == steps[-1:]
            return Verdict(answer=right, trace=right)
        return Verdict(answer=written[-1] == steps[-1], trace=written == steps)


def _split(tokens: Sequence[int]) -> list[list[int]]:
    """Cut at every ``;``."""
    strings: list[list[int]] = [[]]
    for token in tokens:
        if token == vocabulary.SEMICOLON:
            strings.append([])
        else:
            strings[-1].append(token)
    return strings
