"""Test whether one network is better than another, by paired statistics of which videos each has right, over seeds.

Both networks are tested on the same videos, so only the videos on which they differ count. Arrays are bool [S, V]: S seeds,
paired by their number, and V videos.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

NUM_DRAWS = 10_000
ENTRIES_AT_ONCE = 2**22  # drawn by a bootstrap


@dataclass(frozen=True)
class PairedDifference:
    """The advantage of A over B, in points of top-1.

    mean, of_seeds: over all seeds, and of each.
    low, high: ends of the bootstrap's 95 % interval of the mean.
    mcnemar: exact p-value of each seed's pair of networks, which tells whether these two differ, and nothing about other
    seeds. There is none for all seeds together, whose videos are not independent: it would find every second or third pair
    of networks different that differ only in their seeds.
    """

    mean: float
    low: float
    high: float
    of_seeds: tuple[float, ...]
    mcnemar: tuple[float, ...]


def paired_difference(a: np.ndarray, b: np.ndarray, *, num_draws: int = NUM_DRAWS) -> PairedDifference:
    """Compare networks by the videos that each has right, bool [S, V]; deterministic."""
    difference = a.astype(np.int8) - b.astype(np.int8)
    low, high = np.quantile(bootstrap_means(difference, num_draws=num_draws), [0.025, 0.975])
    return PairedDifference(
        mean=100 * float(difference.mean()),
        low=100 * float(low),
        high=100 * float(high),
        of_seeds=tuple((100 * difference.mean(axis=1)).tolist()),
        mcnemar=tuple(mcnemar(*pair) for pair in zip(a, b, strict=True)),
    )


def bootstrap_means(values: np.ndarray, *, num_draws: int = NUM_DRAWS, seed: int = 0) -> np.ndarray:
    """Draw means of values [S, V] whose seeds and videos are resampled with replacement, independently of each other.

    The bootstrap of two crossed factors (Owen 2007, The pigeonhole bootstrap, arXiv:0712.1111). S seeds drawn from S show
    only (S - 1) / S of the variance between seeds, which matters if they are few: S - 1 are drawn (Rao and Wu 1988), or one.
    """
    rng = np.random.default_rng(seed)
    num_seeds, num_videos = values.shape
    num_drawn = max(num_seeds - 1, 1)
    # instead of videos, draw how many there are of each pattern over the seeds: there are few patterns
    patterns, counts = np.unique(values, axis=1, return_counts=True)
    means = []
    for size in _parts(num_draws, max(ENTRIES_AT_ONCE // len(counts), 1)):
        seeds = rng.multinomial(num_drawn, np.full(num_seeds, 1 / num_seeds), size=size)  # how often each seed is drawn
        videos = rng.multinomial(num_videos, counts / num_videos, size=size)
        means.append(((seeds @ patterns) * videos).sum(axis=1) / (num_drawn * num_videos))
    return np.concatenate(means)


def mcnemar(a: np.ndarray, b: np.ndarray) -> float:
    """Compute the two-sided p-value of McNemar's exact test, in which each network is equally likely to be the right one."""
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    num, fewer = only_a + only_b, min(only_a, only_b)
    term = total = 1  # comb(num, 0); integers of any length are exact
    for k in range(fewer):
        term = term * (num - k) // (k + 1)
        total += term
    return min(1.0, 2 * total / 2**num)


def _parts(total: int, size: int) -> Iterator[int]:
    while total > 0:
        yield min(size, total)
        total -= size
