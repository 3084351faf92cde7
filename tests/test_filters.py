"""Configured filters on the tiny recipe's stored vectors: one encode, many filters."""

import dataclasses
import shutil

import numpy as np
import pytest

from etl.config import load
from etl.filters.filters import Filters
from etl.filters.table import filter_table
from etl.loop.loop import Loop
from etl.project import Project
from etl.stage import UserError
from etl.stages import selection
from etl.tables import EMBEDDINGS, SCORES
from models.filters import Filter
from models.records import FilterRecord

SPECS = [
    "filters.probe={binary: {good: clean, reads: image_text}}",
    "filters.near={norm_sim: {target: {dataset: clean}, base: dfn1}}",
    "filters.nearest={norm_sim: {target: {dataset: clean}, p: inf}}",
    "filters.sclip={s_clip_loss: {base: dfn1, num_batches: 2, batch_size: 100}}",
    "filters.centres={clusters: {target: {dataset: clean}, num_clusters: 8}}",
    "filters.fused={fusion: {of: {dfn1: 2, near: 1}}}",
    "filters.evenly={fusion: {of: {dfn1: 1, near: 1}}}",
    "stages.selection.where={all: [{of: centres, at_least: 1}, {of: probe, top_fraction: 0.8}]}",
    "stages.selection.keep={top_fraction: 0.25, of: fused}",
]


@pytest.fixture(scope="module")
def many(tiny, tmp_path_factory):
    """(project with many filters over a copy of the tables of the tiny recipe, its Filters, the trained filter)."""
    project, ended, _ = tiny
    trained, out = ended.filters[0].final.folder, tmp_path_factory.mktemp("many")
    shutil.copytree(project.config.output_folder / "tables", out / "tables")
    given = [f"output={out}", f"stages.embed.calls_file={out}/calls", f"filters.dfn1={{folder: {trained}}}"]
    other = Project(load(["tiny"], [*given, *SPECS]))
    return other, Filters(other, "pool"), trained


def scores_of(project, named):
    rows = project.store.read("pool", SCORES, where={"filter": named[0], "filter_version": named[1]}).collect()
    return {row["uid"]: (row["score"], row["status"]) for row in rows}


@pytest.mark.slow
def test_a_rule_over_many_filters_scores_each_once_and_encodes_nothing(many):
    project, book, _ = many
    vectors = project.store.read("pool", EMBEDDINGS).where("status = 'ok'").count()
    done = project.run(selection.STAGE, "pool", book.scoring(project.config.stages.selection))
    assert not (project.config.output_folder / "calls").exists()  # where the encoder would count its calls
    names = ["centres", "fused", "probe"]
    named = project.config.stages.selection.filters()
    assert named == names
    scored_by = book.scored_by([*names, "near", "nearest", "sclip"])
    assert [run.is_up_to_date for run in project.runs if run.stage in ("score", "fusion")].count(
        False
    ) == 6  # the base has its scores
    for name, version in scored_by.items():
        found = scores_of(project, version)
        assert len([s for s, status in found.values() if status == "ok" and s is not None]) == vectors, name
    # The rule again, in numpy.
    values = {
        name: {u: s for u, (s, _) in scores_of(project, version).items() if s is not None}
        for name, version in scored_by.items()
    }
    ok = sorted(values["fused"])
    num_top = int(0.8 * len(ok))
    probed = set(sorted(ok, key=lambda u: (-values["probe"][u], u))[:num_top])
    eligible = [u for u in ok if u in probed and values["centres"][u] == 1]
    contaminated = done.num_rows_by_status.get("contaminated", 0)
    assert contaminated == 0
    kept = sorted(eligible, key=lambda u: (-values["fused"][u], u))[: int(0.25 * len(eligible))]
    table = project.store.read("pool", selection.SELECTIONS, where=done.slice)
    assert sorted(row["uid"] for row in table.collect()) == sorted(kept) and len(kept) > 10


def test_a_filter_that_is_made_again_is_the_same_and_a_grown_pool_changes_none(many, monkeypatch):
    _, book, _ = many
    folder = book.folder("sclip")
    found = Filters._data_version
    monkeypatch.setattr(Filters, "_drawn", lambda *_: pytest.fail("drawn again"))
    monkeypatch.setattr(Filters, "_data_version", lambda self, name: 99 if name == "pool" else found(self, name))
    assert book.folder("sclip") == folder
    record = FilterRecord.read(folder)
    assert (
        record.formula == "s_clip_loss" and record.provenance["references"] == "2 batches of 100 pairs of pool, seed 0"
    )


def test_s_clip_loss_on_stored_vectors_is_that_of_the_kept_references(many):
    """From the filter's own tensors in float64: the pairs in a batch do not join it twice."""
    project, book, trained = many
    filter_ = Filter.load(book.folder("sclip"))
    formula, heads = filter_.formula, Filter.load(trained)
    rows = project.store.read("pool", EMBEDDINGS).where("status = 'ok'").orderBy("uid").limit(60).collect()
    images, texts = (
        np.stack([np.frombuffer(r[side], "<f2") for r in rows]) for side in ("image_embedding", "text_embedding")
    )
    sides = heads.project_images(images).astype(np.float64), heads.project_texts(texts).astype(np.float64)
    cosines = (sides[0] * sides[1]).sum(axis=1)
    batches = list(zip(formula.images_KME.astype(np.float64), formula.texts_KME.astype(np.float64), strict=True))
    wanted = []
    for n in range(len(rows)):
        penalty = 0.0
        for batch_images, batch_texts in batches:
            is_in = (np.abs(batch_images - sides[0][n]).max(1) + np.abs(batch_texts - sides[1][n]).max(1)).min() < 1e-6
            own = [] if is_in else [cosines[n] / 0.01]
            penalty += sum(np.logaddexp.reduce([*(other @ side[n] / 0.01), *own])
                           for side, other in zip(sides, (batch_texts, batch_images), strict=True))  # fmt: skip
        wanted.append(cosines[n] - 0.01 / 2 / len(batches) * penalty)
    found = scores_of(project, book.scored_by(["sclip"])["sclip"])
    np.testing.assert_allclose([found[r["uid"]][0] for r in rows], wanted, atol=1e-4, rtol=0)


def test_what_cannot_be_made_is_told_before_anything_is_scored(many, tmp_path):
    project, _, _ = many
    np.save(tmp_path / "narrow.npy", np.zeros((3, 2), np.float32))

    def refused(spec, match):
        config = load(["tiny"], [f"output={project.config.output_folder}", f"filters.x={spec}"])
        book = Filters(dataclasses.replace(project, config=config, runs=[]), "pool")
        with pytest.raises(UserError, match=match):
            book.scored_by(["x"])

    refused("{s_clip_loss: {batch_size: 10}}", "share no space")
    refused("{clusters: {target: {dataset: clean}, num_clusters: 401}}", "at least 401 images")
    refused("{s_clip_loss: {num_batches: 1000, batch_size: 4096}}", "at most")
    refused(f"{{norm_sim: {{target: {{npy: {tmp_path}/narrow.npy}}}}}}", r"shape \(rows, 1280\)")
    refused(f"{{clusters: {{target: {{npy: {tmp_path}/none.npy}}}}}}", "none.npy")
    with pytest.raises(UserError, match="found none"):
        Filters(dataclasses.replace(project, config=load(["tiny"], []), runs=[]), "pool").scored_by(["nothing"])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("filters.x={norm_sim: {target: {dataset: nowhere}}}", "one of the datasets"),
        ("filters.x={fusion: {of: {x: 1, y: 1}}}", "found y"),
        ("filters={x: {fusion: {of: {x: 1, y: 1}}}, y: {cosine: true}}", "circle"),
        ("filters.x={fusion: {of: {dfn: 1}}}", "at least 2"),
        (
            "filters={x: {norm_sim: {target: {dataset: clean}, base: y}}, y: {fusion: {of: {z: 1, w: 1}}}, "
            "z: {cosine: true}, w: {cosine: true}}",
            "filters.x.base: wanted a filter that reads vectors; found y",
        ),
        ("filters.x={folder: ''}", "at least 1 character"),
        ("filters.x={cosine: true, column: a}", "found cosine and column"),
        ("filters.num_words={cosine: true}", "no column has"),
        ("filters.x={column: clip}", "pools with metadata"),
        ("stages.selection.keep={top_fraction: 0.1, of: dnf}", "did you mean dfn?"),
        ("stages.selection.where={of: num_word, above: 2}", "did you mean num_words?"),
        ("loop.arms.other={keep: filter, of: nothing}", "found nothing"),
    ],
)
def test_rules_and_filters_are_checked_before_spark_starts(override, says):
    with pytest.raises(UserError) as caught:
        load(["tiny"], [override])
    assert says in str(caught.value)


@pytest.mark.slow
def test_filters_side_by_side_keep_equal_shares_and_their_precision_is_that_of_the_planted_truth(many):
    project, book, _ = many
    rule = selection.Config(exclude=selection.Exclude(contaminated=False))
    stages = project.config.stages.model_copy(update={"selection": rule})
    chosen = {name: project.config.filters[name] for name in ("dfn1", "near")}
    config = project.config.model_copy(update={"stages": stages, "filters": chosen})
    found = filter_table(dataclasses.replace(project, config=config, runs=[]), "pool", 0.2, {})
    truth = Loop(project).truth_by_uid()
    tops = {}
    for name in chosen:
        scores = {u: s for u, (s, _) in scores_of(project, book.scored_by([name])[name]).items() if s is not None}
        tops[name] = sorted(scores, key=lambda u: (-scores[u], u))[: int(0.2 * len(scores))]
        assert found[name]["kept"] == len(tops[name])
        assert found[name]["precision"] == round(sum(truth[u] for u in tops[name]) / len(tops[name]), 3)
    both, either = set(tops["dfn1"]) & set(tops["near"]), set(tops["dfn1"]) | set(tops["near"])
    assert [found[n]["jaccard_with_first"] for n in chosen] == [1.0, round(len(both) / len(either), 3)]


@pytest.mark.slow
def test_the_evidence_suite_keeps_the_pairs_that_the_stages_keep(many):
    """Its cut and draw, its fused ranks and its probe, on arrays and without Spark."""
    from etl.evidence.scoring import fused
    from etl.evidence.selecting import draw, top
    from models.data import u8_to_uid, uid_to_u8

    project, book, _ = many
    scores = {n: scores_of(project, v) for n, v in book.scored_by(["dfn1", "near", "centres", "evenly"]).items()}
    uids = uid_to_u8(sorted(uid for uid, (_, status) in scores["dfn1"].items() if status == "ok"))
    values = {n: np.array([of[uid][0] for uid in u8_to_uid(uids)], np.float32) for n, of in scores.items()}
    np.testing.assert_array_equal(fused(values["dfn1"], values["near"]), values["evenly"])
    every = np.ones(len(uids), bool)
    settings = project.config.stages.selection.model_copy(update={"where": None})
    for fraction, name in ((0.15, "dfn1"), (0.3, "centres")):  # the second has two values only: ties
        keep = selection.Keep(top_fraction=fraction, of=name)
        done = project.run(selection.STAGE, "pool", book.scoring(settings.model_copy(update={"keep": keep})))
        kept = project.store.read("pool", selection.SELECTIONS, where=done.slice).collect()
        assert u8_to_uid(uids[top(values[name], uids, fraction, every)]) == sorted(row["uid"] for row in kept)
    keep = selection.Keep(random_fraction=0.2)
    drawn = settings.model_copy(update={"keep": keep, "seed": 5})
    done = project.run(selection.STAGE, "pool", book.scoring(drawn))
    kept = project.store.read("pool", selection.SELECTIONS, where=done.slice).collect()
    assert u8_to_uid(uids[top(draw(uids, 5), uids, 0.2, every)]) == sorted(row["uid"] for row in kept)
