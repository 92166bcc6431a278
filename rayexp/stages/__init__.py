"""Kinds of stages, in the order in which a chain goes through them.

A chain is a root, such as pretraining, and the stages that are built on it one after another: SFT, GRPO, a measurement.
Every ``Stage`` with a ``kind`` that a module of this package defines is one; there is no list of them.
"""

from typing import get_args

from pydantic import TypeAdapter

from rayexp.config import kind_of, kinds_in, one_of
from rayexp.parts import STORED
from rayexp.stages.base import Metric, Pool, RootStage, Stage
from rayexp.stages.evaluate import Evaluate
from rayexp.stages.extend import Extend
from rayexp.stages.grpo import GRPO
from rayexp.stages.mixture import PromptShare
from rayexp.stages.optimiser import AdamW
from rayexp.stages.pretrain import Pretrain
from rayexp.stages.pretrained import Pretrained
from rayexp.stages.rft import RFT
from rayexp.stages.rollouts import RolloutStage
from rayexp.stages.sft import SFT

POOLS: tuple[Pool, ...] = get_args(Pool)


def _ordered(kinds: dict[str, type[Stage]]) -> dict[str, type[Stage]]:
    """Sort kinds as a chain goes through them: by pool, roots first."""

    def place(stage: type[Stage]) -> tuple[int, bool, str]:
        return POOLS.index(stage.pool), not issubclass(stage, RootStage), stage.__name__

    return {kind_of(stage): stage for stage in sorted(kinds.values(), key=place)}


KINDS = _ordered(kinds_in(__path__, __name__, Stage))
for _stage in KINDS.values():
    _models = one_of([stage for stage in KINDS.values() if stage.pool != "measure"])
    _stage.model_rebuild(_types_namespace={"ModelStage": _models})
_ANY: TypeAdapter[Stage] = TypeAdapter(one_of(KINDS.values()))


def parse_stage(text: str | bytes) -> Stage:
    """Return a stage from its JSON, which may name classes to import. Raises pydantic's ValidationError on anything
    that is not exactly a stage."""
    return _ANY.validate_json(text)


def parse_stored(text: str | bytes) -> Stage:
    """Return a stage from its JSON as ``parse_stage`` does, but import nothing. Parts whose class is not imported
    become ``UnreadPart``. Such a stage can be shown and compared, but not run."""
    return _ANY.validate_json(text, context=STORED)


def kind_in(stage_id: str) -> str:
    """Return the kind that an id begins with, for stages of which only the id is known."""
    return stage_id.partition("-")[0]


__all__ = [
    "GRPO",
    "KINDS",
    "POOLS",
    "RFT",
    "SFT",
    "AdamW",
    "Evaluate",
    "Extend",
    "Metric",
    "Pool",
    "Pretrain",
    "Pretrained",
    "PromptShare",
    "RolloutStage",
    "RootStage",
    "Stage",
    "kind_in",
    "parse_stage",
    "parse_stored",
]
