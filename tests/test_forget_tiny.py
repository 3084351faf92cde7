"""A takedown in a whole run of real pairs: searched for in every file, followed to the models that learnt from it."""

import json
import shutil
from pathlib import Path

import pytest
from test_forget import grep

from etl.checks import verify as checks
from etl.config import load
from etl.export.export import export_selection
from etl.forget.takedown import Takedown
from etl.intake.blocklists import Blocklist
from etl.project import Project
from etl.selection.receipts import prove, receipts
from etl.storage import folder_of
from etl.tables import PAIRS, SELECTIONS


@pytest.mark.slow
def test_what_is_forgotten_is_in_no_file_of_a_whole_run(tiny, tiny_output, tmp_path):
    ended = tiny[1]
    out = Path(shutil.copytree(tiny_output, tmp_path / "out"))
    project = Project(load(["tiny"], [f"output={out}", f"evalsets.root={tmp_path}/sets"]))
    store, receipt = project.store, ended.arms["dfn"].receipts[0]
    root = folder_of(project.sources["pool"].shards)
    export_selection(store, "pool", receipt["selection_id"], out / "exported", shards_root=root, pairs_per_shard=20)
    chosen = store.read("pool", SELECTIONS, where={"selection_id": receipt["selection_id"]})
    row = store.read("pool", PAIRS).join(chosen.orderBy("score").limit(1).select("uid"), on="uid").first()
    assert receipt["facts"]["threshold_uid"] == row["uid"], "the pair at the cut: receipts name it"
    keys = [row["uid"], row["sha256"], row["url"]]
    assert {Path(path).suffix for path in grep(out, *keys)} >= {".npy", ".arrow", ".parquet", ".tar", ".json", ".html"}
    held = {r["selection_id"] for r in store.read("pool", SELECTIONS).where(f"uid = '{row['uid']}'").collect()}
    takedown = Takedown(project)
    plan = takedown.plan(Blocklist(uids=frozenset({row["uid"]})))
    takedown.begin(plan)
    facts = takedown.finish(plan.takedown_id)
    assert grep(out, *keys) == {}
    assert not any(key in json.dumps(facts) for key in keys)
    trained = {model["selection"] for model in facts["models"]}
    assert trained == held and len(facts["models"]) >= len(held)
    proofs = {id_: prove(store, "pool", found) for id_, found in receipts(store, "pool").items()}
    assert {id_ for id_, proof in proofs.items() if proof.num_forgotten == 1} == held
    assert all(proof.is_proved for proof in proofs.values())
    assert list(checks.rows(project)) == []
    assert list(checks.contents(project)) == []
    said = len(project.runs)
    project.run_all(datasets=["pool"])
    written = {run.stage: run.num_rows_written for run in project.runs[said:]}
    assert written["ingest"] == written["signals"] == written["embed"] == 0, "nothing is ingested or encoded again"
    assert list(checks.rows(project)) == []
    assert grep(out, *keys) == {}
