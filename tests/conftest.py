"""One Spark session for the whole run, and the tiny recipe run once. Both in temporary folders.

The slow suite takes hours: with `--begin-within SECONDS` what was not begun by then is skipped and told at the end, and
`--turn WORD` takes the files in an order of its own, so that over many runs of CI each has its turn.
"""

import hashlib
import os
import shutil
import time
from collections import Counter
from pathlib import Path

import faults
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


READ_TINY = {"test_calibrate.py", "test_card.py", "test_connect.py", "test_filter_recipe.py", "test_filters.py",
             "test_forget_tiny.py", "test_lineage.py", "test_loop.py", "test_notebooks.py", "test_plan.py",
             "test_privacy.py", "test_rounds.py", "test_variants.py"}  # fmt: skip
"""Files whose tests share the fixture `tiny`: kept in one process, so that its minutes are spent once."""


NOT_BEGUN = "not begun: out of time"


def scope_of(file: Path) -> str:
    """What one process runs: a file, or all those that share the tiny recipe."""
    return "tiny" if file.name in READ_TINY else file.name


def pytest_addoption(parser):
    parser.addoption("--begin-within", type=float, metavar="SECONDS", help="skip and tell what was not begun by then")
    parser.addoption("--turn", metavar="WORD", help="take the files in an order that follows from WORD alone")


def pytest_configure(config):
    config.begun = time.monotonic()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    limit = item.config.option.begin_within
    if limit is not None and time.monotonic() - item.config.begun > limit:
        pytest.skip(NOT_BEGUN)


def pytest_collection_modifyitems(items, config):
    """What takes longest begins first: the tests that share `tiny`. Those that prove a fault are marked."""
    proofs = {test for fault in faults.FAULTS.values() for test in fault.tests}
    for item in items:
        if faults.test_of(item.nodeid) in proofs:
            item.add_marker(pytest.mark.fault)
    if (turn := config.option.turn) is None:
        items.sort(key=lambda item: scope_of(item.path) != "tiny")
    else:
        items.sort(key=lambda item: hashlib.sha256(f"{turn} {scope_of(item.path)}".encode()).digest())


def pytest_terminal_summary(terminalreporter, config):
    left = [report.nodeid for report in terminalreporter.stats.get("skipped", []) if NOT_BEGUN in str(report.longrepr)]
    if left:
        terminalreporter.section(f"{len(left)} tests were NOT BEGUN within {config.option.begin_within:g} s")
        for file, number in sorted(Counter(name.partition("::")[0] for name in left).items()):
            terminalreporter.write_line(f"{number:4} of {file}")
    if config.option.markexpr != "fault":
        return
    every = [report for found in terminalreporter.stats.values() for report in found if hasattr(report, "when")]
    terminalreporter.section("faults")
    for line in faults.table(every):
        terminalreporter.write_line(line)


def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return scope_of(Path(super()._split_scope(nodeid)))

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


INTERPRETED = {"spark.sql.codegen.wholeStage": "false", "spark.sql.codegen.factoryMode": "NO_CODEGEN"}
"""Of tables of a few rows compiling the queries is a quarter of the time. Tests in processes of their own compile."""


@pytest.fixture(scope="session")
def spark():
    from etl.session import session

    return session("tests", conf=INTERPRETED)


@pytest.fixture
def store(spark, tmp_path):
    from etl.store import Store

    return Store(spark, str(tmp_path / "tables"))


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory) -> Path:
    """An empty MLflow store, made once: its migrations take seconds."""
    import mlflow

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def mlflow_uri(mlflow_template, tmp_path) -> str:
    """A store of the test's own."""
    shutil.copyfile(mlflow_template, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture(scope="session")
def tiny(spark, tmp_path_factory):
    """(project, round) of the tiny recipe, from shards to an induced model's metric."""
    from etl.config import load
    from etl.loop.loop import Loop
    from etl.loop.outcome import write_outcome
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
