"""Estimators of the KL from a policy p to its reference q, at the prefixes that p visited (y is the sampled token):

    exact  sum_v p(v) (log p(v) - log q(v))      value exact at each prefix, no sampling noise over v
    k1     log p(y) - log q(y)                   unbiased value, any sign
    k2     (log p(y) - log q(y))^2 / 2           biased value
    k3     q(y)/p(y) - 1 - log(q(y)/p(y))        unbiased value, never negative

In the loss the estimators are differentiated directly. In the reward the estimate is a number that is subtracted from
the sequence's reward. Their gradients in expectation, with p and q at a prefix, and P and Q over completions:

             in the loss                  in the reward, times 1 - 1/G
    exact    of KL(p||q) at each prefix   of KL(P||Q) through the choice of the visited prefixes alone
    k1       zero                         of KL(P||Q), in full
    k2       of KL(p||q) at each prefix
    k3       of KL(q||p) at each prefix   of KL(P||Q), less that of KL(q||p) at each prefix

None in the loss accounts for the policy's choice of the prefixes that it visits. ``exact`` in the reward lacks the
gradient at each prefix, so a loss term with the same scale adds it: the sum is the gradient of k1, with less noise.

The group's mean as baseline leaves 1 - 1/G of every gradient through the reward, including that of the task's reward.
With leave-one-out advantages the factor is 1. It is also 1 with a critic, whose advantages charge each token for the KL
from that token on. tests/unit/objectives proves all of this by enumeration.

Shape suffixes: _N sequences, _C tokens of a completion, _V vocabulary.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from rayexp.objectives.reductions import masked

if TYPE_CHECKING:
    from torch import Tensor


def exact(policy_NCV: "Tensor", reference_NCV: "Tensor", mask_NC: "Tensor") -> "Tensor":
    """Return the KL at each prefix, summed over the vocabulary."""
    # The log-ratio's own gradient is sum_v grad p(v) = 0. Autograd would turn it into rounding noise, and Adam would
    # amplify that to full steps. Without it, a policy that equals its reference gets a gradient of exactly zero.
    log_ratio_NCV = masked((policy_NCV - reference_NCV).detach(), mask_NC[..., None])
    return (policy_NCV.exp() * log_ratio_NCV).sum(dim=-1)


def k1(log_ratio_NC: "Tensor") -> "Tensor":
    """Return the log-ratio itself."""
    return log_ratio_NC


def k2(log_ratio_NC: "Tensor") -> "Tensor":
    """Return half the square of the log-ratio."""
    return log_ratio_NC.square() / 2


def k3(log_ratio_NC: "Tensor") -> "Tensor":
    """Return exp(-log-ratio) - 1 + log-ratio."""
    return (-log_ratio_NC).expm1() + log_ratio_NC


#: Estimators from the log-probabilities of policy and reference over the vocabulary, and the mask.
OVER_VOCABULARY: dict[str, Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]] = {
    "exact": exact,
}
#: Estimators from the log-ratio of the sampled token, log p(y) - log q(y), which is 0 under the mask.
OF_SAMPLED_TOKEN: dict[str, Callable[["Tensor"], "Tensor"]] = {
    "k1": k1,
    "k2": k2,
    "k3": k3,
}
ESTIMATORS = OVER_VOCABULARY | OF_SAMPLED_TOKEN


def kl_to_reference(
    policy_NCV: "Tensor", reference_NCV: "Tensor", tokens_NC: "Tensor", mask_NC: "Tensor", estimator: str
) -> "Tensor":
    """Return kl_NC by the named estimator, from log-probabilities over the vocabulary; 0 under the mask."""
    if estimator in OVER_VOCABULARY:
        return OVER_VOCABULARY[estimator](policy_NCV, reference_NCV, mask_NC)
    index_NC1 = tokens_NC[..., None]
    log_ratio_NC = (policy_NCV.gather(-1, index_NC1) - reference_NCV.gather(-1, index_NC1)).squeeze(-1)
    return OF_SAMPLED_TOKEN[estimator](masked(log_ratio_NC, mask_NC))
