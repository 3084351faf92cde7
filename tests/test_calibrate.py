"""`dfn evalset calibrate` on the tiny recipe: edited pictures are found, the page shows who is near, refusals."""

import json
from dataclasses import replace
from functools import partial

import pytest

from etl.__main__ import _run, app
from etl.config import load
from etl.dedup import evalsets
from etl.dedup.calibrate import calibrate, limits_of, references
from etl.project import Project
from etl.report import calibration_facts
from etl.report.calibration import NAMES
from etl.stage import UserError
from etl.stages import decontaminate, decontaminate_semantic
from etl.store import Store
from etl.tables import CONTAMINATED, LEAK_METHODS
from models.calibration import ANY, METHODS
from models.edits import EDITS


def project_of(tiny, *overrides):
    project = Project(load(["tiny"], [f"output={tiny[0].config.output_folder}", "evalsets.use=[]", *overrides]))
    project.__dict__["store"] = tiny[0].store
    return project


@pytest.fixture(scope="module")
def calibrated(tiny):
    project = project_of(tiny)
    return project, calibrate(project, "clean", 4, 60)


def test_copies_are_found_and_the_share_of_the_pool_is_told(calibrated):
    _, found = calibrated
    assert list(found.recall) == [f"{kind} {strength}" for kind, some in EDITS.items() for strength in some]
    assert found.recall["recompress png"] == {"phash": 1, "semantic": 1, "semantic_phash": 1, "any": 1}
    assert found.recall["crop 20%"]["phash"] == 0 and found.recall["flip upside down"]["phash"] == 0
    assert all(shares["any"] >= max(list(shares.values())[:-1]) for shares in found.recall.values())
    assert (found.num_originals, len(found.pool.rows), found.num_references) == (4, 60, 100)
    assert found.recall["flip left-right"]["semantic"] == 1  # looked for as mirrored
    told = found.told()
    assert told["looked_for_as"] == ["recompressed", "mirrored"]
    assert told["pictures"] == {"edited": 4, "evaluation": 100, "pool": 60}
    assert told["thresholds"] == {"phash": 4, "semantic": 0.1, "semantic_phash": 0.31}
    assert set(told["found"]) == {*found.recall, "all"} and json.loads(json.dumps(told)) == told


def test_what_is_flagged_is_what_the_stages_flag(tiny, calibrated):
    """The dataset whole: uid by uid as in `contaminated`."""
    project, _ = calibrated
    found = calibrate(project, "clean", 1, 1000)
    uids = found.pool.rows.column("uid").to_pylist()
    flagged = {(uids[one.number], method) for one in found.nearest for method in one.flagged_by}
    rows = tiny[0].store.read("clean", CONTAMINATED).where("method != 'sha256'").collect()
    assert flagged == {(row["uid"], row["method"]) for row in rows} and len(flagged) >= 5
    joint = [one.joint for one in found.nearest]
    assert joint == sorted(joint) and joint[0] == 0


def test_the_page_has_the_flagged_and_their_neighbours_side_by_side(calibrated, tmp_path):
    project, found = calibrated
    html = calibration_facts.write_page(project, "clean", found, tmp_path / "deep" / "page.html").read_text()
    num_flagged = sum(bool(one.flagged_by) for one in found.nearest)
    shown = min(num_flagged, calibration_facts.SHOWN) + calibration_facts.SHOWN
    assert html.count("<li><figure>") == shown and html.count("data:image/png") == 2 * shown


def test_what_no_page_may_show_is_not_shown(calibrated, tmp_path):
    """The pair that is nearest of all, on a blocklist; leaks alone are no reason here."""
    project, found = calibrated
    uid = found.pool.rows.column("uid").to_pylist()[found.nearest[0].number]
    (tmp_path / "never.txt").write_text(uid + "\n")
    exclude = project.config.stages.selection.exclude.model_copy(update={"blocklists": (tmp_path / "never.txt",)})
    stages = project.config.stages.model_copy(
        update={"selection": project.config.stages.selection.model_copy(update={"exclude": exclude})}
    )
    blocking = replace(project, config=project.config.model_copy(update={"stages": stages}))
    blocking.__dict__["store"], blocking.__dict__["sources"] = project.store, project.sources
    pages = [calibration_facts.write_page(one, "clean", found, tmp_path / "page.html").read_text()
             for one in (project, blocking)]  # fmt: skip
    is_flagged = [page.count("flagged by hash") + page.count("flagged by vector") for page in pages]
    assert is_flagged == [sum(bool(one.flagged_by) for one in found.nearest) - n for n in (0, 1)]


def test_a_folder_for_the_page_or_a_device_that_is_not_there_is_told_before_any_work(tiny, capsys, tmp_path):
    assert _run(partial(app, ["evalset", "calibrate", "--conf", "tiny", "--out", str(tmp_path), "--quiet"])) == 2
    assert f"wanted a file; found the folder {tmp_path}; fix:" in capsys.readouterr().err
    with pytest.raises(UserError, match="--device: wanted cpu, or a GPU that torch can use; found cuda:7"):
        calibrate(project_of(tiny), "clean", 1, 10, device="cuda:7")


def test_methods_are_those_of_the_stages_in_their_order():
    assert ("sha256", *METHODS) == LEAK_METHODS
    slices = [decontaminate.STAGE.slice_of(None, ""), decontaminate_semantic.STAGE.slice_of(None, "")]
    assert sorted(sum((part["method"] for part in slices), ())) == sorted(LEAK_METHODS)
    assert set(NAMES) == {*METHODS, ANY}


def test_the_command_tells_it_and_writes_the_page(tiny, capsys, tmp_path):
    page = tmp_path / "page.html"
    arguments = ["evalset", "calibrate", "--conf", "tiny", "--set", f"output={tiny[0].config.output_folder}",
                 "--originals", "1", "--pool-pictures", "5", "--out", str(page), "--quiet", "--json"]  # fmt: skip
    assert _run(partial(app, arguments)) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["pictures"]["edited"] == 1 and told["pictures"]["pool"] == 5
    assert told["page"] == str(page) and "<h1>pool: what is found</h1>" in page.read_text()


def test_methods_that_are_off_have_no_threshold(tiny):
    assert limits_of(project_of(tiny, "stages.decontaminate_semantic.is_on=false")) == {"phash": 4.0}
    assert limits_of(project_of(tiny, "stages.decontaminate_semantic.max_joint_distance=0")) == {
        "phash": 4.0, "semantic": 0.1
    }  # fmt: skip
    off = ["stages.decontaminate.methods=[sha256]", "stages.decontaminate_semantic.max_distance=0"]
    assert limits_of(project_of(tiny, *off)) == {"semantic": 0.0, "semantic_phash": 0.31}


@pytest.mark.parametrize(("overrides", "says"), [
    (["encoder={published: datacomp_b32}", "datasets.pool.corpus=null", "datasets.pool.metadata=/none/*.parquet"],
     "wanted an encoder that can look at edited pictures; found encoder.published: datacomp_b32"),
    (["datasets.things.kind=pool", "loop.headline_parts=[]"], "found 10 of clean, and 0 evaluation sets with any; fix"),
])  # fmt: skip
def test_what_cannot_be_calibrated_is_told(tiny, overrides, says):
    with pytest.raises(UserError, match=says):
        calibrate(project_of(tiny, *overrides), "clean", 1, 10)


def test_a_project_that_did_not_run_yet_is_told_so(tiny, tmp_path):
    project = project_of(tiny)
    project.__dict__["store"] = Store(tiny[0].store.spark, str(tmp_path))
    with pytest.raises(UserError, match="found 0 of clean, and 0 evaluation sets"):
        calibrate(project, "clean", 1, 10)


@pytest.mark.slow
def test_registered_sets_are_held_against_too(tiny, tmp_path):
    """The project's own set, registered a second time by another name."""
    project = project_of(tiny, f"evalsets.root={tmp_path}")
    evalsets.add(project, "seen", project.sources["things"].shards)
    found = references(project_of(tiny, f"evalsets.root={tmp_path}", "evalsets.use=[seen]"))
    assert [(one.name, one.num_pictures, len(one.rows)) for one in found] == [("things", 100, 300), ("seen", 100, 300)]
    assert found[0].rows.column("uid") == found[1].rows.column("uid") and found[1].read(0) == found[0].read(0)
    assert evalsets.holdings(project, "seen")["edited"] == 100
