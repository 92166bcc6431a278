"""Tasks of text: questions and answers of any length."""

from rayexp.tasks.text.base import Question, TextTask
from rayexp.tasks.text.gsm import GSMTask
from rayexp.tasks.text.gym import AXES, GymTask, Level, axis
from rayexp.tasks.text.records import RecordTask

__all__ = ["AXES", "GSMTask", "GymTask", "Level", "Question", "RecordTask", "TextTask", "axis"]
