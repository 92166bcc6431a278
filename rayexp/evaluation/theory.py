"""The gain that theory predicts for GRPO, as functions of Q: the mass the reference gives to correct completions.

The maximiser of E[R] - beta KL(pi || q) over all policies is q tilted by exp(R / beta). For a binary reward it is
described by one number for each prompt, and everything here follows from it (notes on the paper, section 8; s is
exp(1/beta) throughout). The statements are about the optimum for one prompt by itself: a network shares its weights
among prompts and stops after finitely many steps, so that it may end on either side of them.
"""

import numpy as np
from scipy.special import expit, logit


def tilted(q: np.ndarray, beta: float) -> np.ndarray:
    """P* = s Q / (s Q + 1 - Q), the correct mass of the optimum; its logit is that of Q plus 1/beta."""
    with np.errstate(divide="ignore"):
        return expit(logit(np.asarray(q, dtype=float)) + 1 / beta) if beta > 0 else (np.asarray(q) > 0).astype(float)


def paper_bound(q: np.ndarray, beta: float) -> np.ndarray:
    """The paper's Theorem 1 as a bound on P: Q + (s - 1) Q = s Q, at most 1. Vacuous where Q > 1/s."""
    with np.errstate(over="ignore", divide="ignore"):
        return np.minimum(1.0, np.exp(np.log(np.asarray(q, dtype=float)) + 1 / beta)) if beta > 0 else np.ones_like(q)


def gain(q: np.ndarray, beta: float) -> np.ndarray:
    """P* - Q; zero at 0 and at 1."""
    return tilted(q, beta) - q


def peak(beta: float) -> tuple[float, float]:
    """Q at which the gain is largest, 1 / (1 + exp(1/(2 beta))), and that gain, tanh(1/(4 beta)); their limits at 0."""
    if beta == 0:
        return 0.0, 1.0
    return float(expit(-0.5 / beta)), float(np.tanh(0.25 / beta))
