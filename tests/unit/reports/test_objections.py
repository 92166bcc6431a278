"""The objections table: it gives the right verdicts in a simulated study with known truth."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from rayexp.reports import page, table
from rayexp.reports.objections import NOT_TESTED, REFUTED, SUPPORTED, UNDECIDED, objections
from rayexp.reports.pairing import paired
from rayexp.rewards.letters import Letters
from rayexp.rewards.random import Random
from rayexp.stages import GRPO, Stage
from rayexp.store.artifacts import Store
from rayexp.studies.conditions import CONTROL, Condition, Wanted
from rayexp.studies.grid import Grid, fine_tuned, pretrained, reinforced, with_evaluations
from rayexp.studies.overrides import apply_overrides, parse_overrides
from rayexp.studies.presets import SCALES
from rayexp.sweep.plan import Plan
from tests.fixtures.checkout import ROOT
from tests.fixtures.simulated_study import PROMPTS_PER_CELL, published

BUDGET = replace(SCALES["tiny"], prompts_per_cell=PROMPTS_PER_CELL)
GRID = Grid((0.003, 0.01), (0.1,), (0, 1, 2, 3))
BASES = pretrained(GRID.task("composition"), BUDGET, GRID)
TUNED = [fine_tuned(base, BUDGET) for base in BASES]


def law(q: np.ndarray, stage: GRPO, role: str) -> np.ndarray:
    """Return Q after GRPO. The control and dense rewards gain 2 nats of logit, a random reward nothing, and GRPO
    without a KL 4 nats. Beyond 60 steps a random number is added to the gain."""
    (reward,) = stage.rewards
    gains = 0.0 if isinstance(reward, Random) else 4.0 if stage.kl_beta == 0 else 2.0
    luck = np.random.default_rng(stage.seed).normal(0, 2) if stage.steps > 60 else 0.0
    return expit(logit(q) + gains + luck) if role != "id" else q


def named(name: str, ends: Sequence[Stage], **about) -> Condition:
    return Condition(name, [each for end in ends for each in with_evaluations(end.lineage, BUDGET)], **about)


def grpo(inits: Sequence[Stage] = TUNED, **settings) -> list[Stage]:
    return [reinforced(init, BUDGET, **{"prompt_role": "ood", "kl_beta": 0.1, **settings}) for init in inits]


STUDY = [
    named(CONTROL, grpo()),
    named("no KL", grpo(kl_beta=0.0), objection="It holds GRPO back.", source="reviews"),
    named("letters", grpo(rewards=(Letters(),)), objection="The reward is too sparse."),
    named("same letters", grpo(rewards=(Letters(weight=2.0),)), predicts="same"),
    named("random", grpo(rewards=(Random(),)), predicts="nothing"),
    named("more steps", grpo(steps=61)),
    named("from pretraining", grpo(BASES), k=8),
    named("SFT alone", [fine_tuned(base, BUDGET, ood_samples=10) for base in BASES]),
]


def decided(wanted: Sequence[Wanted], folder: Path) -> pd.DataFrame:
    plan = Plan.of("mine", wanted, {stage.id for stage in Plan.of("mine", wanted, ()).stages})
    return objections(plan, table.results(plan, simulated(plan, folder)))


def simulated(plan: Plan, folder: Path) -> Store:
    return published(folder, plan.stages, law=law)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return decided(STUDY, tmp_path_factory.mktemp("objections"))


def test_it_says_who_is_right(found: pd.DataFrame) -> None:
    verdicts = {name: set(rows["verdict"]) for name, rows in found.groupby("condition")}
    assert verdicts["no KL"] == {SUPPORTED}
    assert verdicts["letters"] == {REFUTED}
    assert verdicts["same letters"] == {SUPPORTED}
    assert verdicts["random"] == {SUPPORTED}
    assert verdicts["more steps"] == {UNDECIDED}
    assert verdicts["SFT alone"] == {REFUTED}
    assert len(found) == 2 * (len(STUDY) - 1)


def test_an_effect_is_the_difference_of_two_gains(found: pd.DataFrame) -> None:
    assert np.allclose(found["gain"], found["after"] - found["before"])
    assert np.allclose(found["effect"], found["gain"] - found["control_gain"])
    (free,) = found.query("condition == 'no KL' and ood_ratio == 0.003").to_dict("records")
    assert free["before"] == free["control_before"]
    assert free["value"] == pytest.approx(free["after"] - free["control_after"])
    assert (free["seeds"], free["n"]) == (4, 4 * PROMPTS_PER_CELL * 2)
    alone = found[found["condition"] == "SFT alone"]
    assert np.array_equal(alone["before"], alone["control_before"])  # the control's, because it has none of its own
    narrow = found[found["condition"] == "from pretraining"]
    assert (narrow["before"] != narrow["control_before"]).all()
    assert (narrow["k"] == 8).all()


def test_a_spread_of_seeds_says_what_they_can_detect(found: pd.DataFrame) -> None:
    spread = found.set_index("condition")["detectable"]
    assert spread["more steps"].min() > 0.05 > spread["letters"].max()


def test_holm_takes_the_table_as_one_family(found: pd.DataFrame) -> None:
    known = found.dropna(subset=["p"])
    assert (known["p_holm"] >= known["p"]).all()
    assert (known["p_holm"] > known["p"]).any()
    kept = known[known["verdict_holm"].isin([SUPPORTED, REFUTED])]
    assert (kept["p_holm"] < 0.05).all()
    assert (kept["verdict"] == kept["verdict_holm"]).all()


def test_its_columns_are_those_that_are_documented(found: pd.DataFrame) -> None:
    section = (ROOT / "docs/results.md").read_text().partition("## objections.csv")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(found)


def test_two_that_do_nothing_are_not_the_same(tmp_path: Path) -> None:
    idle = [
        named(CONTROL, grpo(rewards=(Random(),))),
        named("twin", grpo(rewards=(Random(chance=0.4),)), predicts="same"),
    ]
    assert set(decided(idle, tmp_path)["verdict"]) == {NOT_TESTED}


def test_values_of_a_list_are_compared_each_with_its_own(tmp_path: Path) -> None:
    axis = apply_overrides(STUDY[:2], parse_overrides(["grpo.group_size=4,8"]))
    rows = decided(axis, tmp_path)
    assert set(rows["setting"]) == {"group_size = 4", "group_size = 8"}
    assert (rows["seeds"] == 4).all()
    assert len(rows) == 4


def test_what_tells_two_conditions_apart_is_no_matter_to_their_pairs() -> None:
    (wider, *_) = pretrained(GRID.task("composition"), BUDGET, GRID, samples=50)
    others = grpo([fine_tuned(wider, BUDGET)])
    assert paired(grpo(), others) == [(grpo()[0], others[0])]
    assert paired(grpo(), grpo(kl_beta=0.0)) == list(zip(grpo(), grpo(kl_beta=0.0), strict=True))


def test_what_is_not_measured_has_no_row(tmp_path: Path) -> None:
    plan = Plan.of("mine", STUDY, ())
    finished = [stage for stage in plan.stages if stage.subject.id not in {end.id for end in STUDY[1].ends}]
    partial = Plan.of("mine", STUDY, {stage.id for stage in finished})
    rows = objections(partial, table.results(partial, published(tmp_path, finished, law=law)))
    assert set(rows["condition"]) == {each.name for each in STUDY[2:]}
    nothing = objections(Plan.of("mine", STUDY, ()), table.results(Plan.of("mine", STUDY, ()), Store(str(tmp_path))))
    assert nothing.empty


def test_the_page_opens_with_them_and_claims_are_of_the_control(tmp_path: Path) -> None:
    plan = Plan.of("mine", STUDY[:3], {stage.id for stage in Plan.of("mine", STUDY[:3], ()).stages})
    html = page.write(plan, simulated(plan, tmp_path / "made"), tmp_path / "out").page.read_text()
    assert html.index('id="objections"') < html.index('id="claims"')
    assert "It holds GRPO back." in html
    assert set(pd.read_csv(tmp_path / "out/claims.csv")["condition"]) == {CONTROL}
    assert set(pd.read_csv(tmp_path / "out/objections.csv")["condition"]) == {"no KL", "letters"}
    assert set(pd.read_parquet(tmp_path / "out/results.parquet")["condition"]) == {CONTROL, "no KL", "letters", ""}
