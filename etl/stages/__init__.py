"""The recipe: what happens to a pool, in this order. Stages read tables and add one; only ingest writes pairs."""

from etl.stage import Stage
from etl.stages import (
    collect,
    decontaminate,
    decontaminate_semantic,
    dedup,
    dedup_semantic,
    download,
    embed,
    face_boxes,
    features,
    fusion,
    image_signals,
    ingest,
    listed,
    published_scores,
    score,
    selection,
    signals,
    variants,
)

STAGES: tuple[Stage, ...] = (
    collect.STAGE,  # of a dataset that names crawl files
    download.STAGE,  # likewise
    ingest.STAGE,
    signals.STAGE,
    dedup.STAGE,
    decontaminate.STAGE,
    embed.STAGE,
    image_signals.STAGE,  # in embed's pass over the pixels
    variants.STAGE,  # likewise, of evaluation pictures
    face_boxes.STAGE,  # where a release came with boxes
    features.STAGE,  # in place of embed, where the release came with vectors
    dedup_semantic.STAGE,  # where it is switched on
    decontaminate_semantic.STAGE,
    score.STAGE,
    published_scores.STAGE,  # in place of score, where a release came with scores
    fusion.STAGE,
    selection.STAGE,
    listed.STAGE,  # in place of selection, where somebody published what they kept
)
