"""Prompts of a stage: those of one role, or of it and of ID cells beside it."""

import numpy as np
import pytest
from pydantic import ValidationError

from rayexp.config import explain
from rayexp.rl.prompts import Prompts, shares_of_id
from rayexp.stages import parse_stage
from rayexp.stages.settings import condition, varying
from rayexp.sweep import preflight
from rayexp.tasks.strings import StringTask
from tests.fixtures.factories import grpo, rft, tiny_chain

TASK = StringTask(axis="length")
TUNED = tiny_chain(TASK).sft
ALL = {"prompts_per_step": 40, "prompt_count": 40}


def by_number(stage):
    """Return prompt and limit of tokens of every prompt of a stage, by number, from one epoch."""
    batch = Prompts(stage).at(0)
    assert sorted(batch.numbers) == list(range(40))
    return {n: (prompt, limit) for n, prompt, limit in zip(batch.numbers, batch.prompts, batch.max_tokens, strict=True)}


def samples(role, count):
    """Return the first samples of a role, each with the limit of its cell: cells take turns."""
    batches, cells = TASK.of_role("grpo", 0, role, np.arange(count)), TASK.cells(role)
    prompts = {int(i): p.tolist() for b in batches for i, p in zip(b.index_N, b.prompts, strict=True)}
    return [(prompts[i], TASK.max_completion_tokens(cells[i % len(cells)])) for i in range(count)]


def test_prompts_are_the_samples_of_their_role():
    found = by_number(grpo(TUNED, prompt_role="ood", **ALL))
    assert [found[number] for number in range(40)] == samples("ood", 40)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.3])
def test_a_share_of_id_prompts_takes_the_place_of_others_in_every_prefix(share):
    stage = grpo(TUNED, prompt_role="ood", id_share=share, **ALL)
    found, ids_N = by_number(stage), shares_of_id(40, share)
    for count in range(41):
        assert ids_N[:count].sum() == int(np.floor(count * share))
    ood, known = samples("ood", int((~ids_N).sum())), samples("id", int(ids_N.sum()))
    assert [found[number] for number in np.flatnonzero(~ids_N)] == ood
    assert [found[number] for number in np.flatnonzero(ids_N)] == known
    assert len({limit for _, limit in found.values()}) == 2  # five letters, and four
    assert Prompts(stage).probe == Prompts(grpo(TUNED, prompt_role="ood", **ALL)).probe


def test_ids_and_labels_of_stages_without_a_share_are_what_they_were():
    for make, kind in ((grpo, "grpo"), (rft, "rft")):
        alone, mixed = make(TUNED, prompt_role="ood"), make(TUNED, prompt_role="ood", id_share=0.5)
        assert alone.id == make(TUNED, prompt_role="ood", id_share=0.0).id != mixed.id
        assert parse_stage(mixed.model_dump_json()) == mixed
        assert f"/{kind}-ood" in alone.label
        assert "id" not in alone.label.partition("/")[2]
        assert f"/{kind}-ood+0.5id" in mixed.label


def test_a_share_is_told_where_all_have_it_because_the_role_does_not_tell_it():
    mixed = grpo(TUNED, prompt_role="ood", id_share=0.5)
    assert condition(mixed, varying([mixed])) == "id_share = 0.5"
    alone = grpo(TUNED, prompt_role="ood")
    assert varying([alone]) == {}
    both = varying([alone, mixed])
    assert [condition(stage, both) for stage in (alone, mixed)] == ["id_share = 0", "id_share = 0.5"]


def test_a_share_of_prompts_that_are_all_of_that_role_is_refused():
    with pytest.raises(ValidationError) as refused:
        grpo(TUNED, prompt_role="id", id_share=0.5)
    assert explain(refused.value).startswith("id_share is 0.5; allowed with prompt_role 'id': 0")


def test_payments_are_tried_on_the_cells_of_both_roles(monkeypatch):
    tried = []
    monkeypatch.setattr(preflight, "group_payments", lambda task, rewards, prompt, *rest, **more: tried.append(prompt))
    preflight._require_payments(grpo(TUNED, prompt_role="ood", id_share=0.5))
    assert [len(prompt) for prompt in tried] == [TASK.prompt_tokens(cell) for cell in (*TASK.cells("ood"), "T", "TT")]
