"""A stage as a value: the settings that enter its id, and the refusal of bad values."""

import copy
import json
import pickle
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from rayexp.config import RunConfig, canonical_json, explain
from rayexp.experiment import nothing
from rayexp.formatting import number
from rayexp.models.config import Decoder
from rayexp.objectives.advantages import ADVANTAGES
from rayexp.objectives.kl import ESTIMATORS
from rayexp.objectives.reductions import REDUCTIONS
from rayexp.rewards.answer import Answer
from rayexp.rewards.letters import Letters
from rayexp.stages import GRPO, KINDS, SFT, AdamW, Evaluate, Extend, Pretrain, parse_stage
from rayexp.studies import STUDIES, Grid, all_stages, wanted_of
from rayexp.studies.presets import SCALES
from rayexp.tasks.strings import AXES, StringTask

OPTIMISER = AdamW(learning_rate=1e-3)
DECODER = Decoder(layers=2, width=128, ff_width=64, heads=2, kv_heads=2, context_tokens=256)
PRETRAIN = Pretrain(
    task=StringTask(axis="composition"),
    decoder=DECODER,
    ood_ratio=0.01,
    samples=1000,
    batch_samples=64,
    optimiser=OPTIMISER,
    seed=0,
)
TUNED = SFT(init=PRETRAIN, optimiser=OPTIMISER, seed=0)
STRINGS = {"kind": "strings", "axis": "depth"}
REINFORCED = GRPO(init=TUNED, prompt_role="ood", kl_beta=0.1, optimiser=OPTIMISER, seed=0)
MEASURED = Evaluate(init=REINFORCED)
CHAIN = (PRETRAIN, TUNED, REINFORCED, MEASURED)
#: Kinds from which a stage can start, as an error lists them.
MODELS = ", ".join(kind for kind, stage in KINDS.items() if stage.pool != "measure")
every_stage = pytest.mark.parametrize("stage", CHAIN, ids=lambda stage: stage.kind)


def changed(stage, **changes):
    """Return the stage with other values, validated as if it were new."""
    return type(stage).model_validate({**{name: getattr(stage, name) for name in type(stage).model_fields}, **changes})


def leaves(value, path=()):
    """Yield path and value of every leaf of a JSON value."""
    match value:
        case dict():
            for name, item in value.items():
                yield from leaves(item, (*path, name))
        case list():
            for place, item in enumerate(value):
                yield from leaves(item, (*path, place))
        case _:
            yield path, value


def settings_of(value):
    """Return the names of all fields of a value and of the values inside it."""
    if isinstance(value, tuple):
        return {name for item in value for name in settings_of(item)}
    if not isinstance(value, BaseModel):
        return set()
    fields = type(value).model_fields
    return set(fields).union(*(settings_of(getattr(value, name)) for name in fields))


WORDS = [*AXES, *ADVANTAGES, *ESTIMATORS, *REDUCTIONS] + [
    word
    for kind in (StringTask, AdamW, Pretrain, GRPO)
    for field in kind.model_fields.values()
    if get_origin(field.annotation) is Literal
    for word in get_args(field.annotation)
]


def variants(stage):
    """Yield the path of every setting of the stage and of its lineage, and the stage with another valid value there."""
    plain = json.loads(stage.model_dump_json())
    for path, value in leaves(plain):
        if path[-1] == "kind":
            continue
        if isinstance(value, bool):
            others = [not value]
        else:
            numbers = [] if isinstance(value, str) else [value + 1, value * 2, value // 2, value / 2, value + 0.25]
            others = [word for word in [*numbers, *WORDS] if word != value]
        for other in others:
            attempt = copy.deepcopy(plain)
            inner = attempt
            for name in path[:-1]:
                inner = inner[name]
            inner[path[-1]] = other
            try:
                yield path, parse_stage(json.dumps(attempt))
                break
            except ValidationError:
                continue
        else:
            raise AssertionError(f"no other value found for {path}")


# Ids


#: A stage with settings that allow other values, where the defaults allow none.
MIXED = changed(
    REINFORCED,
    init=changed(TUNED, init=changed(PRETRAIN, stop_after=5, copied_items=4)),
    mixture=({"kind": "id"}, {"kind": "ood"}),
    curriculum=({"kind": "id"}, {"kind": "probe"}),
)


STOPPED = changed(PRETRAIN, stop_after=5, copied_items=4)
EXTENDED = Extend(init=STOPPED, stop_after=8)


@pytest.mark.parametrize("stage", [STOPPED, EXTENDED, MIXED, Evaluate(init=MIXED)], ids=lambda stage: stage.kind)
def test_every_setting_of_the_whole_lineage_changes_the_id(stage):
    seen: dict[str, tuple[Any, ...]] = {stage.id: ()}
    for path, variant in variants(stage):
        assert variant.id not in seen, f"{path} has the id of {seen.get(variant.id)}"
        seen[variant.id] = path
    paths = [path for path in seen.values() if path]
    nested = {"kind", "init", "task", "decoder", "optimiser", "rewards", "mixture", "curriculum"}
    assert {path[-1] for path in paths} | nested == settings_of(stage) | nested
    assert {path[0] for path in paths} == set(type(stage).model_fields) - {"kind"}


@every_stage
def test_the_version_is_part_of_the_id(stage, monkeypatch):
    before = changed(stage).id
    monkeypatch.setattr(type(stage), "version", stage.version + 1)
    assert changed(stage).id != before


@every_stage
def test_a_setting_that_came_later_leaves_what_was_made_before_it_where_it_is(stage):
    class Later(type(stage)):
        fields_added_later = stage.fields_added_later | {"colour"}
        colour: str = "grey"

    values = {name: getattr(stage, name) for name in type(stage).model_fields}
    assert Later(**values).id == stage.id
    assert Later(**values, colour="red").id != stage.id


def test_a_setting_that_came_later_to_a_value_inside_a_stage_leaves_it_where_it_is():
    class LaterAnswer(Answer):
        fields_added_later = frozenset({"colour"})
        kind: Literal["answer"] = "answer"
        colour: str = "grey"

    plain, grey, red = (
        REINFORCED.model_copy(update={"rewards": (Letters(), answer)}).id
        for answer in (Answer(), LaterAnswer(), LaterAnswer(colour="red"))
    )
    assert plain == grey != red
    assert changed(PRETRAIN, decoder=DECODER.model_copy(update={"positions": "none"})).id != PRETRAIN.id


@every_stage
def test_equal_values_have_equal_ids(stage):
    """Build them in different ways."""
    for twin in (
        changed(stage),
        parse_stage(stage.model_dump_json()),
        copy.deepcopy(stage),
        pickle.loads(pickle.dumps(stage)),
    ):
        assert twin == stage
        assert hash(twin) == hash(stage)
        assert twin.id == stage.id
        assert type(twin) is type(stage)
    reordered = dict(reversed(json.loads(stage.model_dump_json()).items()))
    assert parse_stage(json.dumps(reordered)).id == stage.id


@pytest.mark.parametrize(("one", "other"), [(1, 1.0), (0.0, -0.0), (0, 0.0)])
def test_equal_numbers_have_equal_ids(one, other):
    assert changed(REINFORCED, kl_beta=one).id == changed(REINFORCED, kl_beta=other).id


def test_a_copy_with_another_value_has_another_id():
    """Compute the id of the original first, so that it is cached."""
    assert PRETRAIN.id
    assert PRETRAIN.model_copy(update={"seed": 1}).id == changed(PRETRAIN, seed=1).id


@pytest.mark.parametrize(
    ("stage", "golden"),
    [
        (PRETRAIN, "pretrain-4e7cb3df5edf9375"),
        (TUNED, "sft-1a1f9a844e5cdd5f"),
        (REINFORCED, "grpo-b3363aecb13352a6"),
        (MEASURED, "evaluate-4d794c171ff9ee3b"),
    ],
)
def test_ids_are_pinned(stage, golden):
    """Pin golden ids. If one changes, stored results are never found again."""
    assert stage.id == golden


def test_every_stage_of_every_study_survives_json():
    budget = SCALES["tiny"]
    for study in STUDIES.values():
        for stage in all_stages(wanted_of(study, budget, Grid((0.01,), (0.0, 0.1), (0,)), nothing)):
            twin = parse_stage(stage.model_dump_json())
            assert twin == stage
            assert twin.id == stage.id


def test_numbers_of_a_label_are_without_loss():
    assert [number(x) for x in (0.1, 1.0, -0.0, 1e-05, 2024010, 0.3, 0.30000001)] == [
        *("0.1", "1", "0", "1e-05", "2024010", "0.3", "0.30000001")
    ]
    finer = REINFORCED.model_copy(update={"kl_beta": 0.10000001})
    assert finer.label == "composition-r0.01-s0/pretrain/sft/grpo-ood-b0.10000001"
    base = REINFORCED.root.model_copy(update={"ood_ratio": 0.30000001, "seed": 2024010})
    assert base.label == "composition-r0.30000001-s2024010/pretrain"


def test_lineage_and_label():
    assert MEASURED.lineage == CHAIN
    assert MEASURED.root == PRETRAIN
    assert REINFORCED.label == "composition-r0.01-s0/pretrain/sft/grpo-ood-b0.1"


# Execution is no part of a stage


def test_no_execution_setting_is_a_setting_of_a_stage():
    assert not settings_of(MEASURED) & set(RunConfig.model_fields)


@every_stage
@pytest.mark.parametrize("setting", RunConfig.model_fields)
def test_no_stage_can_be_given_an_execution_setting(stage, setting):
    """Make sure that execution can't change an id."""
    value = getattr(RunConfig(store="somewhere"), setting)
    with pytest.raises(ValidationError) as caught:
        changed(stage, **{setting: value})
    assert [error["type"] for error in caught.value.errors()] == ["extra_forbidden"]


# Canonical JSON

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.text(max_size=3), json_values, max_size=4))
def test_canonical_json_is_json_in_one_order(value):
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(dict(reversed(value.items()))) == text
    assert canonical_json(json.loads(text)) == text


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        -float("inf"),
        {1, 2},
        np.float64(1.0),
        np.int64(1),
        np.array([1.0]),
        len,
        object(),
        b"bytes",
        {1: "one"},
        {None: 1},
        1j,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_canonical_json_raises_and_says_where(value):
    with pytest.raises((TypeError, ValueError), match=r"value\.a\[1\]"):
        canonical_json({"a": [0, value]})


def test_minus_zero_is_zero():
    assert canonical_json([-0.0]) == canonical_json([0.0])


# Refusals


def from_json(**changes):
    return parse_stage(json.dumps({**json.loads(PRETRAIN.model_dump_json()), **changes}))


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: changed(PRETRAIN, ood_ratio=0.7), ["ood_ratio=0.7 should be", "less than or equal to 0.5"]),
        (lambda: changed(REINFORCED, kl_beta=-1.0), ["kl_beta=-1.0 should be", "greater than or equal to 0"]),
        (lambda: changed(REINFORCED, kl_beta=float("nan")), ["kl_beta=nan should be", "finite"]),
        (lambda: changed(REINFORCED, kl_beta="0.1"), ["kl_beta='0.1' should be", "number"]),
        (lambda: changed(REINFORCED, group_size=1), ["group_size=1 should be", "greater than or equal to 2"]),
        (lambda: changed(REINFORCED, prompt_role="all"), ["prompt_role='all' is not one of id, ood, probe"]),
        (lambda: changed(PRETRAIN, samples=0), ["samples=0 should be", "greater than or equal to 1"]),
        (lambda: changed(PRETRAIN, seed=2**31), [f"seed={2**31} should be", "less than"]),
        (lambda: Decoder(layers=1, width=64, ff_width=64, heads=4, kv_heads=4), ["64 / 4 = 16 should", "32, 64, 128"]),
        (lambda: Decoder(layers=1, width=128, ff_width=64, heads=4, kv_heads=3), ["kv_heads=3 should be a divisor"]),
        (lambda: changed(PRETRAIN, decoder=changed(DECODER, context_tokens=8)), ["context_tokens=8", "at least"]),
        (lambda: from_json(task=STRINGS | {"axis": "colour"}), ["axis='colour' is not one of depth, length"]),
        (lambda: from_json(task=STRINGS | {"seed": -1}), ["task.seed=-1 should be", "greater than or equal to 0"]),
        (lambda: from_json(kind="train"), [f"kind='train' is not one of {', '.join(KINDS)}"]),
        (lambda: SFT(init=MEASURED, optimiser=OPTIMISER, seed=0), ["init.kind='evaluate' is not one of", MODELS]),
        (lambda: Evaluate(init=MEASURED), ["init.kind='evaluate' is not one of", MODELS]),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_in_one_line_with_field_value_and_what_it_should_be(make, parts):
    with pytest.raises(ValidationError) as caught:
        make()
    line = explain(caught.value)
    assert "\n" not in line
    for part in parts:
        assert part in line


def test_an_unknown_or_missing_field_is_named():
    with pytest.raises(ValidationError) as caught:
        changed(PRETRAIN, ood_share=0.1)
    assert explain(caught.value).startswith("ood_share is not a setting")
    with pytest.raises(ValidationError) as caught:
        GRPO.model_validate({"init": TUNED, "prompt_role": "ood", "optimiser": OPTIMISER, "seed": 0})
    assert explain(caught.value).startswith("kl_beta is missing")


@pytest.mark.parametrize("setting", ["axis", "graph", "traversal", "completion_format"])
def test_a_task_refuses_unknown_words(setting):
    with pytest.raises(ValidationError) as caught:
        StringTask.model_validate({"axis": "depth", setting: "odd"})
    assert explain(caught.value).startswith(f"{setting}='odd' is not one of ")


@pytest.mark.parametrize("seed", [0.0, True, 1.5, "1"])
def test_a_task_refuses_a_seed_that_is_no_integer(seed):
    """Refuse 0.0, which equals 0 but would give an equal stage another id."""
    with pytest.raises((ValueError, TypeError)):
        changed(PRETRAIN, task=StringTask(axis="composition", seed=seed))


def test_stages_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        PRETRAIN.seed = 1


def test_a_kind_may_narrow_what_it_starts_from():
    class FromScratch(SFT):
        init: Pretrain

    values = {"optimiser": OPTIMISER, "seed": 0}
    assert FromScratch.model_validate({"init": PRETRAIN, **values}).parent == PRETRAIN
    with pytest.raises(ValidationError) as caught:
        FromScratch.model_validate({"init": TUNED, **values})
    assert explain(caught.value).startswith("init=SFT(")
