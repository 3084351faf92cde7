"""Intervals over seeds and items, held against closed forms, enumeration and planted truths."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.bootstrap import (
    _weights,
    difference,
    direct_variance,
    estimate,
    headline,
    holm,
    num_items,
    paired,
    rank_correlation,
    resampled,
)


def crossed(rng, num_seeds, sizes, mean=0.0, seed_std=1.0, item_std=1.0, rest_std=1.0):
    """Parts of a headline: an effect of the seed, one of the item, and the rest."""
    means_S = mean + rng.normal(0, seed_std, (num_seeds, 1))
    return {
        f"set{k}.r5": means_S + rng.normal(0, item_std, n) + rng.normal(0, rest_std, (num_seeds, n))
        for k, n in enumerate(sizes)
    }


def test_every_resample_of_two_seeds_and_three_items_is_equally_likely_and_their_variance_is_the_direct_one():
    part = np.array([[1.0, 2.0, 6.0], [0.0, 5.0, 5.0]])
    every = [part[np.ix_(s, i)].mean() for s in product(range(2), repeat=2) for i in product(range(3), repeat=3)]
    assert len(every) == 4 * 27
    assert direct_variance({"a.r5": part}) == pytest.approx(np.var(every), rel=1e-12)
    drawn = resampled({"a": {"a.r5": part}}, num_resamples=20_000)["a"]
    np.testing.assert_allclose(np.quantile(drawn, [0.05, 0.5, 0.95]), np.quantile(every, [0.05, 0.5, 0.95]), atol=0.12)


def test_resamples_vary_as_the_closed_form_says_with_several_parts():
    parts = crossed(np.random.default_rng(1), 8, [40, 300, 25], seed_std=0.1)
    drawn = resampled({"a": parts}, num_resamples=6000)["a"]
    assert drawn.var() == pytest.approx(direct_variance(parts), rel=0.06)
    assert drawn.mean() == pytest.approx(headline(parts).mean(), abs=4 * np.sqrt(direct_variance(parts) / 6000))


def test_two_metrics_of_one_dataset_are_of_the_same_items():
    """Drawn together, and counted once: a metric beside itself is no more certain than alone."""
    one = crossed(np.random.default_rng(8), 6, [30, 20])
    twice = {"set0.r5": one["set0.r5"], "set0.other": one["set0.r5"], "set1.r5": one["set1.r5"]}
    weighted = {"set0.r5": one["set0.r5"] * 4 / 3, "set1.r5": one["set1.r5"] * 2 / 3}
    assert (num_items(twice), num_items(one)) == (50, 50)
    np.testing.assert_allclose(headline(twice), headline(weighted))
    assert direct_variance(twice) == pytest.approx(direct_variance(weighted))
    drawn = resampled({"twice": twice, "weighted": weighted}, num_resamples=40)
    np.testing.assert_allclose(drawn["twice"], drawn["weighted"])
    apart = {"set0.r5": one["set0.r5"], "set9.r5": one["set0.r5"]}  # as if they were other items
    assert direct_variance(apart) < direct_variance({"set0.r5": one["set0.r5"]})


def test_conditions_share_their_draws_so_that_a_difference_is_paired():
    parts = crossed(np.random.default_rng(2), 5, [30], seed_std=3.0)
    drawn = resampled({"a": parts, "b": {n: part + 0.25 for n, part in parts.items()}}, num_resamples=50)
    np.testing.assert_allclose(drawn["b"] - drawn["a"], 0.25, atol=1e-12)
    found = difference({n: part + 0.25 for n, part in parts.items()}, parts)
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25)) and found.p_value < 1e-9
    with pytest.raises(ValueError, match="wanted the same seeds and items of all conditions; found"):
        resampled({"a": parts, "b": {"set0.r5": parts["set0.r5"][:, :-1]}})


@pytest.mark.parametrize(("stds", "most"), [((1.0, 0.1, 0.1), 0.985), ((0.0, 1.0, 1.0), 1.0), ((0.2, 1.0, 0.5), 1.0)])
def test_intervals_of_95_percent_cover_a_planted_mean_about_that_often(stds, most):
    """With eight seeds. Where the rest dominates they cover more: Owen's bootstrap counts it more than once."""
    rng, covered, rejected = np.random.default_rng(3), 0, 0
    for _ in range(200):
        parts = crossed(rng, 8, [24, 16], 0.3, *stds)
        drawn = resampled({"a": parts}, num_resamples=200, seed=int(rng.integers(1 << 30)))["a"]
        found = estimate(headline(parts).mean(), drawn, num_seeds=8, num_items=40)
        covered += found.low <= 0.3 <= found.high
        null = estimate(headline(parts).mean() - 0.3, drawn, num_seeds=8, num_items=40)
        rejected += null.p_value < 0.05
    assert 0.925 <= covered / 200 <= most and rejected / 200 <= 0.08


def test_one_seed_tells_nothing_and_a_difference_without_spread_is_certain():
    one = estimate(0.2, np.array([0.1, 0.3]), num_seeds=1, num_items=9)
    assert (one.p_value, one.low, one.high) == (1.0, -np.inf, np.inf)
    assert estimate(0.2, np.full(9, 0.2), num_seeds=3, num_items=9).p_value == 0
    assert estimate(-0.2, np.full(9, -0.2), num_seeds=3, num_items=9).p_value == 1


def test_paired_differences_by_seed_are_students_t_test():
    from scipy import stats

    values = [0.1, 0.3, -0.05, 0.2, 0.15]
    found, wanted = paired(values), stats.ttest_1samp(values, 0, alternative="greater")
    assert found.p_value == pytest.approx(wanted.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(stats.ttest_1samp(values, 0).confidence_interval()))
    assert (paired([0.1, 0.1, 0.1]).p_value, paired([0.0, 0.0]).p_value, paired([0.4]).p_value) == (0.0, 1.0, 1.0)


def test_holm_corrects_as_published():
    """Sorted: .01 x 4, .02 x 3, .03 x 2 (raised to the one before), .04 x 1 (likewise)."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_no_correction_and_bonferroni_and_keeps_the_order(p_values):
    found = holm(p_values)
    assert all(p <= f <= min(1.0, p * len(p_values)) + 1e-12 for p, f in zip(p_values, found, strict=True))
    assert sorted(found) == [f for _, f in sorted(zip(p_values, found, strict=True))]


def test_rank_correlation_of_planted_filters():
    rng = np.random.default_rng(4)
    quality_F = np.linspace(0, 1, 45)
    noisy = [quality_F[:, None] + rng.normal(0, 0.05, (45, 8)) for _ in range(2)]
    same = rank_correlation(*noisy)
    assert same.rho > 0.95 and same.low > 0.9 and same.p_value == 1 and same.ceiling > 0.9
    other = rank_correlation(noisy[0], rng.permutation(noisy[1]))
    assert other.low < 0 < other.high < 0.5 and other.p_value < 0.01 and other.ceiling > 0.9
    noise = rank_correlation(noisy[0], rng.normal(size=(45, 8)))
    assert abs(noise.ceiling) < 0.3
    assert rank_correlation(np.ones((5, 2)), noisy[0][:5, :2]).rho == 0


def test_where_items_say_nothing_the_interval_is_students():
    """Every item of a seed alike: the two-way bootstrap, corrected for few seeds, is the paired t-test."""
    values = np.array([0.1, 0.3, -0.05, 0.2, 0.15, 0.0, 0.12, 0.22])
    part = np.repeat(values[:, None], 5, axis=1)
    drawn = resampled({"a": {"a.r5": part}}, num_resamples=40_000)["a"]
    found, wanted = estimate(values.mean(), drawn, num_seeds=8, num_items=5), paired(values.tolist())
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), rel=0.02)
    assert found.p_value == pytest.approx(wanted.p_value, rel=0.1)


def test_draws_are_the_same_in_every_process():
    parts = crossed(np.random.default_rng(6), 4, [20])
    first = resampled({"a": parts}, num_resamples=30)["a"]
    _weights.cache_clear()
    np.testing.assert_array_equal(resampled({"a": parts}, num_resamples=30)["a"], first)
    assert (resampled({"a": parts}, num_resamples=30, seed=1)["a"] != first).any()
