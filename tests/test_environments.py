"""From staging to production in one registry, by names of three levels, on a real MLflow server."""

import json
import shutil
from functools import partial

import mlflow
import pytest
from test_models_encoder import TINY, tiny_clip
from test_models_filters import random_heads
from test_models_spool import Server

from etl.__main__ import _run, app
from etl.loop.promotion import WAITING, Decision, Promotions
from etl.store import Store
from models import registry, spool, tracking
from models.filters import Filter, save_filter

pytestmark = pytest.mark.slow
DIM = TINY["embed_dim"]
STAGING, PRODUCTION = "stag.dfn.dfn_filter", "prod.dfn.dfn_filter"


@pytest.fixture(scope="module")
def server(tmp_path_factory, mlflow_template):
    server = Server(tmp_path_factory.mktemp("server"))
    shutil.copyfile(mlflow_template, server.root / "server.db")
    yield server.start()
    server.kill()


@pytest.fixture(scope="module")
def filters(tmp_path_factory, server):
    """Two filters, registered in staging as versions 1 and 2: their folders."""
    root = tmp_path_factory.mktemp("filters")
    record = tiny_clip(root / "encoder")
    folders = [root / "one", root / "two"]
    for seed, folder in enumerate(folders):
        save_filter(folder, random_heads(DIM, DIM, 3, seed=seed), encoder_record=record)
        run_id = spool.log_training_run(server.uri, "stag", f"seed {seed}", params={}, metrics={"r5": 0.2},
                                        step_losses=[1.0], inputs={}, folder=folder, tags={})  # fmt: skip
        number = registry.register_filter(run_id, folder, root / "encoder", name=STAGING)
        registry.set_tags(STAGING, number, {"judged": json.dumps({"runs": {"0": run_id}})})
    return folders


@pytest.fixture
def promote(server, tmp_path, capsys):
    """promote(environment, arguments) -> (exit code, last line as JSON or the error)"""

    def promote(environment, *arguments):
        settings = [f"output={tmp_path / environment}", f"tracking_uri={server.uri}", f"registry={environment}.dfn"]
        given = [part for setting in settings for part in ("--set", setting)]
        code = _run(partial(app, ["promote", *arguments, "--conf", "tiny", "--json", "--approver", "Ada", *given]))
        out, err = capsys.readouterr()
        return code, json.loads(out) if code == 0 else err

    return promote


def decided(spark, tmp_path, folder):
    """What the gate of staging says of a filter that it would promote."""
    promotions = Promotions(Store(spark, str(tmp_path / "stag" / "tables")), STAGING)
    version = Filter.load(folder).version
    promotions.add(Decision.of(STAGING, version, "arm random", WAITING, "avg better", follows=promotions.tip()))
    promotions.align()
    return version


def test_what_is_approved_in_staging_waits_in_production_and_can_be_taken_back(
    spark, server, filters, promote, tmp_path
):
    tracking.connect(server.uri)
    versions = []
    for number, folder in enumerate(filters, start=1):
        versions.append(decided(spark, tmp_path, folder))
        code, said = promote("stag", "--version", str(number), "--tag", "Approval_Check")
        assert code == 2 and f"wanted the tag Approval_Check=approved on {STAGING} version {number}; found none" in said
        registry.set_tags(STAGING, str(number), {"approval_check": "Approved"})
        assert promote("stag", "--version", str(number), "--tag", "Approval_Check")[1]["verdict"] == "promoted"
        assert registry.champion(STAGING) == str(number)

        code, waiting = promote("prod", "--from", f"models:/{STAGING}@champion")
        assert (code, waiting["verdict"], waiting["model"]) == (0, "waiting", PRODUCTION)
        assert waiting["before"] == ("none" if number == 1 else versions[0])
        again = promote("prod", "--from", f"models:/{STAGING}/{number}")[1]
        assert again["decision"] == waiting["decision"] and registry.versions(PRODUCTION).keys() == set(versions)
        assert registry.champion(PRODUCTION) == (None if number == 1 else "1")
        theirs, ours = (registry.tags_of(name, str(number)) for name in (STAGING, PRODUCTION))
        assert (theirs["verdict"], ours["verdict"], ours["judged"]) == ("promoted", "waiting", theirs["judged"])
        fetched = registry.resolve(f"models:/{PRODUCTION}/{number}", tmp_path / f"fetched {number}")
        assert Filter.load(fetched).version == versions[-1]

        assert promote("prod", waiting["decision"])[1]["champion"] == versions[-1]
        assert registry.champion(PRODUCTION) == str(number)
        code, said = promote("prod", "--from", f"models:/{STAGING}/{number}")
        assert code == 2 and f"wanted another than the champion of {PRODUCTION}" in said
    code, back = promote("prod", "--rollback")
    assert (back["champion"], back["before"], registry.champion(PRODUCTION)) == (*versions, "1")
    assert registry.champion(STAGING) == "2"


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        (f"models:/{STAGING}@nobody", r"wanted models:/stag.dfn.dfn_filter@nobody; found aliases"),
        (f"models:/{STAGING}/9", "wanted models:/stag.dfn.dfn_filter/9; found"),
        (f"models:/{PRODUCTION}/1", "wanted a model of another environment"),
        ("stag.dfn.dfn_filter", "wanted models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("models:/other/1", "wanted a version with the tag filter_version"),
    ],
)
def test_what_cannot_be_brought_is_refused(spark, filters, promote, uri, said):
    client = mlflow.MlflowClient()
    if not client.search_registered_models("name='other'"):
        made = client.copy_model_version(f"models:/{STAGING}/1", "other")
        for tag in made.tags:
            client.delete_model_version_tag("other", made.version, tag)
    code, err = promote("prod", "--from", uri)
    assert code == 2 and said in err
