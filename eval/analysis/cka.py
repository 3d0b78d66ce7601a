"""How alike two sets of states are: linear CKA (Kornblith et al. 2019, arXiv:1905.00414), plain and debiased.

With products K and L of centred states, text by text, CKA is HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)). Plainly HSIC is
tr(KL): of fewer texts than dimensions that makes independent states alike. Debiased it is the estimator of Song et al.
2012 (JMLR 13:1393), as Nguyen et al. 2020 use it (arXiv:2010.15327, equation 3), with K and L without their
diagonals: (tr(KL) + 1'K1 1'L1 / (n - 1)(n - 2) - 2 1'KL1 / (n - 2)) / n(n - 3).

All is float64: squares of squares of large states are beyond float32.

N layers, T texts, D width, R draws of texts, S estimators: plain, debiased.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from eval.linear_probe import SAME
from eval.statistics import CONFIDENCE
from eval.tasks.splits import SEED

ESTIMATORS = ("plain", "debiased")
DRAWS = 1000
ROUNDING = 1e-12  # 1 - CKA of equal states, at most: nothing is set in proportion to it
LEAST_TEXTS, LEAST_FOR_INTERVALS = 4, 20  # a debiased HSIC divides by n - 3, also of half of the texts
MASSIVE_DEVIATION, MOST_MASSIVE = 10, 8  # times the median of a layer's dimensions; of a layer


class Products(NamedTuple):
    """Of one layer of a model: products of all texts, and for each draw their sums by text and HSIC with itself."""

    product_TT: np.ndarray
    sum_RT: np.ndarray
    own_RS: np.ndarray


def draws(texts: int) -> np.ndarray:
    """Which texts are drawn, 1 or 0, [R, T]: first all of them, then each time another half, where they suffice for an
    interval.

    Halves without a text twice: such a pair would be alike by itself, which is the bias that is to be left out. What n
    / 2 of n vary around the estimate has the variance of the estimate (the half-sample bootstrap: McCarthy 1969). Where
    dimensions of like variance are more than texts, the debiased one varies more than that: intervals are too wide."""
    every_1T = np.ones((1, texts))
    if texts < LEAST_FOR_INTERVALS:
        return every_1T
    order_RT = np.random.default_rng(SEED).random((DRAWS, texts)).argsort(1)
    return np.concatenate([every_1T, order_RT < texts // 2])


def centred(state_TD: np.ndarray) -> np.ndarray:
    """States less their mean, in float64; 0 of a dimension that differs by rounding alone."""
    state_TD = state_TD.astype(np.float64)
    mean_D = state_TD.mean(0)
    state_TD -= mean_D
    state_TD[:, state_TD.std(0) <= SAME * np.abs(mean_D)] = 0
    return state_TD


def products(state_TD: np.ndarray, chosen_RT: np.ndarray) -> Products:
    """What CKA needs of states."""
    state_TD = centred(state_TD)
    product_TT = state_TD @ state_TD.T
    sum_RT = chosen_RT @ product_TT * chosen_RT
    alone = Products(product_TT, sum_RT, np.zeros(0))
    return alone._replace(own_RS=hsic(alone, alone, chosen_RT))


def hsic(own: Products, other: Products, chosen_RT: np.ndarray) -> np.ndarray:
    """HSIC of the texts of each draw, [R, S], up to a factor of each draw that CKA is without."""
    size_R, both_TT = chosen_RT.sum(1), own.product_TT * other.product_TT
    trace_R = ((chosen_RT @ both_TT) * chosen_RT).sum(1)
    crossed_R, ones_R = (own.sum_RT * other.sum_RT).sum(1), own.sum_RT.sum(1) * other.sum_RT.sum(1)
    plain_R = trace_R - 2 * crossed_R / size_R + ones_R / size_R**2  # the texts of a draw are centred anew
    # The same three without the diagonals.
    own_RT, other_RT = (each.sum_RT - chosen_RT * np.diag(each.product_TT) for each in (own, other))
    trace_R = trace_R - chosen_RT @ np.diag(both_TT)
    crossed_R, ones_R = (own_RT * other_RT).sum(1), own_RT.sum(1) * other_RT.sum(1)
    debiased_R = trace_R + ones_R / ((size_R - 1) * (size_R - 2)) - 2 * crossed_R / (size_R - 2)
    return np.stack([plain_R, debiased_R], 1)


def cka(own: Products, other: Products, chosen_RT: np.ndarray) -> np.ndarray:
    """CKA by draw and estimator, [R, S]; not a number where the states of either are the same in every text."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return hsic(own, other, chosen_RT) / np.sqrt(own.own_RS) / np.sqrt(other.own_RS)


def by_layer(
    states: Sequence[np.ndarray], others_NTD: np.ndarray, chosen_RT: np.ndarray, layers: int
) -> list[np.ndarray]:
    """CKA of each model's [N, T, D] with another model's, layer by layer: [R, S, N] each."""
    made = []
    for layer in range(layers):
        other = products(others_NTD[layer], chosen_RT)
        made.append([cka(products(state_NTD[layer], chosen_RT), other, chosen_RT) for state_NTD in states])
    return [np.stack(of_model, 2) for of_model in zip(*made, strict=True)]


def every_pair(state_NTD: np.ndarray, others_NTD: np.ndarray) -> np.ndarray:
    """CKA between all layers of two models, [S, N, N of the other]."""
    chosen_1T = np.ones((1, state_NTD.shape[1]))
    others = [products(state_TD, chosen_1T) for state_TD in others_NTD]
    rows = []
    for state_TD in state_NTD:
        own = products(state_TD, chosen_1T)
        rows.append([cka(own, other, chosen_1T)[0] for other in others])
    return np.moveaxis(np.array(rows), 2, 0)


def interval(drawn_R: np.ndarray) -> tuple[float, float] | None:
    """The middle 95 % of what other texts would give, from the estimate and what half of the texts give, which is
    shifted to it; None without halves, or where one has no number."""
    if len(drawn_R) == 1 or not np.isfinite(drawn_R).all():
        return None
    halves_R = drawn_R[1:] - drawn_R[1:].mean()
    low, high = drawn_R[0] + np.quantile(halves_R, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def massive(state_TD: np.ndarray) -> dict[int, float]:
    """Dimensions of massive activation, largest first, each with its share of the variance over texts: those whose
    deviation is ten times the median of all that differ, a few at most.

    They are those of Sun et al. 2024 (arXiv:2402.17762), as far as they are left in one vector of a text."""
    variance_D = centred(state_TD).var(0)
    if not variance_D.any():
        return {}
    largest = np.argsort(-variance_D)[:MOST_MASSIVE]
    bound = MASSIVE_DEVIATION**2 * np.median(variance_D[variance_D > 0])
    return {int(i): float(variance_D[i] / variance_D.sum()) for i in largest if variance_D[i] > bound}


def without_massive(state_NTD: np.ndarray) -> np.ndarray:
    """States with those dimensions of each layer at 0, which leaves them out of CKA."""
    state_NTD = state_NTD.copy()
    for state_TD in state_NTD:
        state_TD[:, [*massive(state_TD)]] = 0
    return state_NTD
