"""Samples from questions of text: drawn by number, held out, padded. An unsuitable generator is refused."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayexp.stages import Evaluate, parse_stage, parse_stored
from rayexp.stages.settings import condition_names
from rayexp.sweep.plan import Plan
from rayexp.sweep.preflight import PreflightError, require_own_parts
from rayexp.tasks.contract import ContractError, require_contract
from rayexp.tasks.text import AXES, GymTask, Level, Question, TextTask, axis, base
from rayexp.tasks.text.base import WIDTHS, held_out
from rayexp.tasks.text.vocabularies import VOCABULARIES, Words
from tests.fixtures.factories import MICRO, pretrain, sft

CHARACTERS = VOCABULARIES["characters"]
SUMS: dict[str, int | float | str | bool] = {"min_terms": 2, "max_terms": 2, "max_digits": 1}


def gym(**changes):
    levels = (Level(name="2", role="id", settings=SUMS),)
    settings = {"name": "mine", "generator": "chain_sum", "keep": "problem: (.*)", "levels": levels}
    return GymTask.model_validate(settings | changes)


def texts(batch):
    return [
        (CHARACTERS.decode(prompt), CHARACTERS.decode(gold))
        for prompt, gold in zip(batch.prompts, batch.completions, strict=True)
    ]


# Tokens


def test_what_can_be_printed_has_a_token_and_all_else_is_refused():
    tokens = CHARACTERS.plain("<pad> a~\n")
    assert 0 not in tokens, "the text <pad> is five characters"
    assert CHARACTERS.encode("<bos>7<eos>") == [CHARACTERS.bos, *CHARACTERS.plain("7"), CHARACTERS.eos]
    with pytest.raises(
        ValueError, match=r"the text 'naïve' has 'ï', which is not printable ASCII; .* set tokens='bytes'"
    ):
        CHARACTERS.plain("naïve")


def test_bytes_have_tokens_for_every_text():
    vocabulary = VOCABULARIES["bytes"]
    tokens = vocabulary.encode("<bos>naïve 漢\n<eos>")
    assert len(tokens) == 2 + len("naïve 漢\n".encode())
    assert vocabulary.decode(tokens) == "<bos>naïve 漢\n<eos>"
    assert vocabulary.decode([3 + 0x61, 3 + 0xFF, vocabulary.size - 1]) == "a\\xff"
    assert max(tokens) < vocabulary.size == 320
    require_contract(gym(tokens="bytes"))


def test_words_of_a_task_have_tokens_and_all_others_are_spelt():
    vocabulary = Words.of(["Anna has 12 apples.", "Ben has none"])
    tokens = vocabulary.plain("Ben has 21 pears")
    assert [vocabulary.decode([token]) for token in tokens] == ["Ben", " has", " ", "2", "1", " ", *"pears"]
    assert vocabulary.decode(vocabulary.prompt("Ben has 21 pears")) == "<bos>Ben has 21 pears\n"
    with pytest.raises(ValueError, match="the text 'né' has 'é'"):
        vocabulary.plain("né")
    words = gym(tokens="words", keep="(?s)(.*)")
    require_contract(words)
    assert words.prompt_tokens("2") < gym(keep="(?s)(.*)").prompt_tokens("2") / 2


@given(st.text(alphabet=[*map(chr, range(32, 127)), "\n"]))
def test_words_lose_nothing(text):
    vocabulary = Words.of(["What is the sum of 12 and 7?", " an apple a day"])
    assert vocabulary.decode(vocabulary.plain(text)) == text
    assert not set(vocabulary.plain(text)) & {0, 1, 2}


# The ready-made axes


@pytest.mark.parametrize("name", AXES)
def test_an_axis_keeps_its_contract(name):
    require_contract(axis(name))


def test_sums_and_words_and_paths_are_right():
    """Solve them in another way than the generator."""
    for cell in ("2-3", "4", "5"):
        for prompt, gold in texts(axis("sums").of_cell("grpo", 1, cell, 0, 40)):
            terms = prompt.removeprefix("<bos>").removesuffix(" =\n").replace("- ", "+ -").split(" + ")
            assert sum(map(int, terms)) == int(gold.removesuffix("<eos>"))
            assert str(len(terms)) in cell
    for prompt, gold in texts(axis("backward").of_cell("grpo", 1, "6", 0, 40)):
        assert prompt == f"<bos>{gold.removesuffix('<eos>')[::-1]}\n"
    for prompt, gold in texts(axis("paths").of_cell("grpo", 1, "4", 0, 40)):
        graph, _, ends = prompt.removeprefix("<bos>").removesuffix(" =\n").partition("/")
        edges = {tuple(edge.split()) for edge in graph.split("|")[1:]}
        path = gold.removesuffix("<eos>").split()
        assert {(b, a) for a, b in pairwise(path)} <= edges
        assert [path[0], path[-1]] == ends.split()
        assert len(path) == 5


# Samples


@pytest.mark.parametrize("name", AXES)
def test_little_of_a_batch_is_padding_and_there_are_few_shapes(name):
    task = axis(name)
    batches = task.mixture("pretrain", 0, 0.1, 0, 500)
    assert sum(batch.tokens for batch in batches) > 0.85 * sum(batch.tokens_NT.size for batch in batches)
    assert len(batches) <= sum(width <= task.max_tokens * 1.15 for width in WIDTHS)


def test_texts_that_are_longer_than_every_width_are_in_one_batch(monkeypatch):
    monkeypatch.setattr(base, "WIDTHS", (8, 9))
    (batch,) = gym().mixture("pretrain", 0, 0.0, 0, 50)
    assert sorted(batch.index_N.tolist()) == list(range(50))
    assert batch.tokens_NT.shape[1] == batch.length_N.max()


def test_test_questions_are_different_and_end_where_there_are_no_more():
    task = gym()
    with pytest.raises(ValueError, match=r"the cell 2 of mine has (\d+) different test questions") as refusal:
        task.of_cell("test", 0, "2", 10_000, 1)
    most = int(str(refusal.value).split(" has ")[1].split()[0])
    assert f"; set prompts_per_cell to {most} or less" in str(refusal.value)
    every = {f"{a} {sign} {b} =" for a in range(10) for b in range(10) for sign in "+-"}
    found = {
        prompt.removeprefix("<bos>").removesuffix("\n") for prompt, _ in texts(task.of_cell("test", 0, "2", 0, most))
    }
    assert found == {question for question in every if held_out(question)}
    one = task.of_cell("test", 0, "2", most - 1, 1)
    assert texts(one) == texts(gym().of_cell("test", 0, "2", 0, most))[-1:]


class Letters(TextTask):
    """A task whose answers have as many letters as the question's number has bits; one in 5,000 is very long."""

    version: int = 1

    @property
    def label(self):
        return "letters"

    def cells(self, role):
        return {"id": ("a",), "ood": ("b",), "probe": ()}[role]

    def question(self, cell, number):
        return Question(f"{cell} {number % 5000}", cell * (500 if number % 5000 == 78 else 1 + number % 3))


def test_a_sample_that_is_longer_than_those_that_were_probed_is_drawn_again():
    task = Letters()
    assert task.completion_tokens("a") == 4
    batch = task.of_cell("pretrain", 0, "a", 0, 20_000)
    assert batch.length_N.max() <= task.prompt_tokens("a") + 4
    numbers = {int(prompt.split()[1]) for prompt, _ in texts(batch)}
    others = {number for number in range(5000) if not held_out(f"a {number}")} - {78}
    assert numbers < others
    assert len(numbers) > 0.95 * len(others)


def test_cells_of_several_lengths_are_joined_in_the_order_of_their_numbers():
    batch = axis("paths").of_cell("sft", 3, "3", 10, 30)
    assert batch.index_N.tolist() == list(range(10, 40))
    assert len(set(batch.length_N)) > 1
    assert (batch.tokens_NT[~batch.counted_NT(np.zeros(30, dtype=int))] == CHARACTERS.pad).all()


# Refusals


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"generator": "chain_sums"}, r"generator='chain_sums' .*; did you mean 'chain_sum'"),
        (
            {"levels": (Level(name="2", role="id", settings={"terms": 2}),)},
            "the generator chain_sum refuses the settings of the level 2: .* 'terms'",
        ),
        ({"levels": (Level(name="2", role="id", settings={"min_terms": 0}),)}, "min_terms must be positive"),
        ({"keep": "sum of (.*)"}, "keep='sum of .*' matches nothing in the question 'State the final answer"),
    ],
)
def test_a_generator_that_can_not_do_is_refused_before_work(changes, said):
    with pytest.raises(ContractError, match=said):
        require_contract(gym(**changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"keep": "(a)(b)"}, "has 2 groups; give it one"),
        ({"keep": "(a"}, "is not a regular expression"),
        ({"name": "a/b"}, "name"),
        ({"levels": ()}, "levels has none with role='id'"),
        (
            {"levels": (Level(name="2", role="id"), Level(name="2", role="ood"))},
            "levels should have different names, not 2, 2",
        ),
    ],
)
def test_a_task_that_makes_no_sense_is_refused_when_it_is_made(changes, said):
    with pytest.raises(ValueError, match=said):
        gym(**changes)


def test_a_study_with_more_test_questions_than_there_are_is_refused_before_it_starts():
    base = pretrain(task=gym())
    plan = Plan.of("mine", [base, Evaluate(init=base, prompts_per_cell=30)], ())
    with pytest.raises(PreflightError, match="prompts_per_cell=30 should be at most 29, because the cell 2 of mine"):
        require_own_parts(plan)
    require_own_parts(Plan.of("mine", [base, Evaluate(init=base, prompts_per_cell=29)], ()))


def test_more_copies_of_test_questions_than_there_are_are_refused_before_they_are_made():
    three = {"min_terms": 3, "max_terms": 3}
    levels = (Level(name="2", role="id", settings=SUMS), Level(name="3", role="ood", settings=SUMS | three))
    task = gym(levels=levels)
    most = task.test_samples("3", 10_000) // 2 * 2
    plans = [Plan.of("mine", [pretrain(task=task, ood_ratio=0.0, copied_items=most + more)], ()) for more in (0, 2)]
    require_own_parts(plans[0])
    with pytest.raises(
        PreflightError, match=f"copied_items={most + 2} should be at most {task.test_samples('3', 10_000)}"
    ):
        require_own_parts(plans[1])


def test_questions_of_another_release_are_another_task(monkeypatch):
    task = gym()
    monkeypatch.setattr("rayexp.tasks.text.gym.version", lambda name: "9.9")
    assert gym().release == "9.9"
    with pytest.raises(ContractError, match=rf"release='{task.release}', but reasoning-gym 9.9 is installed"):
        require_contract(gym(release=task.release, keep="(.*) ="))


# In studies


def test_settings_of_every_type_are_the_same_after_a_trip_through_the_store():
    """Include a task that a stage has through its lineage. A boolean stays a boolean there."""
    stage = pretrain(task=axis("paths"), decoder=MICRO.model_copy(update={"context_tokens": 128}))
    for each in (stage, sft(stage), Evaluate(init=sft(stage), prompts_per_cell=1)):
        again = parse_stage(each.model_dump_json())
        assert again.id == each.id
        assert str(again.root.task) == str(each.root.task)
        assert again.root.task.model_dump() == each.root.task.model_dump()


def test_tasks_with_names_are_told_apart_by_these_and_by_all_where_two_share_one():
    tasks = [axis("sums"), axis("paths")]
    wide = MICRO.model_copy(update={"context_tokens": 128})
    stages = [pretrain(task=task, decoder=wide) for task in tasks]
    found = condition_names(stages, {})
    assert [found[stage.id] for stage in stages] == ["name = sums", "name = paths"]
    like = pretrain(task=axis("paths").model_copy(update={"name": "sums"}), decoder=wide)
    assert len(set(condition_names([stages[0], like], {}).values())) == 2


def test_a_stored_stage_is_read_where_its_generator_is_not_installed(monkeypatch):
    text = sft(pretrain(task=gym())).model_dump_json()
    monkeypatch.setattr("rayexp.tasks.text.gym.find_spec", lambda name: None)
    monkeypatch.setattr("rayexp.tasks.text.base._PROBED", {})
    assert parse_stored(text).label == "mine-r0.25-s0/pretrain/sft"
    with pytest.raises(ValueError, match="needs reasoning-gym, which is not installed; run: pip install"):
        parse_stage(text)
