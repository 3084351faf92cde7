"""Face boxes that a release published (DataComp's `face_bboxes`). Reads metadata files and pairs. Writes image_signals:
one row per pair. No pixels: these are the boxes by which DataComp's download blurs faces.

Of two rows with one uid that of the smaller (file, place in it) counts. A pair of which the metadata says nothing gets
`no_vectors`, one with a box that is not four finite numbers `invalid_output`.
"""

from __future__ import annotations

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.stage import Read, Stage, digest
from etl.stages import columns
from etl.tables import IMAGE_SIGNALS, PAIRS


class Config(columns.Config):
    """`column` empty: the release has no boxes, and the stage is not run."""

    model: str = "datacomp_faces"
    """What the boxes are called in image_signals."""

    @property
    def model_version(self) -> str:
        """Names the column: the model that looked is the publisher's."""
        return digest("published column", self.column)[:16]


def transform(files: DataFrame, pairs: DataFrame, *, config: Config) -> DataFrame:
    first = columns.first_values(files, config, "array<array<float>>", pa.list_(pa.list_(pa.float32())))
    is_box = "size(box) = 4 AND forall(box, side -> coalesce(abs(side) < double('inf'), false))"
    is_good = F.expr(f"forall(value, box -> coalesce({is_box}, false))")
    is_there = F.col("value").isNotNull()
    return (
        pairs.select("uid")
        .join(first, on="uid", how="left")
        .select(
            F.lit(config.model).alias("model"),
            F.lit(config.model_version).alias("model_version"),
            "uid",
            F.lit(None).cast("float").alias("nsfw_score"),
            F.when(is_good, F.col("value")).alias("face_boxes"),
            F.when(is_good, "ok").when(is_there, "invalid_output").otherwise("no_vectors").alias("status"),
            F.when(is_there & ~is_good, "a box is not four finite numbers")
            .when(~is_there, "the metadata has no face boxes of it")
            .alias("status_reason"),
        )
    )


STAGE = Stage(
    "face_boxes", reads={"pairs": Read(PAIRS)}, writes=(IMAGE_SIGNALS,), config=Config, transform=transform,
    resume="table", version=1, listing=columns.listing,
)  # fmt: skip
