"""The runner of ``Evaluate``: one row a test prompt."""

from rayexp.evaluation.measure import measure

__all__ = ["measure"]
