"""What the suite found, as plain data: claims with intervals, a table per experiment. Pure: results in, data out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from statistics import mean, stdev
from typing import Any

from etl.config import Config
from etl.evidence.base import Base
from etl.evidence.claims import CLAIMS, FIGURE3, Runs, Step, decide, figure3, validity
from models.bootstrap import headline
from models.data import Vectors

LABEL = "analogue with frozen towers"
Found = Mapping[str, Mapping[str, Runs]]
"""Experiment -> pool -> its finished cells."""


def made(config: Config, base: Base, found: Found, chosen: Mapping[str, Any], checked: Mapping[str, Any]) -> dict[str, Any]:  # fmt: skip  # noqa: E501
    """The content of summary.json: see `claims` and `table1` there; everything else explains them."""
    evidence = config.evidence
    tables = {e: {pool: _table(runs) for pool, runs in pools.items()} for e, pools in found.items()}
    validities = {
        pool: validity(runs) for pool, runs in found.get("table1", {}).items() if evidence.pools[pool].must_catch
    }
    claims, steps = _claims(found)
    for pool in (name for name, valid in validities.items() if not valid["is_valid"]):
        for verdicts in claims.values():
            if pool in verdicts:
                verdicts[pool]["holds"] = "void"
    return {
        "label": LABEL,
        "intro": " ".join(config.intro.split()),
        "claims": claims,
        "claim_texts": {name: claim.text for name, claim in CLAIMS.items()} | {"figure3": FIGURE3},
        "levels": {name: claim.level for name, claim in CLAIMS.items()} | {"figure3": 0.05},
        "not_run": [name for name in (*CLAIMS, "figure3") if name not in claims],
        "table1": tables.get("table1", {}),
        "tables": tables,
        "steps": steps,
        "validity": validities,
        "chance": next((runs.chance for pools in found.values() for runs in pools.values()), None),
        "chosen": dict(chosen),
        "spark_check": dict(checked),
        "pools": {name: pool.shares for name, pool in evidence.pools.items()},
        "sizes": _sizes(config, base),
        "settings": evidence.model_dump(mode="json"),
    }


def _claims(found: Found) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, list[dict[str, Any]]]]]:
    claims: dict[str, dict[str, Any]] = {}
    steps: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name, claim in CLAIMS.items():
        if name in found:
            claims[name], of_pool = decide(claim, found[name])
            steps[name] = {pool: [_step(step) for step in each] for pool, each in of_pool.items()}
    if "figure3" in found:
        claims["figure3"] = {pool: figure3(runs)[0] for pool, runs in found["figure3"].items()}
    return claims, steps


def _step(step: Step) -> dict[str, Any]:
    return {"name": step.name, "must": step.must, "p": step.p_corrected, **asdict(step.estimate)}


def _table(runs: Runs) -> dict[str, dict[str, dict[str, float]]]:
    """Arm -> metric -> mean and standard deviation over seeds."""
    table = {}
    for arm, values in runs.parts.items():
        metrics = {"avg": headline(values).tolist()}
        metrics |= {part: part_SI.mean(axis=1).tolist() for part, part_SI in values.items()}
        metrics |= {"dev": runs.dev[arm]} | ({"precision": runs.precision[arm]} if arm in runs.precision else {})
        table[arm] = {metric: spread(of_seeds) for metric, of_seeds in metrics.items()}
    return table


def spread(values: list[float]) -> dict[str, float]:
    """Mean and sample standard deviation (0 for one value)."""
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else 0.0}


def _sizes(config: Config, base: Base) -> dict[str, Any]:
    from pathlib import Path

    import pandas as pd

    facts = pd.read_parquet(Path(base.stock) / "facts.parquet")
    counts = {str(name): int(number) for name, number in facts["dataset"].value_counts().items()}
    items = {name: len(Vectors.open(Path(folder))) for name, folder in base.eval_sets.items()}
    return {"pairs": counts, "items": items, "dropped_as_near_copies": dict(base.flagged)}
