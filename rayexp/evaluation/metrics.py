"""Summaries of per-prompt measurements, with intervals.

Prompts of one run share its weights, so the clusters are runs (seeds): intervals of means resample seeds first, then
prompts within each seed.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import gammaln
from scipy.stats import binomtest

#: Random numbers that a bootstrap holds in memory at once. A study of paper scale needs a hundred times as many.
DRAWS_AT_ONCE = 2**22
#: An interval that covers more than this share of the possible range decides nothing.
TELLS_LITTLE = 0.75


def pass_at_k(q: np.ndarray, k: int) -> np.ndarray:
    """Return 1 - (1 - Q)^k for each prompt: exact, for any k."""
    with np.errstate(divide="ignore"):
        return -np.expm1(k * np.log1p(-np.asarray(q, dtype=float)))


def pass_at_k_sampled(sampled: int, correct: np.ndarray, k: int) -> np.ndarray:
    """Return the unbiased estimate 1 - C(n-c, k) / C(n, k) from c = ``correct`` of n = ``sampled`` completions (Chen et
    al., 2021).

    Raises ValueError if k is larger than ``sampled``, because then there is no unbiased estimate.
    """
    if not 1 <= k <= sampled:
        raise ValueError(f"k={k} should be from 1 to {sampled}, the number of sampled completions")
    wrong = sampled - np.asarray(correct, dtype=float)
    enough = wrong >= k
    safe = np.where(enough, wrong, k)
    log_miss = gammaln(safe + 1) - gammaln(safe - k + 1) - gammaln(sampled + 1) + gammaln(sampled - k + 1)
    return np.where(enough, 1 - np.exp(log_miss), 1.0)


@dataclass(frozen=True)
class Interval:
    """A mean with a 95 % interval, over ``seeds`` runs of ``prompts`` prompts in all. possible: limits of the mean."""

    mean: float
    low: float
    high: float
    seeds: int
    prompts: int
    possible: tuple[float, float] = (-math.inf, math.inf)

    def within(self, possible: tuple[float, float]) -> "Interval":
        """Return the interval, cut to a possible range."""
        low, high = max(self.low, possible[0]), min(self.high, possible[1])
        return replace(self, low=float(min(low, self.mean)), high=float(max(high, self.mean)), possible=possible)

    @property
    def undecided(self) -> bool:
        """Return whether it covers so much of the possible range that it is uninformative."""
        return self.high - self.low > TELLS_LITTLE * (self.possible[1] - self.possible[0])

    def __format__(self, spec: str) -> str:
        """Return the mean and the interval as text; an uninformative interval is not shown. spec: format of each
        number."""
        spec = spec or ".3g"
        if self.undecided:
            return f"{self.mean:{spec}} ({self.uncertain})"
        return f"{self.mean:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"

    @property
    def uncertain(self) -> str:
        """Return the text that stands in place of an uninformative interval."""
        return f"uncertain with {self.seeds} seed{'' if self.seeds == 1 else 's'}"

    def __str__(self) -> str:
        return format(self)


def cluster_bootstrap(clusters: list[np.ndarray], resamples: int = 2000, level: float = 0.95) -> Interval:
    """Return the percentile interval of the mean over prompts, resampling clusters (seeds), then prompts within each.

    With one cluster only the prompts vary, so the interval does not cover the variation between seeds.
    """
    if not clusters or any(len(cluster) == 0 for cluster in clusters):
        raise ValueError("a bootstrap needs at least one cluster and no empty one")
    rng = np.random.default_rng(0)
    # Draw many bootstrap means of each cluster. A resample then picks clusters, and for each pick one of its means.
    boot = np.concatenate([_resampled_means(np.asarray([each], dtype=float), resamples, rng) for each in clusters])
    sizes = np.array([len(cluster) for cluster in clusters], dtype=float)
    chosen = rng.integers(len(clusters), size=(resamples, len(clusters)))
    weights = sizes[chosen]
    columns = rng.integers(resamples, size=chosen.shape)
    means = (boot[chosen, columns] * weights).sum(axis=1) / weights.sum(axis=1)
    low, high = _quantiles(means, level)
    values = np.concatenate(clusters)
    return Interval(float(values.mean()), float(low), float(high), len(clusters), len(values))


def bootstrap_each(clusters: list[np.ndarray], resamples: int = 2000, level: float = 0.95) -> np.ndarray:
    """Return the ends of ``cluster_bootstrap([cluster])`` for each cluster, [clusters, 2]: equal up to rounding, in a
    fraction of its time."""
    ends, sizes = np.empty((len(clusters), 2)), np.array([len(cluster) for cluster in clusters])
    at_once = DRAWS_AT_ONCE // resamples
    for alike in (np.flatnonzero(sizes == size) for size in np.unique(sizes)):
        for some in (alike[start : start + at_once] for start in range(0, len(alike), at_once)):
            rng = np.random.default_rng(0)
            means_GR = _resampled_means(np.stack([clusters[each] for each in some]), resamples, rng)
            rng.integers(1, size=(resamples, 1))  # cluster_bootstrap draws clusters here; without it the ends differ
            ends[some] = _quantiles(means_GR[:, rng.integers(resamples, size=resamples)], level).T
    return ends


def _resampled_means(values_GN: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return means of each row over resampled columns, the same columns for every row: [G, resamples]."""
    n = values_GN.shape[1]
    at_once = max(1, DRAWS_AT_ONCE // n)
    draws = (rng.integers(n, size=(min(at_once, resamples - start), n)) for start in range(0, resamples, at_once))
    return np.concatenate([values_GN @ _counts(drawn).T / n for drawn in draws], axis=1)


def _counts(drawn_RN: np.ndarray) -> np.ndarray:
    """Return how often each resample has drawn each of N columns."""
    resamples, n = drawn_RN.shape
    cell = drawn_RN + n * np.arange(resamples)[:, None]
    return np.bincount(cell.ravel(), minlength=resamples * n).reshape(resamples, n).astype(float)


def _quantiles(means: np.ndarray, level: float) -> np.ndarray:
    """Return the ends of the percentile interval along the last axis."""
    return np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=-1)


def wilson(successes: int, trials: int) -> Interval:
    """Return a proportion with its 95 % Wilson interval."""
    low, high = binomtest(successes, trials).proportion_ci(method="wilson")
    return Interval(successes / trials, float(low), float(high), 1, trials)
