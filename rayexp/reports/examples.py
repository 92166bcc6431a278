"""Worked examples: a few prompts, chosen by a rule, with the completions after every stage.

For each arm and OOD ratio, of all pairs of a test prompt and a seed in the target cells, at the smallest beta of the
arm (where GRPO was held back least): those at the 10th, 50th and 90th percentile of the gain. Where several have that
gain, the first of them in the results table. Nothing else is looked at.
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from rayexp.formatting import number
from rayexp.reports.arms import ROLE_NAMES, arms, percent
from rayexp.stages import KINDS

PERCENTILES = (10, 50, 90)
#: The rule as the page states it.
RULE = (
    "Not picked by hand: of all pairs of a test prompt and a seed in the cells in question, at the arm's smallest β, "
    f"those at the {', '.join(f'{p}th' for p in PERCENTILES[:-1])} and {PERCENTILES[-1]}th percentile of the gain "
    "P - Q; among equals the first in the results table."
)


@dataclass(frozen=True)
class Answer:
    """The greedy completion after one stage. tokens: each with whether the gold completion has it in that place."""

    stage: str
    tokens: list[tuple[str, bool]]
    correct: bool
    q: float


@dataclass(frozen=True)
class Example:
    """One prompt, and the answers of the chain of models from its root to GRPO."""

    percentile: int
    cell: str
    seed: int
    prompt: str
    gold: str
    gain: float
    answers: list[Answer]

    @property
    def outcome(self) -> str:
        """Say whether the greedy completion was right before and after GRPO."""
        init, after = (answer.correct for answer in self.answers[-2:])
        return {(False, True): "became right", (True, False): "became wrong", (True, True): "stayed right"}.get(
            (init, after), "stayed wrong"
        )


@dataclass(frozen=True)
class Group:
    """The examples of one arm and OOD ratio, which is in percent."""

    title: str
    arm: str
    ratio: str
    examples: list[Example]


def examples(results: pd.DataFrame) -> list[Group]:
    """Return groups of examples from ``table.results``, by arm and then by OOD ratio."""
    groups = []
    for arm in arms(results):
        target = arm.cells(arm.target)
        beta = target["kl_beta"].min()
        for ratio, rows in target[target["kl_beta"] == beta].groupby("ood_ratio"):
            where = f"{ROLE_NAMES[arm.target]} cells, {percent(float(ratio))} % OOD"
            title = f"{arm.name}, {where}, β = {number(beta)}"
            ordered = rows.sort_values("gain", kind="stable")
            picked = [(p, ordered.iloc[round(p / 100 * (len(ordered) - 1))]) for p in PERCENTILES]
            shown = [_example(p, row, results) for p, row in picked]
            groups.append(Group(title, arm.name, percent(float(ratio)), shown))
    return groups


def choices(groups: list[Group]) -> dict[str, list[str]]:
    """Return the fields that examples can be chosen by, with their values."""
    shown = [example for group in groups for example in group.examples]
    values = {
        "arm": [group.arm for group in groups],
        "ratio": [group.ratio for group in groups],
        "cell": [example.cell for example in shown],
        "outcome": [example.outcome for example in shown],
    }
    return {name: list(dict.fromkeys(of)) for name, of in values.items() if len(set(of)) > 1}


def _example(percentile: int, row: "pd.Series[Any]", results: pd.DataFrame) -> Example:
    asked = results[(results["cell"] == row["cell"]) & (results["prompt_index"] == row["prompt_index"])]
    by_stage = {str(one["stage_id"]): one for _, one in asked.iterrows()}
    answers, stage_id = [], row["stage_id"]
    while stage_id in by_stage:  # from GRPO down to pretraining, or to where nothing was measured
        one = by_stage[stage_id]
        answers.insert(0, _answer(one))
        stage_id = one["init_id"]
    return Example(
        percentile=percentile,
        cell=str(row["cell"]),
        seed=int(row["seed"]),
        prompt=str(row["prompt"]),
        gold=str(row["gold"]),
        gain=float(row["gain"]),
        answers=answers,
    )


def _answer(row: "pd.Series[Any]") -> Answer:
    gold, written = str(row["gold"]).split(), str(row["completion"]).split()
    tokens = [(token, i < len(gold) and token == gold[i]) for i, token in enumerate(written)]
    return Answer(KINDS[str(row["kind"])].name, tokens, bool(row["greedy_correct"]), float(row["q"]))
