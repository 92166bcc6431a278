"""The fixed point of GRPO as it is run: the P at which the push of the reward and the pull of the KL cancel.

``theory`` describes the maximiser of E[R] - beta KL(pi || q). GRPO climbs something else if it divides rewards by the
standard deviation of their group, or if the KL of each token is a term of the loss. Both move the fixed point of a
single prompt, even if prompts share no weights.

One prompt has one right completion. q_t is the reference's mass of its token t after the right tokens before it, pi_t
is the policy's, and Q and P are their products. In expectation over groups the reward has the gradient c(P) dP, where c
(``effect``) depends on the advantage and the size of the group. The KL pulls back in one of two ways:

    in the loss     the KL of a prefix pulls on that prefix alone, not on earlier ones. So, from the last token
                    backwards, logit pi_t = logit q_t + c(P) V / beta, with V the product of pi after t
    in the reward   the KL of the whole completion has the factor c as well. If c is constant it cancels, and
                    logit P = logit Q + 1 / beta, the tilt of ``theory``

The mean over the tokens of a completion divides both terms alike if completions are equally long, so it moves nothing.

Shape suffixes: _N prompts, _T tokens of a completion, _M values of P, _K hits in a group.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, gammaln, xlog1py, xlogy

from rayexp.evaluation.theory import tilted
from rayexp.rewards.answer import Answer
from rayexp.stages import GRPO, Stage

#: Advantages whose effect is known.
COVERED = GROUP_STD, MEAN_ONLY, LEAVE_ONE_OUT = "group_std", "mean_only", "leave_one_out"
#: The reason why neither this theory nor the paper's applies to the Q that a stage started from.
OTHER_REFERENCE = "the reference is not what the stage started from"
#: Logits of P, from P = 1/2 up, between which a change of the sign of F(P) - P is searched. Below 1/2 one bracket is
#: enough: c falls with P there, so F(P) = P has at most one solution.
UPPER_LOGITS_M = np.linspace(0, 36, 145)
#: Halvings of a bracket: enough to shrink the longest, some hundred nats, below 1e-12.
HALVINGS = 50
#: Numbers that are held in memory at the same time.
AT_ONCE = 2**22


@dataclass(frozen=True)
class StablePoints:
    """Masses P to which GRPO returns after a small push. If a prompt has several, the start decides among them.

    lowest_N: each prompt's lowest. GRPO reaches it from Q, because none lies below Q. highest_N: each prompt's highest;
    equal to the lowest if there is only one.
    """

    lowest_N: np.ndarray
    highest_N: np.ndarray


def effect(p_M: np.ndarray, advantage: str, group_size: int) -> np.ndarray:
    """Return c of ``c(P) dP``, the expected gradient of the reward in GRPO's group advantages.

    A group of G has K ~ Binomial(G, P) hits. ``group_std`` gives E[sqrt(K (G - K))] / (G P (1 - P)), whose limits at 0
    and 1 are sqrt(G - 1); ``mean_only`` 1 - 1/G; ``leave_one_out`` 1. Raises KeyError on another advantage.
    """
    p_M = np.asarray(p_M, dtype=float)
    if advantage != GROUP_STD:
        return np.full_like(p_M, {MEAN_ONLY: 1 - 1 / group_size, LEAVE_ONE_OUT: 1.0}[advantage])
    hits_K, p_M1 = np.arange(1, group_size), p_M[..., None]
    log_groups_K = gammaln(group_size + 1) - gammaln(hits_K + 1) - gammaln(group_size - hits_K + 1)
    # Dividing the binomial probabilities by P (1 - P) leaves a polynomial without poles.
    log_weights_MK = log_groups_K + xlogy(hits_K - 1, p_M1) + xlog1py(group_size - hits_K - 1, -p_M1)
    return np.exp(log_weights_MK) @ np.sqrt(hits_K * (group_size - hits_K)) / group_size


def stationary_mass(log_q_NT: np.ndarray, shift_NM: np.ndarray) -> np.ndarray:
    """Return P of the stationary policy for a fixed c and a KL in the loss, by the recursion from the last token.

    log_q_NT: log-masses of the tokens under the reference, 0 behind the end of shorter completions. shift_NM: c / beta,
    in any shape that broadcasts against [N, M].
    """
    log_q_NT = np.minimum(log_q_NT, 0.0)
    with np.errstate(divide="ignore"):
        logit_q_NT = log_q_NT - np.log(-np.expm1(log_q_NT))
    p_NM = np.ones(np.broadcast_shapes((len(log_q_NT), 1), shift_NM.shape))
    for logit_q_N in logit_q_NT.T[::-1]:
        p_NM = p_NM * expit(logit_q_N[:, None] + shift_NM * p_NM)
    return p_NM


def stable_points(log_q_NT: np.ndarray, beta: float, advantage: str, group_size: int) -> StablePoints:
    """Return the stable P of each prompt with a KL in the loss.

    P is stable if F(P) = P, F > P just below it and F < P just above it, where F(P) is ``stationary_mass`` at c(P).
    log_q_NT: as for ``stationary_mass``. beta: above 0.
    """
    if advantage != GROUP_STD:
        shift_11 = effect(np.zeros((1, 1)), advantage, group_size) / beta
        p_N = stationary_mass(log_q_NT, shift_11)[:, 0]
        return StablePoints(p_N, p_N)
    lowest_N, highest_N = np.empty((2, len(log_q_NT)))
    rows = max(1, AT_ONCE // max(len(UPPER_LOGITS_M), group_size))
    for part in (slice(start, start + rows) for start in range(0, len(log_q_NT), rows)):
        lowest_N[part], highest_N[part] = _searched(log_q_NT[part], beta, group_size)
    return StablePoints(lowest_N, highest_N)


def _searched(log_q_NT: np.ndarray, beta: float, group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and the highest stable P of each prompt if c depends on P."""
    below = min(-1.0, float(np.minimum(log_q_NT, 0).sum(axis=1).min()) - 1)
    grid_M = np.array([below, *UPPER_LOGITS_M])
    rises_NM = _rises(log_q_NT, grid_M[None], beta, group_size)
    # Grid indices of the first fall, and of the place above the last rise. Up to rounding, a Q of 0 never rises and a Q
    # of 1 never falls.
    first_N = np.where(rises_NM.all(axis=1), len(grid_M) - 1, (~rises_NM).argmax(axis=1)).clip(min=1)
    last_N = np.where(rises_NM.any(axis=1), len(grid_M) - rises_NM[:, ::-1].argmax(axis=1), 1)
    last_N = last_N.clip(first_N, len(grid_M) - 1)
    lowest_N = _halved(log_q_NT, grid_M[first_N - 1], grid_M[first_N], beta, group_size)
    several, highest_N = last_N > first_N, lowest_N.copy()
    ends = grid_M[last_N[several] - 1], grid_M[last_N[several]]
    highest_N[several] = _halved(log_q_NT[several], *ends, beta, group_size)
    return lowest_N, highest_N


def _halved(log_q_NT: np.ndarray, low_N: np.ndarray, high_N: np.ndarray, beta: float, group_size: int) -> np.ndarray:
    """Return each prompt's stable P between two logits of P, by bisection."""
    for _ in range(HALVINGS):
        middle_N = (low_N + high_N) / 2
        up_N = _rises(log_q_NT, middle_N[:, None], beta, group_size)[:, 0]
        low_N, high_N = np.where(up_N, middle_N, low_N), np.where(up_N, high_N, middle_N)
    return expit(high_N)


def _rises(log_q_NT: np.ndarray, logit_p_NM: np.ndarray, beta: float, group_size: int) -> np.ndarray:
    """Return a boolean array: F(P) > P."""
    p_NM = expit(logit_p_NM)
    return stationary_mass(log_q_NT, effect(p_NM, GROUP_STD, group_size) / beta) > p_NM


def beyond_theory(stage: Stage) -> str:
    """Return why the fixed point of a stage is unknown, as the end of a sentence; '' if it is known."""
    if not isinstance(stage, GRPO):
        return "only GRPO has one"
    estimators = {"loss": ("exact", "k2"), "reward": ("exact", "k1")}[stage.kl_in]
    reasons = {
        "without a KL penalty nothing holds P below 1": stage.kl_beta == 0,
        OTHER_REFERENCE: stage.reference_stage.id != stage.init.id,
        "several completions are right": not stage.root.task.unique,
        "the reward is another one than the answer alone": stage.rewards != (Answer(),),
        "hints give a part of the right completion": stage.hint_tokens > 0,
        "completions are drawn at another temperature than Q is measured at": stage.temperature != 1,
        "completions that were cut off are left out": stage.mask_truncated,
        f"the filter {stage.filter} chooses what is learnt from": stage.filter != "none",
        "the clip acts where a batch is updated on several times": stage.updates > 1,
        "the clip acts where rollouts are stale": stage.staleness > 0,
        f"the gradient of {stage.kl_estimator} in the {stage.kl_in} is not that of the KL": stage.kl_estimator
        not in estimators,
        "a KL in the reward is divided by the deviation of the group": (stage.kl_in, stage.advantage)
        == ("reward", GROUP_STD),
        "a learned critic is the baseline, and what it has learnt by then is not known": stage.has_critic,
        f"the effect of the advantage {stage.advantage} is not known": stage.advantage not in COVERED,
    }
    return next((reason for reason, applies in reasons.items() if applies), "")


def fixed_points(stage: GRPO, log_q_NT: np.ndarray) -> StablePoints:
    """Return the fixed points of each prompt in a GRPO stage. The theory has to cover the stage (``beyond_theory``).

    log_q_NT: log-masses of the tokens of the right completion at the stage's init, 0 behind the end of shorter ones.
    """
    if stage.kl_in == "loss":
        return stable_points(log_q_NT, stage.kl_beta, stage.advantage, stage.group_size)
    p_N = tilted(np.exp(np.minimum(log_q_NT, 0).sum(axis=1)), stage.kl_beta)
    return StablePoints(p_N, p_N)
