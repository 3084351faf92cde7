"""Fused and published scores, against numpy."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import frame, rows_of, uid
from scipy.stats import rankdata

from etl.stage import UserError
from etl.stages import columns, fusion, published_scores
from etl.tables import PAIRS, SCORES

PARTS = (fusion.Part(filter="a", filter_version="1", weight=1), fusion.Part(filter="b", filter_version="2", weight=3))


def rows(name, version, scores):
    known = {"filter": name, "filter_version": version}
    statuses = ["no_vectors" if score is None else "ok" for score in scores]
    found = enumerate(zip(scores, statuses, strict=True))
    return [{**known, "uid": uid(n), "score": score, "status": status} for n, (score, status) in found]


def fused(spark, by, *scores, partitions=None):
    named = [
        row
        for part, values in zip(PARTS, scores, strict=True)
        for row in rows(part.filter, part.filter_version, values)
    ]
    stale = rows("a", "0", [9.0] * 3)
    config = fusion.Config(by=by, parts=PARTS, filter="ab", filter_version="3")
    found = fusion.transform(frame(spark, SCORES, named + stale, partitions), config=config)
    return {int(u, 16): (score, status) for _, _, u, score, status in rows_of(found, *SCORES_ORDER)}


SCORES_ORDER = ("filter", "filter_version", "uid", "score", "status")


def test_by_rank_equals_count_half_and_partitions_change_nothing(spark):
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 120) / 8, rng.standard_normal(120).astype(np.float32)
    found = [fused(spark, "rank", a.tolist(), b.tolist(), partitions=p) for p in (1, 7)]
    assert found[0] == found[1]
    place = [(rankdata(v, "average") - 0.5) / 120 for v in (a, b)]
    wanted = ((place[0] + 3 * place[1]) / 4).astype(np.float32)
    np.testing.assert_allclose([found[0][n][0] for n in range(120)], wanted, atol=1e-7)
    # A monotone rescaling of a part changes nothing.
    assert fused(spark, "rank", np.exp(a * 3).tolist(), (b.astype(np.float64) ** 3).tolist()) == found[0]


def test_by_range_and_a_pair_without_all_parts_has_no_score(spark):
    a, b = [0.0, 1.0, 0.5, None], [-1.0, 3.0, 1.0, 2.0]
    assert fused(spark, "min_max", a, b) == {0: (0.0, "ok"), 1: (1.0, "ok"), 2: (0.5, "ok"), 3: (None, "no_vectors")}
    equal = fused(spark, "min_max", [2.0] * 3, [0.0, 1.0, 4.0])
    assert [equal[n][0] for n in range(3)] == [0.125, 0.3125, 0.875]
    assert fused(spark, "rank", [None] * 2, [None] * 2) == {0: (None, "no_vectors"), 1: (None, "no_vectors")}


def test_a_fraction_of_what_is_fused_does_not_depend_on_outliers(spark):
    a = [*np.linspace(0, 1e-9, 50).tolist(), 1e30]
    found = fused(spark, "rank", a, [float(n) for n in range(51)])
    assert [found[n][0] for n in range(51)] == pytest.approx([(n + 0.5) / 51 for n in range(51)])


def test_a_published_column_scores_every_pair_and_the_first_of_a_uid_counts(spark, tmp_path):
    def write(name, **columns):
        pq.write_table(pa.table(columns), tmp_path / name)

    write("a.parquet", uid=[uid(0), uid(1), uid(2)], text=["x"] * 3, clip=[0.25, float("nan"), None])
    write("b.parquet", uid=[uid(1), uid(3)], text=["x"] * 2, clip=[0.75, 0.5])  # the first uid 1 has no number
    write("c.parquet", uid=[uid(4)], text=["x"])
    write("d.parquet", uid=[uid(5)], text=["x"], clip=["text"])
    (tmp_path / "e.parquet").write_bytes(b"PAR1 not")
    config = published_scores.Config(column="clip", filter="clip", filter_version="v")
    dataset = type("Dataset", (), {"metadata": f"{tmp_path}/*.parquet"})
    files = spark.createDataFrame(columns.listing(dataset))
    pairs = frame(spark, PAIRS, [{"uid": uid(n), "status": "ok"} for n in range(7)])
    found = published_scores.transform(files, pairs, config=config)
    scores = {int(u, 16): (score, status) for u, score, status in rows_of(found, "uid", "score", "status")}
    none = (None, "no_vectors")
    assert scores == {0: (0.25, "ok"), 1: none, 2: none, 3: (0.5, "ok"), 4: none, 5: none, 6: none}
    with pytest.raises(UserError, match="found none"):
        columns.listing(type("Dataset", (), {"metadata": f"{tmp_path}/*.none.parquet"}))
    assert len(pd.DataFrame(columns.listing(dataset))) == 5
