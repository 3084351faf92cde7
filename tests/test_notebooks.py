"""The notebooks run outside Databricks, and say what the tables say."""

import runpy
from pathlib import Path

import matplotlib
import pytest

from models.records import FilterRecord

matplotlib.use("agg")
NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


class Widgets:
    """What a notebook uses of `dbutils`."""

    def __init__(self, given):
        self.given, self.shown = given, {}
        self.widgets = self

    def text(self, name, default):
        self.shown[name] = default

    def get(self, name):
        return self.given.get(name, self.shown[name])


@pytest.fixture
def stored(tiny):
    """(folder of a filter, its stored scores by uid, the threshold of its selection)."""
    from etl.tables import SCORES

    project, ended, _ = tiny
    filter_ = ended.filters[1].final.folder
    record = FilterRecord.read(filter_)
    where = {"filter": record.name, "filter_version": record.version}
    rows = project.store.read("pool", SCORES, where=where).select("uid", "score").collect()
    return filter_, {row["uid"]: row["score"] for row in rows}, ended.arms["dfn"].receipts[1]["facts"]["threshold"]


@pytest.mark.parametrize("is_databricks", [False, True], ids=["anywhere", "databricks"])
def test_scores_from_pixels_are_the_stored_ones(tiny, stored, monkeypatch, capsys, is_databricks):
    from matplotlib import pyplot

    filter_, scores, threshold = stored
    given = {
        "conf": "tiny",
        "set": f"output={tiny[0].config.output_folder}",
        "filter": str(filter_),
        "num_pairs": "30",
    }
    if not is_databricks:
        for name, value in given.items():
            monkeypatch.setenv(f"DFN_{name.upper()}", value)
    pyplot.close("all")
    left = runpy.run_path(str(NOTEBOOKS / "02_score.py"), {"dbutils": Widgets(given)} if is_databricks else {})
    found = dict(zip(left["scored"]["uid"], left["scored"]["score"], strict=True))
    assert len(found) == 30
    assert {uid: scores[uid] for uid in found} == pytest.approx(found, abs=1e-4)
    assert left["threshold"] == threshold
    assert len(set(found.values())) > 20
    distances = sorted(abs(score - threshold) for score in found.values())
    assert sorted(abs(left["near"]["score"] - threshold)) == pytest.approx(distances[:12], abs=1e-6)
    histogram, grid = (pyplot.figure(number) for number in pyplot.get_fignums())
    assert len(histogram.axes) == 1
    assert [axis.get_title()[:5] for axis in grid.axes] == [f"{score:.3f}"[:5] for score in left["near"]["score"]]
    assert all(axis.images for axis in grid.axes)


def test_a_filter_of_other_towers_is_refused(tiny, stored, tmp_path):
    from etl.encode.gpu import make_dfn_score
    from etl.stages import score
    from models.records import WeightsError

    project, _, _ = tiny
    other = tmp_path / "other"
    other.mkdir()
    record = FilterRecord.read(stored[0]).model_copy(update={"encoder_version": "0" * 16})
    for file in stored[0].iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    record.write(other)
    with pytest.raises(WeightsError, match="fix: give the encoder that the filter was trained on"):
        make_dfn_score(project.encoder[1], other)
    with pytest.raises(WeightsError, match="wanted encoder"):
        project.with_filter(score.STAGE, other)
