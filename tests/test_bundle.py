"""The Databricks bundle, checked strictly: by Databricks' own classes, and against `dfn`, its options and configs.

`databricks bundle validate` wants a workspace. Databricks publishes the schema of a bundle's resources as classes too,
in the package databricks-bundles, which refuse a key that they do not know.
"""

import re
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from databricks.bundles.jobs import Job
from databricks.bundles.registered_models import RegisteredModel
from databricks.bundles.schemas import Schema
from databricks.bundles.volumes import Volume
from test_docs import problems

from etl.__main__ import main
from etl.config import load
from etl.recipe import BEFORE_FILTERS
from etl.stage import UserError

ROOT = Path(__file__).resolve().parent.parent
CLASSES = {"jobs": Job, "registered_models": RegisteredModel, "schemas": Schema, "volumes": Volume}
TOP = {"bundle": {"name"}, "include": None, "sync": {"exclude"}, "artifacts": None, "variables": None, "targets": None}
TARGET = {"default", "mode", "variables", "workspace"}
VARIABLE = {"description", "type", "default"}
REFERENCE = re.compile(r"\$\{([\w.]+)\}")


def bundle(root=ROOT):
    """(databricks.yml, resources of all files that it includes by kind, name -> (path, content))"""
    main = yaml.safe_load((root / "databricks.yml").read_text())
    found = {}
    for pattern in main["include"]:
        for path in sorted(root.glob(pattern)):
            content = yaml.safe_load(path.read_text())
            assert content.keys() == {"resources"}, path
            for kind, resources in content["resources"].items():
                for name, resource in resources.items():
                    assert name not in found.setdefault(kind, {}), f"{kind}.{name} twice"
                    found[kind][name] = (path, resource)
    return main, found


def strings(value):
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from strings(inner)


def faults(main, found):
    """What is wrong in a bundle, a line each."""
    yield from unknown_keys(main)
    yield from references(main, found)
    for kind, resources in found.items():
        for name, (path, content) in resources.items():
            try:
                CLASSES[kind].from_dict(content)
            except (KeyError, ValueError, TypeError) as error:
                yield f"{kind}.{name}: {type(error).__name__}: {error}"
                continue
            yield from (of_job(name, path, content, main) if kind == "jobs" else ())


def unknown_keys(main):
    yield from (f"unknown key {key}" for key in main.keys() - TOP.keys())
    yield from (f"{key}: unknown {k}" for key, known in TOP.items() if known for k in main[key].keys() - known)
    for name, target in main["targets"].items():
        yield from (f"targets.{name}: unknown {key}" for key in target.keys() - TARGET)
        yield from (
            f"targets.{name}: no variable {key}" for key in target["variables"].keys() - main["variables"].keys()
        )
    for name, variable in main["variables"].items():
        yield from (f"variables.{name}: unknown {key}" for key in variable.keys() - VARIABLE)
    if [target for target in main["targets"].values() if target.get("default")] != [main["targets"]["dev"]]:
        yield "wanted dev to be the only default"


def references(main, found):
    """Names in ${...} that nothing declares, and variables that nobody names."""
    known = {f"var.{name}" for name in main["variables"]} | {"bundle.name", "bundle.target"}
    known |= {f"resources.{kind}.{name}.name" for kind, resources in found.items() for name in resources}
    used = {name for text in strings([main, [c for of in found.values() for _, c in of.values()]])
            for name in REFERENCE.findall(text)}  # fmt: skip
    yield from (f"${{{name}}} is not declared" for name in sorted(used - known))
    yield from (f"{name} is not used" for name in sorted(known - used) if name.startswith("var."))


def of_job(name, path, job, main):
    clusters = {cluster["job_cluster_key"] for cluster in job["job_clusters"]}
    tasks = [task["task_key"] for task in job["tasks"]]
    if len(set(tasks)) < len(tasks):
        yield f"{name}: a task twice"
    wanted = {task["job_cluster_key"] for task in job["tasks"]}
    yield from (f"{name}: cluster {key} is defined or wanted only" for key in sorted(clusters ^ wanted))
    before = []
    for task in job["tasks"]:
        place = f"{name}.{task['task_key']}"
        waits = [each["task_key"] for each in task.get("depends_on", ())]
        yield from (f"{place}: waits for {key}, which is not before it" for key in waits if key not in before)
        before.append(task["task_key"])
        for text in strings(task):
            for parameter in re.findall(r"\{\{job\.parameters\.(\w+)\}\}", text):
                if parameter not in {each["name"] for each in job.get("parameters", ())}:
                    yield f"{place}: no parameter {parameter}"
        check = of_wheel if "python_wheel_task" in task else of_notebook
        yield from (f"{place}: {problem}" for problem in check(task, path, main))


def of_wheel(task, path, main):
    wheel, project = task["python_wheel_task"], tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    if wheel["package_name"].replace("_", "-") != project["name"] or wheel["entry_point"] not in project["scripts"]:
        yield f"no entry point {wheel['package_name']}.{wheel['entry_point']}"
    words = resolved(wheel["parameters"], main)
    yield from problems(["dfn", *words])
    pairs = list(pairwise(words))
    yield from (f"no stage {b}" for a, b in pairs if a == "--stage" and b not in BEFORE_FILTERS)
    yield from config([b for a, b in pairs if a == "--conf"], [b for a, b in pairs if a == "--set"])


def of_notebook(task, path, main):
    notebook = task["notebook_task"]
    source = (path.parent / notebook["notebook_path"]).resolve()
    if not source.is_file():
        yield f"no notebook {notebook['notebook_path']}"
        return
    given = resolved(notebook["base_parameters"], main)
    widgets = set(re.findall(r'"(\w+)":', source.read_text().partition("opened(")[0]))
    yield from (f"{source.name} has no parameter {key}" for key in given.keys() - widgets)
    yield from config(given["conf"].split(), given["set"].split())


def config(names, overrides):
    """What of the project's config would be refused: one with tables on Unity Catalog."""
    try:
        loaded = load(names, overrides)
    except UserError as error:
        yield str(error)
        return
    if loaded.tables_root != "catalog:dfn_prod" or loaded.registry != "dfn_prod.dfn":
        yield f"wanted tables and models of the target; found {loaded.tables_root}, {loaded.registry}"
    if loaded.loop.gate.mode != "needs_approval" or loaded.tracking_uri != "databricks":
        yield "wanted --conf databricks"


def resolved(value, main):
    """With the variables of prod, for the config `tiny`."""
    known = {name: of.get("default") for name, of in main["variables"].items()}
    known |= main["targets"]["prod"]["variables"] | {"conf": "tiny"}
    if isinstance(value, str):
        return REFERENCE.sub(lambda match: str(known.get(match[1].removeprefix("var."), match[0])), value)
    if isinstance(value, dict):
        return {key: resolved(inner, main) for key, inner in value.items()}
    return [resolved(inner, main) for inner in value]


def test_the_bundle_has_no_fault():
    main, found = bundle()
    assert list(faults(main, found)) == []
    assert found.keys() == CLASSES.keys()
    assert found["jobs"].keys() == {"intake", "duplicates", "embed", "semantic", "loop", "serve", "deployment"}
    stages = {
        word
        for _, job in found["jobs"].values()
        for task in job["tasks"]
        for a, word in pairwise(task.get("python_wheel_task", {}).get("parameters", ()))
        if a == "--stage"
    }
    assert stages == {"ingest", "signals", "dedup", "decontaminate", "embed", "decontaminate_semantic"}
    catalogs = [target["variables"]["catalog"] for target in main["targets"].values()]
    assert catalogs == ["dfn_dev", "dfn_staging", "dfn_prod"]


def test_gpu_clusters_have_the_settings_of_the_file_for_spark_submit():
    main, _ = bundle()
    lines = [line.split() for line in (ROOT / "conf" / "spark" / "gpu.conf").read_text().splitlines()]
    of_file = {line[0]: line[1] for line in lines if len(line) == 2 and line[0].startswith("spark.")}
    given = main["variables"]["gpu_cluster"]["default"]["spark_conf"]
    assert given.items() <= of_file.items()
    set_by_databricks = {
        "spark.executor.resource.gpu.amount",
        "spark.sql.extensions",
        "spark.sql.catalog.spark_catalog",
    }
    assert of_file.keys() - given.keys() == set_by_databricks


PLANTED = [  # in which file, what is replaced, by what, what is said
    ("resources/loop.yml", "max_concurrent_runs", "max_concurent_runs", "Unexpected field 'max_concurent_runs'"),
    ("resources/loop.yml", "job_cluster_key: cpu\n", "job_cluster_key: cpus\n", "cluster cpus is defined or"),
    ("resources/loop.yml", "task_key: embed}", "task_key: embeds}", "waits for embeds"),
    ("resources/loop.yml", "[loop,", "[lop,", "no command dfn lop"),
    ("resources/stages.yml", "--stage, dedup", "--stages, dedup", "no option --stages"),
    ("resources/stages.yml", "--stage, dedup", "--stage, dedupe", "no stage dedupe"),
    ("resources/stages.yml", "entry_point: dfn", "entry_point: dnf", "no entry point dfn_etl.dnf"),
    ("resources/stages.yml", "00_doctor.py", "00_doctors.py", "no notebook"),
    ("resources/stages.yml", "tasks: \"$", "task: \"$", "00_doctor.py has no parameter task"),
    ("resources/deployment.yml", "parameters.model_version", "parameters.version", "no parameter version"),
    ("resources/deployment.yml", "${var.catalog}.dfn\",", "${var.catalogue}.dfn\",", "${var.catalogue} is not"),
    ("resources/catalog.yml", "volume_type: MANAGED", "volume_kind: MANAGED", "Unexpected field 'volume_kind'"),
    ("resources/catalog.yml", "volume_type: MANAGED", "volume_type: MANGED", "MANGED"),
    ("databricks.yml", "mode: production", "modes: production", "targets.prod: unknown modes"),
    ("databricks.yml", "1, tasks: 64", "1, task: 64", "targets.dev: no variable task"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "good", "bad", "said"), PLANTED, ids=[said for *_, said in PLANTED])
def test_a_planted_fault_is_found(tmp_path, file, good, bad, said):
    (tmp_path / "resources").mkdir()
    for path in (ROOT / "databricks.yml", *(ROOT / "resources").glob("*.yml")):
        (tmp_path / path.relative_to(ROOT)).write_text(path.read_text())
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    text = (tmp_path / file).read_text()
    assert good in text
    (tmp_path / file).write_text(text.replace(good, bad))
    told = list(faults(*bundle(tmp_path)))
    assert any(said in line for line in told), told


def test_what_a_wheel_task_calls_ends_without_an_exit_where_it_is_done(monkeypatch, capsys):
    """Databricks calls the entry point in a process of its own, for which an exit of 0 need not be a success."""
    monkeypatch.setattr(sys, "argv", ["dfn", "plan", "--scale", "small"])
    assert main() is None and "| total |" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["dfn", "plan", "--scale", "laptop"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
