"""The paper's task: operations on strings of letters, which a decoder learns from examples (arXiv 2510.15990).

A generator writes samples, and a verifier that shares no code with it solves and judges them.
"""

from rayexp.tasks.strings.axes import AXES, Axis, Cell
from rayexp.tasks.strings.task import StringTask

__all__ = ["AXES", "Axis", "Cell", "StringTask"]
