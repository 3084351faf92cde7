"""A Spark standalone cluster on this machine, whose GPUs are addresses that a script prints; and drivers for it.

A helper of tests, no test. As a command, `python cluster.py COMMAND...`, it runs COMMAND until standard input ends and
then kills its whole session: what a test started is gone when the test is, however that ended.
"""

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyspark
from helpers import running_in

ROOT = Path(__file__).resolve().parent.parent
SPARK_HOME = Path(pyspark.__file__).parent
LOOPBACK = "127.0.0.1"
CHEAP_JVM = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
APPLICATION = {
    # Two executors that hold a worker's GPUs each. Four cores, so that cores are not what limits tasks to GPUs.
    "spark.cores.max": "8",
    "spark.executor.cores": "4",
    "spark.executor.memory": "512m",
    "spark.executor.resource.gpu.amount": "2",
    "spark.task.resource.gpu.amount": "1",
    "spark.scheduler.minRegisteredResourcesRatio": "1.0",  # no task before all of these cores are there
    "spark.scheduler.maxRegisteredResourcesWaitingTime": "120s",
    "spark.executor.extraJavaOptions": CHEAP_JVM,
    "spark.driver.extraJavaOptions": CHEAP_JVM,
    "spark.driver.memory": "1g",
    "spark.driver.host": LOOPBACK,
    "spark.driver.bindAddress": LOOPBACK,
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.shuffle.partitions": "4",
    "spark.databricks.delta.snapshotPartitions": "1",
}


def environment(**more: str) -> dict[str, str]:
    """This process's, without what would let another process find the project's code or a running Spark."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith(("SPARK_", "PYSPARK_"))}
    return kept | {"SPARK_HOME": str(SPARK_HOME), "SPARK_LOCAL_IP": LOOPBACK, "OMP_NUM_THREADS": "1", **more}


def wait_for(found: Callable[[], Any], what: str, log: Path, seconds: float, step: float = 0.05) -> Any:
    """What `found` returns, once it is true. Fails with the log's end after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < deadline, f"{what}: not after {seconds} s; {log}:\n{log.read_text()[-4000:]}"
        time.sleep(step)
    return result


def end_session(session: int, but: Sequence[int] = ()) -> None:
    """Kills every process of a session, those too that are born meanwhile."""
    deadline = time.monotonic() + 15
    while left := running_in(session).keys() - set(but):
        assert time.monotonic() < deadline, f"still running: {running_in(session)}"
        for process in left:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.05)


def keep(command: Sequence[str]) -> None:
    """Runs `command` until it ends or standard input does; nothing of this session outlives it."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=lambda: (child.wait(), os.close(0), end_all()), daemon=True).start()
    sys.stdin.buffer.raw.read()
    end_all()


def end_all() -> None:
    end_session(os.getsid(0), but=[os.getpid()])
    os._exit(0)


@contextmanager
def service(command: Sequence[str], log: Path, env: dict[str, str], cwd: Path | None = None) -> Iterator[int]:
    """Runs a command in a session of its own, whose number it yields."""
    with log.open("w") as out:
        kept = subprocess.Popen(
            [sys.executable, __file__, *command], stdin=subprocess.PIPE, stdout=out, stderr=out, env=env, cwd=cwd,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield kept.pid
    finally:
        kept.stdin.close()
        try:
            kept.wait(20)
        finally:
            end_session(kept.pid)


@dataclass(frozen=True)
class Worker:
    """A machine of the cluster: a folder, in which its executors work, and a session of processes."""

    folder: Path
    session: int

    def executors(self) -> list[int]:
        return [p for p in running_in(self.session) if "CoarseGrainedExecutorBackend" in read_proc(p, "cmdline")]

    def busy_pythons(self, path: Path) -> list[int]:
        """Python workers that have a file under `path` open, the one that worked most first."""
        found = [p for p in running_in(self.session) if any(f.startswith(f"{path}/") for f in open_files(p))]
        return sorted(found, key=lambda p: -int((read_proc(p, "stat").rpartition(")")[2].split() or [0] * 12)[11]))


def read_proc(process: int, name: str) -> str:
    """A file of /proc; empty where the process is gone."""
    try:
        return Path(f"/proc/{process}/{name}").read_text()
    except OSError:
        return ""


def open_files(process: int) -> list[str]:
    try:
        return [str(fd.readlink()) for fd in Path(f"/proc/{process}/fd").iterdir()]
    except OSError:
        return []


@dataclass(frozen=True)
class Cluster:
    url: str
    """What spark.master wants."""
    page: str
    folder: Path
    workers: tuple[Worker, ...]

    def state(self) -> dict[str, Any]:
        """The master's JSON page."""
        with urllib.request.urlopen(f"{self.page}/json/", timeout=5) as page:
            return json.load(page)

    @contextmanager
    def driver(self, name: str, code: Path, **conf: str) -> Iterator["Driver"]:
        """`cluster_driver.py` as an application of the cluster, whose executors have the project from `code` only."""
        folder = self.folder / name / "app" / "0"  # as deep as an executor's, so that relative paths fit both
        folder.mkdir(parents=True)
        settings = {**APPLICATION, "spark.master": self.url, "spark.submit.pyFiles": str(code), **conf}
        command = [sys.executable, str(Path(__file__).with_name("cluster_driver.py")), json.dumps(settings)]
        env = environment(PYTHONPATH=str(ROOT), PYSPARK_PYTHON=str(bare_python(self.folder)), HF_HUB_OFFLINE="1")
        with (folder / "out").open("w") as out, (folder / "log").open("w") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=out, stderr=log, env=env, cwd=folder, start_new_session=True,
                text=True,
            )  # fmt: skip
        try:
            yield Driver(process, folder)
        finally:
            end_session(process.pid)

    def submit(self, code: Path, jars: Sequence[Path], *arguments: str, **conf: str) -> str:
        """spark-submit of the project with conf/spark/gpu.conf, to its end. What it said."""
        sized = {name: value for name, value in APPLICATION.items() if "gpu.amount" not in name}
        command = [str(SPARK_HOME / "bin" / "spark-submit"), "--master", self.url, "--py-files", str(code)]
        command += ["--properties-file", str(ROOT / "conf" / "spark" / "gpu.conf"), "--jars", ",".join(map(str, jars))]
        command += [part for name, value in (sized | conf).items() for part in ("--conf", f"{name}={value}")]
        python = {"PYSPARK_PYTHON": str(bare_python(self.folder)), "PYSPARK_DRIVER_PYTHON": sys.executable}
        log = self.folder / "submit.log"
        with log.open("w") as out:
            process = subprocess.Popen(
                [*command, str(ROOT / "etl" / "__main__.py"), *arguments], env=environment(**python), cwd=ROOT,
                stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        try:
            assert process.wait(800) == 0, log.read_text()[-4000:]
        finally:
            end_session(process.pid)
        return log.read_text()


@dataclass
class Driver:
    """An application that does what it is asked, one thing after another."""

    process: subprocess.Popen
    folder: Path
    num_answers: int = 0

    def ask(self, command: str, **arguments: Any) -> None:
        """Lets it begin with a function of `cluster_driver.py`."""
        self.process.stdin.write(json.dumps([command, arguments], default=str) + "\n")
        self.process.stdin.flush()

    def answer(self, seconds: float = 240) -> dict[str, Any]:
        """{"result": ...} or {"error": ...} of what was asked last."""

        def answered() -> list[str]:
            lines = (self.folder / "out").read_text().splitlines(keepends=True)
            assert self.process.poll() is None, f"the driver ended: {self.said()[-4000:]}"
            return [line for line in lines[self.num_answers :] if line.endswith("\n")]

        line = wait_for(answered, "an answer of the driver", self.folder / "log", seconds)[0]
        self.num_answers += 1
        return json.loads(line)

    def do(self, command: str, **arguments: Any) -> Any:
        self.ask(command, **arguments)
        answer = self.answer()
        assert "result" in answer, answer["error"]
        return answer["result"]

    def said(self) -> str:
        return (self.folder / "log").read_text()


def bare_python(folder: Path) -> Path:
    """This Python for executors: site-packages as a plain folder, so that no .pth file in it shows the repository."""
    script = folder / "python"
    if not script.exists():
        path = f'"${{PYTHONPATH:+$PYTHONPATH:}}{sysconfig.get_path("purelib")}"'
        write_script(script, f'PYTHONPATH={path} exec {sys.executable} -S "$@"')
    return script


def write_script(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


def project_zip(out: Path) -> Path:
    """The zip that `make zip` writes, by the Makefile's own lines."""
    code = re.search(r"^define ZIP\n(.*?)^endef", (ROOT / "Makefile").read_text(), re.M | re.S).group(1)
    subprocess.run([sys.executable, "-c", code, str(out)], cwd=ROOT, check=True, capture_output=True)
    return out


@contextmanager
def standalone_cluster(
    folder: Path, addresses: Sequence[Sequence[str]] = (("0", "1"), ("2", "3")), cores: int = 4
) -> Iterator[Cluster]:
    """A master, and a worker for each list of GPU addresses, all registered. Nothing of it is left behind."""
    env = environment(SPARK_DAEMON_JAVA_OPTS=CHEAP_JVM, SPARK_DAEMON_MEMORY="256m")
    with ExitStack() as stack:
        log = folder / "master.log"
        stack.enter_context(service(master_command(), log, env))

        def announced() -> list[str]:
            patterns = (r"Starting Spark master at (spark://\S+)", r"MasterWebUI.* started at (http\S+)")
            found = [re.search(pattern, log.read_text()) for pattern in patterns]
            return [match.group(1) for match in found] if all(found) else []

        url, page = wait_for(announced, "a master", log, 60)
        workers = []
        for number, own in enumerate(addresses):
            place = folder / f"worker-{number}"
            place.mkdir()
            host = f"127.0.0.{number + 1}"  # machines of their own, also for what Spark counts by host
            command = worker_command(place, host, url, own, cores)
            started = service(command, folder / f"{place.name}.log", env | {"SPARK_LOCAL_IP": host})
            workers.append(Worker(place, stack.enter_context(started)))
        cluster = Cluster(url, page, folder, tuple(workers))
        wait_for(lambda: cluster.state()["aliveworkers"] == len(addresses), "all workers", folder / "worker-0.log", 60)
        yield cluster


def master_command() -> list[str]:
    return spark_class("master.Master", "--host", LOOPBACK, "--port", "0", "--webui-port", "0")


def worker_command(place: Path, host: str, url: str, addresses: Sequence[str], cores: int) -> list[str]:
    script, properties = place / "gpus", place / "worker.conf"
    write_script(script, f"echo '{json.dumps({'name': 'gpu', 'addresses': list(addresses)})}'")
    properties.write_text(
        f"spark.worker.resource.gpu.amount {len(addresses)}\nspark.worker.resource.gpu.discoveryScript {script}\n"
    )
    return spark_class(
        "worker.Worker", "--host", host, "--webui-port", "0", "--cores", str(cores), "--memory", "1g",
        "--work-dir", str(place), "--properties-file", str(properties), url,
    )  # fmt: skip


def spark_class(name: str, *arguments: str) -> list[str]:
    return [str(SPARK_HOME / "bin" / "spark-class"), f"org.apache.spark.deploy.{name}", *arguments]


if __name__ == "__main__":
    keep(sys.argv[1:])
