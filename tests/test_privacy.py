"""What a registered filter gives away of its training pairs, on the tiny recipe: twins, tags, refusals."""

import json

import mlflow
import numpy as np
import pytest

from etl.config import load
from etl.loop import privacy
from etl.loop.loop import Loop
from etl.project import Project
from etl.stage import UserError
from models import registry
from models.data import Vectors, uid_to_u8
from models.filters import Filter
from models.privacy import auc, halves
from models.records import RegistryError
from models.tracking import answering
from models.train import ImageStats, TrainConfig, train

SAID: list[str] = []
TWINS = 4


def project_of(tiny, output, *overrides):
    """Over the tables and the registry of the tiny recipe, with its own folder."""
    tables, uri = tiny[0].config.tables_root, tiny[0].tracking_uri
    settings = [f"output={output}", f"tables={tables}", f"tracking_uri={uri}", *overrides]
    project = Project(load(["tiny"], settings), SAID.append)
    project.__dict__["store"] = tiny[0].store
    return project


@pytest.fixture(scope="module")
def version(tiny) -> str:
    with answering(tiny[0].tracking_uri):
        return registry.number_of("models:/dfn_filter/1")


@pytest.fixture(scope="module")
def checked(tiny, version, tmp_path_factory):
    project = project_of(tiny, tmp_path_factory.mktemp("privacy"))
    return project, privacy.check(project, "models:/dfn_filter/1", TWINS)


def test_a_filter_of_fifty_pairs_gives_them_away_and_its_version_says_so(tiny, version, checked):
    project, (uri, found) = checked
    assert uri == f"models:/dfn_filter/{version}"
    assert (found.num_pairs, found.num_twins) == (96, TWINS)  # four of the hundred are near evaluation pictures
    assert found.calibrated.shows
    assert found.calibrated.value > 0.7  # sixty steps over fifty pairs: each is seen 38 times
    with answering(project.tracking_uri):
        tags = registry.tags_of("dfn_filter", version)
    assert tags["privacy_auc"] == str(found.by_score)
    assert tags["privacy_auc_calibrated"] == str(found.calibrated)
    assert tags["privacy_dataset"] == "clean"
    assert json.loads(tags["privacy"])["calibrated"]["value"] == found.calibrated.value


def test_a_twin_is_the_filter_s_recipe_on_its_half(tiny, checked, tmp_path):
    project, _ = checked
    clean, pool = (Loop(project).data_of(name).vectors for name in ("clean", "pool"))
    vectors = Vectors.open(clean)
    is_member = halves(len(vectors), TWINS)
    (folder,) = (project.config.output_folder / "privacy").iterdir()
    members = [uid for uid, flag in zip(vectors.uids, is_member[1], strict=True) if flag]
    recipe = TrainConfig(steps=60, batch_size=32, dropout=0.5, seed=1)
    rows, stats = Vectors.open(clean, uid_to_u8(members)), ImageStats.of(Vectors.open(pool))
    done = train(rows, recipe, tmp_path / "twin", encoder_record=project.encoder[0], stats=stats)
    scores = Filter.load(done.folder).score(vectors.image_NI, vectors.text_NT)
    np.testing.assert_array_equal(np.load(folder / "twin-01.npy"), scores)
    assert auc(scores.astype(float), is_member[1]) > 0.6
    assert sorted(path.name for path in folder.iterdir()) == [f"twin-{n:02}.npy" for n in range(TWINS)]


def test_checked_again_no_twin_is_trained_and_one_that_is_missing_is(checked):
    project, before = checked
    (folder,) = (project.config.output_folder / "privacy").iterdir()
    (folder / "twin-02.npy").unlink()
    SAID.clear()
    assert privacy.check(project, "models:/dfn_filter/1", TWINS) == before
    assert ["up to date" in line for line in SAID if line.startswith("twin")] == [True, True, False, True]


@pytest.mark.parametrize(("overrides", "twins", "says"), [
    (["loop.filter_dataset=things", "datasets.things.kind=filter", "loop.headline_parts=[]"], TWINS,
     "wanted the pairs that models:/dfn_filter/1 was trained on; found others in things"),
    ([], 5, "wanted an even number of twins, 4 or more; found 5; fix: --twins"),
])  # fmt: skip
def test_other_pairs_and_odd_twins_are_refused(tiny, version, tmp_path, overrides, twins, says):
    with pytest.raises(UserError, match=says):
        privacy.check(project_of(tiny, tmp_path, *overrides), "models:/dfn_filter/1", twins)


def test_a_filter_that_was_averaged_is_refused_and_one_that_is_not_there_too(tiny, version, tmp_path):
    project = project_of(tiny, tmp_path)
    with answering(project.tracking_uri):
        client = mlflow.MlflowClient()
        run = client.create_run(client.create_experiment("averaged"))
        for name, value in {"kind": "filter", "alpha": 0.5}.items():
            client.log_param(run.info.run_id, name, value)
        client.create_registered_model("averaged_filter")
        client.create_model_version("averaged_filter", run.info.artifact_uri, run.info.run_id)
    with pytest.raises(UserError, match="wanted a filter that was trained once"):
        privacy.check(project, "models:/averaged_filter/1", TWINS)
    with pytest.raises(RegistryError, match="wanted models:/dfn_filter/99"):
        privacy.check(project, "models:/dfn_filter/99", TWINS)
