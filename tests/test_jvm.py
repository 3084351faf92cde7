"""The archive of classes: used where it is there and fits, and only there."""

import subprocess
import sys
from pathlib import Path

import pytest

from etl import jvm


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


@pytest.mark.slow
def test_classes_come_from_the_archive_that_a_rehearsal_wrote(monkeypatch, tmp_path):
    """In a folder with a space; one that is made again is the same file."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "an environment"))
    assert jvm.make_class_archive()
    archive = jvm.class_archive()
    made = archive.stat().st_mtime_ns
    assert jvm.make_class_archive() and archive.stat().st_mtime_ns == made
    code = (
        f"import sys; sys.prefix = {sys.prefix!r}\n"
        "from etl.session import LOCAL_JAVA, session\n"
        f"log = '{tmp_path}/classes.log'\n"
        "session('seen', conf={'spark.driver.extraJavaOptions': f'{LOCAL_JAVA} -Xlog:class+load:file={log}'}).stop()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(jvm.__file__).parent.parent)
    loaded = [line for line in (tmp_path / "classes.log").read_text().splitlines() if " org.apache.spark." in line]
    shared = [line for line in loaded if "shared objects file (top)" in line]
    assert len(shared) > 0.9 * len(loaded) > 1000
