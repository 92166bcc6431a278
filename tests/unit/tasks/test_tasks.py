"""The contract of ``Task``. Every task that can be made without arguments is tested."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayexp.config import RunConfig
from rayexp.execution import rollout_loop, supervised
from rayexp.reports import table
from rayexp.stages import parse_stage
from rayexp.store.artifacts import Store
from rayexp.sweep.plan import Plan
from rayexp.tasks import ROLES, TASKS, FixedLengthTask, Task, Verdict, text
from rayexp.tasks.base import SPLITS
from rayexp.tasks.strings import AXES, StringTask
from tests.fixtures.artifacts import losses
from tests.fixtures.crash_harness import local_workers
from tests.fixtures.factories import evaluate, tiny_chain

PLAIN = [kind() for kind in TASKS.values() if not any(field.is_required() for field in kind.model_fields.values())]
HARDEST = {"graph": "printed", "traversal": "positional", "completion_format": "trace"}
EVERY: list[Task] = [
    *PLAIN,
    *(StringTask.model_validate({"axis": axis, **variant}) for axis in AXES for variant in ({}, HARDEST)),
    *map(text.axis, text.AXES),
]
every_task = pytest.mark.parametrize("task", EVERY, ids=lambda task: task.label)
TRAINING_SPLITS = [split for split in SPLITS if split != "test"]


def samples(task, split="test", count=8):
    """Return prompt and gold completion, as lists of token ids, of ``count`` samples of every cell."""
    for _, cell in task.roles():
        batch = task.of_cell(split, 5, cell, 100, count)
        yield from zip(batch.prompts, batch.completions, strict=True)


def by_index(batches):
    """Return prompt, completion and ``ood`` of every sample, by number."""
    return {
        int(index): (prompt, gold, bool(ood))
        for batch in batches
        for index, prompt, gold, ood in zip(batch.index_N, batch.prompts, batch.completions, batch.ood_N, strict=True)
    }


# The task as a value


@every_task
def test_a_task_is_a_value_with_a_kind_and_a_label(task):
    assert TASKS[task.kind] is type(task)
    assert type(task).model_validate_json(task.model_dump_json()) == task
    assert task.label
    assert "/" not in task.label
    stage = tiny_chain(task).grpo
    assert parse_stage(stage.model_dump_json()).id == stage.id


@every_task
def test_every_cell_has_one_role_and_there_are_id_and_ood_cells(task):
    cells = [cell for _, cell in task.roles()]
    assert sorted(set(cells)) == sorted(cells)
    assert cells == [cell for role in ROLES for cell in task.cells(role)]
    assert task.cells("id")
    assert task.cells("ood")


@every_task
def test_token_ids_are_those_of_the_vocabulary(task):
    vocabulary = task.vocabulary
    assert vocabulary.symbols[:3] == ("<pad>", "<bos>", "<eos>")
    assert len(set(vocabulary.symbols)) == len(vocabulary.symbols) <= vocabulary.size
    assert vocabulary.size % 64 == 0
    for prompt, gold in samples(task):
        tokens = [*prompt, *gold]
        assert max(tokens) < len(vocabulary.symbols)
        assert vocabulary.encode(vocabulary.decode(tokens)) == tokens


# Samples


@every_task
def test_lengths_are_what_the_task_says_and_padding_is_on_the_right(task):
    vocabulary = task.vocabulary
    for _, cell in task.roles():
        batch = task.of_cell("sft", 5, cell, 0, 6)
        completion_tokens_N = batch.length_N - batch.prompt_tokens_N
        for promised, found_N in (
            (task.prompt_tokens(cell), batch.prompt_tokens_N),
            (task.completion_tokens(cell), completion_tokens_N),
        ):
            assert max(found_N) <= promised
            assert isinstance(task, text.TextTask) or set(found_N) == {promised}
        assert batch.tokens_NT.shape == (6, batch.length_N.max())
        assert batch.tokens == (batch.tokens_NT != vocabulary.pad).sum()
        for prompt, gold in zip(batch.prompts, batch.completions, strict=True):
            assert vocabulary.pad not in prompt + gold
            assert [prompt.index(vocabulary.bos), gold.index(vocabulary.eos)] == [0, len(gold) - 1]
        assert task.max_completion_tokens(cell) >= task.completion_tokens(cell)
    assert task.max_tokens == max(task.prompt_tokens(c) + task.max_completion_tokens(c) for _, c in task.roles())


@given(
    task=st.sampled_from(EVERY),
    seed=st.integers(0, 2**31 - 1),
    split=st.sampled_from(SPLITS),
    ratio=st.floats(0, 0.5),
    start=st.integers(0, 2**26),
    bounds=st.tuples(st.integers(0, 24), st.integers(0, 24)).map(sorted),
)
def test_any_slice_equals_the_rows_of_a_bigger_batch(task, seed, split, ratio, start, bounds):
    low, high = bounds
    whole = by_index(task.mixture(split, seed, ratio, start, 25))
    part = by_index(task.mixture(split, seed, ratio, start + low, high + 1 - low))
    assert sorted(whole) == list(range(start, start + 25))
    assert part == {index: whole[index] for index in range(start + low, start + high + 1)}


@given(
    task=st.sampled_from(EVERY), role=st.sampled_from(ROLES), numbers=st.sets(st.integers(0, 30), min_size=1).map(list)
)
def test_samples_asked_for_in_any_order_are_the_same(task, role, numbers):
    if task.cells(role):
        whole = by_index(task.of_role("grpo", 1, role, np.arange(31)))
        part = by_index(task.of_role("grpo", 1, role, np.array(numbers)))
        assert part == {number: whole[number] for number in numbers}


@every_task
def test_shards_are_a_partition_of_the_rows(task):
    for batch in task.of_role("sft", 0, "ood", np.arange(11)):
        shards = [batch.shard(rank, 4) for rank in range(4)]
        assert by_index(shards) == by_index([batch])
        assert sum(len(shard.tokens_NT) for shard in shards) == len(batch.tokens_NT)


@every_task
def test_seeds_and_splits_are_independent_streams(task):
    cell = task.cells("ood")[-1]
    corpora = [(0, "pretrain"), (1, "pretrain"), (0, "sft"), (0, "grpo")]
    rows = [task.of_cell(split, seed, cell, 0, 50).prompts for seed, split in corpora]
    for i, one in enumerate(rows):
        for other in rows[:i]:
            assert np.mean([a != b for a, b in zip(one, other, strict=True)]) > 0.9


@every_task
@pytest.mark.parametrize("split", ["train", ""])
def test_unknown_splits_are_refused(task, split):
    with pytest.raises(ValueError, match="is not one of pretrain, sft, grpo, test"):
        task.mixture(split, 0, 0.1, 0, 1)


@every_task
def test_no_training_prompt_is_a_test_prompt(task):
    """Vary the cell and the seed."""

    def prompts(split, seed, count):
        return {tuple(row) for _, cell in task.roles() for row in task.of_cell(split, seed, cell, 0, count).prompts}

    test = prompts("test", 0, 300)
    for seed, split in enumerate(TRAINING_SPLITS):
        assert not test & prompts(split, seed, 2000)


# Mixtures


@every_task
@pytest.mark.parametrize("ratio", [0.0, 0.01, 1 / 3])
def test_ood_share_and_cell_balance_are_exact_in_every_prefix(task, ratio):
    """Identify the cell of sample i by comparison with sample i of each cell."""
    size = 300
    mixture = by_index(task.mixture("pretrain", 0, ratio, 0, size))
    cells = {(role, cell): by_index([task.of_cell("pretrain", 0, cell, 0, size)]) for role, cell in task.roles()}
    seen: Counter[tuple[str, str]] = Counter()
    for index in range(size):
        (home,) = (home for home, rows in cells.items() if rows[index] == mixture[index])
        seen[home] += 1
        assert mixture[index][2] == (home[0] == "ood")
        assert sum(count for (role, _), count in seen.items() if role == "ood") == math.floor((index + 1) * ratio)
        for role in ("id", "ood"):
            counts = [seen[role, cell] for cell in task.cells(role)]
            assert max(counts) - min(counts) <= 1
    assert not any(seen["probe", cell] for cell in task.cells("probe"))


# Solutions and verdicts


@every_task
def test_the_solver_finds_what_the_generator_wrote_and_it_is_judged_right(task):
    for prompt, gold in samples(task):
        solution = task.solution(prompt, gold)
        assert solution.completion == tuple(gold)
        verdict = task.judge(solution, gold)
        assert verdict == Verdict(answer=True, trace=True, steps_right=verdict.steps, steps=verdict.steps)
        assert verdict.steps > 0


@every_task
def test_a_completion_that_does_not_end_or_goes_on_is_wrong(task):
    for prompt, gold in samples(task):
        solution = task.solution(prompt, gold)
        twice = [[*gold[:-1], *gold]] if task.unique else []  # else this is a detour to the right answer
        for wrong in ([], gold[:-1], [task.vocabulary.eos], [*gold, task.vocabulary.eos], *twice):
            verdict = task.judge(solution, wrong)
            assert (verdict.answer, verdict.trace) == (False, False), wrong
            assert 0 <= verdict.steps_right <= verdict.steps


@pytest.mark.parametrize("task", [task for task in EVERY if task.unique], ids=lambda task: task.label)
def test_any_other_token_anywhere_in_the_gold_completion_is_wrong(task):
    for prompt, gold in samples(task, count=2):
        solution = task.solution(prompt, gold)
        for place, right in enumerate(gold):
            for token in range(len(task.vocabulary.symbols)):
                changed = [*gold[:place], token, *gold[place + 1 :]]
                if token == task.vocabulary.eos:
                    changed = changed[: place + 1]
                assert task.judge(solution, changed).answer == (token == right), changed


@pytest.mark.parametrize(
    "task", [task for task in EVERY if isinstance(task, FixedLengthTask)], ids=lambda task: task.label
)
def test_malformed_prompts_raise(task):
    prompt, gold = next(iter(samples(task)))
    padded = [*prompt[:-2], task.vocabulary.pad, prompt[-1]]
    for malformed in ([], prompt[1:], prompt[:-1], gold, padded):
        with pytest.raises(ValueError):  # noqa: PT011 - only the type is promised
            task.solve(malformed)


# The task in a study


@pytest.mark.parametrize("task", [*PLAIN, text.axis("backward")], ids=lambda task: task.label)
def test_a_whole_chain_is_trained_and_measured(task, tmp_path, monkeypatch):
    monkeypatch.setattr(rollout_loop, "acquire_workers", local_workers)
    base, tuned, reinforced, _ = tiny_chain(task)
    run_config = RunConfig(store=str(tmp_path))
    before = [base, evaluate(base), tuned, evaluate(tuned)]
    supervised.run_in_process(before, run_config, lambda report: None)
    rollout_loop.run(reinforced, [evaluate(reinforced)], run_config, lambda report: None)

    store = Store(run_config.store)
    stages = [*before, reinforced, evaluate(reinforced)]
    results = table.results(Plan.of("any", stages, store.finished_ids()), store)
    assert set(results.kind) == {"pretrain", "sft", "grpo"}
    assert set(results.task) == {task.label}
    assert set(results.exact) == {task.unique}
    assert set(zip(results.role, results.cell, strict=True)) == set(task.roles())
    assert (results.log_mass < 0).all()
    curve = losses(store, base)
    assert curve[max(curve)] < curve[min(curve)]
