"""Intervals and p-values against cases whose answer is known: formulas, enumeration, simulated models.

S seeds, E examples, C counts of one.
"""

import itertools

import numpy as np
import pytest
from scipy import stats

from eval import statistics
from eval.metrics import METRICS
from eval.statistics import Gains, average, difference, gains, holm, share

mean = METRICS["accuracy"].value
# Standard deviations of what an answer's rightness is made of: example and model, seed and model, all three.
VARIES = {"examples": (0.5, 0, 0.1), "seeds": (0.1, 0.15, 0.3), "single answers": (0, 0, 1), "all": (0.5, 0.1, 0.5)}


@pytest.fixture
def few_draws(monkeypatch):
    monkeypatch.setattr(statistics, "DRAWS", 400)


def answers(random, seeds: int, examples: int, by_example: float, by_seed: float, by_answer: float, better=0.0):
    """Counts [S, E, 2] of a model's right answers; texts are as hard for each model, see `equals`."""
    hard_E = np.random.default_rng(0).normal(size=examples)
    skill_SE = random.normal(0, by_seed, (seeds, 1)) + random.normal(0, by_answer, (seeds, examples))
    right_SE = hard_E + skill_SE + random.normal(0, by_example, examples) + 0.8 + better > 0
    return np.stack([right_SE, np.ones_like(right_SE)], -1).astype(float)


def equals(varies: str, seeds: int, times: int, examples: int = 100) -> list[statistics.Difference]:
    """Differences of as many pairs of models that are as good as each other."""
    random = np.random.default_rng(1)
    pairs = ([answers(random, seeds, examples, *VARIES[varies]) for _ in "ab"] for _ in range(times))
    return [difference(*pair, mean, seed) for seed, pair in enumerate(pairs)]


@pytest.mark.parametrize("varies", VARIES)
@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_hold_the_truth_and_equal_models_seldom_differ(few_draws, varies, seeds):
    # Broken by: _seed_noise of zeros, or drawn from a normal distribution; by_examples not taken away.
    drawn = equals(varies, seeds, 200)
    covered = np.mean([low <= 0 <= high for low, high in (each.interval for each in drawn)])
    assert 0.89 <= covered <= 0.99
    assert np.mean([each.p < 0.05 for each in drawn]) <= 0.09


def test_p_values_of_equal_models_are_uniform(few_draws):
    # Broken by: p of one side; null_R without the noise of seeds; the ones of null_R not centred.
    random = np.random.default_rng(2)
    shares = np.stack([random.random((200, 2, 1, 50)), np.ones((200, 2, 1, 50))], -1)  # answers worth more than 0 or 1
    alone = [difference(*pair, mean, seed).p for seed, pair in enumerate(shares)]
    several = [each.p for each in equals("all", 9, 200)]
    assert stats.kstest(alone, "uniform").pvalue > 0.05
    assert stats.kstest(several, "uniform").pvalue > 0.05


def test_an_interval_of_a_mean_is_that_of_its_standard_error():
    # Broken by: draws without replacement; other examples for each of the two models.
    random = np.random.default_rng(0)
    mine, others = (answers(random, 1, 300, 0.5, 0, 0, better) for better in (0.3, 0))
    gain_E = (mine - others)[0, :, 0]
    low, high = difference(mine, others, mean).interval
    half = 1.96 * gain_E.std() / np.sqrt(300)
    assert (low, high) == pytest.approx((gain_E.mean() - half, gain_E.mean() + half), abs=0.1 * half)


def test_p_is_the_share_of_all_exchanges_that_differ_as_much():
    # Broken by: exchanges of a seed's answers alone; the ones of the null divided by two.
    f1 = METRICS["micro_f1"].value
    random = np.random.default_rng(3)
    mine, others = random.integers(0, 3, (2, 1, 8, 3)).astype(float)
    measured = f1(mine.sum(1)) - f1(others.sum(1))
    exchanged = []
    for swapped in itertools.product([False, True], repeat=8):
        keep = ~np.array(swapped)[None, :, None]
        a, b = np.where(keep, mine, others), np.where(keep, others, mine)
        exchanged.append(f1(a.sum(1)) - f1(b.sum(1)))
    exact = np.mean(np.abs(exchanged) >= abs(measured) - 1e-12)
    assert difference(mine, others, f1).p == pytest.approx(exact, abs=0.02)


def test_a_better_model_is_seen_and_the_other_way_round_is_the_same(few_draws):
    # Broken by: others_SEC less counts_SEC in measured_S.
    random = np.random.default_rng(0)
    mine, others = (answers(random, 5, 400, *VARIES["all"], better) for better in (0.8, 0))
    there, back = difference(mine, others, mean), difference(others, mine, mean)
    assert there.measured == pytest.approx(mine[..., 0].mean() - others[..., 0].mean())
    assert there.interval[0] > 0 and there.p < 0.01
    assert back.measured == pytest.approx(-there.measured) and back.interval[1] < 0
    same = difference(mine, mine, mean)
    assert (same.measured, same.interval, same.p) == (0, (0, 0), 1)


def test_an_average_over_tasks_varies_less_than_one(few_draws):
    # Broken by: differences drawn with the same seed; the first one returned.
    drawn = equals("all", 5, 4)
    over = average(drawn)
    assert over.measured == pytest.approx(np.mean([each.measured for each in drawn]))
    widths = [np.subtract(*each.interval) for each in drawn]
    assert np.subtract(*over.interval) == pytest.approx(np.mean(widths) / 2, rel=0.3)


def test_holm_as_r_has_it():
    # Broken by: the running maximum or the minimum with 1 left out.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # p.adjust(p, "holm")
    assert holm([0.9, 0.8]) == [1, 1] and holm([]) == []


def test_seeds_add_what_examples_do_not_explain():
    # Broken by: by_examples not taken away, or divided by all seeds.
    random = np.random.default_rng(0)
    measured_S = np.array([-1.0, 1.0, -1.0, 1.0])  # variance 4/3
    drawn_RS = measured_S + random.normal(0, 1, (20_000, 4)) + random.normal(0, 9, (20_000, 1))
    noise_R = statistics._seed_noise(random, measured_S, drawn_RS)
    assert np.quantile(noise_R, 0.975) == pytest.approx(stats.t.ppf(0.975, 3) * np.sqrt(1 / 3 / 4), rel=0.05)
    assert not statistics._seed_noise(random, measured_S / 10, drawn_RS).any()
    assert not statistics._seed_noise(random, measured_S[:1], drawn_RS[:, :1]).any()


def normal_gains(by_seed: np.ndarray, seed: int = 0) -> Gains:
    """Of so many examples that only seeds vary: [2, S]."""
    drawn_2RS = np.repeat(by_seed[:, None], 2000, 1)
    return Gains(by_seed, drawn_2RS, seed)


def fieller(by_seed: np.ndarray) -> tuple[float, float]:
    """The interval in closed form: roots of (a - s b)^2 = t^2 (v_a - 2 s c + s^2 v_b) (Fieller 1954)."""
    seeds = by_seed.shape[1]
    (v_a, c), (_, v_b) = np.cov(by_seed) / seeds
    a, b, t = *by_seed.mean(1), stats.t.ppf(0.975, seeds - 1)
    low, high = sorted(np.roots([b**2 - t**2 * v_b, -2 * (a * b - t**2 * c), a**2 - t**2 * v_a]))
    return low, high


@pytest.mark.parametrize("sign", [1, -1])
def test_an_interval_of_a_share_is_fiellers(sign):
    # Broken by: the weights of a falling gain; the ends exchanged; noise of the two apart.
    by_seed = sign * np.array([[0.01, 0.05, 0.03, 0.04, 0.02], [0.1, 0.12, 0.07, 0.09, 0.11]])
    made = share([normal_gains(by_seed)])
    assert made.measured == pytest.approx(0.03 / 0.098) and made.gain == pytest.approx(sign * 0.098)
    assert made.interval == pytest.approx(fieller(by_seed), abs=0.03)


def test_a_share_of_examples_is_fiellers():
    # Broken by: other examples for the model than for the donor; the host left out of one gain.
    random = np.random.default_rng(0)
    model, donor, host = (answers(random, 1, 2000, 0.5, 0, 0, better) for better in (0.2, 0.6, 0))
    made = share([gains(model, donor, host, mean)])
    by_example = np.stack([(each - host)[0, :, 0] for each in (model, donor)])
    assert made.measured == pytest.approx(by_example[0].mean() / by_example[1].mean())
    assert made.interval == pytest.approx(fieller(by_example), abs=0.03)


@pytest.mark.parametrize("varies", ["seeds", "all"])
@pytest.mark.parametrize("same", ["donor", "host"])
def test_intervals_of_shares_hold_the_truth(few_draws, varies, same):
    """A model as good as the donor has all of the gain, one as good as the host nothing of it."""
    # Broken by: the noise of seeds left out.
    random = np.random.default_rng(1)
    better = {"donor": 1.0, "host": 0.0}
    held = []
    for seed in range(60):
        of = [answers(random, 3, 100, *VARIES[varies], better[name]) for name in (same, "donor", "host")]
        made = share([gains(*of, mean, seed)])
        if made.interval:
            held.append(made.interval[0] <= better[same] <= made.interval[1])
    assert len(held) > 30 and np.mean(held) >= 0.88


def test_a_share_of_no_gain_is_not_given(few_draws):
    # Broken by: the measured share given where no reach suffices; a share of a gain of 0.
    random = np.random.default_rng(0)
    model, donor, host = (answers(random, 3, 60, *VARIES["all"], better) for better in (0.5, 0, 0))
    made = share([gains(model, donor, host, mean)])
    assert made.measured is None and made.interval is None and abs(made.gain) < 0.2
    assert share([Gains(np.array([[0.1], [0.0]]))]) == (0, None, None)
    assert share([gains(donor, donor, host, mean)]).measured is None


def test_a_share_over_tasks_is_that_of_the_mean_gains(few_draws):
    # Broken by: a mean of shares, in which a task without a gain counts as much as any.
    tasks = [
        normal_gains(np.array([[0.01, 0.02, 0.03], gain]), seed) for seed, gain in enumerate(([0.3] * 3, [0.01] * 3))
    ]
    made = share(tasks)
    assert made.measured == pytest.approx(0.02 / 0.155) and made.interval is not None
    assert made.interval[0] < made.measured < made.interval[1]
