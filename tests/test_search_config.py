"""The grid of a search: its candidates and their cost; what is wrong with it is said before Spark starts."""

from functools import partial

import pytest

import etl.project
from etl.__main__ import _run, app
from etl.config import load
from etl.loop.search import plan_of
from etl.loop.training_config import FinetuneConfig
from etl.stage import UserError

DEV = "datasets.dev={kind: dev, corpus: {sources: [art4apps], skip: 200, limit: 50}}"
MORE = "datasets.more={kind: filter, corpus: {sources: [art4apps], skip: 300, limit: 50}}"
GRID = "loop.search={steps: [1, 60], fractions: [0.15, 0.5], budget: 14080, headline_parts: [dev.r5], seeds: [7, 8]}"


def changed(**fields):
    return [DEV, GRID, *(f"loop.search.{name}={value}" for name, value in fields.items())]


def test_candidates_are_the_product_of_the_grid_over_the_loops_own_recipe():
    loop = load(["tiny"], [DEV, GRID]).loop
    assert [candidate.name for candidate in loop.candidates] == [
        "steps=1 fraction=0.15", "steps=1 fraction=0.5", "steps=60 fraction=0.15", "steps=60 fraction=0.5",
    ]  # fmt: skip
    chosen = loop.chosen(loop.candidates[1])
    assert (chosen.filter, chosen.search) == (loop.filter.model_copy(update={"steps": 1}), None)
    fractions = {name: arm.fraction for name, arm in chosen.arms.items()}
    assert fractions == {"whole_pool": 1.0, "random": 0.5, "dfn": 0.5}
    rest = {"filter": loop.filter, "arms": loop.arms, "search": loop.search}
    assert chosen.model_copy(update=rest) == loop


def test_filter_datasets_and_fine_tuning_are_searched_too():
    names = {"steps": "[]", "fractions": "[]", "filter_dataset": "[clean]", "finetune": "[null, {dataset: more}]"}
    loop = load(["tiny"], [MORE, *changed(**names)]).loop
    assert [candidate.name for candidate in loop.candidates] == ["finetune=none", "finetune=more"]
    tuned = [loop.chosen(candidate) for candidate in loop.candidates]
    assert [found.filter_dataset for found in tuned] == ["clean", "clean"]
    assert [found.finetune for found in tuned] == [None, FinetuneConfig(dataset="more")]


def test_what_it_costs_is_told_and_within_the_budget():
    """By hand: 11 models of 1,280 samples are 5 a rung: 4 x 1, then 2 x 1, for there are two seeds."""
    loop = load(["tiny"], [DEV, GRID]).loop
    assert plan_of(loop, loop.search) == (
        "search: 4 candidates of 2 filter recipes; rungs: 4 x 1 seeds, 2 x 1 seeds; 6 induced runs, 7,680 of 14,080 "
        "samples seen, and at most 4 filters; judged by dev.r5; runs that are there are not run again"
    )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (changed(headline_parts="[things.r5]"), "wanted DATASET.METRIC of kind dev (dev), so that evaluation sets"),
        (changed(budget=10239), "loop: search.budget: wanted at least 10,240 samples seen, for 4 candidates"),
        (changed(seeds="[7]"), "search.seeds: wanted at least 2 seeds, one a rung; found 1"),
        (changed(seeds="[2, 7]"), "search.seeds: wanted others than loop.seeds, which judge the winner; found [2]"),
        (changed(seeds="[7, 7]"), "loop.search.seeds: wanted each seed once"),
        (changed(steps="[60]", fractions="[0.15]"), "wanted two candidates or more, each once; found one"),
        (changed(steps="[60, 60]"), "wanted two candidates or more, each once; found steps=60 fraction=0.15,"),
        (
            changed(filter_dataset="[clean, things]", fractions="[0.15]"),
            "loop.filter_dataset: wanted a dataset of kind filter",
        ),
        (changed(finetune="[{dataset: clean}]"), "loop.finetune.dataset: wanted another one than loop.filter_dataset"),
        (changed(step="[1]"), "loop.search.step: unknown key; did you mean steps?"),
        ([*changed(), "loop.arms.dfn=null"], "search: wanted an arm that selects by dfn, the winner's; found none"),
    ],
)
def test_a_bad_grid_is_named(settings, says):
    with pytest.raises(UserError) as caught:
        load(["tiny"], [*settings, "loop.filter_dataset=clean"])
    assert says in str(caught.value)


def test_a_search_on_an_evaluation_set_ends_before_spark(monkeypatch, capsys):
    monkeypatch.setattr(etl.project, "session", lambda **_: pytest.fail("Spark was started"))
    command = ["loop", "--conf", "demo", "--conf", "search", "--set", "loop.search.headline_parts=[art4apps.r5]"]
    assert _run(partial(app, command)) == 2
    assert "loop.search.headline_parts: wanted DATASET.METRIC of kind dev (stamps)" in capsys.readouterr().err


def test_the_demos_search_keeps_to_its_budget():
    loop = load(["demo", "search"]).loop
    assert "18 induced runs, 460,800 of 460,800 samples seen" in plan_of(loop, loop.search)
