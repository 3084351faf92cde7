"""The tiny recipe, whole: 600 real pairs from shards to an induced model's metric, and what leaves the tables."""

import hashlib
import json
import tarfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import yaml
from pyspark.sql import functions as F

from etl.config import folder_of
from etl.export.export import export_selection
from etl.loop.gating import CLIP, Gate, _Judged
from etl.loop.loop import Loop
from etl.loop.yardstick import run_id
from etl.project import Project
from etl.selection.receipts import receipt_of, receipts
from etl.selection.uid_lists import uid_list
from etl.shards import verify
from etl.stage import UserError, fold_hash
from etl.stages import STAGES
from etl.tables import DATASET_TABLES, EMBEDDINGS, PAIRS, PROJECT_TABLES, PROMOTIONS, RUNS, SCORES, SELECTIONS, STATUSES

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def dfn_receipt(tiny):
    return tiny[1].arms["dfn"].receipts[0]


@pytest.fixture(scope="module")
def exported(tiny, dfn_receipt, tmp_path_factory):
    project = tiny[0]
    folder = tmp_path_factory.mktemp("export") / "dfn"
    root = folder_of(project.sources["pool"].shards)
    export_selection(project.store, "pool", dfn_receipt["selection_id"], folder, shards_root=root, pairs_per_shard=25)
    return folder


def gate_of(project):
    loop = Loop(project)
    return Gate(project, loop._eval_sets(), loop.data_of("pool"), lambda *_: pytest.fail("nothing is to be confirmed"))


def kept_uids(project, receipt):
    rows = project.store.read("pool", SELECTIONS, where={"selection_id": receipt["selection_id"]}).collect()
    return sorted(row["uid"] for row in rows)


def test_rows_in_are_rows_by_terminal_status_for_every_stage(tiny):
    project = tiny[0]
    runs = project.store.read("", RUNS).where("dataset IS NOT NULL").collect()
    # Nothing in this config wants them.
    unused = {"collect", "download", "features", "image_signals", "face_boxes", "dedup_semantic"}
    unused |= {"published_scores", "fusion", "listed"}
    assert {run["name"] for run in runs} == {stage.name for stage in STAGES} - unused
    assert [run["name"] for run in runs if sum(run["num_rows_by_status"].values()) != run["num_rows_in"]] == []
    rows = {
        name: project.store.read("pool", table).count() for name, table in (("pairs", PAIRS), ("vectors", EMBEDDINGS))
    }
    assert rows == {"pairs": 400, "vectors": 400}
    scored = project.store.read("pool", SCORES).groupBy("filter_version", "status").count().collect()
    assert [(row["status"], row["count"]) for row in scored] == [("ok", 400)] * len(SEEDS)
    assert {status for run in runs if run["name"] == "embed" for status in run["num_rows_by_status"]} <= set(STATUSES)


def test_all_arms_see_as_many_samples_and_filtered_arms_as_many_pairs(tiny):
    project, ended, _ = tiny
    rows = {name: {receipt["num_rows"] for receipt in arm.receipts.values()} for name, arm in ended.arms.items()}
    assert rows == {"whole_pool": {400}, "random": {60}, "dfn": {60}}
    trained = project.store.read("", RUNS).where("name = 'induced'").collect()
    recipes = {
        (json.loads(run["config_json"])["steps"], json.loads(run["config_json"])["batch_size"]) for run in trained
    }
    assert (len(trained), recipes) == (9, {(40, 32)})


def test_precision_is_that_of_the_planted_truth(tiny):
    project, ended, _ = tiny
    truth = Loop(project).truth_by_uid()
    for arm in ended.arms.values():
        expected = {
            seed: np.mean([truth[uid] for uid in kept_uids(project, receipt)]) for seed, receipt in arm.receipts.items()
        }
        assert arm.precision == pytest.approx(expected)
    assert sum(truth.values()) == pytest.approx(200, abs=3)


def test_a_receipt_names_what_was_read_and_its_hash_is_that_of_the_rows(tiny, dfn_receipt):
    project = tiny[0]
    halves = [hashlib.md5(f"{uid}\0001".encode()).digest() for uid in kept_uids(project, dfn_receipt)]
    high, low = (sum(int.from_bytes(half[at : at + 8], "big") for half in halves) for at in (0, 8))
    assert dfn_receipt["hash"] == fold_hash(high, low)
    assert set(dfn_receipt["inputs"]) == {"pool.pairs", "pool.scores", "pool.contaminated"}
    assert dfn_receipt["rule"]["scored_by"]["dfn"] and dfn_receipt["rule"]["keep"]["top_fraction"] == 0.15


def test_the_gate_looks_at_induced_models_and_leaves_its_decision(tiny):
    from models import registry, tracking

    project, ended, _ = tiny
    rows = project.store.read("", PROMOTIONS).orderBy("model").collect()
    assert [row["model"] for row in rows] == ["clip", "dfn_filter"]
    assert {row["verdict"] for row in rows} == {"promoted" if ended.is_promoted else "refused"}
    assert {row["champion_compared"] for row in rows} <= {"arm whole_pool", "arm random"}
    facts = json.loads(rows[1]["facts"])
    assert facts["values"] == pytest.approx({str(s): v for s, v in ended.arms["dfn"].metrics["avg"].items()}, abs=1e-6)
    own = np.mean([made.final.metrics["things.r5"] for made in ended.filters.values()])
    assert facts["filters_own_not_used"] == pytest.approx(own, abs=1e-6)
    tracking.connect(project.tracking_uri)
    assert [registry.champion(model) for model in ("dfn_filter", "clip")] == ["1" if ended.is_promoted else None] * 2
    assert "dfn_filter version 1" in ended.verdict
    cost = (
        "at most 9 induced runs (11,520 samples seen) and 3 filters (5,760); looks after 3 seeds at the level of 0.05"
    )
    assert [line for line in tiny[2] if cost in line] != []


def test_the_induced_model_is_registered_once_with_the_receipt_of_its_dataset(tiny, dfn_receipt):
    import mlflow

    from models.tracking import answering

    project, ended, _ = tiny
    client = mlflow.MlflowClient()
    judged = _Judged(CLIP, ended.arms["dfn"].models[0], "", None, "", "")
    with answering(project.tracking_uri):
        for _ in range(2):
            gate_of(project)._register(judged, ended.arms["dfn"])
        (version,) = client.search_model_versions("name='clip'")
    assert version.tags["selection_id"] == dfn_receipt["selection_id"]
    assert version.tags["selection_hash"] == dfn_receipt["hash"]
    assert json.loads(version.tags["selection_rule"]) == dfn_receipt["rule"]
    runs = json.loads(version.tags["judged"])["runs"]
    assert runs == {str(seed): run_id(model) for seed, model in ended.arms["dfn"].models.items()}
    run = client.get_run(version.run_id)
    assert (run.data.tags["selection_id"], run.info.status) == (dfn_receipt["selection_id"], "FINISHED")
    assert {"heads", "environment.json", "receipt.json"} <= {f.path for f in client.list_artifacts(version.run_id)}
    assert "system/cpu_utilization_percentage" in run.data.metrics


def test_every_training_run_is_a_child_of_its_round_which_links_to_selections_and_delta_versions(tiny):
    import mlflow

    from models.tracking import answering

    project, ended, _ = tiny
    client = mlflow.MlflowClient()
    with answering(project.tracking_uri):
        experiment = client.get_experiment_by_name("tiny").experiment_id
        (parent,) = client.search_runs([experiment], "tags.kind = 'round'")
        children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
        held = {
            name: Path(client.download_artifacts(parent.info.run_id, name)).read_text()
            for name in ("arms.json", "config.yaml", "table.csv")
        }
    trained = [made.final for made in ended.filters.values()]
    trained += [model for arm in ended.arms.values() for model in arm.models.values()]
    assert {run.info.run_id for run in children} == {run_id(model) for model in trained} and len(trained) == 12
    assert "dfn_filter version 1" in parent.data.tags["verdict"] and parent.info.status == "FINISHED"
    assert parent.data.tags["mlflow.note.content"].count("\n| ") == 5  # a header, its rule, three arms
    assert (parent.data.params["filter.steps"], parent.data.params["seeds"]) == ("60", "[0, 1, 2]")
    assert parent.data.metrics["dfn.avg"] == pytest.approx(np.mean(list(ended.arms["dfn"].metrics["avg"].values())))
    arms = json.loads(held["arms.json"])
    assert {name: {int(s): of["selection_id"] for s, of in arm.items()} for name, arm in arms.items()} == {
        name: {s: receipt["selection_id"] for s, receipt in arm.receipts.items()} for name, arm in ended.arms.items()
    }
    assert arms["dfn"]["1"]["run"] == run_id(ended.arms["dfn"].models[1])
    assert arms["dfn"]["1"]["inputs"] == ended.arms["dfn"].receipts[1]["inputs"]
    assert yaml.safe_load(held["config.yaml"])["loop"]["filter"]["steps"] == 60
    assert [line.partition(",")[0] for line in held["table.csv"].splitlines()] == ["arm", "whole_pool", "random", "dfn"]
    read = {each.dataset.name for each in parent.inputs.dataset_inputs}
    assert read == {f"{project.store.root}/{name}/embeddings" for name in ("pool", "clean", "things")}


def test_where_mlflow_is_down_nothing_is_decided_and_the_round_ends(tiny):
    project, ended, _ = tiny
    away = Project(project.config.model_copy(update={"tracking_uri": "http://127.0.0.1:1"}))
    verdict = gate_of(away).look(ended.arms, ended.filters)
    assert verdict.text.startswith("not decided: wanted MLflow at http://127.0.0.1:1; found no answer; fix: start it")
    assert (verdict.is_promoted, verdict.is_closed) == (False, True)


def test_the_noise_of_the_filter_dataset_is_said_once(tiny, tiny_output):
    said = [line for line in tiny[2] if "guard: " in line]
    (found,) = (json.loads(path.read_text()) for path in tiny_output.glob("guard-*.json") if len(said) == 1)
    assert (found["num_pairs"], found["num_repeated"], found["mismatched_fraction"]) == (100, 0, None)
    assert (
        said[0] == "guard: clean: 0.0% of 100 pairs are noise (0 repeated, 0 of odd length, 0 of other languages; "
        "no champion to ask for fit)"
    )


def test_summary_and_report_hold_the_results(tiny, tiny_output):
    summary = json.loads((tiny_output / "summary.json").read_text())
    assert set(summary["results"]) == {"whole_pool", "random", "dfn"}
    for arm in summary["results"].values():
        assert set(arm["avg"]) == {"mean", "std", "seeds"} and arm["avg"]["seeds"] == 3
    assert summary["tables"]["pool.embeddings"] == {"ok": 400}
    assert {"ingest", "embed", "score", "selection", "filter", "induced"} <= set(summary["seconds"])
    page = (tiny_output / "report.html").read_text()
    assert page.count("data:image/png;base64") == 30


def test_run_again_it_recomputes_nothing(tiny):
    project = tiny[0]

    def versions():
        tables = [(d, t) for d in project.config.datasets for t in DATASET_TABLES] + [("", t) for t in PROJECT_TABLES]
        return {
            project.store.name(d, t): project.store.history(d, t)[0].version
            for d, t in tables
            if project.store.exists(d, t)
        }

    before, said = versions(), []
    calls = project.config.stages.embed.calls_file
    encoded = calls.read_text()
    ended = Loop(Project(project.config, said.append)).run()
    work = [line for line in said if "up to date" not in line and "Spark" not in line and not line.startswith("gate")]
    assert work == []
    assert (versions(), calls.read_text()) == (before, encoded)
    assert ended.arms["dfn"].metrics == tiny[1].arms["dfn"].metrics


def test_exported_shards_are_read_by_plain_tarfile_and_hold_the_selection(tiny, dfn_receipt, exported):
    project = tiny[0]
    samples = {}
    for path in sorted(exported.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                uid, extension = member.name.split(".")
                samples.setdefault(uid, {})[extension] = tar.extractfile(member).read()
    rows = project.store.read("pool", PAIRS).select("uid", "text", "url").collect()
    of = {row["uid"]: row for row in rows}
    assert sorted(samples) == kept_uids(project, dfn_receipt)
    for uid, sample in samples.items():
        facts = json.loads(sample["json"])
        assert (sample["txt"].decode(), facts["url"], facts["uid"]) == (of[uid]["text"], of[uid]["url"], uid)
        assert facts["sha256"] == hashlib.sha256(sample["png"]).hexdigest()
    assert verify(str(exported)) == []
    assert json.loads((exported / "manifest.json").read_text())["receipt"]["hash"] == dfn_receipt["hash"]


def test_exported_shards_are_read_by_open_clips_own_loader(tiny, dfn_receipt, exported):
    import torch
    from open_clip_train.data import get_wds_dataset

    # The loader for evaluation: that for training ends each shard with a KeyError under webdataset after 0.2.86.
    arguments = Namespace(val_data=f"{exported}/{{00000..00002}}.tar", val_num_samples=60, workers=1, batch_size=20)

    def pixels(image):
        return torch.from_numpy(np.asarray(image.resize((8, 8))).copy())

    data = get_wds_dataset(arguments, pixels, False, tokenizer=lambda text: torch.tensor([len(text)]))
    chosen = tiny[0].store.read("pool", PAIRS).where(F.col("uid").isin(kept_uids(tiny[0], dfn_receipt)))
    captions = [row["text"] for row in chosen.select("text").collect()]
    batches = [(images.shape, texts.tolist()) for images, texts in data.dataloader]
    assert {shape for shape, _ in batches} == {(20, 8, 8, 3)}
    lengths = sorted(length for _, texts in batches for length in texts)
    assert lengths == sorted(len(caption) for caption in captions) and len(lengths) == 60


def test_the_uid_list_is_what_datacomps_resharder_reads(tiny, dfn_receipt, exported):
    uids = np.load(exported / "uids.npy")
    assert uids.dtype == np.dtype("u8,u8")
    assert (np.sort(uids) == uids).all()
    assert [f"{a:016x}{b:016x}" for a, b in uids.tolist()] == kept_uids(tiny[0], dfn_receipt)


def test_the_uid_list_is_the_same_when_streamed_in_ranges(tiny, dfn_receipt, exported, tmp_path):
    path = tmp_path / "uids.npy"
    assert uid_list(tiny[0].store, "pool", dfn_receipt["selection_id"], path, rows_per_part=4).num_entries == 60
    assert path.read_bytes() == (exported / "uids.npy").read_bytes()


def test_an_unknown_selection_is_refused_with_those_that_there_are(tiny):
    known = receipts(tiny[0].store, "pool")
    assert len(known) == 7
    with pytest.raises(UserError, match=next(iter(known))):
        receipt_of(tiny[0].store, "pool", "nonsense")


def test_stored_scores_are_those_of_the_full_model_on_pixels(tiny):
    """The filter that training made is a CLIP: it scores pixels as it scores stored vectors."""
    import torch

    from etl.shards import RangeReader
    from models import clip
    from models.encoder import Encoder
    from models.images import decode_rgb

    project, ended, _ = tiny
    folder = ended.filters[0].final.folder
    model, encoder = clip.assemble(project.encoder[1], folder).eval(), Encoder.load(project.encoder[1])
    version = json.loads((folder / "record.json").read_text())
    assert version["encoder_version"] == project.encoder[0].version
    receipt = ended.arms["dfn"].receipts[0]
    where = {"filter_version": receipt["rule"]["scored_by"]["dfn"][1]}
    rows = project.store.read("pool", SCORES, where=where).join(project.store.read("pool", PAIRS), "uid").orderBy("uid")
    root = folder_of(project.sources["pool"].shards)
    reader, tokenizer = RangeReader(), clip.load_tokenizer(project.encoder[1], project.encoder[0])
    mean, std = (
        torch.tensor(v).view(3, 1, 1)
        for v in (project.encoder[0].preprocessing.mean, project.encoder[0].preprocessing.std)
    )
    for row in rows.limit(8).collect():
        image = decode_rgb(reader.read(f"{root}/{row['shard']}", row["offset_bytes"], row["size_bytes"]))
        pixels = (torch.from_numpy(encoder.preprocess(image)).float() / 255 - mean) / std
        with torch.no_grad():
            vectors = (
                model.encode_image(pixels[None], normalize=True),
                model.encode_text(tokenizer([row["text"]]), normalize=True),
            )
        assert float((vectors[0] * vectors[1]).sum()) == pytest.approx(row["score"], abs=1e-3)
