"""A user's own parts: identified by import path, checked against their contracts, and readable if they are missing."""

import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from rayexp.config import explain
from rayexp.errors import defined_at
from rayexp.experiment import Experiment
from rayexp.parts import UnreadPart, imported, own_modules, own_parts, unread_parts
from rayexp.rewards import REWARDS, Reward
from rayexp.rewards.answer import Answer
from rayexp.rewards.payment import RewardError, group_payments
from rayexp.stages import Stage, parse_stage, parse_stored
from rayexp.store import provenance
from rayexp.studies import Grid, Wanted, study_named
from rayexp.studies.presets import SCALES
from rayexp.sweep import preflight
from rayexp.sweep.plan import Plan
from rayexp.sweep.preflight import PreflightError
from rayexp.tasks.base import Solution, Verdict
from rayexp.tasks.contract import ContractError, require_contract
from rayexp.tasks.sorting import Sorting
from tests.fixtures.factories import evaluate, grpo, pretrain, tiny_chain

HERE = __name__


class Short(Reward):
    """1 for a completion of no more than ``limit`` tokens."""

    version: Literal[1] = 1
    limit: int = 4

    def __call__(self, task, solution, completion):
        return float(len(completion) <= self.limit)


class Digits(Sorting):
    """The task of sorting as a user's class."""

    version: Literal[1] = 1

    @property
    def label(self):
        return "digits"


class Unversioned(Reward):
    def __call__(self, task, solution, completion):
        return 0.0


class Lacking(Reward):
    version: Literal[1] = 1


class Named(Reward):
    kind: Literal["named"] = "named"
    version: Literal[1] = 1

    def __call__(self, task, solution, completion):
        return 0.0


CHAIN = tiny_chain(Digits())
STAGE = grpo(CHAIN.sft, rewards=(Answer(), Short(weight=0.5)))


def without_it(stage: Stage, name: str = "Short") -> str:
    """Return a stage's JSON, with the class moved to a module that does not exist."""
    return stage.model_dump_json().replace(f"{HERE}:{name}", f"nobodys_module:{name}")


# As values


def test_its_kind_is_its_import_path_and_it_goes_through_json():
    assert Short().kind == f"{HERE}:Short"
    assert Short().model_dump() == {"kind": f"{HERE}:Short", "weight": 1.0, "version": 1, "limit": 4}
    again = parse_stage(STAGE.model_dump_json())
    assert again == STAGE
    assert again.id == STAGE.id
    assert again.label == "digits-r0.1-s0/pretrain/sft/grpo-id-b0.1"
    assert {part.kind for part in own_parts([again])} == {f"{HERE}:Short", f"{HERE}:Digits"}


def test_its_settings_are_part_of_the_id():
    rewards = [(Short(),), (Short(limit=5),), (Short(weight=2.0),), (Answer(),)]
    assert len({grpo(CHAIN.sft, rewards=each).id for each in rewards}) == len(rewards)
    assert tiny_chain(Sorting()).grpo.id != CHAIN.grpo.id


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ((f"{HERE}:Short", f"{HERE}:Shirt"), "cannot be imported: 'Shirt' is not one of "),
        ((f"{HERE}:Short", f"{HERE}:Shirt"), "; did you mean 'Short'?"),
        ((f"{HERE}:Short", "nobodys_module:Short"), "'nobodys_module:Short' cannot be imported: no module nobodys_m"),
        ((f"{HERE}:Short", "json:loads"), "rewards='json:loads' is not a Reward; derive the class from rayexp.Reward"),
        ((f"{HERE}:Short", f"{HERE}:Unversioned"), "states no version; add `version: Literal[1] = 1`"),
        ((f"{HERE}:Short", f"{HERE}:Lacking"), "does not define __call__"),
        ((f"{HERE}:Short", f"{HERE}:Named"), "sets a kind; remove it"),
        (
            (f"{HERE}:Short", "shrt"),
            f"rewards.kind='shrt' is not one of {', '.join(REWARDS)}, module:Class of your own",
        ),
        (('"limit":4', '"limit":"x"'), "rewards.1.limit='x' should be a valid integer"),
        (('"limit":4', '"limt":4'), "rewards.1.limt is not a setting"),
        (('"version":1,"limit"', '"version":2,"limit"'), "rewards.1.version=2 should be 1"),
    ],
)
def test_what_is_no_part_is_refused_in_one_sentence(changed, sentence):
    with pytest.raises(ValidationError) as refused:
        parse_stage(STAGE.model_dump_json().replace(*changed))
    assert sentence in explain(refused.value)


def test_a_class_that_no_other_process_can_import_is_refused():
    class Local(Short):
        """A class inside a function."""

    with pytest.raises(ValidationError, match="cannot be imported by other processes; move the class into a module"):
        grpo(CHAIN.sft, rewards=(Local(),))


class Outer:
    """A class with a reward inside."""

    class Inner(Short):
        """A reward that a stored stage could not name."""


def test_a_class_inside_another_is_refused():
    with pytest.raises(ValidationError, match=r"Outer\.Inner is inside another class; move it to the top"):
        grpo(CHAIN.sft, rewards=(Outer.Inner(),))


def test_a_module_that_does_not_import_is_named_with_its_line(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "torn.py").write_text("x = 1\ny = (\n")
    (tmp_path / "raising.py").write_text("\n\nraise RuntimeError('no data')\n")
    (tmp_path / "needing.py").write_text("import nobodys_module\n")
    for name, sentence in (
        ("torn:x", f"SyntaxError: '(' was never closed ({tmp_path}/torn.py, line 2)"),
        ("raising:x", f"RuntimeError: no data ({tmp_path}/raising.py, line 3)"),
        ("needing:x", f"ModuleNotFoundError: No module named 'nobodys_module' ({tmp_path}/needing.py, line 1)"),
    ):
        said = f"study={name!r} cannot be imported: {sentence}"
        with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
            imported(name, "study")


# In a store


def test_a_stored_stage_is_read_without_its_classes_under_the_same_id(monkeypatch):
    text = without_it(STAGE)
    with pytest.raises(ValidationError):
        parse_stage(text)
    stored = parse_stored(text)
    assert json.loads(stored.model_dump_json()) == json.loads(text)
    (part,) = unread_parts(stored)
    assert part.model_dump() == Short(weight=0.5).model_dump() | {"kind": "nobodys_module:Short"}
    assert not unread_parts(parse_stored(STAGE.model_dump_json()))  # the class is imported
    monkeypatch.delitem(sys.modules, HERE)
    assert len(unread_parts(parse_stored(STAGE.model_dump_json()))) == 2
    assert parse_stored(STAGE.model_dump_json()).id == STAGE.id


def test_a_stored_task_that_is_missing_has_a_label_and_nothing_is_asked_of_it():
    stored = parse_stored(without_it(STAGE, "Digits"))
    assert isinstance(stored.root.task, UnreadPart)
    assert stored.label == "nobodys_module:Digits-r0.1-s0/pretrain/sft/grpo-id-b0.1"


def test_reading_a_store_imports_nothing(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "a_script_that_does_harm.py").write_text("raise SystemExit('harm')")
    text = without_it(STAGE).replace("nobodys_module", "a_script_that_does_harm")
    assert len(unread_parts(parse_stored(text))) == 1
    assert "a_script_that_does_harm" not in sys.modules


def test_the_record_of_a_stage_tells_a_change_of_its_parts_source(tmp_path):
    """Use a new process for each look, because a process computes the fingerprint once."""
    (tmp_path / "own_module.py").write_text("LIMIT = 1")

    def run(program: str) -> str:
        command = [sys.executable, "-c", f"from rayexp.store import provenance as p\n{program}"]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    before = run("print(p.source(('own_module',)))")
    assert before.startswith(f"{provenance.source()}+own_module=")
    assert run(f"print(p.other_code({{'source': {before!r}}}))") == ""
    (tmp_path / "own_module.py").write_text("LIMIT = 2")
    assert run(f"print(p.other_code({{'source': {before!r}}}))").startswith(f"other code (source {before}")
    (tmp_path / "own_module.py").unlink()
    assert run("print(p.source(('own_module',)))").endswith("+own_module=unknown")
    assert own_modules([STAGE]) == ("tests",)


# Contracts


class Leaking(Digits):
    def write(self, split, seed, cell, index_N):
        return super().write("test", seed, cell, index_N)


class Sharing(Digits):
    def cells(self, role):
        return {"id": ("3", "03"), "ood": ("5",), "probe": ()}[role]


class Jittery(Digits):
    def write(self, split, seed, cell, index_N):
        return super().write(split, seed, cell, index_N + len(index_N))


class Misshapen(Digits):
    def completion_tokens(self, cell):
        return int(cell)


class Disagreeing(Digits):
    def solve(self, prompt):
        return Solution((*super().solve(prompt).completion[::-1],), ((),))


class Strict(Digits):
    def judge(self, solution, completion):
        return Verdict(answer=False, trace=False, steps_right=0, steps=1)


class Lenient(Digits):
    def judge(self, solution, completion):
        return Verdict(answer=True, trace=True, steps_right=1, steps=1)


class Failing(Digits):
    def solve(self, prompt):
        raise KeyError("digit")


class Foreign(Digits):
    def write(self, split, seed, cell, index_N):
        return super().write(split, seed, cell, index_N) + np.uint8(30)


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        (Leaking(), "is in the splits 'pretrain' and 'test'; hold test questions out of all others"),
        (Sharing(), "its cells '3' and '03' share the question '<bos> "),
        (Jittery(), "changes with the samples beside it"),
        (Misshapen(), "tokens_NT has the shape (128, 9) and should have (128, 8)"),
        (Disagreeing(), "solve and write do not agree on the question '<bos> "),
        (Strict(), "judge does not take the gold completion of the question '<bos> "),
        (Lenient(), "for answered without <eos>"),
        (Failing(), f"KeyError: 'digit' ({__file__}, line "),
        (Foreign(), "a token is none of its 14 symbols"),
    ],
    ids=lambda value: value.kind.partition(":")[2] if isinstance(value, Digits) else "",
)
def test_a_task_that_breaks_its_contract_is_named_with_file_and_line(task, sentence):
    with pytest.raises(ContractError) as refused:
        require_contract(task)
    assert str(refused.value).startswith(f"the task {task.kind} can't be used: ")
    assert sentence in str(refused.value)
    assert f"({__file__}, line " in str(refused.value)


def test_a_task_that_keeps_it_is_taken():
    require_contract(Digits())
    preflight.require_own_parts(Plan.of("own", [evaluate(STAGE)], ()))


class Odd(Reward):
    """A reward that returns a given value, or raises it."""

    version: Literal[1] = 1
    returns: str

    def __call__(self, task, solution, completion):
        return eval(self.returns)


@pytest.mark.parametrize(
    ("returns", "sentence"),
    [
        ("float('nan')", "returned nan instead of a finite number"),
        ("float('inf')", "returned inf instead of a finite number"),
        ("'1'", "returned '1' instead of a finite number"),
        ("None", "returned None instead of a finite number"),
        ("{}['x']", "raised KeyError: 'x' ("),
    ],
)
def test_a_reward_that_is_none_is_named_with_its_prompt_before_work_and_at_the_step(returns, sentence):
    task, reward = Digits(), Odd(returns=returns)
    prompt = task.of_cell("grpo", 0, "3", 0, 1).prompts[0]
    solution = task.solve(prompt)
    with pytest.raises(RewardError) as refused:
        group_payments(task, (Answer(), reward), prompt, solution, [solution.completion], [0])
    said = str(refused.value)
    assert said.startswith(f"the reward {HERE}:Odd {sentence}")
    decode = task.vocabulary.decode
    assert said.endswith(f"; prompt: {decode(prompt)}; completion: {decode(solution.completion)}")
    with pytest.raises(PreflightError, match=f"the reward {HERE}:Odd "):
        preflight.require_own_parts(Plan.of("own", [grpo(CHAIN.sft, rewards=(reward,))], ()))


@pytest.mark.parametrize("returns", ["1", "True", "np.float32(1)", "np.int64(1)"])
def test_any_finite_number_pays(returns):
    task = Digits()
    prompt = task.of_cell("grpo", 0, "3", 0, 1).prompts[0]
    rewards = (Odd(returns=returns, weight=0.5),)
    assert group_payments(task, rewards, prompt, task.solve(prompt), [[2]], [0]) == [0.5]


# Studies


def no_stages(budget, grid):
    return []


def a_number(budget, grid):
    return 3


def a_string_among(budget, grid):
    return [STAGE, "stage"]


def raising(budget, grid):
    return 1 / 0


def refused(budget, grid):
    return [pretrain(samples=0)]


def good(budget, grid):
    return (stage for stage in [STAGE])


def more_where_little_is_right(budget, grid, measured):
    """Return the usual chain. Once it is measured and hardly anything is right, add the same with other settings."""
    rows = measured(STAGE)
    return [STAGE] if rows is None or rows["q"].mean() > 0.5 else [STAGE, pretrain(samples=512)]


def call(name: str) -> Sequence[Wanted]:
    budget = SCALES["toy"]
    return study_named(f"{HERE}:{name}")(budget, Grid(budget.ood_ratios, budget.kl_betas, budget.seeds))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("no_stages", f"returned []; return a list of stages or conditions ({defined_at(no_stages)})"),
        ("a_number", f"returned 3; return a list of stages or conditions ({defined_at(a_number)})"),
        (
            "a_string_among",
            f"returned str among its stages; return a list of stages or conditions ({defined_at(a_string_among)})",
        ),
        ("raising", "raised ZeroDivisionError: division by zero ("),
        ("refused", f": samples=0 should be greater than or equal to 1 ({defined_at(refused)})"),
    ],
)
def test_a_study_that_is_none_is_refused_with_file_and_line(name, sentence):
    with pytest.raises(ValueError, match=f"study '{HERE}:{name}'") as error:
        call(name)
    assert sentence in str(error.value)
    assert f"({__file__}, line " in str(error.value)


def test_a_study_of_ones_own_is_named_by_its_path():
    assert call("good") == [STAGE]
    with pytest.raises(ValueError, match="cannot be called; give a function of"):
        study_named(f"{HERE}:HERE")


@pytest.mark.parametrize(("q", "stages"), [(None, 1), (0.9, 1), (0.1, 2)])
def test_a_study_of_ones_own_may_look_at_what_is_measured(q, stages):
    experiment = Experiment(study=f"{HERE}:more_where_little_is_right", scale="toy")
    assert experiment.adaptive
    assert not Experiment(study=f"{HERE}:good", scale="toy").adaptive
    wanted = experiment.wanted(lambda stage: None if q is None else pd.DataFrame({"q": [q]})).stages
    assert len(wanted) == stages
    assert wanted[0] == STAGE


def test_a_plan_finds_modules_in_the_folder_that_it_is_called_from(tmp_path):
    (tmp_path / "mine.py").write_text(
        textwrap.dedent(
            """
            from rayexp.studies import STUDIES

            def twice(budget, grid):
                return STUDIES["demo"](budget, grid) * 2
            """
        )
    )
    command = [Path(sys.executable).parent / "rayexp", "plan", "mine:twice", "--scale", "toy"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "plan of study mine:twice: 12 stages" in done.stdout
