"""Who is right about GRPO: each objection to the paper as a condition, beside a control on equal seeds and prompts.

Composition and depth axes, and the length axis for positions. GRPO runs on OOD prompts, at the first beta above 0. The
OOD ratios are those at which it is disputed whether GRPO finds anything: no OOD samples, and ratios with hardly any or
little correct mass. The control is the paper's GRPO.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rayexp.models.config import Decoder
from rayexp.rewards.answer import Answer
from rayexp.rewards.letters import Letters
from rayexp.rewards.letters_sum import LettersSum
from rayexp.rewards.random import Random
from rayexp.rewards.shaped import Shaped
from rayexp.rewards.steps import Steps
from rayexp.stages import RFT, Stage
from rayexp.stages.mixture import PromptShare
from rayexp.studies.conditions import CONTROL, Condition, Prediction
from rayexp.studies.grid import (
    Grid,
    decoder_for,
    fine_tuned,
    in_a_row,
    measured_chains,
    pretrained,
    reinforced,
)
from rayexp.studies.presets import SCALES, Budget
from rayexp.tasks import Task

OWN_GRID = {scale: {"ood_ratios": ("low",)} for scale in SCALES}
#: Axes of the strings on which the objections are decided.
AXES_ASKED = ("composition", "depth")
ROLE = "ood"
#: Prompts of both roles in equal parts. Those of ID cells are easier.
EASIER = (PromptShare(kind="id"), PromptShare(kind="ood"))
#: Tokens of the gold completion in the first hints.
HINT = 2
POSITIONS = "It is the position encoding that fails on longer strings, not GRPO."
#: Steps of longer runs, as multiples of the control's steps, by scale. At ``tiny`` 30 times would take hours.
LONGER = {"toy": (2,), "tiny": (10,), "small": (10, 30), "paper": (10, 30)}
#: Numbers of supervised OOD samples that are compared with a run of GRPO.
SUPERVISED = (10, 100, 1_000)


@dataclass(frozen=True)
class Objection:
    """The texts of a condition (see ``Condition``), and the settings in which it differs from the control."""

    name: str
    says: str = ""
    source: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    predicts: Prediction = "more"
    k: int = 1

    def decided_by(self, ends: Sequence[Stage], budget: Budget) -> Condition:
        """Return the condition of the chains with these ends, with a measurement after each stage."""
        stages = measured_chains(ends, budget)
        return Condition(self.name, stages, self.says, self.source, self.predicts, self.k)


SPARSE = "The reward is too sparse: one for right letters finds what one for right answers does not."
#: Objections to settings of GRPO.
OF_SETTINGS = (
    Objection("no KL", "The KL holds GRPO back.", "reviews", {"kl_beta": 0.0}),
    Objection(
        "ID beside OOD",
        "Where nothing is rewarded, easy tasks beside it help.",
        "arXiv 2510.03971",
        {"mixture": EASIER},
    ),
    Objection("curriculum", "From easy to hard, GRPO gets there.", "arXiv 2601.15158", {"curriculum": EASIER[:1]}),
    Objection("hints", "A start that is given, and then taken away, leads there.", "reviews", {"hint_tokens": HINT}),
    Objection("letters", SPARSE, "reviews; arXiv 2509.21016", {"rewards": (Letters(),)}),
    Objection("sum of letters", SPARSE, "reviews; arXiv 2509.21016", {"rewards": (LettersSum(),)}),
    Objection("critic", "PPO, with a baseline for each token, does better.", "reviews", {"advantage": "critic"}),
    Objection(
        "only unsolved",
        "Most updates are overtraining on what is solved already.",
        "arXiv 2606.15455",
        {"filter": "unsolved"},
        k=256,
    ),
    Objection("resampled", "Groups without a gradient waste the budget.", "arXiv 2503.14476", {"filter": "resample"}),
    Objection(
        "shaped",
        "A null control: shaping by a potential changes nothing.",
        "Ng, Harada and Russell, 1999",
        {"rewards": (Answer(), Shaped())},
        predicts="same",
    ),
    Objection(
        "random",
        "A null control: a random reward teaches nothing.",
        "arXiv 2506.10947",
        {"rewards": (Random(),)},
        predicts="nothing",
    ),
)
#: Objections to the decoder, which are decided on strings that are longer than any before.
OF_DECODER = (
    Objection("no positions", POSITIONS, "reviews; arXiv 2305.19466", {"positions": "none"}),
    Objection("random positions", POSITIONS, "reviews; arXiv 2305.16843", {"positions": "randomised"}),
)
NARROW = Objection("no SFT", "The narrow SFT causes the sharpening.", "arXiv 2606.04272", k=32)
STEPS = Objection("steps", "Right steps have to pay, not the answer alone.", "arXiv 2509.21016")
LETTERS_FIRST = Objection("letters before answer", "A dense reward leads to where the answer pays.", "reviews")
OWN_ANSWERS = Objection(
    "RFT", "It need not be RL: training on one's own right answers does the same.", "arXiv 2604.15306", predicts="same"
)


def stages(budget: Budget, grid: Grid) -> list[Condition]:
    length = grid.task("length")
    decoders = {objection: decoder_for(budget, length, **objection.settings) for objection in OF_DECODER}
    return [
        *(each for axis in AXES_ASKED for each in _conditions(grid.task(axis), budget, grid)),
        *(
            objection.decided_by(_usual_ends(length, budget, grid, decoder), budget)
            for objection, decoder in {Objection(CONTROL): None, **decoders}.items()
        ),
    ]


def _usual_ends(task: Task, budget: Budget, grid: Grid, decoder: Decoder | None) -> list[Stage]:
    tuned = [fine_tuned(base, budget) for base in pretrained(task, budget, grid, decoder)]
    return [reinforced(init, budget, **_usual(grid)) for init in tuned]


def _usual(grid: Grid) -> dict[str, Any]:
    """Return the settings of the control's GRPO beside those of the scale."""
    return {"prompt_role": ROLE, "kl_beta": grid.kl_beta}


def _conditions(task: Task, budget: Budget, grid: Grid) -> list[Condition]:
    bases = pretrained(task, budget, grid)
    tuned = [fine_tuned(base, budget) for base in bases]
    usual = _usual(grid)

    def grpo(inits: Sequence[Stage], **settings: Any) -> list[Stage]:
        return [reinforced(init, budget, **{**usual, **settings}) for init in inits]

    ends = {
        Objection(CONTROL): grpo(tuned),
        NARROW: grpo(bases),
        **{_longer(times): grpo(tuned, steps=times * budget.grpo_steps) for times in LONGER[budget.name]},
        **{objection: grpo(tuned, **objection.settings) for objection in OF_SETTINGS},
        LETTERS_FIRST: [_letters_first(init, budget, usual) for init in tuned],
        OWN_ANSWERS: [_rft(init, budget) for init in tuned],
        **{
            _supervised(samples): [fine_tuned(base, budget, ood_samples=samples) for base in bases]
            for samples in SUPERVISED
            if samples <= budget.sft_samples
        },
    }
    if grid.completion_format == "trace":
        ends[STEPS] = grpo(tuned, rewards=(Steps(),))
    return [objection.decided_by(chains, budget) for objection, chains in ends.items()]


def _longer(times: int) -> Objection:
    return Objection(f"{times} times the steps", "The steps are too few.", "reviews; arXiv 2605.06638")


def _supervised(samples: int) -> Objection:
    return Objection(f"{samples} OOD samples", f"{samples} supervised samples do more than GRPO.", "arXiv 2604.15306")


def _letters_first(init: Stage, budget: Budget, usual: Mapping[str, Any]) -> Stage:
    """Return GRPO with half of the steps for right letters and the other half for right answers, with one reference."""
    half = -(-budget.grpo_steps // 2)
    phases = [
        {"rewards": (Letters(),), "steps": half},
        {"reference": "root", "steps": max(1, budget.grpo_steps - half)},
    ]
    return in_a_row(init, budget, phases, **usual)[-1]


def _rft(init: Stage, budget: Budget) -> Stage:
    """Return RFT with as many completions as GRPO draws, in the default number of rounds."""
    rounds = min(RFT.model_fields["rounds"].default, budget.grpo_steps)
    return RFT(
        init=init,
        prompt_role=ROLE,
        rounds=rounds,
        prompts_per_round=budget.grpo_steps * budget.grpo_prompts_per_step // rounds,
        group_size=budget.grpo_group_size,
        sampler=budget.sampler,
        optimiser=budget.grpo,
        seed=init.chain_seed,
    )
