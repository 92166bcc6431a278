"""Counts of right completions and their expected number, which agree for a policy that does not learn."""

import numpy as np
import pytest

from rayexp.config import RunConfig
from rayexp.errors import StageError
from rayexp.evaluation.mass import gold_masses, gold_scores
from rayexp.execution import rollout_loop, supervised
from rayexp.models import factory
from rayexp.rl.hits import Hits
from rayexp.rl.prompts import PromptBatch
from rayexp.store.artifacts import Store
from rayexp.tasks.strings import StringTask
from tests.fixtures import crash_harness
from tests.fixtures.factories import MICRO
from tests.fixtures.learnable import stage_of

TASK = StringTask(axis="composition")


def batch_of(*numbers: int) -> PromptBatch:
    return PromptBatch(list(numbers), [[1]] * len(numbers), list(numbers), [1] * len(numbers))


def test_a_prompt_counts_as_often_as_it_is_drawn_for():
    hits = Hits({})
    hits.expect(batch_of(3, 4, 3), np.array([0.25, 0.5, 0.25]))
    hits.count(batch_of(3, 4, 3), np.array([[0, 1], [1, 1], [0, 0]]))
    hits.count(batch_of(4), np.array([[0, 1]]))  # once more
    assert hits.totals() == {"drawn": 8, "right": 4, "expected_right": 2 * (0.25 + 0.5 + 0.25) + 2 * 0.5}
    later = Hits({f"rollout/{name}": value for name, value in hits.totals().items()})
    assert later.totals() == hits.totals()


def test_masses_of_prompts_of_several_lengths_come_in_their_order():
    model = factory.build(MICRO, TASK.vocabulary, seed=3)
    batches = [TASK.of_cell("grpo", 0, cell, 0, 4) for _, cell in TASK.roles()]
    expected = np.concatenate([np.exp(gold_scores(model, batch).log_mass_N) for batch in batches])
    rows = [sample for batch in batches for sample in zip(batch.prompts, batch.completions, strict=True)]
    order = np.random.default_rng(0).permutation(len(rows))
    found = gold_masses(model, [rows[i][0] for i in order], [rows[i][1] for i in order])
    assert found == pytest.approx(expected[order], rel=1e-5)


@pytest.mark.parametrize("hint", [0, 1])
def test_a_policy_that_learns_finds_what_its_own_probabilities_let_expect(hint, tmp_path, monkeypatch):
    """Require 5 standard errors, also with hints and after an interruption."""
    monkeypatch.setattr(rollout_loop, "acquire_workers", crash_harness.local_workers)
    stage = stage_of(hint_tokens=hint, hint_annealing="none")
    run_config = RunConfig(store=str(tmp_path), checkpoint_every_s=0, device="cpu")
    supervised.run_in_process(list(stage.lineage[:-1]), run_config, lambda report: None)

    def stop(report):
        if report["step"] == 15:
            raise InterruptedError

    with pytest.raises(StageError, match="step 15"):
        rollout_loop.run(stage, [], run_config, stop)
    rollout_loop.run(stage, [], run_config, lambda report: None)
    curves = Store(str(tmp_path)).table(stage.id, "metrics.parquet").to_pandas()
    last = curves[curves.step == stage.steps].set_index("metric").value
    drawn, right, expected = (last[f"rollout/{name}"] for name in ("drawn", "right", "expected_right"))
    assert drawn == stage.steps * stage.prompts_per_step * stage.group_size
    assert 0.1 < expected / drawn < 0.9
    assert abs(right - expected) < 5 * np.sqrt(drawn / 4)
