"""Successive halving by hand, and for any number of candidates, budget and seeds."""

from statistics import mean

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from models.halving import Ranked, Rung, halve, least_runs, plan, sizes

ETAS = st.integers(2, 5)


def test_eight_candidates_are_halved_three_times():
    """By hand: 24 runs are 8 a rung: 8 x 1, 4 x 2, 2 x 4; the last rung has at most one more seed of 4."""
    assert sizes(8, 2) == (8, 4, 2, 1)
    assert plan(8, 24, 7) == (Rung(8, 4, 0, 1), Rung(4, 2, 1, 3), Rung(2, 1, 3, 7))
    assert plan(8, 24, 4) == (Rung(8, 4, 0, 1), Rung(4, 2, 1, 3), Rung(2, 1, 3, 4))
    assert [sizes(7, 3), sizes(2, 2), sizes(1, 2)] == [(7, 3, 1), (2, 1), (1,)]


def test_what_a_rung_cannot_use_is_the_next_ones():
    """By hand: of 11 runs the first rung of 3 candidates can use 3 of 5, the second of 2 then 8."""
    assert [rung.num_runs for rung in plan(3, 11, 9)] == [3, 8]


@given(st.integers(2, 60), st.integers(0, 2000), st.integers(1, 30), ETAS)
@settings(deadline=None)
def test_a_plan_keeps_to_its_budget_and_its_seeds(num, budget, num_seeds, eta):
    num_rungs = len(sizes(num, eta)) - 1
    assume(num_seeds >= num_rungs)
    if budget < least_runs(num, eta):
        with pytest.raises(ValueError, match=f"wanted at least {least_runs(num, eta)} runs for {num} candidates"):
            plan(num, budget, num_seeds, eta)
        return
    rungs = plan(num, budget, num_seeds, eta)
    assert sum(rung.num_runs for rung in rungs) <= budget
    assert all(rung.last > rung.first for rung in rungs)  # survivors get more seeds at every rung
    assert [rung.first for rung in rungs] == [0, *(rung.last for rung in rungs[:-1])]
    assert rungs[-1].last <= num_seeds
    assert [rung.num_candidates for rung in rungs] + [rungs[-1].num_kept] == list(sizes(num, eta))
    assert [rung.num_kept for rung in rungs[:-1]] == [rung.num_candidates for rung in rungs[1:]]


def test_fewer_seeds_than_rungs_are_refused():
    with pytest.raises(ValueError, match="wanted at least 3 seeds, one a rung; found 2"):
        plan(8, 1000, 2)


def test_the_candidate_whose_mean_stays_best_is_left():
    """By hand: c leads after one seed, a after two; b, last at first, is out and never asked again."""
    values = {"a": [0.5, 0.7], "b": [0.1, 9.0], "c": [0.6, 0.2], "d": [0.2, 0.2]}
    asked, rungs = [], list[int]()

    def measure(name, place):
        asked.append((name, place))
        return values[name][place]

    winner, found = halve("abcd", plan(4, 8, 2), measure, lambda number, _: rungs.append(number))
    assert (winner, rungs) == ("a", [0, 1])
    assert asked == [("a", 0), ("b", 0), ("c", 0), ("d", 0), ("a", 1), ("c", 1)]
    assert found == [
        Ranked({"c": (0.6,), "a": (0.5,), "d": (0.2,), "b": (0.1,)}, ("a", "c")),
        Ranked({"a": (0.5, 0.7), "c": (0.6, 0.2)}, ("a",)),
    ]
    assert list(found[0].values) == ["c", "a", "d", "b"]


@given(st.integers(2, 20), st.integers(0, 200), ETAS, st.randoms())
@settings(deadline=None)
def test_without_noise_the_best_wins_and_of_equals_the_first(num, extra, eta, random):
    names = [f"candidate {number}" for number in range(num)]
    values = {name: random.randint(0, 5) for name in names}
    rungs = plan(num, least_runs(num, eta) + extra, 10, eta)
    asked = []
    winner, found = halve(names, rungs, lambda name, place: (asked.append((name, place)), values[name])[1])
    best = max(values.values())
    assert winner == next(name for name in names if values[name] == best)
    assert len(asked) == len(set(asked)) == sum(rung.num_runs for rung in rungs)
    for ranked in found:
        means = [mean(row) for row in ranked.values.values()]
        assert means == sorted(means, reverse=True)
