"""What the notebooks share: parameters, an open project, pictures of pairs. Reads shards; plots."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pandas as pd
from pyspark.sql import functions as F

from etl.config import folder_of, load
from etl.project import Project
from etl.report.subject import NSFW_ABOVE, flagged
from etl.shards import RangeReader

PLACE = ["shard", "offset_bytes", "size_bytes"]


def parameters(defaults: Mapping[str, str], variables: Mapping[str, Any]) -> dict[str, str]:
    """Name -> value: of a widget where there are widgets, else of the environment (`DFN_NAME`), else the default.

    Args:
        variables: the notebook's `globals()`, in which Databricks puts `dbutils`.
    """
    if (dbutils := variables.get("dbutils")) is None:
        return {name: os.environ.get(f"DFN_{name.upper()}", default) for name, default in defaults.items()}
    for name, default in defaults.items():
        dbutils.widgets.text(name, default)
    return {name: dbutils.widgets.get(name) for name in defaults}


def opened(given: Mapping[str, str], say: Callable[[str], None]) -> Project:
    """The project of the parameters `conf` and `set`: names and overrides, with blanks between them."""
    return Project(load(given["conf"].split(), given["set"].split()), say)


def with_images(project: Project, dataset: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `pairs` with the bytes of their images as a column `image`, read in the order of their places.

    Without those that must not be shown, as on a data card: unsafe, with a face, seen in an evaluation set, opted out.
    """
    hidden = flagged(project, dataset, NSFW_ABOVE).where(F.col("uid").isin(list(rows["uid"]))).collect()
    rows = rows[~rows["uid"].isin([row["uid"] for row in hidden])]
    ordered = rows.sort_values(PLACE)
    root = folder_of(project.sources[dataset].shards or "")
    with RangeReader() as reader:
        places = zip(root + "/" + ordered["shard"], ordered["offset_bytes"], ordered["size_bytes"], strict=True)
        return ordered.assign(image=list(reader.read_many(places))).loc[rows.index]


def show(images: Iterable[bytes], titles: Iterable[str], *, columns: int = 4) -> Any:
    """A figure of pictures, with what is written above each."""
    import matplotlib.pyplot as plt

    from models.images import decode_rgb

    shown = list(zip(images, titles, strict=True))
    lines = max(1, -(-len(shown) // columns))
    figure, axes = plt.subplots(lines, columns, figsize=(3.5 * columns, 3.7 * lines), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (image, title) in zip(axes.flat, shown, strict=False):
        axis.imshow(decode_rgb(image))
        axis.set_title(title[:36], parse_math=False)
    return figure
