"""Seeds that are added while a verdict is undecided: the course is deterministic, and the error rate is kept."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from rayexp.evaluation.statistics import ALPHA, p_of_mean
from rayexp.experiment import Experiment
from rayexp.reports.checks import FAILS, HOLDS, UNDECIDED
from rayexp.reports.claims import over_looks
from rayexp.reports.undecided import places
from rayexp.stages import GRPO
from rayexp.studies.looks import planned_looks
from rayexp.sweep.plan import Plan
from tests.fixtures.simulated_study import published, study_stages

AUTO = Experiment(study="mixing", scale="tiny", ood_ratios=(0.0, 0.01), kl_betas=(0.1,), seeds=("auto",), max_seeds=8)


def test_looks_double_and_begin_with_what_is_there():
    assert planned_looks((0, 1, 2), 12) == [(0, 1, 2), tuple(range(6)), tuple(range(12))]
    assert planned_looks((5,), 3) == [(5,), (5, 0), (5, 0, 1)]
    assert planned_looks((0, 1), 2) == [(0, 1)]
    with pytest.raises(ValueError, match="max_seeds=1 should be at least 2, the number of seeds at the first look"):
        planned_looks((0, 1), 1)


def seeds_at(wanted, ratio):
    return {each.chain_seed for each in wanted if isinstance(each, GRPO) and each.root.ood_ratio == ratio}


def test_seeds_are_added_where_a_verdict_is_undecided_and_nowhere_else():
    asked = []

    def undecided(wanted, looks):
        asked.append((len(seeds_at(wanted, 0.0)), len(seeds_at(wanted, 0.01)), looks))
        return {("tokens", 0.01)}

    found = AUTO.wanted(lambda _: None, undecided)
    assert asked == [(3, 3, 3), (3, 6, 3)]
    assert (len(seeds_at(found.stages, 0.0)), len(seeds_at(found.stages, 0.01))) == (3, 8)
    assert found == AUTO.wanted(lambda _: None, undecided)
    decided = AUTO.wanted(lambda _: None, lambda *_: set())
    assert (len(seeds_at(decided.stages, 0.0)), len(seeds_at(decided.stages, 0.01))) == (3, 3)


def test_before_the_first_look_it_is_said_what_may_become_of_it():
    assert AUTO.adaptive
    assert AUTO.wanted(lambda _: None).messages == (
        "seeds auto: 3 seeds, then 6 and 8 where a verdict is undecided; "
        "p-values are multiplied by 3, the number of looks",
        "at most about 96 stages in all",
    )


def test_a_limit_without_auto_is_refused():
    with pytest.raises(ValueError, match="max_seeds=6 needs seeds='auto'"):
        Experiment(max_seeds=6)


def test_looking_several_times_keeps_the_error_rate():
    """Draw means of seeds around the limit itself, so that every verdict is wrong. A study stops at its first one."""
    rng, studies, looks = np.random.default_rng(0), 400, [len(seeds) for seeds in planned_looks((0, 1, 2), 12)]

    def wrong(values, times):
        for seeds in looks:
            rows = pd.DataFrame({"seed": np.arange(seeds), "gain": values[:seeds]})
            found = pd.DataFrame({"p": [p_of_mean(rows, "gain", 0.0)], "verdict": [HOLDS]})
            if (over_looks(found, times)["verdict"] == HOLDS).all() and found["p"].item() < ALPHA:
                return True
        return False

    draws = rng.normal(0, 0.1, (studies, looks[-1]))
    corrected = np.mean([wrong(values, len(looks)) for values in draws])
    naive = np.mean([wrong(values, 1) for values in draws])
    assert corrected <= ALPHA < naive - 0.02


def test_a_verdict_without_a_p_value_is_none_where_several_looks_are_planned():
    found = pd.DataFrame({"p": [np.nan, 0.01, 0.03, np.nan], "verdict": [HOLDS, FAILS, HOLDS, "not measured"]})
    assert over_looks(found, 3)["verdict"].tolist() == [UNDECIDED, FAILS, UNDECIDED, "not measured"]
    assert over_looks(found, 1)["verdict"].tolist() == found["verdict"].tolist()


def test_a_store_says_where_a_study_is_undecided(tmp_path):
    stages = study_stages(seeds=(0, 1, 2), kl_betas=(0.1,))
    plan = Plan.of("demo", stages, {stage.id for stage in Plan.of("demo", stages, ()).stages})
    store = published(tmp_path, plan.stages)
    every = {("composition", ratio) for ratio in (0.0, 0.003, 0.01, 0.05)}
    assert places(plan, store) == set()
    assert places(dataclasses.replace(plan, looks=10**9), store) == every
