"""The synthetic world: strings, two operations on them, four axes of generalisation. Pure numpy."""

from rayexp.tasks.strings.axes import AXES, Axis, Cell
from rayexp.tasks.strings.corpus import Corpus, TokenBatch, World
from rayexp.tasks.strings.verifier import Verdict, Verifier

__all__ = ["AXES", "Axis", "Cell", "Corpus", "TokenBatch", "Verdict", "Verifier", "World"]
