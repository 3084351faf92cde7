"""The `dfn` command: exit codes, one-line errors before Spark starts, the last line of --json."""

import json
import os
import re
import subprocess
import sys
import tomllib
from functools import partial
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from cluster import project_zip
from helpers import picture, write_shard
from py4j.protocol import Py4JNetworkError

import etl.project
from etl.__main__ import PANELS, _run, app
from etl.commands.troubles import EXTRAS, told
from etl.config import load


@pytest.fixture
def dfn(monkeypatch, capsys):
    """dfn(*arguments) -> (exit code, stdout, stderr). Starting Spark is an error: none of these may get that far."""

    def no_spark(*_, **__):
        raise AssertionError("Spark was started")

    monkeypatch.setattr(etl.project, "session", no_spark)
    monkeypatch.setenv("COLUMNS", "120")

    def call(*arguments):
        capsys.readouterr()
        code = _run(partial(app, list(arguments)))
        return (code, *capsys.readouterr())

    return call


@pytest.fixture
def exported(tmp_path):
    """A folder with one shard of three pairs and its manifest."""
    from etl.shard_writer import write_manifest
    from models.records import sha256_file

    folder = tmp_path / "exported"
    folder.mkdir()
    shard = folder / "00000.tar"
    write_shard(shard, {f"{n}": {"png": picture(n), "txt": b"a picture"} for n in range(3)})
    entry = {"shard": shard.name, "num_samples": 3, "size_bytes": shard.stat().st_size, "sha256": sha256_file(shard)}
    write_manifest(str(folder), [entry], {})
    return folder


IN_AND_OUT = ["datasets.mine.kind=filter", "datasets.mine.shards=/data/in/*.tar", "output=/data/in"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["stages.embed.chunk_row=5"], ["stages.embed.chunk_row: unknown key", "did you mean chunk_rows?"]),
        (["stages.embbed.chunk_rows=5"], ["stages.embbed: unknown key", "did you mean embed?"]),
        (["datasets.pool.corpus.limt=5"], ["datasets.pool.corpus.limt: unknown key", "did you mean limit?"]),
        (["outptu=x"], ["outptu: unknown key", "did you mean output?"]),
        (["bad=1"], ["bad: unknown key", "known keys: backfill, datasets,"]),
        (["datasets.pool.corpus.permute_fraction=-0.5"], ["pool.corpus.permute_fraction", "or equal to 0", "-0.5"]),
        (["stages.selection.keep.top_fraction=-0.1"], ["stages.selection.keep.top_fraction", "greater than 0", "-0.1"]),
        (["stages.selection.keep.top_fraction=1.5"], ["stages.selection.keep.top_fraction", "or equal to 1", "1.5"]),
        (["stages.selection.keep.top_fraction=.nan"], ["stages.selection.keep.top_fraction", "nan"]),
        (["stages.selection.keep.all=true", "stages.selection.keep.top_fraction=0.1"], ["keep", "exactly one of"]),
        (["loop.gate.level=2"], ["loop.gate.level", "less than or equal to 1", "'2'"]),
        (["loop.filter.steps=0"], ["loop.filter.steps", "greater than 0"]),
        (IN_AND_OUT, ["wanted output and tables outside", "datasets.mine in /data/in"]),
        ([*IN_AND_OUT[:2], "output=/data/in/../in"], ["wanted output and tables outside", "datasets.mine in /data/in"]),
        ([*IN_AND_OUT[:2], "tables=/data/in/"], ["wanted output and tables outside", "datasets.mine in /data/in"]),
        (["output=[1"], ["wanted --set output= and a YAML value", "'[1'"]),
        (["loop.seeds=[]"], ["loop.seeds", "at least 1 item"]),
        (["loop.seeds=[1,1]"], ["loop.seeds: wanted each seed once"]),
        (["loop.headline_parts=[thing.r5]"], ["wanted DATASET.METRIC, of things; found thing.r5"]),
        (["loop.filter_dataset=things"], ["loop.filter_dataset: wanted a dataset of kind filter (clean)"]),
        (["loop.finetune.dataset=pool"], ["loop.finetune.dataset: wanted a dataset of kind filter", "found pool"]),
        (["loop.filter_dataset=clean", "loop.finetune.dataset=clean"], ["wanted another one than loop.filter_dataset"]),
        (["loop.arms.old.keep=filter", "loop.arms.old.of=dfn_before"], ["wanted a filter (dfn) or", "dfn_before"]),
        (["loop.arms.dfn.fraction=2"], ["loop.arms.dfn.fraction", "or equal to 1"]),
        (["datasets.a/b.kind=pool", "datasets.a/b.shards=/x/*.tar"], ["datasets.a/b", "match pattern"]),
        (["encoder.open_clip=ViT-B-32"], ["encoder: wanted a checkpoint file beside open_clip"]),
        (["output"], ["wanted --set a.b=value", "'output'"]),
        (["datasets.pool.corpus.sources=[iconify_smal]"], ["wanted a source among", "did you mean 'iconify_small'?"]),
        (["datasets.pool.kind=pol"], ["datasets.pool.kind", "'pool'", "'pol'"]),
        (["datasets.pool.shards=/x/*.tar"], ["datasets.pool: wanted one of: a corpus; a crawl; urls; shards"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else str(value),
)  # fmt: skip
def test_a_mistake_in_the_config_is_one_line_and_exit_code_2(dfn, settings, says):
    code, out, err = dfn("run", "--conf", "tiny", *[part for s in settings for part in ("--set", s)])
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert [part for part in says if part not in err] == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            "run --conf tinny",
            ["wanted a config file", "'tinny'", " filters, finetune,", " tiny"],
        ),
        ("run --conf tiny --dataset pol", ["--dataset: wanted some of pool, clean, things", "found pol"]),
        ("run --conf tiny --stage embd", ["--stage: wanted some of collect,", "found embd"]),
        ("run --conf tiny --nope", ["No such option", "--nope"]),
        ("nope", ["No such command", "nope"]),
        ("corpora nope", ["wanted a source among art4apps,", "found 'nope'"]),
        ("corpora", ["Missing argument"]),
        ("select --conf tiny", ["filter dfn: wanted one that is configured or given", "found none", "--filter"]),
        ("select --conf tiny --filter /nowhere", ["wanted a folder with record.json", "found /nowhere", "fix:"]),
        ("select --conf tiny --uids /nowhere.npy", ["--uids: wanted an .npy file", "/nowhere.npy", "dtype u8,u8"]),
        ("select --conf tiny --uids /x --filter cosine", ["wanted --uids or --filter", "found both", "fix:"]),
        ("select --conf tiny --dataset pol --filter /x", ["wanted one of pool, clean, things", "found pol", "fix:"]),
        ("export abc /nowhere --conf tiny --dataset pol", ["wanted one of pool, clean, things", "found pol", "fix:"]),
        ("export abc /nowhere --conf tiny --pairs-per-shard 0", ["Invalid value for '--pairs-per-shard'", "1"]),
        ("train /nowhere", ["wanted --data FOLDER or --selection ID", "found neither"]),
        ("train /nowhere --data /x --selection y", ["wanted --data FOLDER or --selection ID", "found both"]),
        ("train /nowhere --data /x --scale huge", ["wanted a scale of laptop, debug,", "found 'huge'"]),
        ("train /nowhere --data /x --with batch_size=1", ["batch_size", "greater than 1"]),
        ("train /nowhere --data /x --with lrr=1", ["lrr: Extra inputs"]),
        ("train /nowhere --data /x --with lr", ["--with: wanted FIELD=VALUE", "'lr'"]),
        ("train /nowhere --data /x --samples-seen many", ["--samples-seen: wanted a number", "'many'"]),
        ("diff a --conf tiny", ["wanted a second selection or --against LIST", "found neither"]),
        ("diff a --against /x.npy --html x.html --conf tiny", ["--html of two selections", "found --against", "fix:"]),
        ("report a --conf tiny --dataset pol", ["wanted one of pool, clean, things", "found pol", "fix:"]),
        ("verify /nowhere", ["wanted a folder of shards", "none at /nowhere", "fix:"]),
        ("verify . --ledger", ["wanted a folder or --ledger", "found both"]),
        ("forget --conf tiny --uid abc", ["--uid: wanted 32 hex digits", "found 'abc'", "fix:"]),
        ("forget --conf tiny --from /nowhere", ["wanted a text file", "found /nowhere", "fix:"]),
        ("forget --conf tiny --distance 65 --phash 0", ["--distance"]),
    ],
)
def test_a_mistake_in_the_arguments_is_one_line_and_exit_code_2(dfn, arguments, says):
    code, out, err = dfn(*arguments.split())
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert [part for part in says if part not in err] == []


def test_the_usual_arms_are_there_where_none_is_configured():
    assert set(load(["tiny"]).loop.arms) == {"whole_pool", "random", "dfn"}


def test_one_field_of_a_usual_arm_can_be_set_and_an_arm_left_out():
    loop = load(["tiny"], ["loop.arms.dfn.fraction=0.3", "loop.arms.random=null"]).loop
    assert {name: (arm.keep, arm.fraction) for name, arm in loop.arms.items()} == {
        "whole_pool": ("whole_pool", 1.0), "dfn": ("filter", 0.3)
    }  # fmt: skip


def test_without_two_pools_or_with_none_the_dataset_must_be_named(dfn):
    code, _, err = dfn("select", "--conf", "tiny", "--set", "datasets.clean.kind=pool", "--filter", "/x")
    assert (code, err) == (2, "error: --dataset: wanted one pool; found pool, clean; fix: name one\n")


def test_the_help_lists_the_commands(dfn):
    code, out, _ = dfn("--help")
    assert code == 0
    wanted = ["corpora", "run", "loop", "select", "export", "train", "verify", "status", "report", "evidence"]
    assert [name for name in wanted if f"│ {name} " not in out] == []
    assert [panel for panel in PANELS if f"─ {panel} ─" not in out] == []


def test_no_command_prints_the_help_and_no_error(dfn):
    code, out, err = dfn()
    assert (code, err) == (2, "")
    assert next(iter(PANELS)) in out


def test_a_bug_is_exit_code_1_and_says_how_to_see_the_trace(dfn, monkeypatch):
    def broken(_):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr("etl.shards.verify", broken)
    code, out, err = dfn("verify", ".")
    assert (code, out) == (1, "")
    assert err == "error: RuntimeError: first line (dfn --debug ... shows the trace)\n"
    with pytest.raises(RuntimeError, match="second line"):
        dfn("--debug", "verify", ".")


def test_a_good_folder_passes_verify(dfn, exported):
    code, out, err = dfn("verify", str(exported), "--json")
    assert (code, err) == (0, "")
    assert json.loads(out.splitlines()[-1]) == {"folder": str(exported), "problems": "none"}


def test_train_goes_on_evaluates_and_says_up_to_date(dfn, tmp_path):
    from training_data import export, tiny_encoder

    data, encoder = export(tmp_path / "data"), tiny_encoder(tmp_path / "encoder")
    command = ["train", str(tmp_path / "out"), "--data", str(data), "--init", str(encoder), "--samples-seen", "64"]
    command += ["--with", "batch_size=8", "-w", "checkpoint_steps=3", "--evaluate", str(data), "--json"]
    code, out, err = dfn(*command)
    found = json.loads(out.splitlines()[-1])
    assert code == 0 and "40 pairs: each is seen 1.6 times" in err and "train" in err
    assert (found["num_pairs"], found["samples_seen"], found["num_bad"]) == (40, 64, 0)
    assert found["folder"] == str(tmp_path / "out" / "clip") and 0 <= found["r1"] <= found["r10"] <= 1
    assert sorted(p.name for p in (tmp_path / "out" / "checkpoints").iterdir()) == ["step-00000003", "step-00000006"]
    code, again, err = dfn(*command)
    assert code == 0 and "up to date" in err and json.loads(again.splitlines()[-1]) == found
    (tmp_path / "out" / "result.json").unlink()
    code, again, err = dfn(*command)
    assert "going on after step 6" in err
    assert json.loads(again.splitlines()[-1]) | {"seconds": 0} == found | {"seconds": 0}
    (data / "00000.tar").write_bytes((data / "00000.tar").read_bytes()[:-512])
    code, out, err = dfn(*command)
    assert (code, out) == (2, "")
    assert "00000.tar with sha256" in err or "00000.tar with bytes" in err


@pytest.mark.parametrize("damage", ["cut at a block", "one byte", "no manifest", "a shard too many", "no shard"])
def test_a_damaged_folder_fails_verify_with_exit_code_3(dfn, exported, damage):
    shard = exported / "00000.tar"
    data = bytearray(shard.read_bytes())
    if damage == "cut at a block":
        shard.write_bytes(data[: len(data) // 1024 * 512])
    elif damage == "one byte":
        data[600] ^= 1
        shard.write_bytes(data)
    elif damage == "a shard too many":
        (exported / "00001.tar").write_bytes(data)
    else:
        (exported / ("manifest.json" if damage == "no manifest" else shard.name)).unlink()
    code, out, err = dfn("verify", str(exported), "--json")
    assert (code, err) == (3, "")
    problems = json.loads(out.splitlines()[-1])["problems"]
    assert problems
    assert {problem.split(":")[0] for problem in problems} <= {"00000.tar", "00001.tar", "manifest.json"}
    code, out, _ = dfn("verify", str(exported))
    assert code == 3
    assert "problems" in out


@pytest.mark.parametrize("arguments", [["--set", "bad=1"], ["--set", "stages.selection.keep.top_fraction=1.5"]])
def test_a_mistake_is_told_on_a_machine_without_java(tmp_path, arguments):
    environment = {**os.environ, "JAVA_HOME": "/nowhere", "PATH": str(tmp_path)}
    command = [sys.executable, "-m", "etl", "run", "--conf", "tiny", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_a_config_is_found_by_its_name_in_the_zip(tmp_path):
    code = "import etl; from etl.layers import layered; print(etl.__file__, layered(['tiny'], [])['name'])"
    zipped = project_zip(tmp_path / "dfn_etl.zip")
    command = [sys.executable, "-c", code]
    env = os.environ | {"PYTHONPATH": str(zipped)}
    said = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout
    assert said == f"{zipped}/etl/__init__.py tiny\n"


def test_a_package_that_is_missing_is_told_with_the_extra_that_brings_it():
    ours = ModuleNotFoundError("No module named 'open_clip.model'", name="open_clip.model")
    assert told(ours) == "wanted open_clip; found none; fix: pip install 'dfn-etl[train]'"
    of_a_task = RuntimeError(
        "An exception was thrown from the Python worker:\nModuleNotFoundError: No module named 'torch'"
    )
    assert told(of_a_task) == "wanted torch, on every executor too; found none; fix: pip install 'dfn-etl[train]'"
    assert told(ModuleNotFoundError("No module named 'users_own'")) is None


@pytest.mark.parametrize(
    "error", [ConnectionRefusedError(111, "Connection refused"), Py4JNetworkError("Answer from Java")]
)
def test_a_jvm_that_was_killed_is_told_and_to_run_again(error):
    assert told(error).startswith("wanted Spark's JVM; found it gone") and "fix: run again" in told(error)


def test_each_extra_brings_the_modules_that_it_is_named_for():
    project = tomllib.loads((Path(etl.project.__file__).parent.parent / "pyproject.toml").read_text())["project"]
    distributions = packages_distributions()
    for extra, modules in EXTRAS.items():
        listed = {re.split(r"[\[<>=]", line)[0].lower() for line in project["optional-dependencies"][extra]}
        for module in modules:
            assert {name.lower().replace("_", "-") for name in distributions[module]} & listed, (extra, module)
