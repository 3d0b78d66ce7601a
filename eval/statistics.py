"""Is one model better than another, or was it chance? Intervals and p-values of a difference, over examples and seeds;
and of the share that one model has of what another gains.

The examples of a test and the seeds of a training are both samples. Examples are many, so they are drawn again
(bootstrap: Efron 1979) or exchanged between the two models (permutation: Noreen 1989; Yeh 2000, arXiv:cs/0008005), the
same for all seeds and both models. Seeds are few: drawn again as in the multi-bootstrap (Sellam et al. 2022,
arXiv:2106.16163), three of them give intervals of 95 % that hold the truth in 81 % of cases where training is what
varies, and in 99.7 % where only single answers do; and examples exchanged alone call half of all equal models different
in the first case. So what seeds add beyond the examples is estimated and added with Student's t, whose tails know how
few they are.

R draws, S seeds, E examples, C counts of one (metrics.py), K columns.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.optimize import root_scalar

DRAWS = 10_000
AT_ONCE = 2**22  # draws times examples in memory
CONFIDENCE = 0.95
FURTHEST = 2**10  # a share whose interval reaches so far is none

Value = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Difference:
    """A model's metric less another's, mean over seeds; and what it would be with other examples and seeds, and were
    the two the same."""

    measured: float
    drawn_R: np.ndarray
    null_R: np.ndarray

    @property
    def interval(self) -> tuple[float, float]:
        """The middle 95 % of what it would be."""
        return _middle(self.drawn_R)

    @property
    def p(self) -> float:
        """How often equal models would differ as much, either way round. Never 0: what was measured counts as one."""
        as_much = np.abs(self.null_R) >= abs(self.measured) - 1e-12
        return float((1 + as_much.sum()) / (1 + len(as_much)))


def difference(counts_SEC: np.ndarray, others_SEC: np.ndarray, value: Value, seed: int = 0) -> Difference:
    """Of two models with the same seeds and examples, from their counts; `value` is a metric's."""
    random = np.random.default_rng(seed)
    measured_S = value(counts_SEC.sum(1)) - value(others_SEC.sum(1))
    both = np.concatenate([counts_SEC, others_SEC])
    drawn = [value(sums) for sums in _sums(_again(random, both.shape[1]), both)]
    drawn_RS = np.concatenate([np.subtract(*np.split(values, 2, axis=1)) for values in drawn])
    gain_SC, loss_SC = counts_SEC.sum(1), others_SEC.sum(1)
    swapped = _sums(_exchanged(random, both.shape[1]), others_SEC - counts_SEC)
    null_R = np.concatenate([(value(gain_SC + sums) - value(loss_SC - sums)).mean(1) for sums in swapped])
    noise_R = _seed_noise(random, measured_S, drawn_RS)
    return Difference(float(measured_S.mean()), drawn_RS.mean(1) + noise_R, null_R + noise_R)


def average(differences: Sequence[Difference]) -> Difference:
    """Of the averages over tasks, whose examples and trainings are apart."""
    return Difference(
        float(np.mean([each.measured for each in differences])),
        np.mean([each.drawn_R for each in differences], axis=0),
        np.mean([each.null_R for each in differences], axis=0),
    )


@dataclass(frozen=True)
class Gains:
    """What a model has over a host and what a donor has, on a metric, by seed; and what both would be on other
    examples, the same for all three. `seed` is that of draws."""

    measured_2S: np.ndarray
    drawn_2RS: np.ndarray | None = None  # None: there are no predictions
    seed: int = 0

    def drawn(self, weight_2: Sequence[float]) -> np.ndarray:
        """The sum of the two, with these weights, with other examples and seeds, [R]."""
        assert self.drawn_2RS is not None, "asked where there are predictions"
        measured_S, drawn_RS = (np.tensordot(weight_2, each, 1) for each in (self.measured_2S, self.drawn_2RS))
        return drawn_RS.mean(1) + _seed_noise(np.random.default_rng([self.seed, 1]), measured_S, drawn_RS)


class Share(NamedTuple):
    """The part of a donor's gain that a model has; None where it cannot be told, for the gain may be 0."""

    gain: float  # the donor's
    measured: float | None
    interval: tuple[float, float] | None  # None without predictions, too


def gains(counts_SEC: np.ndarray, donor_SEC: np.ndarray, host_SEC: np.ndarray, value: Value, seed: int = 0) -> Gains:
    """Of a model and a donor over a host, all with the same seeds and examples, from their counts."""
    every = np.concatenate([counts_SEC, donor_SEC, host_SEC])
    sums = _sums(_again(np.random.default_rng(seed), every.shape[1]), every)
    drawn = np.split(np.concatenate([value(each) for each in sums]), 3, axis=1)
    measured = np.split(value(every.sum(1)), 3)
    measured_2S, drawn_2RS = (np.stack([own - host, donor - host]) for own, donor, host in (measured, drawn))
    return Gains(measured_2S, drawn_2RS, seed)


def share(tasks: Sequence[Gains]) -> Share:
    """The mean gain of a model over tasks as a share of the donor's, and the 95 % interval of it: those shares s for
    which the gain less s times the donor's may be 0 (Fieller 1954). Where the donor's may be 0 any share might be, and
    none is given."""
    gain, donors = np.mean([each.measured_2S.mean(1) for each in tasks], axis=0).tolist()
    measured = gain / donors if donors else None
    if measured is None or any(each.drawn_2RS is None for each in tasks):
        return Share(donors, measured, None)

    def left(s: float) -> tuple[float, float]:
        weight_2 = (1, -s) if donors > 0 else (-1, s)  # falls with s
        return _middle(np.mean([each.drawn(weight_2) for each in tasks], axis=0))

    reach = 1
    while left(measured - reach)[0] <= 0 or left(measured + reach)[1] >= 0:
        if (reach := 2 * reach) > FURTHEST:
            return Share(donors, None, None)
    within = (measured - reach, measured + reach)
    low, high = (float(root_scalar(lambda s, end=end: left(s)[end], bracket=within, xtol=1e-6).root) for end in (0, 1))
    return Share(donors, measured, (low, high))


def _middle(drawn_R: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(drawn_R, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _seed_noise(random: np.random.Generator, measured_S: np.ndarray, drawn_RS: np.ndarray) -> np.ndarray:
    """What other seeds would add to a mean over seeds, [R]: the variance between seeds less what examples explain of
    it. Of one seed nothing is known, and nothing added."""
    seeds = len(measured_S)
    if seeds == 1:
        return np.zeros(len(drawn_RS))
    by_examples = (drawn_RS - drawn_RS.mean(1, keepdims=True)).var(0).sum() / (seeds - 1)
    by_seeds = max(0.0, measured_S.var(ddof=1) - by_examples)
    return np.sqrt(by_seeds / seeds) * random.standard_t(seeds - 1, len(drawn_RS))


def _again(random: np.random.Generator, examples: int) -> Iterator[np.ndarray]:
    """How often each example is drawn, draws with replacement, [some of R, E]."""
    for draws in _portions(examples):
        first = examples * np.arange(draws)[:, None]
        drawn = random.integers(examples, size=(draws, examples), dtype=np.int32) + first
        yield np.bincount(drawn.ravel(), minlength=draws * examples).reshape(draws, examples)


def _exchanged(random: np.random.Generator, examples: int) -> Iterator[np.ndarray]:
    """Whether the two models change places in each example, [some of R, E]."""
    for draws in _portions(examples):
        bits = np.unpackbits(np.frombuffer(random.bytes(-(-draws * examples // 8)), np.uint8), count=draws * examples)
        yield bits.reshape(draws, examples)


def _portions(examples: int) -> Iterator[int]:
    at_once = max(1, AT_ONCE // max(1, examples))
    for start in range(0, DRAWS, at_once):
        yield min(at_once, DRAWS - start)


def _sums(weights: Iterator[np.ndarray], counts_SEC: np.ndarray) -> Iterator[np.ndarray]:
    """Sums over examples with these weights, [some of R, S, C]; exact, for sums of counts are below 2^24."""
    seeds, examples, columns = counts_SEC.shape
    flat_EK = counts_SEC.transpose(1, 0, 2).reshape(examples, -1).astype(np.float32)
    for weight_RE in weights:
        yield (weight_RE.astype(np.float32) @ flat_EK).astype(float).reshape(-1, seeds, columns)


def over_seeds(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's 95 % interval of the mean of so many seeds; None where there is one."""
    if len(values) < 2:
        return None
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, each such that all below 0.05 are, with all others, no chance finds in 95 % of cases
    (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    ranked = np.asarray(p_values, float)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(ranked))
    return adjusted.tolist()
