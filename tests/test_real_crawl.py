"""A real crawl on loopback: documentation that Debian packages hold, served, written as WARC, collected, downloaded and
ingested; each count against a reading of the same pages by the standard library."""

import unicodedata
from collections import Counter
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from PIL import Image
from test_collect import project_of
from web import page, write_crawl

from etl.samples.packages import default_cache, fetch_package
from etl.stages import collect, download, ingest, signals
from etl.store import Store
from etl.tables import CANDIDATES, CRAWL_FILES, FETCHES, PAIRS, SIGNALS

PACKAGES = ("gimp-help-en", "gimp-help-de", "debian-handbook", "python-sklearn-doc", "python-skimage-doc")
PAGES_PER_FILE = 400


class Reading(HTMLParser):
    """(URL, caption) of the img elements of a page whose src resolves to http, and the others by why."""

    def __init__(self, url: str, markup: str):
        super().__init__(convert_charrefs=True)
        self.base, self.pairs, self.others = url, list[tuple[str, str]](), Counter()
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag, attrs):
        given = dict(reversed(attrs))
        if tag == "base" and given.get("href"):
            self.base = urljoin(self.base, given["href"])
        if tag == "img":
            caption = " ".join(unicodedata.normalize("NFC", given.get("alt") or "").split())
            source = (given.get("src") or "").strip()
            url = urljoin(self.base, source).partition("#")[0] if source else ""
            kind = "no caption" if not caption else "no http" if not url.startswith("http") else ""
            if kind:
                self.others[kind] += 1
            else:
                self.pairs.append((url.replace(" ", "%20"), caption))

    handle_startendtag = handle_starttag


class Quiet(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass


@pytest.fixture(scope="module")
def crawled(spark, tmp_path_factory):
    """(project, package -> its reading, what an image of the server is to Pillow): collected, downloaded, ingested."""
    folder = tmp_path_factory.mktemp("crawl")
    (folder / "www").mkdir()
    ThreadingHTTPServer.request_queue_size = 256
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder / "www")))
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    site, readings = f"http://127.0.0.1:{server.server_port}", {}
    for package in PACKAGES:
        (folder / "www" / package).symlink_to(fetch_package(package, cache=default_cache()))
        pages = sorted(path for path in (folder / "www" / package).rglob("*.html") if path.is_file())
        readings[package] = [Reading(url_of(site, folder, path), path.read_text("utf-8", "replace")) for path in pages]
        for start in range(0, len(pages), PAGES_PER_FILE):
            records = [page(url_of(site, folder, p), p.read_bytes()) for p in pages[start : start + PAGES_PER_FILE]]
            write_crawl(folder / f"crawl/{package}-{start:05d}.warc.gz", *records)
    settings = {"stages.download.per_host": 16, "stages.collect.max_images_per_page": 5000}
    project = project_of(folder, Store(spark, str(folder / "tables")), **settings)
    for stage in (collect.STAGE, download.STAGE, ingest.STAGE, signals.STAGE):
        project.run(stage, "pool")
    yield project, readings, partial(opened, folder / "www")
    server.shutdown()
    server.server_close()


def url_of(site: str, folder: Path, path: Path) -> str:
    return f"{site}/{path.relative_to(folder / 'www')}"


def opened(root: Path, url: str) -> str:
    """What the file behind a URL is: missing, an image that Pillow reads whole, or none."""
    path = root / unquote(urlsplit(url).path).lstrip("/")
    if not path.is_file():
        return "missing"
    try:
        with Image.open(path) as image:
            image.load()
    except OSError:
        return "no image"
    return "image"


def package_of(url: str) -> str:
    return urlsplit(url).path.split("/")[1]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_pair_that_the_standard_library_finds_is_collected_fetched_and_ingested(crawled):
    project, readings, kind_of = crawled
    read = project.store.read
    expected = {pair for package in PACKAGES for reading in readings[package] for pair in reading.pairs}
    found = {(row["url"], row["text"]) for row in read("pool", CANDIDATES).collect()}
    assert found == expected
    files = read("pool", CRAWL_FILES).collect()
    assert {row["status"] for row in files} == {"ok"}
    counted = sum((Counter(row["num_by_status"]) for row in files), Counter())
    num_pairs = sum(len(reading.pairs) for package in PACKAGES for reading in readings[package])
    others = sum((reading.others for package in PACKAGES for reading in readings[package]), Counter())
    assert counted["ok"] == len(expected)
    assert counted["ok"] + counted["duplicate_uid"] == num_pairs
    assert counted["missing_text"] == others["no caption"]
    fetches = {row["uid"]: row for row in read("pool", FETCHES).collect()}
    kinds = {url: kind_of(url) for url, _ in expected}
    ended = Counter((kinds[row["url"]], row["status"]) for row in fetches.values())
    assert {key for key in ended if key[0] == "image"} == {("image", "ok")}
    assert {key for key in ended if key[0] == "missing"} <= {("missing", "http_error")}
    pairs = {(row["url"], row["text"]): row["status"] for row in read("pool", PAIRS).collect()}
    assert {pair for pair, status in pairs.items() if status == "ok"} == {p for p in expected if kinds[p[0]] == "image"}
    report(project, readings, kinds)


def report(project, readings, kinds) -> None:
    """The table, one line a package."""
    read = project.store.read
    rows = read("pool", PAIRS).join(read("pool", SIGNALS).select("uid", "language"), on="uid").collect()
    for package, pages in readings.items():
        pairs = {pair for reading in pages for pair in reading.pairs}
        mine = [row for row in rows if package_of(row["url"]) == package]
        languages = Counter(row["language"] for row in mine).most_common(6)
        num_resolvable = sum(kinds[url] == "image" for reading in pages for url, _ in reading.pairs)
        print(
            f"| {package} | {len(pages):,} | {sum(len(r.pairs) + sum(r.others.values()) for r in pages):,} | "
            f"{sum(r.others['no caption'] for r in pages):,} | {num_resolvable:,} | {len(pairs):,} | "
            f"{sum(row['status'] == 'ok' for row in mine):,} | {', '.join(f'{k} {n:,}' for k, n in languages)} |"
        )


def test_the_reading_by_the_standard_library_reads():
    markup = "<base href='/b/'><img src=' c d.png#e' alt=' A&amp;\n b '><img src=x><img src=data:x alt=y><img alt=z>"
    reading = Reading("http://x.test/a/", markup)
    assert reading.pairs == [("http://x.test/b/c%20d.png", "A& b")]
    assert dict(reading.others) == {"no caption": 1, "no http": 2}
