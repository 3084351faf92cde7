"""What a user of pip has: the wheel and its extras in an environment of its own, and nothing of this checkout."""

import json
import os
import subprocess
import sys
from functools import cached_property
from pathlib import Path

import pytest
from cluster import project_zip

from etl.jvm import delta_jars

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
ROOT = Path(__file__).resolve().parent.parent
UV = ROOT / ".uv" / "bin" / "uv"
OF_THE_CHECKOUT = ("PYTHONPATH", "VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT", "SPARK_HOME")


class Installed:
    """An environment with the wheel, of the tried versions."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "env" / "bin"
        self._uv("venv", "--python", sys.executable, folder / "env")

    def _uv(self, *arguments: object) -> None:
        subprocess.run([UV, *map(str, arguments), "--quiet"], cwd=ROOT, check=True)

    @cached_property
    def wheel(self) -> Path:
        self._uv("build", "--wheel", "--out-dir", self.folder, "--python", sys.executable)
        (wheel,) = self.folder.glob("*.whl")
        return wheel

    @cached_property
    def tried(self) -> Path:
        """The versions of uv.lock."""
        out = self.folder / "constraints.txt"
        self._uv("export", "--frozen", "--all-extras", "--no-emit-project", "--no-hashes", "-o", out)
        return out

    def install(self, *extras: str) -> None:
        wanted = f"{self.wheel}[{','.join(extras)}]"
        self._uv("pip", "install", "--python", self.bin / "python", "--constraint", self.tried, wanted)

    def __call__(self, *command: object) -> subprocess.CompletedProcess:
        env = {name: value for name, value in os.environ.items() if name not in OF_THE_CHECKOUT}
        env |= {"PYSPARK_PYTHON": str(self.bin / "python"), "PATH": f"{self.bin}:{env['PATH']}"}
        words = [str(self.bin / str(command[0])), *map(str, command[1:])]
        return subprocess.run(words, cwd=self.folder, env=env, capture_output=True, text=True, timeout=1500)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    return Installed(tmp_path_factory.mktemp("installed"))


def test_the_command_works_with_spark_alone_and_names_the_extra_that_it_lacks(installed):
    installed.install("spark")
    helped = installed("dfn", "--help")
    assert (helped.returncode, "promote" in helped.stdout) == (0, True), helped.stderr
    lacking = installed("dfn", "run", "--conf", "tiny", "--quiet")
    assert lacking.returncode == 2
    assert lacking.stderr.splitlines()[-1].endswith("; fix: pip install 'dfn-etl[corpora]'")
    installed.install("spark", "corpora")
    lacking = installed("dfn", "run", "--conf", "tiny", "--quiet")
    assert lacking.returncode == 2
    assert lacking.stderr.splitlines()[-1].endswith("; fix: pip install 'dfn-etl[train]'")


def test_the_loop_runs_and_spark_submit_of_the_zip_finds_it_done(installed):
    installed.install("spark", "train", "corpora")
    done = installed("dfn", "loop", "--conf", "tiny", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((installed.folder / "build" / "tiny" / "summary.json").read_text())["verdict"]
    code = project_zip(installed.folder / "dfn_etl.zip")
    jars = ",".join(map(str, delta_jars()))
    (main,) = (installed.folder / "env").glob("lib/python3*/site-packages/etl/__main__.py")
    again = installed("spark-submit", "--master", "local[2]", "--py-files", code, "--jars", jars, main, "run", "--conf",
                      "tiny", "--json")  # fmt: skip
    assert again.returncode == 0, again.stderr[-3000:]
    assert set(json.loads(again.stdout.splitlines()[-1]).values()) == {"up to date"}
