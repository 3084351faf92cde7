"""What each crawl and file brought, counted from planted tables."""

from helpers import frame, uid

from etl.intake.growth import counts
from etl.tables import CANDIDATES, CRAWL_FILES, DUPLICATES, FETCHES, INPUTS, PAIRS, SELECTIONS

MAY, JUNE = "s3://x/CC-MAIN-2024-22/a.warc.gz", "/data/b.csv"


def tables(spark) -> dict:
    """Six candidates of two files: three are fetched, of which one does not decode."""
    fetched = ["ok", "ok", "http_error", "opted_out", "ok", "http_error"]
    candidates = [{"uid": uid(n), "crawl": "CC-MAIN-2024-22" if n < 4 else "pool", "file": MAY if n < 4 else JUNE}
                  for n in range(6)]  # fmt: skip
    files = [{"uri": MAY, "status": "cut", "num_by_status": {"ok": 4, "missing_text": 3}},
             {"uri": JUNE, "status": "ok", "num_by_status": {"ok": 2, "duplicate_uid": 5}}]  # fmt: skip
    rows = [
        (CANDIDATES, candidates), (CRAWL_FILES, files),
        (FETCHES, [{"uid": uid(n), "status": status} for n, status in enumerate(fetched)]),
        (PAIRS, [{"uid": uid(n), "status": status} for n, status in {0: "ok", 1: "ok", 4: "decode_error"}.items()]),
        (DUPLICATES, [{"method": how, "uid": uid(n)} for how, n in (("phash", 0), ("sha256", 0), ("phash", 4))]),
        (SELECTIONS, [{"selection_id": "s", "uid": uid(1)}]),
    ]  # fmt: skip
    return {table.name: frame(spark, table, some, 4) for table, some in rows}


MAYS = {"candidates": 4, "not_candidates": {"missing_text": 3}, "fetched": 2,
        "not_fetched": {"http_error": 1, "opted_out": 1}, "pairs": 2, "duplicates": 1, "kept": 1}  # fmt: skip
JUNES = {"candidates": 2, "not_candidates": {"duplicate_uid": 5}, "fetched": 1, "not_fetched": {"http_error": 1},
         "not_pairs": {"decode_error": 1}}  # fmt: skip


def test_each_crawl_and_file_with_what_was_rejected_and_why(spark):
    planted = tables(spark)
    found = counts(planted, "pool", "crawl")
    assert found == {"CC-MAIN-2024-22": MAYS, "pool": JUNES}
    assert [list(counted) for counted in found.values()] == [list(MAYS), list(JUNES)]  # in the order of the stages
    assert counts(planted, "pool", "file") == {JUNE: JUNES, MAY: MAYS}


def test_a_pool_that_no_crawl_brought(spark):
    pairs = [{"uid": uid(1), "source": "a", "status": "ok"}, {"uid": uid(2), "status": "decode_error"}]
    inputs = [{"uri": "x.tar", "num_by_status": {"ok": 1, "duplicate_uid": 2}}]
    planted = {"pairs": frame(spark, PAIRS, pairs), "inputs": frame(spark, INPUTS, inputs)}
    assert counts(planted, "pool", "crawl") == {"": {"not_pairs": {"decode_error": 1}}, "a": {"pairs": 1}}
    assert counts(planted, "pool", "file") == {"x.tar": {"pairs": 1, "not_pairs": {"duplicate_uid": 2}}}
    assert counts({}, "pool", "crawl") == counts({}, "pool", "file") == {}
