"""The samples of supervised fine-tuning: by default only ID ones, else exactly the given number of OOD ones."""

import numpy as np
import pytest
from pydantic import ValidationError

from rayexp.execution import sft as runner
from rayexp.stages import SFT, AdamW
from tests.fixtures.factories import pretrain


def sft(**settings) -> SFT:
    return SFT.model_validate({"init": pretrain(), "optimiser": AdamW(learning_rate=1e-3), "seed": 0, **settings})


def drawn(stage: SFT):
    """Return the OOD flag of every sample, by number, over all epochs."""
    batches = [batch for step in range(stage.steps) for batch in runner.batch(stage, step)]
    numbers_N = np.concatenate([batch.index_N for batch in batches])
    return numbers_N, np.concatenate([batch.ood_N for batch in batches])


@pytest.mark.parametrize("ood_samples", [0, 1, 10, 60])
def test_each_epoch_has_as_many_ood_samples_as_it_was_told(ood_samples):
    stage = sft(samples=60, epochs=2, batch_samples=16, ood_samples=ood_samples)
    numbers_N, ood_N = drawn(stage)
    assert len(numbers_N) == 120
    assert ood_N.sum() == 2 * ood_samples
    assert set(numbers_N[ood_N]) == set(range(ood_samples))


def test_id_samples_stay_what_they_are_beside_ood_ones():
    """Compare them by number: two such stages differ in nothing else."""
    plain, mixed = (sft(samples=32, epochs=1, batch_samples=8, ood_samples=n) for n in (0, 4))

    def rows(stage: SFT) -> dict[int, bytes]:
        return {
            int(number): row.tobytes()
            for step in range(stage.steps)
            for batch in runner.batch(stage, step)
            for number, row, is_ood in zip(batch.index_N, batch.tokens_NT, batch.ood_N, strict=True)
            if not is_ood
        }

    before, after = rows(plain), rows(mixed)
    assert len(after) == 28
    assert after.items() <= before.items()


def test_none_is_no_part_of_the_id():
    assert sft(ood_samples=0).id == sft().id
    assert sft(ood_samples=1).id != sft().id


def test_more_than_all_is_refused():
    with pytest.raises(ValidationError, match="ood_samples=65 should be at most samples=64"):
        sft(samples=64, ood_samples=65)
