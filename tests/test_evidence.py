"""The evidence suite on planted vectors: noise, selection, claims, resume, and the whole of it in seconds."""

import json
import multiprocessing
from collections import Counter
from functools import partial
from xml.etree import ElementTree

import mlflow
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import BOTH, NUM, project_of

import etl.project
from etl.__main__ import _run, app
from etl.evidence import bench as bench_module
from etl.evidence.base import Base
from etl.evidence.bench import Bench
from etl.evidence.claims import CLAIMS, Claim, Runs, Step, decide, figure3, validity
from etl.evidence.config import PoolConfig
from etl.evidence.experiments import Lab, cells
from etl.evidence.pools import Banks, noise, truth
from etl.evidence.report import render
from etl.evidence.selecting import top
from etl.evidence.suite import Suite
from etl.stage import UserError
from models.bootstrap import Estimate
from models.data import UID_DTYPE, Vectors
from models.evaluate import evaluate, evaluate_items
from models.filters import Filter
from models.tracking import connect

MIXED = PoolConfig(permuted=0.2, boilerplate=0.15, pictures=0.1, foreign=0.05)


@pytest.fixture
def bench(tmp_path):
    """A bench over the planted base, which counts what it trains."""
    project = project_of(tmp_path / "out", BOTH)
    trained = []
    made = Bench(project.config.evidence, Base.read(tmp_path / "out"), tmp_path / "out", trained.append)
    return project, made, trained


# Planted noise.


def test_noise_has_its_exact_shares_keeps_uids_and_leaves_the_rest_alone(bench):
    _, made, _ = bench
    pool, kinds = noise(MIXED, made.banks, seed=3)
    num = NUM["pool"]
    assert Counter(kinds.tolist()) == {"": num / 2, "permuted": 32, "boilerplate": 24, "pictures": 16, "foreign": 8}
    np.testing.assert_array_equal(pool.rows_N, made.banks.pool_N)
    own, moved = pool.rows_N, kinds == "permuted"
    np.testing.assert_array_equal(pool.images_N[kinds != "pictures"], own[kinds != "pictures"])
    np.testing.assert_array_equal(pool.texts_N[(kinds == "") | (kinds == "pictures")],
                                  own[(kinds == "") | (kinds == "pictures")])  # fmt: skip
    assert sorted(pool.texts_N[moved]) == sorted(own[moved]) and (pool.texts_N != own)[moved].all()
    assert set(pool.texts_N[kinds == "foreign"]) <= set(made.banks.foreign)
    assert set(pool.texts_N[kinds == "boilerplate"]) <= set(made.banks.boilerplate)
    used = pool.images_N[kinds == "pictures"]
    assert [np.isin(used, bank).sum() for bank in made.banks.pictures] == [4, 4, 4, 4]
    again, other = noise(MIXED, made.banks, seed=3)[0], noise(MIXED, made.banks, seed=4)[0]
    np.testing.assert_array_equal(again.texts_N, pool.texts_N)
    assert (other.texts_N != pool.texts_N).any()
    vectors = made.stock.re_paired(pool.rows_N, pool.images_N, pool.texts_N)
    assert vectors.uids == [made.stock.uids[row] for row in own]
    np.testing.assert_array_equal(vectors.image_NI, made.stock.image_NI[pool.images_N])
    np.testing.assert_array_equal(vectors.text_NT, made.stock.text_NT[pool.texts_N])
    assert vectors.captions == made.captions[pool.texts_N].tolist()


def test_banks_are_blank_tiny_banner_and_screenshot_pictures_of_their_sources(bench):
    _, made, _ = bench
    blank, tiny, banner, screenshot = (made.facts.iloc[rows] for rows in made.banks.pictures)
    assert len(blank) == NUM["noise_boilerplate"] + NUM["noise_foreign"] and set(blank["dataset"]) == {"noise"}
    assert set(tiny["width_px"]) == {16} and set(banner["width_px"]) == {600} and set(screenshot["width_px"]) == {800}
    assert {s for part in (tiny, banner, screenshot) for s in part["source"]} == {"documentation"}


def test_the_truth_is_in_a_file_beside_and_in_nothing_that_ranks_or_trains(bench):
    project, made, _ = bench
    pool, _ = made.pool("mixed", 0)
    is_true = np.load(made.output / "truth" / "mixed-0.npy", allow_pickle=False)
    assert is_true.mean() == pytest.approx(0.6) and vars(pool).keys() == {"rows_N", "images_N", "texts_N"}
    assert set(made.facts.columns) == {"uid", "text", "source", "width_px", "height_px", "language",
                                       "language_confidence", "dataset"}  # fmt: skip
    captions = np.array(["same"] * len(made.stock), object)
    kinds = noise(project.config.evidence.pools["permuted"], made.banks, 0)[1]
    assert truth(made.pool("permuted", 0)[0], kinds, captions).all()  # a permuted caption that says the same is true


def test_a_kind_of_noise_without_rows_is_told(bench):
    _, made, _ = bench
    empty = Banks(made.banks.pool_N, np.empty(0, np.int64), made.banks.foreign, made.banks.pictures)
    with pytest.raises(ValueError, match="wanted rows for noise of kind boilerplate; found none"):
        noise(PoolConfig(boilerplate=0.1), empty, 0)


# Selecting and evaluating.


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, np.nan]), st.booleans()), min_size=1, max_size=40),
       st.floats(0.01, 1))  # fmt: skip
def test_the_top_is_by_rank_then_uid_of_the_eligible(rows, fraction):
    rng = np.random.default_rng(len(rows))
    uids = np.sort(rng.integers(0, 9, (len(rows), 2)).astype("<u8").view(UID_DTYPE)[:, 0])
    ranks, eligible = np.array([r for r, _ in rows]), np.array([e for _, e in rows])
    usable = [i for i in range(len(rows)) if eligible[i] and np.isfinite(ranks[i])]
    best = sorted(usable, key=lambda i: (-ranks[i], tuple(uids[i]), i))[: int(round(fraction * len(usable), 6))]
    assert top(ranks, uids, fraction, eligible).tolist() == sorted(best)


def test_items_have_the_metrics_as_their_means(bench):
    _, made, _ = bench
    lab = Lab(made.config, NUM["pool"], {})
    model, vectors = Filter.load(made.folder(lab.dfn(0))), made.eval_sets["things"]
    rng = np.random.default_rng(0)
    names = {f"class {i}": rng.normal(size=10) for i in range(3)}
    uneven = dict(zip(vectors.uids[:20], ["class 0"] * 12 + ["class 1"] * 6 + ["class 2"] * 2, strict=True))
    given = {"labels": uneven, "encode_texts": lambda texts: np.stack([names[text] for text in texts])}
    found, wanted = evaluate_items(model, vectors, **given), evaluate(model, vectors, **given)
    assert {name: (len(v), v.mean()) for name, v in found.items()} == {
        "r5": (30, pytest.approx(wanted["r5"])), "mean_per_class": (20, pytest.approx(wanted["mean_per_class"]))
    }  # fmt: skip
    assert 0 < wanted["r5"] < 1 and set(evaluate_items(model, vectors)) == {"r5"}


def test_dirt_comes_from_the_side_of_the_pool_that_is_asked_for_and_the_control_keeps_none_of_it(bench):
    _, made, _ = bench
    lab = Lab(made.config, NUM["pool"], {})
    listed = {cell.arm: cell.job for cell in cells(lab, "figure4", "permuted") if cell.seed == 1}
    clean = len(made.rows_of(made.config.clean))
    reserved = np.flatnonzero(made.is_reserved)
    dirt = {}
    for place in ("outside", "inside"):
        rows, dirt[place] = made.learned(listed[f"own:{place}:0.5"].learned, 1)
        assert (len(rows), len(dirt[place])) == (clean, 30)
        given = made.pool("permuted", 1)[1]
        assert set(rows.uids) >= {given.uids[i] for i in dirt[place]}
        at = [rows.uids.index(given.uids[i]) for i in dirt[place]]
        np.testing.assert_array_equal(rows.text_NT[at], given.text_NT[dirt[place]])  # as noisy as the pool is
    assert set(dirt["outside"]) <= set(reserved) and not set(dirt["inside"]) & set(reserved)
    kept = {place: set(made.kept(listed[f"{place}:0.5"])) for place in ("outside", "inside", "inside_left_out")}
    assert not any(places & set(reserved) for places in kept.values())
    assert kept["inside"] & set(dirt["inside"]) and not kept["inside_left_out"] & set(dirt["inside"])


# Claims.


def runs_of(means, *, num_items=200, precision=None, spread=0.01, seed=0, chance=0.0):
    """Arms of eight seeds with these means of a one-part headline."""
    rng = np.random.default_rng(seed)
    items, seeds = rng.normal(0, spread, num_items), rng.normal(0, spread, (8, 1))
    parts = {arm: {"set.r5": m + seeds + items + rng.normal(0, spread, (8, num_items))} for arm, m in means.items()}
    return Runs(parts, {arm: [mean] * 8 for arm, mean in means.items()}, precision or {}, chance)


TABLE1 = {"whole_pool": 0.06, "random": 0.05, "heuristics": 0.06, "binary_image": 0.07, "binary_image_text": 0.07}


def holds(claim, means, **more):
    return decide(CLAIMS[claim], {"p": runs_of(means, **more)})[0]["p"]


def test_table_1_needs_the_dfn_ahead_of_all_and_no_other_filter_behind_none():
    found = holds("table1", {**TABLE1, "dfn": 0.11})
    assert found["holds"] and found["estimate"] == pytest.approx(0.04, abs=0.003) and found["p"] < 1e-4
    assert found["interval"][0] < 0.04 < found["interval"][1] and (found["n_seeds"], found["n_items"]) == (8, 200)
    assert found["step"] in ("dfn - binary_image", "dfn - binary_image_text")
    assert not holds("table1", {**TABLE1, "dfn": 0.07})["holds"]
    assert not holds("table1", {**TABLE1, "dfn": 0.11, "heuristics": 0.03})["holds"]


def test_the_sweep_needs_both_ends_worse_than_the_fraction_that_the_development_set_prefers():
    found = holds("sweep", {"0.01": 0.05, "0.15": 0.1, "0.5": 0.09, "1": 0.05})
    assert found["holds"] and found["step"].startswith("0.15 - ") and found["p"] < 1e-3
    flat = holds("sweep", {"0.01": 0.1, "0.15": 0.1, "1": 0.05})
    assert not flat["holds"] and flat["step"] == "0.15 - 0.01"


def test_any_method_ahead_is_enough_beyond_the_dfn_and_any_size_where_clean_data_is_scarce():
    assert holds("beyond", {"dfn": 0.1, "a": 0.08, "b": 0.12})["step"] == "b - dfn"
    assert not holds("beyond", {"dfn": 0.1, "a": 0.08, "b": 0.1})["holds"]
    assert holds("scarce", {"own:600": 0.12, "600": 0.1, "own:300": 0.08, "300": 0.1})["holds"]
    assert holds("table2", {"before": 0.1, "tuned": 0.12, "joint": 0.11})["holds"]
    assert not holds("table2", {"before": 0.1, "tuned": 0.11, "joint": 0.11})["holds"]


def test_figure_4_holds_only_where_the_control_shows_it_too():
    clean = {"0": 0.2, "own:0": 0.3}
    outside = {"outside:0.5": 0.1, "own:outside:0.5": 0.28}
    same, apart = ({"inside_left_out:0.5": i, "own:inside_left_out:0.5": 0.28} for i in (0.19, 0.1))
    assert not holds("figure4", clean | outside | same, spread=0.002)["holds"]
    found = holds("figure4", clean | outside | apart, spread=0.002)
    assert found["holds"] and found["estimate"] == pytest.approx(0.28 / 0.3 - 0.5, abs=0.02)


def test_corrections_count_the_steps_of_all_pools():
    claim = Claim("", lambda pool, runs: [Step(pool, "s", Estimate(1, 0, 2, runs.chance, 8, 9))])
    pools = {"a": Runs({}, {}, {}, 0.02), "b": Runs({}, {}, {}, 0.03)}
    found, steps = decide(claim, pools)
    assert [found[p]["p"] for p in "ab"] == [0.04, 0.04] and steps["a"][0].p_corrected == 0.04


def test_figure_3_is_void_where_own_accuracy_does_not_span_twice():
    rng = np.random.default_rng(0)
    for span, wanted in ((3.0, True), (1.5, "void")):
        own = dict(zip(range(45), np.linspace(0.1, 0.1 * span, 45), strict=True))
        induced = dict(zip(range(45), rng.permutation(np.linspace(0.1, 0.2, 45)), strict=True))
        means = {f"own:{i}": v for i, v in own.items()} | {str(i): v for i, v in induced.items()}
        assert figure3(runs_of(means, spread=0.001))[0]["holds"] == wanted


def test_a_pool_on_which_no_rival_is_more_precise_than_chance_is_void():
    jitter = np.random.default_rng(0).normal(0, 0.004, (4, 8))
    level = dict(zip(("random", "heuristics", "binary_image", "binary_image_text"), 0.4 + jitter, strict=True))
    runs = runs_of(TABLE1, precision={arm: values.tolist() for arm, values in level.items()})
    assert not validity(runs)["is_valid"]
    level["heuristics"] = level["heuristics"] + 0.05
    found = validity(runs_of(TABLE1, precision={arm: values.tolist() for arm, values in level.items()}))
    assert found["is_valid"] and found["rivals"]["heuristics"]["estimate"] == pytest.approx(0.05, abs=0.006)


# The whole of it.


class StoppedError(Exception):
    pass


def counted(suite, stop_after=10**6):
    """The jobs that a suite trains from now on, in order; StoppedError after so many."""
    trained = []

    def on_trained(job):
        trained.append(job)
        if len(trained) >= stop_after:
            raise StoppedError

    suite.bench._on_trained = on_trained
    return trained


@pytest.mark.slow
def test_the_suite_end_to_end_killed_twice_trains_nothing_twice(tmp_path, mlflow_template):
    output = tmp_path / "out"
    project_of(output)
    (output / "mlflow.db").write_bytes(mlflow_template.read_bytes())
    done = []
    for stop_after in (7, 30):
        suite = Suite(project_of(output))
        trained = counted(suite, stop_after)
        with pytest.raises(StoppedError):
            suite.run(suite.config.experiments)
        done += trained
    said = []
    suite = Suite(project_of(output, say=said.append))
    trained = counted(suite)
    found = suite.run(suite.config.experiments)
    done += trained
    keys = [suite.bench.key(job) for job in done]
    assert len(set(keys)) == len(keys) == len(list((output / "results").glob("*.json"))) > 60
    again = Suite(project_of(output))
    assert counted(again) == [] and again.run(["table1"]) == found and sum(again.trained.values()) == 0

    assert set(found["claims"]) == {"table1", "sweep", "scarce", "table2", "figure4", "beyond", "figure3"}
    for verdicts in found["claims"].values():
        for verdict in verdicts.values():
            assert {"holds", "estimate", "interval", "p", "n_seeds", "n_items"} <= verdict.keys()
            assert verdict["holds"] in (True, False, "void") and verdict["n_seeds"] == 2
    assert {pool: v["n_items"] for pool, v in found["claims"]["table1"].items()} == {"mixed": 54}
    assert found["not_run"] == ["table1_4x"] and found["label"] == "analogue with frozen towers"
    arms = found["table1"]["mixed"]
    assert " ".join(arms) == "whole_pool random heuristics binary_image binary_image_text dfn true_pairs"
    assert arms["true_pairs"]["precision"] == {"mean": 1.0, "std": 0.0}
    assert arms["dfn"]["precision"]["mean"] > arms["random"]["precision"]["mean"] + 0.1
    assert arms["dfn"]["avg"]["mean"] == pytest.approx(
        np.mean([arms["dfn"][part]["mean"] for part in suite.config.parts])
    )
    assert json.loads((output / "summary.json").read_text()) == json.loads(json.dumps(found))
    page = (output / "report.html").read_text()
    assert page == render(found) and page.count("<svg") > 12 and "nalogue with frozen towers" in page
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")
    plots = {path.name: ElementTree.parse(path).getroot() for path in (output / "plots").iterdir()}
    assert {"table1-mixed.svg", "table1-mixed-differences.svg"} <= plots.keys() and len(plots) == page.count("<svg")
    texts = [text.text for text in plots["table1-mixed.svg"].iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == "Table 1: which filter, mixed" and "binary image text" in texts
    assert [len(list(root.iter("{http://www.w3.org/2000/svg}style"))) for root in plots.values()] == [1] * len(plots)
    connect(f"sqlite:///{output}/mlflow.db")
    names = Counter(run.info.run_name for run in mlflow.MlflowClient().search_runs(["1"]))
    assert names == {f"{e} seed {s}": 1 for e in suite.config.experiments for s in (0, 1)}
    assert any(line.startswith("table1        mixed") for line in said)


def test_choices_are_made_on_the_development_set_with_seeds_of_their_own(tmp_path, monkeypatch):
    """No evaluation set is read for them; the chosen fraction is the one that is best there."""
    project = project_of(tmp_path / "out")
    suite, opened = Suite(project), []
    given = bench_module.evaluate_items
    monkeypatch.setattr(bench_module, "evaluate_items", lambda model, v, **k: opened.append(v) or given(model, v, **k))
    lab = Lab(suite.config, NUM["pool"], {})
    from etl.evidence.workers import Workers

    jobs = [job for pool in suite.config.pools for *_, job in lab.choices(pool)]
    assert {job.seed for job in jobs} == {9} and {job.on_dev for job in jobs} == {True}
    chosen = suite._choose(Workers(suite.bench, None), lab)
    for_filters = sum(job.scorer.kind == "dfn" for job in jobs[:8]) // 2  # one filter, which is evaluated whole
    sets = Counter(name for v in opened for name, s in suite.bench.eval_sets.items() if s is v)
    assert sets == {"stamps": len(jobs) + for_filters, "things": for_filters, "drawings": for_filters}
    for pool in suite.config.pools:
        for arm, by_fraction in chosen[pool]["dev"].items():
            best = max(np.mean(values) for values in by_fraction.values())
            assert np.mean(by_fraction[f"{chosen[pool]['fractions'][arm]:g}"]) == best


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path):
    from etl.evidence.workers import workers

    found = []
    for processes in (1, 2):
        output = tmp_path / str(processes)
        project = project_of(output, BOTH, f"evidence.processes={processes}")
        config, base = project.config.evidence, Base.read(output)
        bench = Bench(config, base, output)
        jobs = [cell.job for cell in cells(Lab(config, NUM["pool"], {}), "sweep", "permuted")]
        with workers(bench, config, base, output) as pool:
            assert pool.do(jobs) == len(jobs) + 2  # and a filter a seed
            assert pool.do(jobs) == 0
        found.append([bench.result(job)["avg"] for job in jobs])
    assert found[0] == found[1] and not multiprocessing.active_children()


# Mistakes.


@pytest.fixture
def dfn(monkeypatch, capsys):
    def no_spark(*_, **__):
        raise AssertionError("Spark was started")

    monkeypatch.setattr(etl.project, "session", no_spark)

    def call(*arguments):
        code = _run(partial(app, ["evidence", *arguments]))
        return code, capsys.readouterr().err

    return call


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--only", "tabel1"], "--only: wanted some of table1, sweep, scarce"),
        (["--pool", "mixd"], "--pool: wanted some of permuted, mixed, natural; found mixd"),
        (["--conf", "tiny"], "evidence: wanted pools, parts and clean in the config; found none; fix: --conf evidence"),
        (["-s", "evidence.base=emoji"], "evidence.base: wanted a dataset of kind pool (pool); found emoji"),
        (["-s", "evidence.dev=art4apps.r5"], "evidence.dev: wanted a dataset of kind dev (stamps); found art4apps"),
        (["-s", "evidence.noise=stamps"], "evidence.noise: wanted a dataset of kind filter (noise, emoji, tuxpaint)"),
        (
            ["-s", "evidence.parts=[art4apps.r50]"],
            "wanted DATASET.METRIC, a metric of r5, mean_per_class; found art4apps.",
        ),
        (["-s", "evidence.seeds=[1, 2]"], "wanted at least 8 seeds, each once; found [1, 2]"),
        (["-s", "evidence.seeds=[1, 2, 3, 4, 5, 6, 7, 100]"], "wanted tuning seeds of their own; found [100]"),
        (["-s", "evidence.pools.mixed.permuted=0.7"], "wanted shares that add up to less than 1; found 1.15"),
        (["-s", "evidence.pools.mixed.permute=0.7"], "unknown key; did you mean permuted?"),
        (["-s", "evidence.experiments=[tabel1]"], "evidence.experiments.0"),
        (
            ["-s", "evidence.figure3_pools=[other]"],
            "figure3_pools: wanted some of permuted, mixed, natural; found other",
        ),
        (["-s", "evidence.clean=[emoji]"], "evidence.clean: wanted two filter datasets, for table2; found one"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_mistake_is_told_before_anything_starts(dfn, tmp_path, arguments, wanted):
    code, err = dfn(*arguments, "--set", f"output={tmp_path}/out")
    assert code == 2 and wanted in err and not (tmp_path / "out").exists()


def test_too_few_evaluation_items_are_told(tmp_path):
    from etl.evidence.base import _check_items

    project = project_of(tmp_path / "out", "evidence.min_items=85")
    base = Base.read(tmp_path / "out")
    for name, folder in base.eval_sets.items():
        (tmp_path / "out" / "vectors" / name / "manifest.json").write_text(json.dumps({"num_rows": NUM[name]}))
        assert len(Vectors.open(tmp_path / "out" / "vectors" / name)) == NUM[name] and folder
    with pytest.raises(UserError, match=r"wanted at least 85 evaluation items; found \{'"):
        _check_items(project.config.evidence, base)
