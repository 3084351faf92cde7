"""`dfn plan`: the formula by rows computed by hand, lines through planted points, and pages that say what it prints."""

import json
import re
from functools import partial
from pathlib import Path

import pytest
from helpers import frame, uid

from etl.__main__ import _run, app
from etl.plan.costs import Cost, Size, costs, stage_cost
from etl.plan.rates import Rates, load_rates
from etl.plan.sample import Line, Point, compared, fit, fits, measured_rates, points
from etl.runs import RunRow, record_runs
from etl.stage import UserError
from etl.tables import PAIRS

ROOT = Path(__file__).resolve().parent.parent
MACHINES = {"machines": 2, "cores": 10, "read_gb_per_second": 0.5, "dollars_per_hour": 3}
GIVEN = {
    "cpu": MACHINES,
    "gpu_cluster": {**MACHINES, "gpus": 4, "dollars_per_hour": 40},
    "gpu": {"tflops": 100, "encode_utilisation": 0.5, "train_utilisation": 0.25},
    "efficiency": 0.5,
    "pool": {"bytes_per_pair": 1000, "kept_fraction": 0.2},
    "storage": {"dollars_per_tb_month": 20, "months": 6},
    "gflop_per_pair": {"small": 10, "ViT-B-32": 20},
    "encoder": "small",
    "sample_cores": 2,
    "stages": {
        "ingest": {
            "cluster": "cpu",
            "core_seconds": 0.0036,
            "fixed_seconds": 36,
            "reads_pixels": True,
            "stored_bytes": 300,
        },
        "embed": {"cluster": "gpu", "core_seconds": 0.0001, "reads_pixels": True, "forward_passes": 1},
        "export": {"cluster": "cpu", "rows": "kept", "reads_pixels": True, "stores_pixels": True, "stored_bytes": 100},
        "train": {"cluster": "gpu", "rows": "samples", "forward_passes": 3},
    },
}
SIZE = Size("mine", pairs=10_000_000, samples=50_000_000, architecture="ViT-B-32")
# By hand. ingest: 36,000 core-seconds of rows over 2 x 10 x .5 cores are 3,600 s, reads 10^10 bytes / 10^9 a second
# 10 s; 3,636 s are 1.01 h of two machines at 3. embed: 10^7 x 10 GFLOP / 50,000 a second are 2,000 GPU-seconds, of
# eight GPUs 250 s; cores 100 s, reads 10 s. export: 2 x 10^6 rows, 2 s of reads, stores 1,100 bytes each. train:
# 5 x 10^7 x 3 x 20 GFLOP / 25,000 a second are 120,000 GPU-seconds, of eight GPUs 15,000 s.
BY_HAND = {
    "ingest": Cost(10_000_000, 0.01, 36_036 / 3600, 0, 1.01, "cores", 0.003, 1.01 * 6 + 0.003 * 120),
    "embed": Cost(10_000_000, 0.01, 1000 / 3600, 2000 / 3600, 250 / 3600, "gpus", 0, 250 / 3600 * 80),
    "export": Cost(2_000_000, 0.002, 0, 0, 2 / 3600, "reads", 0.0022, 2 / 3600 * 6 + 0.0022 * 120),
    "train": Cost(50_000_000, 0, 0, 120_000 / 3600, 15_000 / 3600, "gpus", 0, 15_000 / 3600 * 80),
}


def dfn(capsys, *arguments):
    """(exit code, standard output, standard error)"""
    code = _run(partial(app, ["plan", *arguments]))
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("stage", BY_HAND)
def test_a_stage_costs_what_a_hand_computes(stage):
    found = stage_cost(stage, SIZE, Rates.model_validate(GIVEN))
    assert vars(found) == pytest.approx(vars(BY_HAND[stage]))


def test_the_total_is_the_sum():
    found = costs(SIZE, Rates.model_validate(GIVEN))
    assert list(found) == [*BY_HAND, "total"] and found["total"].rows == SIZE.pairs
    for name in ("read_tb", "core_hours", "gpu_hours", "wall_hours", "stored_tb", "dollars"):
        assert getattr(found["total"], name) == pytest.approx(sum(getattr(c, name) for c in BY_HAND.values()))


def test_a_stage_of_few_rows_waits_for_what_is_fixed():
    small = Size("few", pairs=1000, samples=0, architecture="ViT-B-32")
    found = stage_cost("ingest", small, Rates.model_validate(GIVEN))
    assert (found.bound_by, found.wall_hours) == ("fixed", pytest.approx((36 + 0.36) / 3600))


def test_a_line_is_found_through_two_sizes_and_not_below_zero():
    planted = [Point(rows, 12 + 0.25 * rows) for rows in (100, 1000, 1000)]
    assert vars(fit(planted, None)) == pytest.approx(vars(Line(12, 0.25, 2)))
    falling = fit([Point(100, 30), Point(1000, 20)], None)
    assert (falling.fixed, falling.per_row) == (pytest.approx((1 / 30 + 1 / 20) / (1 / 900 + 1 / 400)), 0)
    steep = fit([Point(100, 5), Point(1000, 100)], None)
    assert (steep.fixed, steep.per_row) == (0, pytest.approx((20 + 10) / (20**2 + 10**2)))


def test_one_size_takes_what_is_fixed_from_the_defaults():
    default = Rates.model_validate(GIVEN).stages["ingest"]
    assert fit([Point(100, 40), Point(100, 42)], default) == Line(36, 0.05, 1)
    assert fit([Point(100, 10)], default) == Line(10, 0, 1)
    assert fit([Point(100, 10)], None) == Line(0, 0.1, 1)


def test_measured_lines_take_the_place_of_defaults_and_the_model_goes_to_the_gpu():
    rates = Rates.model_validate(GIVEN)
    lines = {"ingest": Line(5, 0.01, 2), "embed": Line(7, 0.4, 2, model_share=0.75), "signals": Line(1, 0.002, 2)}
    stages = measured_rates(rates, lines).stages
    assert {n: (s.cluster, s.fixed_seconds, pytest.approx(s.core_seconds)) for n, s in stages.items()} == {
        "ingest": ("cpu", 5, 0.01), "embed": ("gpu", 7, 0.1), "export": ("cpu", 0, 0), "train": ("gpu", 0, 0),
        "signals": ("cpu", 1, 0.002),
    }  # fmt: skip
    assert stages["embed"].forward_passes == 1 and rates.stages["embed"].fixed_seconds == 0


def test_what_was_predicted_is_held_against_what_was_taken():
    samples = [{"embed": [Point(100, 11)], "dedup": [Point(100, 4)]}, {"embed": [Point(200, 21)]}]
    lines = fits(samples, Rates.model_validate(GIVEN))
    took = {"embed": [Point(1000, 80), Point(50, 6)], "dedup": [Point(500, 40)], "unknown": [Point(1, 1)]}
    assert compared(lines, took) == [
        {"stage": "embed", "rows": 1050, "predicted": 107.0, "took": 86.0, "ratio": 1.24},
        {"stage": "dedup", "rows": 500, "predicted": 20.0, "took": 40.0, "ratio": 0.5},
        {"stage": "all", "rows": 1050, "predicted": 127.0, "took": 126.0, "ratio": 1.01},
    ]


def test_points_are_read_from_runs_by_pairs_where_a_stage_counts_files(store):
    def ran(name, key, rows, seconds, dataset="pool", **facts):
        return RunRow(name, dataset, key, {}, "{}", facts, seconds, num_rows_in=rows)

    store.create("pool", PAIRS)
    pairs = [{"uid": uid(n), "source": "x", "status": "metadata_only"} for n in range(40)]
    store.append_once(frame(store.spark, PAIRS, pairs), "pool", PAIRS, content="x", note={"slice": {}})
    timings = {"read_seconds": 1.0, "decode_seconds": 2.0, "model_seconds": 9.0, "wait_seconds": 100.0}
    record_runs(store, [
        ran("ingest", "a", 3, 9.0, cpu_seconds=6.0), ran("ingest", "b", 1, 9.0, cpu_seconds=2.0),
        ran("embed", "a", 40, 5.0, cpu_seconds=8.0, num_rows_written=25, timings=timings),
        ran("dedup", "a", 40, 5.0), ran("dedup", "b", 100, 5.0, "other"), ran("signals", "a", 0, 1.0),
    ])  # fmt: skip
    assert points(store, "pool", cores=2) == {
        "ingest": [Point(30, 6.0), Point(10, 2.0)], "embed": [Point(25, 8.0, 0.75)], "dedup": [Point(40, 10.0)]
    }  # fmt: skip
    with pytest.raises(UserError, match=r"plan: wanted a run of other in .*; found none; fix: dfn run"):
        points(store, "other", cores=2)


def test_a_run_on_one_machine_notes_its_cpu_seconds(tiny):
    found = points(tiny[0].store, "pool", cores=1000)
    assert [point.rows for point in found["embed"]] == [400] and [p.rows for p in found["score"]] == [400] * 3
    for point in (*found["embed"], *found["dedup"]):
        assert 0.5 < point.core_seconds < 1000
    assert 0 < found["embed"][0].model_share < 1


def test_the_page_shows_what_the_command_prints(capsys):
    page = (ROOT / "docs" / "explanation" / "scaling.md").read_text()
    for arguments in ((), ("--scale", "medium")):
        code, out, _ = dfn(capsys, *arguments)
        assert code == 0 and out.count("\n") >= 6
        assert out in page, out


def test_every_number_in_the_file_has_a_reason():
    lines = (ROOT / "conf" / "plan.yaml").read_text().splitlines()
    numbers = [line for line in lines if re.search(r":.*\d", line.partition("#")[0])]
    assert len(numbers) > 40
    assert [line for line in numbers if not re.search(r"# \S", line)] == []
    of_gpu = [line for line in lines if re.search("utilisation|dollars", line)]
    assert len(of_gpu) == 5 and all("# assumption" in line for line in of_gpu)


def test_rates_are_inputs(capsys, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("gpu_cluster: {machines: 8}\ngpu: {encode_utilisation: 0.6}\n")
    before = json.loads(dfn(capsys, "--pairs", "400M", "--json")[1])["400,000,000 pairs"]
    after = json.loads(dfn(capsys, "--pairs", "400M", "--rates", str(mine), "--rate", "pool.kept_fraction=0.3",
                           "--json")[1])["400,000,000 pairs"]  # fmt: skip
    assert after["embed"]["gpu_hours"] == pytest.approx(before["embed"]["gpu_hours"] / 2, rel=0.02)
    assert after["export"]["rows"] == 2 * before["export"]["rows"] == 120_000_000
    assert after["ingest"] == before["ingest"]
    assert load_rates().stages.keys() == before.keys() - {"total"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--scale", "small", "--pairs", "3"], "wanted --scale or --pairs; found both"),
        (["--scale", "laptop"], "--scale: wanted one of small, medium, large, xlarge; found laptop"),
        (["--pairs", "many"], "--pairs: wanted a number such as 12800000"),
        (["--pairs", "0"], "--pairs: wanted at least one; found 0"),
        (["--against", "x"], "wanted --conf, the project of the sample; found none"),
        (["--rate", "gpu.tflop=1"], "plan: gpu.tflop: Extra inputs are not permitted; found '1'; fix: as in conf/plan"),
        (["--rate", "efficiency=2"], "plan: efficiency: Input should be less than or equal to 1; found '2'"),
        (["--rate", "encoder=ViT-H"], r"encoder: wanted one of gflop_per_pair \(ViT-B-32, ViT-B-16, ViT-L-14\)"),
        (["--rate", "gpu_cluster.gpus=0"], "gpu_cluster.gpus: wanted some; found 0"),
    ],
)
def test_what_cannot_be_planned_is_said_without_spark(capsys, arguments, said):
    code, out, err = dfn(capsys, *arguments)
    assert (code, out) == (2, "") and re.search(said, err), err
