"""Where a model came from, and where a row went: model -> selection -> rows, filter, filter dataset, code; and back.

Reads receipts, `selections`, `runs` and MLflow. What `dfn train` trained is there where it was told of an MLflow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyspark.sql import functions as F

from etl.loop.train_log import KIND
from etl.project import Project
from etl.selection.receipts import receipts
from etl.stage import UserError
from etl.tables import PAIRS, RUNS, SELECTIONS
from models import registry, spool, trace
from models.records import RECORD, FilterRecord, WeightsError
from models.trace import Traced

MODEL = re.compile(r"(?:models:/)?([\w.-]+)(?:/(\d+)|@([\w-]+))")


@dataclass(frozen=True)
class Lineage:
    """MLflow is to be connected."""

    project: Project

    def of(self, what: str) -> dict[str, Any]:
        """Of a model (NAME/VERSION, NAME@ALIAS, a run in MLflow, the folder of `dfn train`), a selection, or a uid.

        Raises UserError where it is none of these.
        """
        if Path(what).is_dir():
            return self._of_folder(Path(what))
        if named := MODEL.fullmatch(what):
            return self._of_model(*named.groups())
        if re.fullmatch("[0-9a-f]{16}", what):
            return self.of_selection(what)
        if re.fullmatch("[0-9a-f]{32}", what):
            found = trace.traced(what)
            return self.of_run(found) if found else self.of_uid(what)
        raise UserError(f"lineage: wanted NAME/VERSION, NAME@ALIAS, a run, a selection (16 hex digits) or a uid (32); "
                        f"found {what}; fix: see dfn status")  # fmt: skip

    def _of_folder(self, folder: Path) -> dict[str, Any]:
        run_id = spool.run_id_of(folder) or spool.run_id_of(folder / "clip")
        if run_id is None or (found := trace.traced(run_id)) is None:
            raise UserError(f"lineage: wanted a model's folder whose run is in MLflow; found none of {folder}; "
                            "fix: dfn train --tracking-uri, or dfn sync")  # fmt: skip
        return {"model": str(folder), **self.of_run(found)}

    def _of_model(self, name: str, number: str | None, alias: str | None) -> dict[str, Any]:
        known = registry.aliases(name)
        number = number or known.get(str(alias))
        run_id = trace.run_of_version(name, number) if number else None
        found = trace.traced(run_id) if run_id else None
        if found is None:
            there = ", ".join(f"@{alias} -> {version}" for alias, version in sorted(known.items())) or "none"
            raise UserError(f"lineage: wanted a version of {name} with its run; found {number or alias}, aliases: "
                            f"{there}; fix: name another")  # fmt: skip
        return {"model": f"{name}/{number}", **self.of_run(found)}

    def of_run(self, run: Traced) -> dict[str, Any]:
        """Recipe, Delta versions, code, and the selection or the filter dataset that it was trained on."""
        found = {**_named(run), "code_commit": run.commit, "heads": run.tags.get("filter_version"),
                 "encoder_version": run.tags.get("encoder_version"), "delta_versions": dict(run.inputs)}  # fmt: skip
        if selection := run.tags.get("selection_id"):
            found["selection"] = self.of_selection(selection, with_models=False)
        if run.round:
            found["round"] = run.round
        makers = [] if run.tags.get("kind") == KIND else self._makers(run.tags.get("encoder_version"))
        if makers:
            found["encoder_made_by"] = _named(makers[-1])
        if run.starts:
            found["made_from"] = {how: self._of_filter(version) for how, version in run.starts.items()}
        return found

    def of_selection(self, selection_id: str, *, with_models: bool = True) -> dict[str, Any]:
        """Its receipt in short, the filters that ranked it and how they were trained; and the models trained on it."""
        store, known = self.project.store, dict[str, tuple[str, dict[str, Any]]]()
        for pool in self.project.config.of_kind("pool"):
            known |= {id_: (pool, receipt) for id_, receipt in receipts(store, pool).items()}
        if selection_id not in known:
            raise UserError(f"lineage: wanted a selection of {', '.join(known) or 'none yet'}; found {selection_id}")
        pool, receipt = known[selection_id]
        rule = receipt["rule"]
        found = {
            "selection": selection_id, "name": rule["name"], "dataset": pool, "num_rows": receipt["num_rows"],
            "hash": receipt["hash"], "rows": f"{store.name(pool, SELECTIONS)} where selection_id = '{selection_id}'",
            "delta_versions": dict(receipt["inputs"]), "code_commit": self._commit(selection_id),
        }  # fmt: skip
        by = {name: self._of_filter(version) for name, (_, version) in rule.get("scored_by", {}).items()}
        found |= {"filters": by} if by else {}
        if with_models:
            found["models"] = [_named(run) for run in trace.runs_with({"selection_id": selection_id})]
        return found

    def _of_filter(self, version: str) -> dict[str, Any]:
        """How a filter was made: by a run, or from a config."""
        runs = trace.runs_with({"filter_version": version, "kind": "filter"})
        if runs:
            run = runs[0]
            made = {how: self._of_filter(start) for how, start in run.starts.items()}
            return {"filter_version": version, **_named(run), "filter_dataset": dict(run.inputs),
                    "code_commit": run.commit, **({"made_from": made} if made else {})}  # fmt: skip
        for path in sorted((self.project.config.output_folder / "filters").glob(f"*/{RECORD}")):
            try:
                record = FilterRecord.read(path.parent)
            except WeightsError:
                continue
            if record.version == version:
                return {"filter_version": version, "formula": record.formula, "made_from": dict(record.provenance)}
        return {"filter_version": version, "made_from": "not known here"}

    def of_uid(self, uid: str) -> dict[str, Any]:
        """Datasets and selections that hold a pair, and the models that were trained on it."""
        store, config = self.project.store, self.project.config
        at = [name for name in config.datasets if store.exists(name, PAIRS)]
        at = [name for name in at if not store.read(name, PAIRS).where(F.col("uid") == uid).limit(1).isEmpty()]
        if not at:
            raise UserError(f"lineage: wanted a run in MLflow or the uid of a pair; found neither by {uid}")
        selections = dict[str, str]()
        for pool in set(at) & set(config.of_kind("pool")):
            if store.exists(pool, SELECTIONS):
                rows = store.read(pool, SELECTIONS).where(F.col("uid") == uid).select("selection_id").collect()
                names = {id_: receipt["rule"]["name"] for id_, receipt in receipts(store, pool).items()}
                selections |= {row[0]: names.get(row[0], "") for row in rows}
        return {"uid": uid, "datasets": at, "selections": selections, "models": self.models_on(selections, at)}

    def models_on(self, selections: Iterable[str], datasets: Iterable[str]) -> list[dict[str, Any]]:
        """Models that were trained on any of these selections, or as filters on any of these datasets."""
        models = list[dict[str, Any]]()
        for id_ in selections:
            models += [{**_named(run), "selection": id_} for run in trace.runs_with({"selection_id": id_})]
        learnt_from = {f"/{name}/embeddings" for name in set(datasets) & set(self.project.config.of_kind("filter"))}
        if learnt_from:
            runs = trace.runs_with({"kind": "filter"})
            models += [_named(run) for run in runs if any(path.endswith(tuple(learnt_from)) for path in run.inputs)]
        return models

    def _makers(self, encoder_version: str | None) -> list[Traced]:
        """Runs of `dfn train` that made an encoder."""
        return trace.runs_with({"kind": KIND, "encoder_version": encoder_version}) if encoder_version else []

    def _commit(self, selection_id: str) -> str | None:
        rows = self.project.store.read("", RUNS).where(F.col("name").isin("selection", "listed"))
        found = rows.where(F.col("key").startswith(selection_id)).orderBy("ended_at").select("git_commit").collect()
        return str(found[0][0]) if found and found[0][0] else None


def _named(run: Traced) -> dict[str, Any]:
    told = {"run": run.run_id, "kind": run.tags.get("kind"), "arm": run.tags.get("arm"), "seed": run.params.get("seed")}
    return {**told, **({"registered": list(run.registered)} if run.registered else {})}
