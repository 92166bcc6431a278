"""The gain that theory predicts for GRPO, as a function of Q, the mass that the reference gives to correct completions.

The maximiser of E[R] - beta KL(pi || q) over all policies is q tilted by exp(R / beta). For a binary reward one number
describes it for each prompt, and everything here follows from that number (notes on the paper, section 8; s is
exp(1/beta) throughout). These formulas hold for the optimum of a single prompt. A network shares its weights among
prompts and stops after finitely many steps, so it may end above or below them.
"""

import numpy as np
from scipy.special import expit, logit


def tilted(q: np.ndarray, beta: float) -> np.ndarray:
    """Return P* = s Q / (s Q + 1 - Q), the correct mass of the optimum. Its logit is that of Q plus 1/beta."""
    with np.errstate(divide="ignore"):
        return expit(logit(np.asarray(q, dtype=float)) + 1 / beta) if beta > 0 else (np.asarray(q) > 0).astype(float)


def paper_bound(q: np.ndarray, beta: float) -> np.ndarray:
    """Return the bound on P by the paper's Theorem 1: Q + (s - 1) Q = s Q, at most 1. It is vacuous if Q > 1/s."""
    with np.errstate(over="ignore", divide="ignore"):
        return np.minimum(1.0, np.exp(np.log(np.asarray(q, dtype=float)) + 1 / beta)) if beta > 0 else np.ones_like(q)


def gain(q: np.ndarray, beta: float) -> np.ndarray:
    """Return P* - Q, which is zero at Q = 0 and at Q = 1."""
    return tilted(q, beta) - q


def peak(beta: float) -> tuple[float, float]:
    """Return the Q with the largest gain, 1 / (1 + exp(1/(2 beta))), and that gain, tanh(1/(4 beta)). At beta 0 return
    their limits."""
    if beta == 0:
        return 0.0, 1.0
    return float(expit(-0.5 / beta)), float(np.tanh(0.25 / beta))
