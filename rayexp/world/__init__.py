"""The synthetic world: strings, two operations on them, four axes of generalisation. Pure numpy."""

from rayexp.world.axes import AXES, Axis, Cell
from rayexp.world.corpus import Corpus, Rectangle, World
from rayexp.world.verifier import Verdict, Verifier

__all__ = ["AXES", "Axis", "Cell", "Corpus", "Rectangle", "Verdict", "Verifier", "World"]
