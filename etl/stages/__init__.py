"""The recipe: what happens to a pool, in this order. Stages read tables and add one; nothing rewrites the pairs."""

from etl.stage import Stage
from etl.stages import decontaminate, dedup, embed, ingest, score, selection, signals

STAGES: tuple[Stage, ...] = (
    ingest.STAGE,
    signals.STAGE,
    dedup.STAGE,
    decontaminate.STAGE,
    embed.STAGE,
    score.STAGE,
    selection.STAGE,
)
