"""Lists of pairs as others publish them: what their columns are, and their rows by that. Reads files; no Spark.

What a column is, its name says, or the config. A list that does not parse, or lacks what is needed, is a reason in the
ledger, never an error; the rows before a damage stay. The formats are in `etl/intake/list_formats.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Annotated, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pydantic

from etl.intake.list_formats import BATCH_ROWS, DAMAGE, format_of, open_rows
from etl.intake.uids import uid_of
from etl.shards import ShardSummary
from models.images import one_line

Kind = Literal["uid", "url", "text", "sha256", "width_px", "height_px", "image", "path"]
"""What a column can be. image: bytes of a picture; path: its file, relative to the folder of the list."""
KNOWN_NAMES: Mapping[str, Kind] = {
    "uid": "uid", "url": "url", "text": "text", "caption": "text", "sha256": "sha256", "original_width": "width_px",
    "original_height": "height_px", "width": "width_px", "height": "height_px",
    "image": "image", "image_bytes": "image", "jpg": "image", "png": "image", "webp": "image",
    "path": "path", "image_path": "path", "file_name": "path",
}  # fmt: skip
"""Column of a release, in lower case -> what it is."""
UID = "^[0-9a-f]{32}$"


def _each_once(columns: dict[str, Kind]) -> dict[str, Kind]:
    twice = sorted({kind for kind in columns.values() if list(columns.values()).count(kind) > 1})
    if twice:
        raise ValueError(f"wanted one column for each kind; found several for {', '.join(twice)}")
    return columns


Columns = Annotated[dict[str, Kind], pydantic.AfterValidator(_each_once)]
"""Column of a list -> what it is, where its name does not say; over KNOWN_NAMES."""


def rename(names: Sequence[str], own: Mapping[str, str]) -> dict[str, str]:
    """What a column is -> its name: by the user's mapping first, then by known names, whatever their case."""
    found: dict[str, str] = {}
    for name in names:
        kind = own.get(name) or KNOWN_NAMES.get(name.lower())
        if kind and (kind not in found or name in own):
            found[kind] = name
    return found


def scan_list(
    uri: str, *, columns: Mapping[str, str], kinds: Collection[str], needs: Sequence[Collection[str]],
    batch_rows: int = BATCH_ROWS,
) -> Iterator[pa.RecordBatch | ShardSummary]:  # fmt: skip
    """Batches of the columns of these kinds, named by kind, in the file's order; then its summary, always.

    `needs`: of each of these some column must be there. Strings are strings whatever they were; see `values`.
    """
    num_rows, bad = 0, "bad_parquet" if format_of(uri) == "parquet" else "bad_list"
    try:
        with open_rows(uri) as rows:
            named = {kind: name for kind, name in rename(rows.names, columns).items() if kind in kinds}
            if why := lacking(named, rows.names, columns, needs):
                yield ShardSummary(uri, None, bad, why, 0)
                return
            for batch in rows.batches(named.values(), batch_rows):
                found = arrays(batch, named)
                num_rows += len(batch)
                yield pa.record_batch(found)
    except DAMAGE as error:
        yield ShardSummary(uri, None, bad, reason_of(error), num_rows)
        return
    yield ShardSummary(uri, None, "ok", None, num_rows)


def lacking(
    named: Mapping[str, str], names: Sequence[str], own: Mapping[str, str], needs: Sequence[Collection[str]]
) -> str | None:
    """Why a list with these columns will not do; None where it will."""
    wanted = next((" or ".join(group) for group in needs if not named.keys() & set(group)), None)
    absent = next((name for name, kind in own.items() if name not in names and kind not in named), None)
    if wanted is None and absent is None:
        return None
    what = f"a column for {wanted}" if wanted else f"column {absent}, which the dataset's columns name"
    return one_line(f"wanted {what}; found {', '.join(names)[:150]}")


def arrays(batch: pa.RecordBatch, named: Mapping[str, str]) -> dict[str, pa.Array]:
    """By what they are. An image that is text is the path of one."""
    found = dict[str, pa.Array]()
    for kind, name in named.items():
        column = batch.column(name)
        is_path = kind == "image" and (pa.types.is_string(column.type) or pa.types.is_large_string(column.type))
        found.setdefault("path" if is_path else kind, values(column, "path" if is_path else kind))
    return found


def values(column: pa.Array, kind: str) -> pa.Array:
    """Strings; for images bytes; for sizes whole numbers, NULL where what is there is none."""
    if kind == "image":
        is_struct = pa.types.is_struct(column.type)  # as Hugging Face's datasets have it: {bytes, path}
        return (pc.struct_field(column, "bytes") if is_struct else column).cast(pa.binary())
    if not kind.endswith("_px"):
        strings = column.cast(pa.string())
        strings.validate(full=True)  # what is not UTF-8
        return strings
    if pa.types.is_string(column.type):
        column = pa.array(pd.to_numeric(column.to_pandas(), errors="coerce"), pa.float64(), from_pandas=True)
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return pa.nulls(len(column), pa.int32())
    is_one = pc.and_(pc.greater_equal(column, 0), pc.less(column, 1 << 31))
    return pc.if_else(is_one, column, None).cast(pa.int32(), safe=False)


def uids_of(found: Mapping[str, pa.Array], num_rows: int) -> pa.Array:
    """The release's own where it is one, else the md5 of url and text."""
    absent = pa.nulls(num_rows, pa.string())
    given, is_one = given_uids(found.get("uid", absent))
    without = pc.invert(is_one)
    pairs = zip(*(found.get(kind, absent).filter(without).to_pylist() for kind in ("url", "text")), strict=True)
    made = pa.array([uid_of(url, text) for url, text in pairs], pa.string())
    return pc.replace_with_mask(given, without, made) if len(made) else given


def given_uids(uids: pa.Array) -> tuple[pa.Array, pa.Array]:
    """In lower case; and which are 32 hex digits."""
    lower = pc.ascii_lower(uids)
    return lower, pc.fill_null(pc.match_substring_regex(lower, UID), False)


def reason_of(error: Exception) -> str:
    """One line."""
    return one_line(" ".join(str(error).split())) or type(error).__name__
