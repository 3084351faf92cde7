"""Alt texts of documentation pages as pairs, and the noise that the evidence suite plants."""

import io
from collections import Counter

import pytest
from PIL import Image

from etl.samples import corpora, noisy_sources
from etl.samples.corpora import CorpusSpec, build
from etl.samples.packages import default_cache, fetch_package
from etl.samples.sources import HELD_OUT_ICON_SETS, ICON_SETS, POOL_ICON_SETS, SOURCES

PAGES = {
    "usr/doc/a/index.html": '<img src="../img/cat.png" alt=" A  cat "><img src="../img/cat.png" alt="">'
    '<img src="x.png" alt="gone">',
    "usr/doc/b/other.html": '<img src="/usr/doc/img/cat.png" alt="A cat"><img src="../img/cat.png" alt="Die Katze">'
    '<img src="http://example.org/usr/doc/img/cat.png" alt="elsewhere"><img src="../img/way.svg" alt="a way">'
    '<img src="../img/link.png" alt="outside"><img src="../img/no%20dog.jpg" alt="no dog">',
}  # fmt: skip


@pytest.fixture
def roots(tmp_path, monkeypatch):
    """A documentation package of two pages and three pictures, and one beside it that is not its own."""
    root = tmp_path / "package"
    for name, page in PAGES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(page)
    (root / "usr/doc/img").mkdir()
    for path in (root / "usr/doc/img/cat.png", root / "usr/doc/img/no dog.jpg", root / "usr/doc/img/way.svg",
                 tmp_path / "secret.png"):  # fmt: skip
        path.write_bytes(b"a picture")
    (root / "usr/doc/img/link.png").symlink_to(tmp_path / "secret.png")
    monkeypatch.setattr(noisy_sources, "DOCUMENTATION", ("gimp-help-en",))
    return {"gimp-help-en": root}


def test_each_picture_of_a_page_is_a_pair_with_each_of_its_texts(roots):
    found = {(pair.url, pair.caption) for pair in noisy_sources.documentation(roots)}
    cat = "deb:gimp-help-en/usr/doc/img/cat.png"
    assert found == {
        (cat, "A cat"),
        (cat, "Die Katze"),
        ("deb:gimp-help-en/usr/doc/img/no dog.jpg", "no dog"),
    }
    assert all(pair.image.read_bytes() == b"a picture" for pair in noisy_sources.documentation(roots))


def test_a_package_gives_the_pairs_that_the_web_stages_count(monkeypatch):
    """1,721 distinct pairs in gimp-help-en, as `collect` finds them (docs/explanation/measurements.md)."""
    monkeypatch.setattr(noisy_sources, "DOCUMENTATION", ("gimp-help-en",))
    found = noisy_sources.documentation({"gimp-help-en": fetch_package("gimp-help-en", cache=default_cache())})
    assert len(found) == len({(pair.url, pair.caption) for pair in found}) == 1721
    assert {pair.image.suffix for pair in found} == {".png", ".jpg"} and all(pair.caption.strip() for pair in found)


def test_noise_is_captions_without_meaning_on_pictures_of_one_colour(tmp_path):
    captions = [pair.caption for pair in SOURCES["noise_boilerplate"]({})]
    assert len(set(captions)) == len(captions) == 662
    assert {"IMG_0007.JPG", "2014-05-13", "click to enlarge"} <= set(captions)
    corpus = build("noise", CorpusSpec(sources=("noise_boilerplate",), limit=30), cache=tmp_path)
    import tarfile

    with tarfile.open(corpus / "00000.tar") as tar:
        pictures = [tar.extractfile(m).read() for m in tar.getmembers() if m.name.endswith(".png")]
    colours = [Image.open(io.BytesIO(picture)).convert("RGB").getcolors() for picture in pictures]
    assert len(pictures) == 30 and {len(found) for found in colours} == {1}


def test_foreign_captions_are_of_many_languages_and_no_english(tmp_path):
    folder = tmp_path / "usr/share/tuxpaint/stamps"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("A frog.\nde.utf8=Ein Frosch.\nfr.utf8=Une grenouille.\nen_GB.utf8=A frog!\n")
    (folder / "b.txt").write_text("A dog.\nde.utf8=Ein Hund.\nfr.utf8=Un chien.\n")
    (folder / "c.txt").write_text("A cat.\nen_AU.utf8=A cat\nde.utf8=  \n")
    found = noisy_sources.foreign({"tuxpaint-stamps-default": tmp_path})
    assert [pair.caption for pair in found] == ["Ein Frosch.", "Un chien."]


def test_icon_sets_of_the_pool_and_of_the_evaluation_share_none():
    assert not set(POOL_ICON_SETS) & set(HELD_OUT_ICON_SETS)
    assert sorted((*POOL_ICON_SETS, *HELD_OUT_ICON_SETS)) == sorted(ICON_SETS)
    assert Counter(corpora.NEEDS[name] for name in ("iconify_pool", "iconify_heldout")) == {
        POOL_ICON_SETS: 1, HELD_OUT_ICON_SETS: 1
    }  # fmt: skip
