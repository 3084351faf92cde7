"""The archive of classes: used where it is there and fits, and only there."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from etl import jvm
from etl.stage import UserError


def test_a_session_names_the_archive_of_its_java_and_environment(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "an environment"))
    assert jvm.archive_options() == ""
    archive = jvm.class_archive()
    archive.parent.mkdir(parents=True)
    archive.touch()
    assert jvm.archive_options().startswith(f'"-XX:SharedArchiveFile={archive}" -Xlog:cds=off')
    (tmp_path / "java").mkdir()
    (tmp_path / "java" / "release").write_text('JAVA_VERSION="99"')
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "java"))
    assert jvm.class_archive() != archive and jvm.archive_options() == ""


def test_another_spark_than_delta_s_is_told_before_a_jvm_starts(monkeypatch):
    monkeypatch.setattr(jvm.pyspark, "__version__", "4.1.3")
    with pytest.raises(UserError, match=r"wanted pyspark 4\.0 or 4\.2, .* found 4\.1\.3; fix: .* 'pyspark==4\.2\.\*'"):
        jvm.delta_jars()


def test_a_jar_that_is_not_the_pinned_one_is_refused_and_so_is_one_too_many(tmp_path):
    jars = [Path(shutil.copy(jar, tmp_path)) for jar in jvm.delta_jars()]
    jvm.check_jars(jars)
    jars[0].write_bytes(jars[0].read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=rf"found {jars[0].name} of sha256 [0-9a-f]{{64}}; fix"):
        jvm.check_jars(jars)
    (tmp_path / "more.jar").touch()
    with pytest.raises(UserError, match=rf"found no {jars[0].name}, more.jar of sha256 e3b0c4"):
        jvm.check_jars([*jars[1:], tmp_path / "more.jar"])


@pytest.mark.slow
def test_classes_come_from_the_archive_that_a_rehearsal_wrote(monkeypatch, tmp_path):
    """In a folder with a space; what is there is not made again."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "an environment"))
    assert jvm.make_class_archive()
    archive = jvm.class_archive()
    made = archive.stat().st_mtime_ns
    assert jvm.make_class_archive() and archive.stat().st_mtime_ns == made
    code = (
        f"import sys; sys.prefix = {sys.prefix!r}\n"
        "from etl import jvm, session\n"
        f"log = '-Xlog:class+load:file={tmp_path}/classes.log'\n"
        "java = f'{session.LOCAL_JAVA} {jvm.archive_options()} {log}'\n"
        "session.session('seen', conf={'spark.driver.extraJavaOptions': java}).stop()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(jvm.__file__).parent.parent)
    said = re.findall(r"\] (org\.apache\.spark\.\S+) source: (.*)", (tmp_path / "classes.log").read_text())
    assert [source for _, source in said].count("shared objects file (top)") > 1000
    assert [one for one in said if one[1].startswith(("file:", "jar:"))] == []  # the others are lambdas
