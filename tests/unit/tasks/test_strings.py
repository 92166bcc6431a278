"""Strings: generator and verifier agree, and T and S obey their laws. test_tasks.py tests the contract of all tasks."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from rayexp import rng
from rayexp.tasks import Verdict
from rayexp.tasks.strings import AXES, Cell, StringTask, generator, operations, verifier
from rayexp.tasks.strings.symbols import ALPHABET, COLON, LETTER0, SEMICOLON, VOCABULARY

VARIANTS = list(itertools.product(AXES, ("hidden", "printed"), ("uniform", "positional"), ("answer", "trace")))
FIELDS = ("axis", "graph", "traversal", "completion_format")
TASKS = [StringTask.model_validate({**dict(zip(FIELDS, variant, strict=True)), "seed": 3}) for variant in VARIANTS]
every_task = pytest.mark.parametrize("task", TASKS, ids=map("-".join, VARIANTS))
every_axis = pytest.mark.parametrize("axis", AXES)
TRAINING_SPLITS = ("pretrain", "sft", "grpo")
HIDDEN = operations.hidden_cycle(3)


def letters_of(row):
    """Return the letters of the input string of a sample, 0..51."""
    body = row[: list(row).index(COLON)].tolist()
    start = body.index(SEMICOLON) + 1 if SEMICOLON in body else 1
    return [token - LETTER0 for token in body[start:]]


def cell_of(row):
    """Return the cell of a sample, read from its text."""
    text = VOCABULARY.decode(row).split()
    letters = letters_of(row)
    foreign = sum(letter >= ALPHABET for letter in letters)
    return Cell("".join(text[text.index(":") + 1 : text.index("=")]), len(letters), foreign).name


def samples_of(task, split, seed, cell, start, count):
    """Return tokens_NT of samples of any cell, on the axis of the task or not."""
    cycle = task.cycle if task.graph == "hidden" else None
    index_N = np.arange(start, start + count)
    return generator.write(cell, split, seed, index_N, cycle, task.traversal == "positional", not task.unique)


def judge(task, prompt, completion):
    verdict = task.judge(task.solve(prompt), completion)
    return verdict.answer, verdict.trace


# Generator and verifier


@every_task
def test_generator_and_verifier_agree_on_every_cell(task):
    for _, cell in task.roles():
        batch = task.of_cell("test", 5, cell, 100, 12)
        for row, prompt, gold in zip(batch.tokens_NT, batch.prompts, batch.completions, strict=True):
            solution = task.solve(prompt)
            assert solution.completion == tuple(gold)
            steps = 1 if task.unique else len(solution.steps)
            assert task.judge(solution, gold) == Verdict(answer=True, trace=True, steps_right=steps, steps=steps)
            assert cell_of(row) == cell


@pytest.mark.parametrize(
    ("traversal", "operation", "steps"),
    [
        ("uniform", "T", ["a1 a2 a0 a3"]),
        ("uniform", "S", ["a1 a2 a3 a0"]),
        ("uniform", "T S", ["a1 a2 a0 a3", "a2 a0 a3 a1"]),
        ("positional", "T", ["a1 a0 a2 a3"]),
        ("positional", "S T", ["a1 a2 a3 a0", "a2 a1 a3 a1"]),
    ],
)
def test_solutions_worked_by_hand(traversal, operation, steps):
    """Use the printed map a0 -> a1 -> a2 -> a0, a3 -> a3."""
    prompt = VOCABULARY.encode(f"<bos> a2 a0 a0 a1 a3 a3 a1 a2 ; a0 a1 a2 a3 : {operation} =")
    solved = verifier.solve(prompt, (), positional=traversal == "positional")
    assert solved == [VOCABULARY.encode(step) for step in steps]


def test_printed_prompts_show_every_edge_once():
    alphabets = {"tokens": (0, 1, 2, 3, 4), "depth": (0,)}
    for axis, foreign_counts in alphabets.items():
        for foreign in foreign_counts:
            task = StringTask(axis=axis, graph="printed")
            prompt = samples_of(task, "test", 0, Cell("T", foreign=foreign), 7, 1)[0]
            edges = [int(t) - LETTER0 for t in prompt[1 : list(prompt).index(SEMICOLON)]]
            used = [*range(26)] * (foreign < 4) + [*range(26, 52)] * (foreign > 0)
            assert sorted(edges[::2]) == sorted(edges[1::2]) == used
            successor = dict(zip(edges[::2], edges[1::2], strict=True))
            if 0 < foreign < 4:
                assert all(successor[letter + 26] == successor[letter] + 26 for letter in range(26))


def test_solving_a_printed_prompt_uses_its_edges():
    task = StringTask(axis="depth", graph="printed")
    prompt = task.of_cell("test", 0, "T", 0, 1).prompts[0].copy()
    source = prompt[-7]  # the first of four letters, before ": T ="
    (place,) = (i for i in range(1, 53, 2) if prompt[i] == source)
    prompt[place + 1] = LETTER0 + (prompt[place + 1] - LETTER0 + 5) % 26
    assert task.solve(prompt).steps[0][0] == prompt[place + 1]


# Refusals of the verifier


def _judged(completion_format, mutate):
    task = StringTask(axis="depth", completion_format=completion_format)
    prompt, solution = task.example("test", 0, "TT")
    return judge(task, prompt, mutate(list(solution.completion)))


def _other_letter(token):
    return LETTER0 + (token - LETTER0 + 1) % 26


@pytest.mark.parametrize("completion_format", ["answer", "trace"])
@pytest.mark.parametrize(
    "mutate",
    [
        lambda gold: [],
        lambda gold: gold[:-1],
        lambda gold: [VOCABULARY.eos],
        lambda gold: [*gold[:-1], VOCABULARY.pad],
        lambda gold: [*gold, VOCABULARY.pad],
        lambda gold: [*gold, VOCABULARY.eos],
        lambda gold: [*gold[:-2], _other_letter(gold[-2]), VOCABULARY.eos],
        lambda gold: [*gold[:-1], gold[-2], VOCABULARY.eos],
        lambda gold: [*gold[:-2], VOCABULARY.eos],
        lambda gold: [*gold[:-1], SEMICOLON, VOCABULARY.eos],
    ],
    ids=[
        "empty",
        "no-eos",
        "only-eos",
        "pad-for-eos",
        "pad-after",
        "two-eos",
        "wrong-letter",
        "extra-letter",
        "missing-letter",
        "open-end",
    ],
)
def test_wrong_completions_are_refused(completion_format, mutate):
    assert _judged(completion_format, lambda gold: gold) == (True, True)
    assert _judged(completion_format, mutate) == (False, False)


@pytest.mark.parametrize(
    "mutate",
    [lambda gold: [_other_letter(gold[0]), *gold[1:]], lambda gold: gold[5:], lambda gold: [*gold[:5], *gold]],
    ids=["wrong-step", "missing-step", "extra-step"],
)
def test_a_right_answer_after_a_wrong_trace_counts_as_an_answer_only(mutate):
    assert _judged("trace", mutate) == (True, False)
    assert _judged("answer", lambda gold: [*gold[:-1], SEMICOLON, *gold]) == (False, False)


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "<bos>",
        "a0 a1 a2 a3 : T =",
        "<bos> a0 a1 a2 a3 : T",
        "<bos> a0 a1 a2 a3 T =",
        "<bos> a0 a1 a2 a3 : a0 =",
        "<bos> a0 <pad> a2 a3 : T =",
        "<bos> a0 a1 a2 a3 : =",
        "<bos> : T =",
        "<bos> a0 a1 a2 ; a0 : T =",
        "<bos> a0 a1 ; a5 : T =",
    ],
    ids=[
        "empty",
        "bos-only",
        "no-bos",
        "no-equals",
        "no-colon",
        "bad-operation",
        "bad-letter",
        "no-operation",
        "no-letters",
        "odd-edges",
        "no-edge",
    ],
)
def test_malformed_prompts_raise(prompt):
    with pytest.raises(ValueError):  # noqa: PT011 - only the type is promised
        StringTask(axis="depth").solve(VOCABULARY.encode(prompt))


# Laws of T and S

strings = st.lists(st.integers(0, 51), min_size=2, max_size=6).map(lambda letters: np.array([letters], dtype=np.uint8))


@pytest.mark.parametrize("positional", [False, True])
def test_traversal_is_a_bijection_of_strings(positional):
    all_NL = np.array(list(itertools.product(range(26), repeat=2)), dtype=np.uint8)
    printed_NV = operations.printed_maps(rng.stream_key("any"), np.zeros(len(all_NL), dtype=np.int64))
    for graph in (HIDDEN, printed_NV):
        image_NL = operations.traverse(all_NL, graph, positional)
        assert len(np.unique(image_NL, axis=0)) == len(all_NL)
        assert image_NL.max() < 26


@given(strings)
def test_shifting_once_for_every_letter_is_the_identity(letters_1L):
    steps = operations.apply("S" * letters_1L.shape[1], letters_1L, HIDDEN, positional=False)
    assert (steps[0] == np.array([[*letters_1L[0, 1:], letters_1L[0, 0]]])).all()
    assert (steps[-1] == letters_1L).all()


@given(strings)
def test_traversal_and_shift_commute_only_without_positions(letters_1L):
    def outcome(order, positional):
        return operations.apply(order, letters_1L, HIDDEN, positional)[-1]

    assert (outcome("TS", False) == outcome("ST", False)).all()
    assert (outcome("TS", True) != outcome("ST", True)).any()


@given(strings, st.text("TS", min_size=1, max_size=5), st.booleans())
def test_alphabet_b_is_an_isomorphic_copy_of_a(letters_1L, order, positional):
    in_a = operations.apply(order, letters_1L % 26, HIDDEN, positional)[-1]
    in_b = operations.apply(order, letters_1L % 26 + 26, HIDDEN, positional)[-1]
    assert (in_b == in_a + 26).all()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_hidden_graph_is_one_cycle(seed):
    cycle = operations.hidden_cycle(seed)
    path = [0]
    while len(path) < 27:
        path.append(int(cycle[path[-1]]))
    assert sorted(path[:-1]) == list(range(26))
    assert path[-1] == 0
    assert (cycle != operations.hidden_cycle(seed + 1)).any()


# Mixtures


def test_mixtures_of_different_ratios_hold_the_same_strings():
    def string_of(ratio):
        token_batches = StringTask(axis="composition").mixture("pretrain", 0, ratio, 0, 300)
        return {int(i): letters_of(row) for r in token_batches for i, row in zip(r.index_N, r.tokens_NT, strict=True)}

    assert string_of(0.0) == string_of(0.5)


@pytest.mark.parametrize("foreign", [0, 1, 2, 3, 4])
def test_foreign_letters_are_counted_exactly_and_fall_anywhere(foreign):
    rows = samples_of(StringTask(axis="tokens"), "test", 0, Cell("T", foreign=foreign), 0, 400)
    foreign_NL = np.array([letters_of(row) for row in rows]) >= ALPHABET
    assert (foreign_NL.sum(axis=1) == foreign).all()
    if 0 < foreign < 4:
        assert chisquare(foreign_NL.sum(axis=0)).pvalue > 1e-3
        again = (foreign_NL[1:] == foreign_NL[:-1]).all(axis=1).mean()
        assert again == pytest.approx(1 / math.comb(4, foreign), abs=0.08)


def test_printed_maps_of_neighbouring_samples_are_unrelated():
    maps_NV = operations.printed_maps(rng.stream_key("any"), np.arange(200))[:, :26].astype(int)
    steps = (maps_NV[1:] - maps_NV[:-1]) % 26
    assert chisquare(np.bincount(steps.ravel(), minlength=26)).pvalue > 1e-3


# Held-out strings


@every_axis
def test_no_training_sample_holds_a_test_string(axis):
    """Vary task, alphabet and seed. Compare letters modulo the alphabet."""
    task, every_cell = StringTask(axis=axis), [cell for _, cell in AXES[axis].roles()]
    for length in {cell.length for cell in every_cell}:
        cells = [cell for cell in every_cell if cell.length == length]

        def strings(split, seed, count, cells=cells, length=length):
            parts = [task.of_cell(split, seed, cell.name, 0, count).tokens_NT for cell in cells]
            columns = [(tokens_NT[:, 1 : 1 + length] - LETTER0) % 26 for tokens_NT in parts]
            return set(map(bytes, np.concatenate(columns)))

        test = strings("test", 0, 3000)
        for seed, split in enumerate(TRAINING_SPLITS):
            assert not test & strings(split, seed, 5000)


def test_a_tenth_of_the_strings_is_held_out_and_the_rest_is_all_used():
    """Check all 17,576 strings of three letters, and that training strings are drawn uniformly."""

    def codes(split, count):
        letters_NL = samples_of(StringTask(axis="depth"), split, 0, Cell("T", length=3), 0, count)[:, 1:4]
        return (letters_NL - LETTER0).astype(int) @ [1, 26, 676]

    test, train = np.unique(codes("test", 40_000)), np.unique(codes("pretrain", 400_000), return_counts=True)
    assert len(test) / 26**3 == pytest.approx(0.1, abs=0.01)
    assert sorted([*test, *train[0]]) == list(range(26**3))
    assert chisquare(train[1]).pvalue > 1e-3


def test_vocabulary_round_trip():
    assert VOCABULARY.encode(" ".join(VOCABULARY.symbols)) == list(range(len(VOCABULARY.symbols)))
    assert VOCABULARY.decode(range(len(VOCABULARY.symbols))) == " ".join(VOCABULARY.symbols)
    assert len(set(VOCABULARY.symbols)) == len(VOCABULARY.symbols) <= VOCABULARY.size
    with pytest.raises(KeyError):
        VOCABULARY.encode("a26")
