"""Copies of test items in pretraining: a random half of the items, as often as the ratio says, and none of the other
half."""

from collections import Counter

import numpy as np
import pytest

from rayexp.execution import pretrain as runner
from rayexp.stages import Pretrain
from rayexp.studies.contamination import OWN_GRID, TIMES, items_of
from rayexp.studies.presets import SCALES
from rayexp.tasks import text
from rayexp.tasks.base import TEST_SEED
from rayexp.tasks.copies import copied_items, is_copied
from rayexp.tasks.strings import StringTask
from tests.fixtures.factories import pretrain

ITEMS = 8
TASKS = [StringTask(axis="composition"), text.axis("backward")]
every_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.label)


def pretraining(task, times: int, **settings) -> Pretrain:
    copies = times * ITEMS // 2 * len(task.cells("ood"))
    return pretrain(task=task, copied_items=ITEMS, ood_ratio=copies / 1000, **settings)


def rows(stage) -> dict[int, tuple[tuple[int, ...], bool]]:
    """Return each sample of a pretraining, by number: prompt with completion, and whether its cell is OOD."""
    found = {}
    for step in range(stage.steps):
        for batch in runner.batch(stage, step):
            for i, index in enumerate(batch.index_N.tolist()):
                assert index not in found
                found[index] = (tuple(batch.tokens_NT[i, : batch.length_N[i]].tolist()), bool(batch.ood_N[i]))
    return found


def items_in(task, cell) -> list[tuple[int, ...]]:
    batch = task.of_cell("test", TEST_SEED, cell, 0, ITEMS)
    return [tuple(row_T[:length].tolist()) for row_T, length in zip(batch.tokens_NT, batch.length_N, strict=True)]


def test_a_coin_takes_one_of_each_two_items():
    items = np.arange(2000)
    copied_N = is_copied(3, "TS", items)
    assert (copied_N[::2] != copied_N[1::2]).all()
    assert 450 < copied_N[::2].sum() < 550
    assert (is_copied(4, "TS", items) != copied_N).any(), "another seed has another half"
    assert copied_items(3, "TS", 20).tolist() == np.flatnonzero(copied_N)[:10].tolist()


@every_task
@pytest.mark.parametrize("exposure", ["uniform", "early", "late"])
def test_every_copied_item_comes_as_often_as_every_other_and_no_control_does(task, exposure):
    stage = pretraining(task, 3, exposure=exposure)
    found = rows(stage)
    assert sorted(found) == list(range(1000))
    counts = Counter(row for row, ood in found.values() if ood)
    copied = [items_in(task, cell)[i] for cell in task.cells("ood") for i in copied_items(stage.seed, cell, ITEMS)]
    assert counts == Counter(dict.fromkeys(copied, 3))
    when = [index for index, (_, ood) in found.items() if ood]
    assert {"uniform": (0, 999), "early": (0, 499), "late": (500, 999)}[exposure][0] <= min(when)
    assert max(when) <= {"uniform": 999, "early": 499, "late": 999}[exposure]


@every_task
def test_what_is_no_copy_is_as_without_copies(task):
    stage = pretraining(task, 2)
    plain = rows(pretrain(task=task, ood_ratio=stage.ood_ratio))
    assert {index: row for index, row in rows(stage).items() if not row[1]} == {
        index: row for index, row in plain.items() if not row[1]
    }


def test_a_ratio_with_less_than_a_copy_of_each_item_is_refused():
    with pytest.raises(
        ValueError, match="makes 7 OOD samples; copied_items=8 needs none, or at least 8, a copy of each"
    ):
        pretrain(copied_items=ITEMS, ood_ratio=0.007)
    with pytest.raises(ValueError, match="multiple of 2"):
        pretrain(copied_items=7)
    assert pretraining(TASKS[0], 0).ood_samples == 0


@pytest.mark.parametrize("scale", SCALES)
def test_the_study_has_so_many_copies_of_each_item(scale):
    budget = SCALES[scale]
    for times, ratio in zip(TIMES, OWN_GRID[scale]["ood_ratios"], strict=True):
        assert int(budget.pretrain_samples * ratio) == times * items_of(budget)  # half the items of each of two cells
