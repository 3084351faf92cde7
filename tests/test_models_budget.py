"""The law against sums written out by hand, and planted laws found again: what pays, and at which budget that turns."""

import math

import pytest

from models.budget import Law, Point, fit, forecast_miss, lacking, useful_passes

PAIRS = {0.1: 1_000, 0.3: 3_000, 1.0: 10_000}
BUDGETS = (1_000, 3_000, 10_000, 40_000, 160_000)
PLANTED = Law(a=2.0, d=0.3, tau=2.0, b={0.1: 0.3, 0.3: 0.275, 1.0: 0.245}, largest_residual=0.0)


def points(law=PLANTED, budgets=BUDGETS, noise=0.0):
    return [
        Point(share, n, seen, law.error(share, n, seen) + noise * math.sin(n + seen))
        for share, n in PAIRS.items()
        for seen in budgets
    ]


def best(law, seen):
    return min(PAIRS, key=lambda share: law.error(share, PAIRS[share], seen))


def test_what_a_pass_adds_halves_every_tau_passes():
    assert useful_passes(100, 60, 2.0) == pytest.approx(math.log(60))
    assert useful_passes(100, 100, 2.0) == pytest.approx(math.log(100))
    by_hand = math.log(100) + 0.5 ** (1 / 2) * math.log(2) + 0.5 ** (2 / 2) * math.log(250 / 200)
    assert useful_passes(100, 250, 2.0) == pytest.approx(by_hand)
    assert useful_passes(1, 10**9, 0.5) == pytest.approx(useful_passes(1, 10**12, 0.5))


def test_a_planted_law_is_found_and_with_it_the_budget_at_which_more_pairs_pay():
    found = fit(points())
    assert {seen: best(found, seen) for seen in BUDGETS} == {seen: best(PLANTED, seen) for seen in BUDGETS}
    assert [best(PLANTED, seen) for seen in (1_000, 40_000, 160_000)] == [0.1, 0.3, 1.0], "the planted law has no turn"
    assert found.largest_residual < 1e-4
    for share, b in PLANTED.b.items():
        assert found.b[share] == pytest.approx(b, rel=0.05)
    assert found.tau == pytest.approx(PLANTED.tau, rel=0.1)


def test_a_forecast_is_judged_by_the_largest_budget_which_it_has_not_seen():
    assert forecast_miss(points()) == pytest.approx(0, abs=2e-3)
    spoilt = [p if p.samples_seen < BUDGETS[-1] else Point(p.share, p.num_pairs, p.samples_seen, p.error + 0.05)
              for p in points()]  # fmt: skip
    assert forecast_miss(spoilt) == pytest.approx(0.05, abs=5e-3)
    assert forecast_miss(points(budgets=BUDGETS[:3])) is None


def test_too_few_runs_are_not_fitted_and_the_reason_says_what_is_wanted():
    assert "two shares" in lacking([p for p in points() if p.share == 0.1])
    assert "two shares" in lacking(points(budgets=BUDGETS[:1]))
    assert "8 pairs of a share and a budget" in lacking(points(budgets=BUDGETS[:2]))
    assert "more than once" in lacking([p for p in points(budgets=(10, 20, 40)) if p.share >= 0.1])
    with pytest.raises(ValueError, match="two shares"):
        fit([])
    alone = Point(0.5, 5_000, 10_000, 0.5)  # one budget only: left out, and not in the way
    assert lacking([*points(), alone]) is None and 0.5 not in fit([*points(), alone]).b


def test_noise_of_the_size_of_seeds_does_not_move_what_pays():
    found = fit(points(noise=0.001))
    assert {seen: best(found, seen) for seen in BUDGETS} == {seen: best(PLANTED, seen) for seen in BUDGETS}
    assert 2e-4 < found.largest_residual < 2e-3
