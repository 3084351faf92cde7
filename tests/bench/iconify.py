"""Part `iconify`: known groups of exact duplicates, found from pixels. `make bench PART=iconify`.

`@iconify/json` holds some 380,000 icons of 240 sets, in one colour and in many; in 13,000 groups of them the SVG is
the same to the byte, viewBox included. All members of such groups are drawn small (`resvg-py`), and so many others
that they make --icons; each drawing gets what ingest gives a picture (sha256, perceptual hash), and stage `dedup`
groups them under Spark, by bytes and by 4 bits. Of what it finds:

    groups_by_METHOD      known groups that lie whole in one group, of all known ones that can be seen
    precision_by_METHOD   pairs within groups: of those by bytes the share with the same SVG, of those by hash the share
                          with the same pixels; what remains are different texts of one drawing, and drawings that look
                          alike, which is what the method is for: no error that can be counted without looking
    draw_, dedup_seconds  of drawing and hashing, and of the stage; with the largest sum of resident memory of the
                          process tree

Sets under CC-BY-NC and the GPL are left out, and icons that are hidden. Of a drawing on white that shows nothing (white
icons) nothing can be told apart: `blank`, counted, and left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import time
from collections.abc import Iterator

import numpy as np
import pandas as pd
from pyspark.sql import SparkSession

from etl.samples.packages import default_cache, fetch_package
from etl.samples.sources import _svg
from etl.stages import dedup
from models.images import ImageError, decode_rgb, inspect
from tests.bench import ours
from tests.bench.measure import OUT, Ratio, cpu_seconds, load, peak_memory, report, say

SIDE_PX = 64
HERE = OUT / "data" / "iconify"
DRAWN = "uid string, status string, sha256 string, phash bigint, pixels string"


def icons(number: int) -> pd.DataFrame:
    """(uid, svg, group, is_colour): all members of known groups, and others in the order of their uid."""
    rows = []
    for path in sorted(
        (fetch_package("@iconify/json", cache=default_cache(), say=say) / "package/json").glob("*.json")
    ):
        icon_set = json.loads(path.read_text(encoding="utf-8"))
        if any(word in icon_set["info"]["license"]["spdx"] for word in ("-NC", "GPL")):
            continue
        for name, icon in icon_set["icons"].items():
            if not icon.get("hidden"):
                svg = _svg(icon_set, icon)
                uid = hashlib.md5(f"{icon_set['prefix']}:{name}".encode()).hexdigest()
                group = hashlib.md5(svg).hexdigest()
                rows.append((uid, svg.decode(), group, bool(icon_set["info"].get("palette"))))
    found = pd.DataFrame(rows, columns=["uid", "svg", "group", "is_colour"])
    is_known = found.groupby("group")["uid"].transform("size") > 1
    say(f"{len(found):,} icons, {is_known.sum():,} of them in {found['group'][is_known].nunique():,} groups of one SVG")
    others = found[~is_known].sort_values("uid").head(max(0, number - is_known.sum()))
    return pd.concat([found[is_known], others])


def draw(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    import resvg_py

    for batch in batches:
        rows = []
        for uid, svg in zip(batch["uid"], batch["svg"], strict=True):
            try:
                png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIDE_PX, skip_system_fonts=True))
                pixels = np.asarray(decode_rgb(png))
                facts = inspect(png)
            except (ValueError, OSError, ImageError):
                rows.append((uid, "decode_error", None, None, None))
                continue
            status = "ok" if pixels.min() < 255 else "blank"
            shown = hashlib.md5(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
            rows.append((uid, status, hashlib.sha256(png).hexdigest(), facts.phash, shown))
        yield pd.DataFrame(rows, columns=[part.split()[0] for part in DRAWN.split(", ")])


def measured(spark: SparkSession, number: int) -> list[Ratio]:
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir(parents=True)
    known = icons(number)
    known[["uid", "svg"]].to_parquet(HERE / "svg.parquet", row_group_size=2_000)
    spent: dict[str, tuple[float, float, float]] = {}

    def drawing() -> float:
        svgs = spark.read.parquet(str(HERE / "svg.parquet")).repartition(32)
        svgs.mapInPandas(draw, DRAWN).write.parquet(str(HERE / "drawn"))  # Python: SVG is drawn by a library
        return 1.0

    def grouping() -> float:
        seen = spark.read.parquet(str(HERE / "drawn")).where("status = 'ok'")
        found = dedup.transform(seen, config=dedup.Config(methods=("sha256", "phash")))
        found.write.parquet(str(HERE / "found"))
        return 1.0

    for name, side in (("draw", drawing), ("dedup", grouping)):
        started, before = time.monotonic(), cpu_seconds()
        megabytes = peak_memory(side)
        spent[name] = (time.monotonic() - started, cpu_seconds() - before, megabytes)
    drawn = known.merge(pd.read_parquet(HERE / "drawn"), on="uid", validate="1:1")
    for status, some in drawn.groupby("status"):
        say(f"{status}: {len(some):,} icons, {some['is_colour'].sum():,} of them in colour")
    return [*judged(drawn[drawn["status"] == "ok"], pd.read_parquet(HERE / "found")), *costs(spent, len(known))]


def judged(seen: pd.DataFrame, found: pd.DataFrame) -> list[Ratio]:
    """Rows on what was found, of icons that show something."""
    sizes = seen.groupby("group")["uid"].size()
    known, rows = set(sizes[sizes > 1].index), []
    for method, same in (("sha256", "group"), ("phash", "pixels")):
        own = found[found["method"] == method][["uid", "group_uid", "distance"]]
        both = seen.merge(own, on="uid", how="left")
        of_known = both[both["group"].isin(known)].groupby("group")["group_uid"]
        whole = int((of_known.nunique(dropna=False).eq(1) & of_known.count().gt(0)).sum())
        members = f"{int(sizes[sizes > 1].sum()):,} icons; {own['group_uid'].nunique():,} groups of {len(own):,} found"
        rows.append(_row(f"groups_by_{method}", whole, len(known), "groups found whole", ">= 1", members))
        grouped = both.dropna(subset=["group_uid"])
        pairs = _pairs(grouped.groupby("group_uid").size())
        alike = _pairs(grouped.groupby(["group_uid", same]).size())
        pixels = _pairs(grouped.groupby(["group_uid", "pixels"]).size())
        note = f"largest group {grouped.groupby('group_uid').size().max():,}; same pixels {pixels / pairs:.2%} of pairs"
        near = f"; within 4 bits of the group's name {(grouped['distance'] <= 4).mean():.1%} of rows"
        what = "pairs of one SVG" if same == "group" else "pairs of same pixels"
        rows.append(_row(f"precision_by_{method}", alike, pairs, what, "-", note + near * (method == "phash")))
    return rows


def _pairs(sizes: pd.Series) -> int:
    return int((sizes * (sizes - 1) // 2).sum())


def costs(spent: dict[str, tuple[float, float, float]], number: int) -> list[Ratio]:
    return [
        _row(f"{name}_seconds", wall, cpu, "wall / CPU seconds", "-", f"{number:,} icons, {megabytes:,.0f} MB at most")
        for name, (wall, cpu, megabytes) in spent.items()
    ]


def _row(name: str, ours_: float, theirs: float, unit: str, goal: str, note: str) -> Ratio:
    return Ratio(name, float(ours_), float(theirs), unit, ours_ / theirs if theirs else None, goal, None, load(), note)


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.iconify", description=__doc__.split("\n")[0])
    parser.add_argument("--icons", type=int, default=60_000, help="drawn, known groups first (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="the known groups alone")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="for other parts")
    given = parser.parse_args()
    rows = measured(ours.spark_session("local[2]"), 0 if given.quick else given.icons)
    report("iconify-quick" if given.quick else "iconify", rows)


if __name__ == "__main__":
    main()
