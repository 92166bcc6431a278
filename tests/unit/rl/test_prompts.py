"""Prompts of a stage: those of one role, a mixture of cells, a curriculum over the steps; and hints."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rayexp.config import explain
from rayexp.rl.prompts import Prompts
from rayexp.rl.unsolved import UnsolvedPrompts
from rayexp.stages import PromptShare, parse_stage
from rayexp.stages.mixture import CellShares, deal
from rayexp.stages.settings import condition, varying
from rayexp.studies.overrides import apply_overrides, parse_overrides
from rayexp.sweep import preflight
from rayexp.tasks.strings import StringTask
from tests.fixtures.factories import grpo, rft, tiny_chain

TASK = StringTask(axis="length")
TUNED = tiny_chain(TASK).sft
DEEP = tiny_chain(StringTask(axis="depth")).sft
ALL = {"prompts_per_step": 40, "prompt_count": 40}


def mixture(text):
    """Return a mixture from a text such as ``id+0.5*ood``, as in ``--set``."""
    return tuple(
        PromptShare(kind=kind, weight=float(weight or 1))
        for weight, _, kind in (term.rpartition("*") for term in text.split("+"))
    )


def by_number(stage):
    """Return every prompt of a stage and its limit of tokens, by number, from one epoch."""
    batch = Prompts(stage).at(0)
    assert sorted(batch.numbers) == list(range(40))
    return {n: (prompt, limit) for n, prompt, limit in zip(batch.numbers, batch.prompts, batch.max_tokens, strict=True)}


def samples(role, count):
    """Return the first samples of a role, each with the limit of its cell. Cells take turns."""
    batches, cells = TASK.of_role("grpo", 0, role, np.arange(count)), TASK.cells(role)
    prompts = {int(i): p for b in batches for i, p in zip(b.index_N, b.prompts, strict=True)}
    return [(prompts[i], TASK.max_completion_tokens(cells[i % len(cells)])) for i in range(count)]


def operations(stage, step):
    """Return the operations in the prompts of a step."""
    decode = stage.root.task.vocabulary.decode
    return [decode(prompt).partition(":")[2].strip(" =").replace(" ", "") for prompt in Prompts(stage).at(step).prompts]


def refusal(make=grpo, init=TUNED, **settings):
    with pytest.raises(ValidationError) as refused:
        make(init, **settings)
    return explain(refused.value)


def test_prompts_are_the_samples_of_their_role():
    found = by_number(grpo(TUNED, prompt_role="ood", **ALL))
    assert [found[number] for number in range(40)] == samples("ood", 40)


# Mixtures


def test_number_i_of_a_mixture_is_sample_i_of_its_cell_and_shares_are_exact():
    stage = grpo(TUNED, prompt_role="ood", mixture=mixture("id+3*ood"), **ALL)
    found, known, asked = by_number(stage), samples("id", 40), samples("ood", 40)
    of_id = [number for number in range(40) if len(found[number][0]) <= TASK.prompt_tokens("TT")]
    is_known = np.array([found[number][1] == known[0][1] for number in range(40)])
    assert is_known.sum() == 10
    assert all(abs(is_known[:count].sum() - count / 4) <= 1 for count in range(41))
    assert len(of_id) >= 10
    for number, (prompt, limit) in found.items():
        cell = ("T" if prompt.count(TASK.vocabulary.encode("T")[0]) == 1 else "TT") + ("" if limit == 5 else ".L5")
        assert prompt == TASK.of_cell("grpo", 0, cell, number, 1).prompts[0]
    assert {limit for _, limit in found.values()} == {asked[0][1], known[0][1]}


@given(
    weights=st.lists(st.floats(0.01, 1), min_size=1, max_size=5),
    count=st.integers(1, 60),
)
def test_a_deal_keeps_to_the_shares_in_every_prefix(weights, count):
    share_K = np.array(weights) / sum(weights)
    cell_N = deal(np.broadcast_to(share_K, (count, len(weights))))
    for places in range(count + 1):
        behind_K = places * share_K - np.bincount(cell_N[:places], minlength=len(weights))
        assert np.abs(behind_K).max() < 2 if len(weights) > 2 else np.abs(behind_K).max() < 1


@given(
    weights=st.lists(st.floats(0.01, 1), min_size=1, max_size=5),
    count=st.integers(1, 700),
)
def test_cells_without_a_prompt_are_found_without_dealing_all(weights, count):
    share_K = np.array(weights) / sum(weights)
    shares = CellShares(tuple(map(str, range(len(weights)))), share_K, share_K)
    left_out = set(range(len(weights))) - set(shares.prompts(count).tolist())
    assert shares.without_prompts(count) == [str(i) for i in sorted(left_out)]


def test_a_mixture_may_name_cells_and_a_role_stands_for_its_cells():
    stage = grpo(DEEP, prompt_role="ood", mixture=mixture("T+TT+2*TTT"), **ALL)
    assert {o: operations(stage, 0).count(o) for o in ("T", "TT", "TTT")} == {"T": 10, "TT": 10, "TTT": 20}
    twin = grpo(DEEP, prompt_role="ood", mixture=mixture("id+ood"), **ALL)
    assert Prompts(twin).at(3) == Prompts(stage).at(3)


def test_a_mixture_is_set_as_a_sum():
    chain = [grpo(DEEP, prompt_role="ood")]
    made = apply_overrides(chain, parse_overrides(["grpo.mixture=ood,T+TT+0.5*TTT", "grpo.curriculum=id"]))
    assert [vars(stage)["mixture"] for stage in made] == [mixture("ood"), mixture("T+TT+0.5*TTT")]
    assert {vars(stage)["curriculum"] for stage in made} == {mixture("id")}


def test_ids_and_labels_of_stages_without_a_mixture_are_what_they_were():
    for make, kind in ((grpo, "grpo"), (rft, "rft")):
        alone = make(TUNED, prompt_role="ood")
        mixed = make(TUNED, prompt_role="ood", mixture=mixture("id+0.5*ood"))
        assert alone.id == make(TUNED, prompt_role="ood", mixture=(), curriculum=(), hint_tokens=0).id != mixed.id
        assert parse_stage(mixed.model_dump_json()) == mixed
        assert alone.short_label.startswith(f"{kind}-ood")
        assert mixed.short_label.startswith(f"{kind}-ood-in-id+0.5ood")
        led = make(TUNED, prompt_role="ood", curriculum=mixture("id"), hint_tokens=3)
        assert led.short_label.startswith(f"{kind}-ood-from-id-hint3")
        assert led.id != make(TUNED, prompt_role="ood", mixture=mixture("ood"), hint_tokens=3).id


def test_a_mixture_is_told_where_all_have_it_because_the_role_does_not_tell_it():
    alone, mixed = grpo(TUNED, prompt_role="ood"), grpo(TUNED, prompt_role="ood", mixture=mixture("id+0.5*ood"))
    assert varying([alone]) == {}
    assert condition(mixed, varying([mixed])) == "mixture = id + 0.5 ood"
    both = varying([alone, mixed])
    assert [condition(stage, both) for stage in (alone, mixed)] == ["mixture = -", "mixture = id + 0.5 ood"]
    led = grpo(TUNED, prompt_role="ood", curriculum=mixture("id"))
    assert condition(led, varying([led])) == "curriculum = id"


def test_payments_are_tried_on_the_cells_of_both_roles(monkeypatch):
    tried = []
    monkeypatch.setattr(preflight, "group_payments", lambda task, rewards, prompt, *rest, **more: tried.append(prompt))
    preflight._require_payments(grpo(TUNED, prompt_role="ood", mixture=mixture("id+ood")))
    assert [len(prompt) for prompt in tried] == [TASK.prompt_tokens(cell) for cell in ("T", "TT", *TASK.cells("ood"))]


# A curriculum


CURRICULUM = {"curriculum": mixture("T+TT"), "steps": 11, "prompts_per_step": 20}


@pytest.mark.parametrize("make", [grpo, rft])
def test_a_curriculum_goes_over_into_the_cells_in_question_in_equal_steps(make):
    renamed = {"steps": "rounds", "prompts_per_step": "prompts_per_round"} if make is rft else {}
    settings = {renamed.get(name, name): value for name, value in CURRICULUM.items()}
    stage = make(DEEP, prompt_role="ood", prompt_count=100, **settings)
    seen = [operations(stage, step) for step in range(11)]
    assert [step.count("TTT") for step in seen] == pytest.approx(range(0, 21, 2), abs=1)
    assert set(seen[0]) == {"T", "TT"}
    assert set(seen[-1]) == {"TTT"}
    assert all(abs(step.count("T") - step.count("TT")) <= 1 for step in seen)


def test_a_curriculum_may_end_in_a_mixture():
    stage = grpo(DEEP, prompt_role="ood", prompt_count=100, **CURRICULUM, mixture=mixture("TT+TTT"))
    assert sorted(set(operations(stage, 10))) == ["TT", "TTT"]
    assert operations(stage, 10).count("TTT") == pytest.approx(10, abs=1)
    assert stage.short_label.startswith("grpo-ood-in-TT+TTT-from-T+TT")


def test_a_curriculum_is_a_function_of_seed_and_step_and_takes_prompts_in_turn():
    stage = grpo(DEEP, prompt_role="ood", prompt_count=100, **CURRICULUM)
    prompts = Prompts(stage)
    ahead = [prompts.at(step) for step in range(11)]
    assert [Prompts(stage).at(step) for step in (7, 3)] == [ahead[7], ahead[3]]
    numbers = [number for batch in ahead for number in batch.numbers]
    asked = [n for batch in ahead for n, p in zip(batch.numbers, batch.prompts, strict=True) if len(p) == 10]
    assert len(set(numbers)) == 100  # each is used
    counts = np.bincount(asked)
    assert set(counts[counts > 0]) <= {2, 3}  # 110 places for 50 prompts, in epochs
    other = grpo(DEEP, prompt_role="ood", prompt_count=100, seed=1, **CURRICULUM)
    assert Prompts(other).at(0) != ahead[0]


def test_the_filter_of_unsolved_prompts_takes_a_mixture():
    stage = grpo(DEEP, prompt_role="ood", mixture=mixture("id+ood"), filter="unsolved")
    assert UnsolvedPrompts(stage, {}).at(0) == Prompts(stage).at(0)


# Hints


def test_hints_are_the_first_gold_tokens_and_fade_in_equal_parts():
    stage = grpo(TUNED, prompt_role="ood", hint_tokens=3, steps=8)
    task, prompts = TASK, Prompts(stage)
    assert [stage.hint_at(step) for step in range(8)] == [3, 3, 2, 2, 1, 1, 0, 0]
    for step in range(8):
        batch, hint = prompts.at(step), stage.hint_at(step)
        for prompt, context, limit in zip(batch.prompts, batch.contexts, batch.max_tokens, strict=True):
            assert context == prompt + list(task.solve(prompt).completion[:hint])
            assert limit + hint == task.max_completion_tokens("T.L5")
    plain = Prompts(grpo(TUNED, prompt_role="ood", steps=8))
    assert prompts.at(7) == plain.at(7)
    assert [prompts.at(s).numbers for s in range(8)] == [plain.at(s).numbers for s in range(8)]
    stays = grpo(TUNED, prompt_role="ood", hint_tokens=3, hint_annealing="none", steps=8)
    assert {stays.hint_at(step) for step in range(8)} == {3}


def test_groups_that_are_drawn_again_keep_their_hints():
    batch = Prompts(grpo(TUNED, prompt_role="ood", hint_tokens=3)).at(0)
    again = batch.again([4, 2], attempt=1)
    assert again.contexts == [batch.contexts[4], batch.contexts[2]]


# Refusals


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mixture": mixture("id+odd")}, "the part 'odd' of mixture is not one of id, ood, probe, T,"),
        ({"curriculum": mixture("T+TTT")}, "the part 'TTT' of curriculum is not one of id, "),
        ({"mixture": mixture("id")}, "mixture=id has no cell of prompt_role='ood'; add one of T."),
        (
            {"mixture": mixture("id+0.001*ood"), "prompt_count": 20},
            "prompt_count=20 leaves the cell T.L5 of ood-in-id+0.001ood without a prompt; raise it",
        ),
        ({"hint_tokens": 6}, "hint_tokens=6 should be at most 5, which leaves something to write"),
        ({"hint_tokens": 5, "mixture": mixture("id+ood")}, "hint_tokens=5 should be at most 4, which leaves"),
        ({"hint_tokens": 1, "filter": "unsolved"}, "filter='unsolved' needs hint_tokens=0, not 1, because"),
        (
            {"curriculum": mixture("id"), "filter": "unsolved"},
            "curriculum and filter='unsolved' exclude each other",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(settings, said):
    assert refusal(prompt_role="ood", **settings).startswith(said)


@pytest.mark.parametrize("weight", [0, -0.5, float("inf"), float("nan")])
def test_weights_are_above_0(weight):
    said = refusal(prompt_role="ood", mixture=({"kind": "id"}, {"kind": "ood", "weight": weight}))
    assert said.startswith("mixture.1.weight=")
    assert " should be " in said
