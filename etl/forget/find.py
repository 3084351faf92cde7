"""Which pairs a takedown is about: those that are named, and all others that hold the same picture. Reads tables.

A picture is the same where its bytes are (sha256, also as it came), or its URL. So a picture that is named by one uid
goes under every other uid as well; the search goes on until nothing more is found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from etl.intake.blocklists import Blocklist
from etl.intake.stay_out import key_hash, key_hash_of
from etl.selection.judging import is_near
from etl.stage import Table
from etl.store import Store
from etl.tables import CANDIDATES, DATASET_TABLES, FETCHES, PAIRS

WHERE: dict[str, tuple[str, ...]] = {"uid": ("uid",), "url": ("url", "final_url", "page_url"), "sha256": ("sha256",)}
"""Kind of a key -> columns that hold one."""
NAMES_PICTURE = {"url": ("url", "final_url"), "sha256": ("sha256",)}
"""Likewise of what names one picture: a page shows many."""
SOURCES = (CANDIDATES, FETCHES, PAIRS)
"""Tables that hold these columns. The last rows of a pair are here: they go last."""
UID_TABLES = tuple(sorted((t for t in DATASET_TABLES if "\n    uid STRING" in t.ddl), key=SOURCES[::-1].__contains__))
"""With a uid; the sources last."""
ROUNDS = 20
HOST = r"^[a-zA-Z][\w+.-]*://(?:[^/?#@]*@)?([^/?#:]+)"


class Place(NamedTuple):
    """A dataset: of the project, or a registered evaluation set."""

    label: str
    store: Store
    dataset: str

    def tables(self, among: Sequence[Table]) -> Iterator[Table]:
        """Those that exist."""
        return (table for table in among if self.store.exists(self.dataset, table))


@dataclass(frozen=True)
class Found:
    """What a takedown takes."""

    pairs: DataFrame
    """(dataset, uid, is_named): the others hold the same picture."""
    keys: DataFrame
    """(kind, key_hash, distance_bits) of what is to stay out: what was named, and uid, URLs and sha256 of what goes."""


def find(places: Sequence[Place], named: Blocklist) -> Found | None:
    """None where no dataset has a table of pairs or candidates."""
    if not any(True for place in places for _ in place.tables(SOURCES)):
        return None
    hits = _named(places, named).localCheckpoint()
    pictures, found = _keys(places, NAMES_PICTURE), hits
    for _ in range(ROUNDS):
        theirs = pictures.join(found.select("dataset", "uid"), on=["dataset", "uid"], how="left_semi")
        same = pictures.join(theirs.select("kind", "key").distinct(), on=["kind", "key"], how="left_semi")
        more = same.select("dataset", "uid").distinct().join(found, on=["dataset", "uid"], how="left_anti")
        more = more.localCheckpoint()
        if more.isEmpty():
            break
        found = found.unionByName(more)
    pairs = found.join(hits.withColumn("is_named", F.lit(True)), on=["dataset", "uid"], how="left")
    pairs = pairs.select("dataset", "uid", F.coalesce("is_named", F.lit(False)).alias("is_named")).localCheckpoint()
    theirs = _keys(places, {"uid": ("uid",), **NAMES_PICTURE})
    return Found(pairs, _to_keep_out(theirs.join(pairs, on=["dataset", "uid"], how="left_semi"), named))


def _keys(places: Sequence[Place], columns: dict[str, tuple[str, ...]]) -> DataFrame:
    """(dataset, uid, kind, key) of every key in those columns of all tables."""
    parts = []
    for place in places:
        for table in place.tables(SOURCES):
            rows = place.store.read(place.dataset, table).withColumn("dataset", F.lit(place.label))
            for kind, names in columns.items():
                known = [F.col(name).alias("key") for name in names if name in rows.columns]
                parts += [rows.select("dataset", "uid", F.lit(kind).alias("kind"), key) for key in known]
    return reduce(DataFrame.unionByName, parts).where("key IS NOT NULL")


def _named(places: Sequence[Place], named: Blocklist) -> DataFrame:
    """(dataset, uid) of the rows that were named."""
    keys, spark, rows = _keys(places, WHERE), places[0].store.spark, []
    listed = [("uid", uid) for uid in named.uids] + [("url", url) for url in named.urls]
    listed += [("sha256", sha256) for sha256 in named.sha256s]
    if listed:
        wanted = spark.createDataFrame(listed, "kind string, key string")
        rows.append(keys.join(F.broadcast(wanted), on=["kind", "key"], how="left_semi"))
    if named.domains:
        domains = spark.createDataFrame([(name,) for name in sorted(named.domains)], "domain string")
        hosts = keys.where("kind = 'url'").withColumn("domain", F.explode(_domains(F.col("key"))))
        rows.append(hosts.join(F.broadcast(domains), on="domain", how="left_semi"))
    for place in places if named.phashes else ():
        for table in place.tables([PAIRS]):
            near = place.store.read(place.dataset, table).where(reduce(Column.__or__, is_near(named.phashes)))
            rows.append(near.withColumn("dataset", F.lit(place.label)))
    chosen = [part.select("dataset", "uid") for part in rows]
    return reduce(DataFrame.unionByName, chosen, keys.select("dataset", "uid").limit(0)).distinct()


def _domains(url: Column) -> Column:
    """The host of a URL and every domain above it."""
    labels = F.split(F.lower(F.regexp_extract(url, HOST, 1)), r"\.")
    return F.transform(F.sequence(F.lit(1), F.size(labels)), lambda i: F.array_join(F.slice(labels, i, 256), "."))


def _to_keep_out(keys: DataFrame, named: Blocklist) -> DataFrame:
    hashed = F.when(F.lit(False), "")
    for kind in ("uid", "url", "sha256"):
        hashed = hashed.when(F.col("kind") == kind, key_hash_of(kind, F.col("key")))
    theirs = keys.select("kind", hashed.alias("key_hash"), F.lit(0).alias("distance_bits"))
    given = keys.sparkSession.createDataFrame(hashed_keys(named), "kind string, key_hash string, distance_bits int")
    return theirs.unionByName(given).distinct()


def hashed_keys(named: Blocklist) -> list[tuple[str, str, int]]:
    """(kind, key_hash, distance_bits) of what was named, sorted."""
    given = [("uid", uid, 0) for uid in named.uids] + [("url", url, 0) for url in named.urls]
    given += [("domain", name, 0) for name in named.domains] + [("sha256", sha256, 0) for sha256 in named.sha256s]
    given += [("phash", f"{phash:016x}", bits) for phash, bits in named.phashes]
    return sorted((kind, key_hash(kind, key), bits) for kind, key, bits in given)


def rows_by_table(places: Sequence[Place], pairs: DataFrame) -> dict[str, int]:
    """dataset.table -> rows of these pairs, of every table that has a uid and such rows."""
    found = dict[str, int]()
    for place in places:
        uids = F.broadcast(pairs.where(F.col("dataset") == place.label).select("uid"))
        for table in place.tables(UID_TABLES):
            count = place.store.read(place.dataset, table).join(uids, on="uid", how="left_semi").count()
            found |= {f"{place.label}.{table.name}": count} if count else {}
    return found
