"""CKA on made-up states, beside closed forms and published formulas; its intervals."""

from itertools import permutations

import numpy as np
import pytest

from eval.analysis import cka
from eval.analysis.alike import compared


def of(state_TD: np.ndarray, other_TD: np.ndarray) -> np.ndarray:
    """CKA of all texts by estimator."""
    one_1T = np.ones((1, len(state_TD)))
    return cka.cka(cka.products(state_TD, one_1T), cka.products(other_TD, one_1T), one_1T)[0]


def states(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def orthogonal(texts: int) -> np.ndarray:
    """Columns that are centred and of length 1, at right angles: [T, T - 1]."""
    square_TT = np.concatenate([np.ones((texts, 1)), states(texts, texts - 1)], 1)
    return np.linalg.qr(square_TT)[0][:, 1:]


def test_cka_is_the_closed_form():
    """X has axes u and v with variances a and b, Y v and w with c and d: tr(KL) is bc."""
    # Broken by: states that are not centred; HSIC without its root.
    axis_TD = orthogonal(20)
    x_TD = axis_TD[:, [0, 1]] * np.sqrt([2.0, 5.0]) + [7, -3]
    y_TD = axis_TD[:, [1, 2]] * np.sqrt([3.0, 4.0]) + [100, 0]
    assert of(x_TD, y_TD)[0] == pytest.approx(15 / np.sqrt((4 + 25) * (9 + 16)), rel=1e-12)
    assert of(axis_TD[:, :2], axis_TD[:, 2:5])[0] == pytest.approx(0, abs=1e-12)


def test_rotation_scale_and_offset_change_nothing():
    # Broken by: `own.own_RS` without its root; the mean left in.
    x_TD, y_TD = states(40, 6), states(40, 9, seed=1)
    y_TD[:, :3] += x_TD[:, :3]
    moved_TD = 1e-3 * x_TD @ np.linalg.qr(states(6, 6, seed=2))[0] + 5
    np.testing.assert_allclose(of(moved_TD, y_TD), of(x_TD, y_TD), rtol=1e-9)
    np.testing.assert_allclose(of(x_TD, moved_TD), 1, rtol=1e-9)
    assert of(moved_TD, y_TD)[0] > 0.1


def test_independent_states_are_unlike():
    """Where texts are many, by both estimators; where they are few, by the debiased one alone."""
    # Broken by: the diagonals left in the debiased estimator.
    assert np.abs(of(states(1000, 3), states(1000, 3, seed=1))).max() < 0.01
    plain, debiased = np.mean([of(states(50, 300, seed=2 * i), states(50, 300, seed=2 * i + 1)) for i in range(8)], 0)
    assert plain > 0.8 and abs(debiased) < 0.02


def debiased_hsic(k_TT: np.ndarray, l_TT: np.ndarray) -> float:
    """Equation 3 of arXiv:2010.15327, term by term."""
    n, one_T = len(k_TT), np.ones(len(k_TT))
    k_TT, l_TT = k_TT - np.diag(np.diag(k_TT)), l_TT - np.diag(np.diag(l_TT))
    return (
        np.trace(k_TT @ l_TT)
        + (one_T @ k_TT @ one_T) * (one_T @ l_TT @ one_T) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (one_T @ k_TT @ l_TT @ one_T)
    ) / (n * (n - 3))


def test_debiased_is_the_published_formula():
    # Broken by: 1 / (n - 2) for 2 / (n - 2); the ones over n (n - 1).
    x_TD, y_TD = states(12, 5) + 3, states(12, 7, seed=1)
    y_TD[:, 0] += x_TD[:, 0]
    k_TT, l_TT = x_TD @ x_TD.T, y_TD @ y_TD.T  # centred or not, it is the same
    expected = debiased_hsic(k_TT, l_TT) / np.sqrt(debiased_hsic(k_TT, k_TT) * debiased_hsic(l_TT, l_TT))
    assert of(x_TD, y_TD)[1] == pytest.approx(expected, rel=1e-10)


def test_the_published_formula_is_unbiased():
    """Over all samples of four texts of five, its mean is what all five give: it is a mean over such samples."""
    # Broken by: a sign in `debiased_hsic`.
    k_TT, l_TT = (x @ x.T for x in (states(5, 3), states(5, 3, seed=1)))
    of_four = [debiased_hsic(k_TT[np.ix_(i, i)], l_TT[np.ix_(i, i)]) for i in map(list, permutations(range(5), 4))]
    assert np.mean(of_four) == pytest.approx(debiased_hsic(k_TT, l_TT), rel=1e-10)


def test_a_draw_is_cka_of_its_texts():
    # Broken by: draws that are not centred anew; `chosen_RT` left out of the sums.
    x_TD, y_TD = states(24, 5), states(24, 7, seed=1)
    y_TD[:, 0] += 2 * x_TD[:, 0]
    chosen_RT = cka.draws(24)
    made_RS = cka.cka(cka.products(x_TD, chosen_RT), cka.products(y_TD, chosen_RT), chosen_RT)
    assert len(made_RS) == cka.DRAWS + 1
    for draw in (0, 1, 500):
        own = chosen_RT[draw] == 1
        assert own.sum() == (24 if draw == 0 else 12)
        np.testing.assert_allclose(made_RS[draw], of(x_TD[own], y_TD[own]), rtol=1e-9)


def test_intervals_hold_the_truth():
    """Y is x and noise: the truth is that of their covariances."""
    # Broken by: a fifth of the texts for a half.
    pairs = [states(100, 8, seed=seed) for seed in range(60)]

    def both(noise_TD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x_TD = noise_TD[:, :4] * [3, 2, 1, 1]
        return x_TD, x_TD + 2 * noise_TD[:, 4:]

    truth = (81 + 16 + 1 + 1) / np.sqrt((81 + 16 + 1 + 1) * (169 + 64 + 25 + 25))
    chosen_RT = cka.draws(100)
    held = widths = 0.0
    for noise_TD in pairs:
        own, other = (cka.products(each, chosen_RT) for each in both(noise_TD))
        low, high = cka.interval(cka.cka(own, other, chosen_RT)[:, 1]) or (np.nan, np.nan)
        held, widths = held + (low <= truth <= high), widths + high - low
    spread = np.std([of(*both(noise_TD))[1] for noise_TD in pairs])
    assert held / len(pairs) >= 0.85
    assert 0.7 < widths / len(pairs) / (2 * 1.96 * spread) < 1.4


def test_intervals_are_around_the_estimate():
    """Half of the texts make the plain one larger."""
    # Broken by: halves that are not shifted to the estimate.
    chosen_RT = cka.draws(40)
    x, y = (cka.products(states(40, 100, seed=seed), chosen_RT) for seed in (0, 1))
    drawn_R = cka.cka(x, y, chosen_RT)[:, 0]
    low, high = cka.interval(drawn_R) or (np.nan, np.nan)
    assert low < drawn_R[0] < high < drawn_R[1:].min()


def test_few_texts_give_no_interval():
    # Broken by: LEAST_FOR_INTERVALS = 4; an interval of draws that have no number.
    assert len(cka.draws(19)) == 1 < len(cka.draws(20))
    assert cka.interval(np.array([0.5])) is None
    assert cka.interval(np.array([0.5, np.nan, 0.5])) is None


@pytest.mark.parametrize("scale", [1e-12, 1e-7, 1e5, 1e10])
def test_float32_fails_where_float64_does_not(scale):
    """Squares of squares of states are soon beyond float32, above and below."""
    # Broken by: `state_TD.astype(np.float32)` in centred.
    x_TD = states(50, 6)
    y_TD = x_TD + states(50, 6, seed=1)
    x32_TD, y32_TD = ((scale * each).astype(np.float32) for each in (x_TD, y_TD))
    k_TT, l_TT = (each @ each.T for each in (x32_TD - x32_TD.mean(0), y32_TD - y32_TD.mean(0)))
    with np.errstate(all="ignore"):
        in_float32 = (k_TT * l_TT).sum() / np.sqrt((k_TT**2).sum() * (l_TT**2).sum())
    assert k_TT.dtype == np.float32 and not in_float32 == pytest.approx(of(x_TD, y_TD)[0], rel=0.01)
    np.testing.assert_allclose(of(x32_TD, y32_TD), of(x_TD, y_TD), rtol=1e-5)


def test_states_that_are_the_same_in_every_text_have_no_cka():
    """As those of a first token before the first layer, but for rounding."""
    # Broken by: the line with SAME left out of centred.
    same_TD = np.ones((10, 3)) * 0.3 + 1e-8 * states(10, 3)
    assert np.isnan(of(same_TD, states(10, 3))).all()


def test_massive_dimensions_are_named_with_their_share():
    # Broken by: `MASSIVE_DEVIATION` for its square; the standard deviation for the variance; a median of those that
    # are the same in every text, too.
    state_TD = orthogonal(40)[:, :30].copy()
    state_TD[:, 7] *= 30
    state_TD[:, 3] *= 11
    state_TD[:, 4] *= 9  # below ten times the median
    state_TD[:, 5] += 1000  # large, but the same in every text
    total = 900 + 121 + 81 + 27
    made = cka.massive(state_TD)
    assert [*made] == [7, 3] and [*made.values()] == pytest.approx([900 / total, 121 / total])
    left_NTD = cka.without_massive(state_TD[None])
    assert not left_NTD[0][:, [7, 3]].any() and (left_NTD[0][:, 4] == state_TD[:, 4]).all()
    other_TD = states(40, 30)
    kept = [i for i in range(30) if i not in (3, 7)]
    np.testing.assert_allclose(of(left_NTD[0], other_TD), of(state_TD[:, kept], other_TD), rtol=1e-9)
    assert cka.massive(np.ones((10, 4)) * 0.3 + 1e-8 * states(10, 4) * [1, 1, 1, 20]) == {}
    assert cka.massive(np.concatenate([np.ones((10, 9)), states(10, 4)], 1)) == {}


def test_layers_and_pairs_are_the_same_numbers():
    # Broken by: the axes of `every_pair` exchanged; the control in the place of A.
    a_NTD, b_NTD, control_NTD = states(2, 24, 5), states(3, 24, 6, seed=1), states(2, 24, 4, seed=2)
    pair_SNN = cka.every_pair(a_NTD, b_NTD)
    first_RSN, second_RSN = cka.by_layer([a_NTD, control_NTD], b_NTD, cka.draws(24), 2)
    assert pair_SNN.shape == (2, 2, 3)
    for layer in range(2):
        np.testing.assert_allclose(first_RSN[0, :, layer], pair_SNN[:, layer, layer], rtol=1e-9)
        np.testing.assert_allclose(second_RSN[0, :, layer], of(control_NTD[layer], b_NTD[layer]), rtol=1e-9)
    np.testing.assert_allclose(pair_SNN[:, 0, 2], of(a_NTD[0], b_NTD[2]), rtol=1e-9)


def test_no_ratio_is_given_to_rounding():
    """A layer that is the same in both models and in the control is apart from itself by rounding alone."""
    # Broken by: the bound of ROUNDING left out of compared.
    equal_NTD, other_NTD = states(2, 30, 5), states(2, 30, 5, seed=1)
    figures = compared([equal_NTD, equal_NTD, equal_NTD], 2, "all")
    assert {each.value for each in figures if each.measure == "ratio"} == {None}
    figures = compared([other_NTD, equal_NTD, other_NTD], 2, "all")
    assert {each.value for each in figures if each.measure == "ratio"} == {1.0}
