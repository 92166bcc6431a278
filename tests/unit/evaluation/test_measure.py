"""The measurement of a stage: its rows, and the greedy completions."""

import numpy as np
import pytest
import torch

from rayexp.evaluation.measure import SCHEMA, measure
from rayexp.models import factory
from rayexp.sampling.torch_sampler import TorchSampler
from rayexp.tasks.strings import StringTask
from rayexp.tasks.strings.symbols import VOCABULARY
from tests.fixtures.factories import tiny_chain


@pytest.mark.parametrize(("completion_format", "sampled"), [("answer", 0), ("trace", 2)])
def test_measurement_has_a_row_for_every_prompt_of_every_cell(completion_format, sampled):
    task = StringTask(axis="composition", completion_format=completion_format)
    spec = tiny_chain(task).evaluate.model_copy(update={"prompts_per_cell": 3, "sampled_completions": 2})
    model = factory.build(spec.root.decoder, VOCABULARY, seed=0)
    table = measure(model, spec)
    assert table.schema == SCHEMA
    rows = table.to_pylist()
    assert [(r["role"], r["cell"], r["prompt_index"]) for r in rows] == [
        (role, cell, i) for role, cell in task.roles() for i in range(3)
    ]
    assert {r["sampled"] for r in rows} == {sampled}
    assert [sum(r["token_log_mass"]) for r in rows] == pytest.approx([r["log_mass"] for r in rows], abs=1e-12)
    assert [len(r["token_log_mass"]) for r in rows] == [len(VOCABULARY.encode(r["gold"])) for r in rows]
    assert measure(model, spec) == table


def test_the_completion_is_what_greedy_decoding_writes():
    """Use a briefly trained decoder, which gets some prompts right and some wrong."""
    task = StringTask(axis="composition")
    spec = tiny_chain(task).evaluate.model_copy(update={"prompts_per_cell": 8})
    model = factory.build(spec.root.decoder, VOCABULARY, seed=0)
    token_batch = task.of_cell("test", 0, "T", 0, 4)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        tokens_NT = torch.from_numpy(token_batch.tokens_NT.astype(np.int64))
        model(input_ids=tokens_NT, labels=tokens_NT).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    rows = measure(model, spec).to_pylist()
    for row in rows:
        limit = len(VOCABULARY.encode(row["gold"]))
        alone = TorchSampler(model).greedy([VOCABULARY.encode(row["prompt"])], [limit]).rows[0]
        assert row["completion"] == VOCABULARY.decode(alone)
        assert row["greedy_correct"] == (row["completion"] == row["gold"])
    assert {row["greedy_correct"] for row in rows} == {True, False}
