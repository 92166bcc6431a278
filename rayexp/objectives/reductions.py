"""Reductions: from a number for each token of a completion to one for each sequence.

Shape suffixes: _N sequences, _C tokens of a completion.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

#: Divisor of ``token_sum``. Dr. GRPO's authors divide by the largest number of tokens of a completion. It is 1 here,
#: because Adam cancels any constant, apart from its epsilon and the clip of the gradient's norm.
TOKEN_SUM_DIVISOR = 1


def masked(values_NC: "Tensor", mask_NC: "Tensor") -> "Tensor":
    """Replace values under the mask by 0.

    A product with the mask would not be enough. Log-ratios at padding are unbounded, so their exponentials can
    overflow, and infinity times 0 is NaN, in the value or in the gradient.
    """
    return values_NC.where(mask_NC > 0, 0.0)


def sequence_sum(values_NC: "Tensor", mask_NC: "Tensor") -> "Tensor":
    """Return the sum over the tokens of each sequence: [N]."""
    return masked(values_NC, mask_NC).sum(dim=1)


def token_sum(values_NC: "Tensor", mask_NC: "Tensor") -> "Tensor":
    """Return the sum over the tokens of each sequence, divided by ``TOKEN_SUM_DIVISOR`` (Dr. GRPO): [N]."""
    return sequence_sum(values_NC, mask_NC) / TOKEN_SUM_DIVISOR


def sequence_mean(values_NC: "Tensor", mask_NC: "Tensor") -> "Tensor":
    """Return the mean over the tokens of each sequence (GRPO): [N]."""
    return sequence_sum(values_NC, mask_NC) / mask_NC.sum(dim=1).clamp(min=1)


REDUCTIONS: dict[str, Callable[["Tensor", "Tensor"], "Tensor"]] = {
    "sequence_mean": sequence_mean,
    "token_sum": token_sum,
}
