"""What failed in a finished download, fetched once more. Touches the network, shards of downloads, fetches.

A run of stage `download` ends each URL with a status, and does not ask again. Hosts that were down come back: here the
rows of chosen statuses are asked for anew, as the stage does it, and replaced. What a killed retry stored is kept, and
not fetched again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyspark import StorageLevel
from pyspark.sql import Column
from pyspark.sql import functions as F

from etl.stage import UserError, conform
from etl.stages import download
from etl.statuses import STATUSES
from etl.tables import CANDIDATES, FETCHES
from etl.web.fetch import PASSING, PASSING_ANSWERS

if TYPE_CHECKING:
    from etl.project import Project


def retry(project: Project, dataset: str, statuses: Sequence[str] = ()) -> dict[str, dict[str, int]]:
    """{`tried`: status -> URLs that had it, `now`: status -> those of them that have it after another attempt}.

    `statuses`: none named are those that may pass: no connection, no answer in time, half an answer, and the answers
    408, 425, 429 and 5xx. A commit per `stages.download.chunk_rows`.

    Raises UserError for an unknown status, for a dataset that is not downloaded or not yet, and when another process
    writes `fetches`.
    """
    if unknown := sorted(set(statuses) - (set(STATUSES) - {"ok"})):
        raise UserError(f"--status: wanted a status of fetches that is not ok; found {', '.join(unknown)}")
    store = project.store
    if not project.config.datasets[dataset].is_downloaded or not store.exists(dataset, FETCHES):
        raise UserError(f"retry: wanted downloads of {dataset}; found none; fix: dfn run, of a crawl or lists of URLs")
    ((_, config),) = project.parts(download.STAGE, dataset)
    if not isinstance(config, download.Config):
        raise TypeError(f"wanted the config of stage download; found {type(config).__name__}")
    tried: Counter[str] = Counter()
    now: Counter[str] = Counter()
    with store.lease(dataset, FETCHES):
        failed = store.read(dataset, FETCHES).where(_is_chosen(statuses)).select("uid", "status")
        tried.update({row["status"]: row["count"] for row in failed.groupBy("status").count().collect()})
        # Pinned, and joined once: what an earlier pass mended or not is not asked for again.
        version = store.history(dataset, FETCHES)[0].version
        failed = store.read(dataset, FETCHES, version=version).where(_is_chosen(statuses)).select("uid")
        all_wanted = store.read(dataset, CANDIDATES).join(failed, on="uid", how="left_semi")
        all_wanted = all_wanted.persist(StorageLevel.DISK_ONLY)
        for number in range(num_passes := -(-tried.total() // config.chunk_rows)):
            candidates = all_wanted.where(F.pmod(F.xxhash64("host"), F.lit(num_passes)) == number)
            facts = download.prepare(candidates, config=config)
            fetched = download.transform(candidates, config=config, facts=facts)
            rows = conform(fetched, store.schema(dataset, FETCHES), FETCHES).persist(StorageLevel.DISK_ONLY)
            found = {row["status"]: row["count"] for row in rows.groupBy("status").count().collect()}
            store.merge(rows, dataset, FETCHES, note={"stage": "retry", "num_by_status": found}, do="update")
            download.tidy(config, store.read(dataset, FETCHES))
            rows.unpersist()
            now.update(found)
            project.say(f"retry          {dataset:<14} {now.total():,} of {tried.total():,} URLs, {now['ok']:,} ok")
        all_wanted.unpersist()
    return {"tried": dict(sorted(tried.items())), "now": dict(sorted(now.items()))}


def _is_chosen(statuses: Sequence[str]) -> Column:
    if statuses:
        return F.col("status").isin(list(statuses))
    answers = F.col("http_status").isin(sorted(PASSING_ANSWERS))
    return F.col("status").isin(sorted(PASSING)) | ((F.col("status") == "http_error") & answers)
