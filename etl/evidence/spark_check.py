"""One arm of Table 1 through Spark: the same filter, scored and selected by the stages, must keep the same pairs.

Touches tables through the stages, and OUTPUT/spark_check.json, which says what was compared.
"""

from __future__ import annotations

import json
from typing import Any

from pyspark.sql import functions as F

from etl.evidence.bench import Bench
from etl.evidence.experiments import Lab
from etl.evidence.jobs import FilterJob
from etl.filters.filters import Filters
from etl.project import Project
from etl.shard_writer import publish_json
from etl.stages import selection
from etl.stages.selection import DFN
from etl.tables import SELECTIONS
from models.data import u8_to_uid

FILE = "spark_check.json"


def check(project: Project, bench: Bench, lab: Lab) -> dict[str, Any]:
    """{pool, arm, seed, num_pairs, num_shared, same_uids, selection_id}; as it was found, where the filter is the same.

    Of a pool without planted noise, whose pairs are those of the tables; {} where no pool is without.
    """
    config, path = project.config.evidence, project.config.output_folder / FILE
    natural = [name for name, pool in config.pools.items() if not pool.shares]
    if not natural:
        return {}
    seed, pool = config.seeds[0], natural[0]
    trained: FilterJob = lab.dfn(seed)
    bench.do(trained)
    key = bench.key(trained, pool, config.fraction, selection.STAGE.version)
    if path.exists() and (found := json.loads(path.read_text()))["key"] == key:
        project.say("spark check   up to date")
        return dict(found)
    job = lab.by(pool, seed, trained)
    fast = set(u8_to_uid(bench.pool(pool, seed)[1].uids_u8[bench.kept(job)]))
    rule = project.config.stages.selection.model_copy(  # type: ignore[attr-defined]
        update={"name": "evidence", "keep": selection.Keep(top_fraction=config.fraction, of=DFN)}
    )
    settings = Filters(project, config.base, {DFN: bench.folder(trained)}).scoring(rule)
    done = project.run(selection.STAGE, config.base, settings)
    id_ = str(done.slice["selection_id"])
    rows = project.store.read(config.base, SELECTIONS).where(F.col("selection_id") == id_).select("uid").collect()
    slow = {row["uid"] for row in rows}
    found = {"key": key, "pool": pool, "arm": "dfn", "seed": seed, "num_pairs": len(slow),
             "num_shared": len(slow & fast), "same_uids": slow == fast, "selection_id": id_}  # fmt: skip
    publish_json(path, found)
    project.say(f"spark check   {len(slow):,} pairs by the stages, {len(slow & fast):,} of them by the fast path too")
    return found
