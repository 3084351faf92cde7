"""Files for spark-submit: each line has its reason, and the script that finds GPUs says what Spark reads."""

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SPARK = ROOT / "conf" / "spark"
PROPERTY = re.compile(r"(spark\.[\w.]+)\s+(\S+)$")


def properties(text):
    """Name -> value of a file in which what is no property is a comment or empty; a comment is before each group."""
    found, reason = {}, ""
    for line in text.splitlines():
        if not line or line.startswith("#"):
            reason = line[1:].strip()
            continue
        name, value = PROPERTY.match(line).groups()
        assert len(reason.split()) > 3 or name.rpartition(".")[0] == list(found)[-1].rpartition(".")[0], line
        found[name] = value
    return found


@pytest.mark.parametrize("name", ["cpu", "gpu", "train"])
def test_every_line_has_a_reason(name):
    found = properties((SPARK / f"{name}.conf").read_text())
    assert found["spark.sql.extensions"] == "io.delta.sql.DeltaSparkSessionExtension"
    with pytest.raises(AssertionError, match=r"spark\.executor\.cores 4"):
        properties("# Delta and its catalog.\nspark.sql.extensions x\n\nspark.executor.cores 4")


def test_scoring_may_share_a_gpu_and_training_does_not():
    train = properties((SPARK / "train.conf").read_text())
    assert train["spark.task.resource.gpu.amount"] == "1"
    ranks = int(train["spark.executor.resource.gpu.amount"])
    assert ranks * int(train["spark.task.cpus"]) == int(train["spark.executor.cores"])


def discover(tmp_path, script):
    """What the discovery script does where `nvidia-smi` is this script."""
    fake = tmp_path / "nvidia-smi"
    fake.write_text(f"#!/bin/bash\n{script}\n")
    fake.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    return subprocess.run([SPARK / "gpu-discovery.sh"], env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("listed", [["0"], ["0", "1", "2", "3"], ["0", "10"]])
def test_the_gpus_of_a_machine_are_found(tmp_path, listed):
    asked = '[ "$1 $2" = "--query-gpu=index --format=csv,noheader" ] || exit 9; '
    done = discover(tmp_path, asked + "printf '%s\\r\\n' " + " ".join(listed))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"name": "gpu", "addresses": listed}


@pytest.mark.parametrize(
    ("script", "said"), [("exit 0", "wanted GPUs; found none"), ("echo broken >&2; exit 9", "found that it fails")]
)
def test_a_machine_without_gpus_fails_at_its_start(tmp_path, script, said):
    done = discover(tmp_path, script)
    assert (done.returncode, done.stdout) == (1, "") and said in done.stderr


def test_the_image_is_made_of_what_is_there():
    """Read, not built: extras, files, and versions that the project knows."""
    image = (ROOT / "Dockerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (extras,) = re.findall(r"wheel\[([\w,]+)\]", image)
    assert set(extras.split(",")) <= project["project"]["optional-dependencies"].keys()
    copied = re.findall(r"^COPY (?!--from)(\S+)", image, re.M)
    assert copied == ["dist/*.whl", "conf/spark"] and (ROOT / "conf" / "spark").is_dir()
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert all(any(path.startswith(keep) for keep in kept) for path in copied)
    spark = re.search(r"apache/spark:([\d.]+)-", image)[1]
    assert f"pyspark=={spark}" in project["tool"]["uv"]["constraint-dependencies"]
    assert re.search(r"FROM python:3\.11", image) and project["project"]["requires-python"].startswith(">=3.11")
