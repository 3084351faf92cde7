"""Everything that stands on a selection's card, from the tables. Reads; writes the page where it is told to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyspark.sql import functions as F

from etl.loop.lineage import Lineage
from etl.project import Project
from etl.report import card, measures
from etl.report.card import Card
from etl.report.induced import measured
from etl.report.page import Funnel
from etl.report.showing import groups_of, shown
from etl.report.subject import Subject
from etl.selection.receipts import funnel, stored
from etl.tables import CANDIDATES, DUPLICATES, FETCHES, IMAGE_SIGNALS, SELECTIONS, SIGNALS
from models.records import write_whole
from models.tracking import TrackingDownError, answering, may_answer

MAX_ENTRIES = 40
"""Of a mapping or list in a receipt that a page shows: rules can hold a cut for each language."""


def write_card(project: Project, pool: str, receipt: Mapping[str, Any], path: Path) -> Path:
    """The page of a selection. Raises UserError for a rule of another release."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, card.render(gather(project, pool, receipt)))
    return path


def card_path(project: Project, receipt: Mapping[str, Any]) -> Path:
    """Where a card is, unless one says otherwise."""
    return project.config.output_folder / "cards" / f"{receipt['selection_id']}.html"


def gather(project: Project, pool: str, receipt: Mapping[str, Any]) -> Card:
    subject = Subject(project, pool, receipt)
    num_pool, num_pairs, num_flagged, num_bare = _sizes(subject)
    filters, num_filters = measures.filters_of(subject)
    repeats = _repeats(subject)
    found, why_none = measured(project, receipt)
    rule = receipt["rule"]
    limits = [*_limits(subject, num_flagged, num_bare), *([why_none] if why_none else [])]
    if num_filters > len(filters):
        limits.append(f"{num_filters - len(filters)} of {num_filters} versions of filters are not shown.")
    if any(m.how.endswith("one seed") for m in found):
        limits.append("Of one seed's models the spread over seeds is not known: their intervals are over items alone.")
    return Card(
        title=f"{project.config.name}: {rule['name']}",
        intro=project.config.intro,
        num_pool=num_pool,
        num_pairs=num_pairs,
        num_samples=sum(times * pairs for times, pairs in repeats.items()),
        ranked_by=measures.label(subject.ranking) if subject.ranking else "",
        threshold=subject.threshold,
        is_intact=stored(project.store, pool, subject.selection_id) == (receipt["hash"], receipt["num_rows"]),
        precision=_precision(subject),
        funnel=[*_before(subject, num_pool), *funnel(receipt)],
        repeats=repeats,
        receipt=brief(dict(receipt)),
        lineage=_lineage(subject),
        limits=limits,
        scores=measures.distributions(subject, filters),
        groups=shown(project, pool, groups_of(subject)),
        columns=measures.columns(subject),
        duplicates=measures.duplicates(subject),
        leaks=measures.leaks(subject),
        filters=measures.compared(subject, filters, num_pool, num_pairs / max(num_pool, 1)),
        measured=found,
    )


def _sizes(subject: Subject) -> tuple[int, int, int, int]:
    """Pairs of the pool, of the selection, those that must not be shown, and those of the selection without pixels."""
    counts = [F.count_if(F.expr(said)) for said in ("TRUE", "is_kept", "is_flagged", "is_kept AND NOT has_pixels")]
    num_pool, num_pairs, num_flagged, num_bare = map(int, subject.judged.agg(*counts).collect()[0])
    return num_pool, num_pairs, num_flagged, num_bare


def _repeats(subject: Subject) -> dict[int, int]:
    rows = subject.project.store.read(subject.pool, SELECTIONS, where={"selection_id": subject.selection_id})
    counts = rows.groupBy("num_repeats").count().orderBy("num_repeats").limit(MAX_ENTRIES).collect()
    return {int(row["num_repeats"]): int(row["count"]) for row in counts}


def _precision(subject: Subject) -> float | None:
    """Share of kept pairs whose caption is the true one, where noise was planted."""
    truth = subject.project.truth(subject.pool)
    if not truth:
        return None
    known = subject.project.store.spark.createDataFrame(list(truth.items()), "uid string, is_true boolean")
    kept = subject.judged.where("is_kept").join(known, on="uid", how="inner")
    found = kept.agg(F.avg(F.col("is_true").cast("int"))).collect()[0][0]
    return None if found is None else float(found)


def _before(subject: Subject, num_pool: int) -> Funnel:
    """Candidates, and those of them that were fetched, of a pool all of which was downloaded."""
    store, pool, found = subject.project.store, subject.pool, list[tuple[str, int, str]]()
    if store.exists(pool, CANDIDATES):
        found.append(("candidates found", store.read(pool, CANDIDATES).count(), ""))
    if store.exists(pool, FETCHES):
        rows = store.read(pool, FETCHES).groupBy("status").count().collect()
        counts = {row["status"]: int(row["count"]) for row in rows}
        num_ok = counts.pop("ok", 0)
        why = ", ".join(f"{n:,} {status}" for status, n in sorted(counts.items(), key=lambda item: -item[1]))
        found.append(("fetched", num_ok, why))
    return [step for step in found if step[1] >= num_pool]


def _lineage(subject: Subject) -> dict[str, Any]:
    if not may_answer(subject.project.tracking_uri):
        return {}
    try:
        with answering(subject.project.tracking_uri):
            return dict(brief(Lineage(subject.project).of_selection(subject.selection_id)))
    except TrackingDownError as error:
        return {"not known": str(error)}


def brief(value: Any) -> Any:
    """As a page shows it: of what is longer than `MAX_ENTRIES` the first, and how many more."""
    if isinstance(value, Mapping):
        first = {key: brief(inner) for key, inner in list(value.items())[:MAX_ENTRIES]}
        return first | ({"…": f"{len(value) - MAX_ENTRIES:,} more"} if len(value) > MAX_ENTRIES else {})
    if isinstance(value, list | tuple):
        more = [f"… {len(value) - MAX_ENTRIES:,} more"] if len(value) > MAX_ENTRIES else []
        return [*map(brief, value[:MAX_ENTRIES]), *more]
    return value


def _limits(subject: Subject, num_flagged: int, num_bare: int) -> list[str]:
    """What the card cannot tell, from facts."""
    store, pool, rule = subject.project.store, subject.pool, subject.receipt["rule"]
    if subject.obstacle:
        found = [f"The rule cannot be applied again ({subject.obstacle}): why single pairs were left out is not known."]
    else:
        found = ["The rule was not applied again to prove it: dfn select --receipt does that."]
    if num_bare:
        found.append(f"{num_bare:,} pairs of the selection have no pixels yet.")
    if num_flagged:
        found.append(f"{num_flagged:,} pairs of the pool are flagged or cannot be shown: none of them is on this page.")
    num_looked, num_faces = 0, 0
    if store.exists(pool, IMAGE_SIGNALS):
        looked = store.read(pool, IMAGE_SIGNALS).agg(F.count("nsfw_score"), F.count("face_boxes"))
        num_looked, num_faces = looked.collect()[0]
    if not num_looked:
        by_words = ": only captions were looked at" if store.exists(pool, SIGNALS) else ", and nothing at captions"
        found.append(f"No model looked for unsafe pictures{by_words}.")
    if not num_faces:
        found.append("Nothing looked for faces.")
    if not store.exists(pool, SIGNALS):
        found.append("Languages are not known: the stage signals has not run.")
    if not store.exists(pool, DUPLICATES):
        found.append("Nothing looked for duplicates.")
    elif not rule.get("unique"):
        found.append("The rule keeps duplicates: it has no `unique`.")
    if not (rule.get("exclude") or {}).get("contaminated"):
        found.append("The rule keeps pairs that are seen in evaluation sets.")
    return [
        *found,
        "Filters are compared on a sample, and pictures are a handful of a group: neither is a measurement.",
    ]
