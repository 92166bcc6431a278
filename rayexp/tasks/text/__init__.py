"""Tasks of text: questions and answers of any length."""

from rayexp.tasks.text.base import Question, TextTask
from rayexp.tasks.text.gym import AXES, GymTask, Level, axis

__all__ = ["AXES", "GymTask", "Level", "Question", "TextTask", "axis"]
