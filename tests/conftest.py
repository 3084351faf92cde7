"""One Spark session for the whole run, and the tiny recipe run once. Both in temporary folders."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def spark():
    from etl.session import session

    return session("tests")


@pytest.fixture
def store(spark, tmp_path):
    from etl.store import Store

    return Store(spark, str(tmp_path / "tables"))


@pytest.fixture(scope="session")
def tiny(spark, tmp_path_factory):
    """(project, round) of the tiny recipe, from shards to an induced model's metric."""
    from etl.config import load
    from etl.loop import Loop
    from etl.outcome import write_outcome
    from etl.project import Project

    output = tmp_path_factory.mktemp("tiny")
    calls = output / "calls"
    said: list[str] = []
    config = load(["tiny"], [f"output={output}", f"stages.embed.calls_file={calls}"])
    project = Project(config, said.append)
    ended = Loop(project).run()
    write_outcome(project, ended)
    return project, ended, said


@pytest.fixture(scope="session")
def tiny_output(tiny) -> Path:
    return tiny[0].config.output_folder
