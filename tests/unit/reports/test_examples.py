"""Worked examples: chosen by their rule alone, and shown with the completions of every stage of the chain."""

import pytest

from rayexp.reports.examples import examples
from tests.fixtures.simulated_study import BETAS, RATIOS, simulated_results


def test_the_rule_picks_ranks_of_the_gain_at_the_smallest_beta() -> None:
    results = simulated_results()
    groups = examples(results)
    assert [group.title for group in groups] == [
        f"GRPO on OOD prompts, OOD cells, {ratio} % OOD, β = {BETAS[0]}" for ratio in ("0", "0.3", "1", "5")
    ]
    for group, ratio in zip(groups, RATIOS, strict=True):
        rows = results[(results["kl_beta"] == BETAS[0]) & (results["ood_ratio"] == ratio) & (results["role"] == "ood")]
        gains = sorted(rows["q"] - rows["init_q"])
        last = len(gains) - 1
        expected = [gains[round(share * last)] for share in (0.1, 0.5, 0.9)]
        assert [example.gain for example in group.examples] == pytest.approx(expected)
        for example in group.examples:
            before, after = example.answers[-2:]
            assert after.q - before.q == pytest.approx(example.gain)


def test_an_example_follows_its_chain_from_pretraining_to_grpo() -> None:
    results = simulated_results()
    example = examples(results)[2].examples[1]
    assert [answer.stage for answer in example.answers] == ["pretraining", "SFT", "GRPO"]
    for answer, kind in zip(example.answers, ("pretrain", "sft", "grpo"), strict=True):
        found = results[
            (results["kind"] == kind)
            & (results["seed"] == example.seed)
            & (results["ood_ratio"] == RATIOS[2])
            & ((results["kl_beta"] == BETAS[0]) | results["kl_beta"].isna())
            & (results["cell"] == example.cell)
            & (results["q"] == answer.q)
        ]
        assert len(found) == 1
        assert answer.correct == found["greedy_correct"].iloc[0]
        assert " ".join(token for token, _ in answer.tokens) == found["completion"].iloc[0]


def test_symbols_are_compared_place_by_place() -> None:
    results = simulated_results().assign(gold="a1 a2 <eos>", completion="a1 a3 <eos> a4")
    assert examples(results)[0].examples[0].answers[0].tokens == [
        ("a1", True),
        ("a3", False),
        ("<eos>", True),
        ("a4", False),
    ]


def test_what_was_not_measured_is_left_out_and_nothing_is_made_up() -> None:
    results = simulated_results()
    without = results[results["kind"] != "pretrain"]
    assert [answer.stage for answer in examples(without)[0].examples[0].answers] == ["SFT", "GRPO"]
    assert examples(results[results["kind"] != "grpo"]) == []
