"""Images out of HTML pages, WAT records and crawl files, whole and damaged. No Spark."""

import gzip
import html
import time
import tracemalloc
from html.parser import HTMLParser
from urllib.parse import urljoin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from web import page, record, wat, write_crawl

from etl.web.crawl import Caps, CrawlFile, Found, scan_crawl
from etl.web.html import Image, decoded, images_of_html, images_of_wat, largest_of, normalised
from etl.web.opt_out import said_by_headers, said_by_metas, said_by_tdmrep

URL = "http://x.test/a/page.html"


def images(markup: str | bytes, url: str = URL, **how) -> list[tuple[str, str]]:
    data = markup.encode() if isinstance(markup, str) else markup
    return [(image.url, image.text) for image in images_of_html(data, url, **how).images]


# --- pages


@pytest.mark.parametrize(
    ("markup", "expected"),
    {
        "relative": ("<img src=b.png alt=bird>", "http://x.test/a/b.png"),
        "root": ("<img src=/b.png alt=bird>", "http://x.test/b.png"),
        "without scheme": ("<img src=//y.test/b.png alt=bird>", "http://y.test/b.png"),
        "base": ("<base href='../c/'><img src=b.png alt=bird>", "http://x.test/c/b.png"),
        "the first base counts": ("<base href=/1/><base href=/2/><img src=b alt=bird>", "http://x.test/1/b"),
        "base of another scheme": ("<base href='javascript:1'><img src=b alt=bird>", "http://x.test/a/b"),
        "entities in the URL": ("<img src='b?x=1&amp;y=2' alt=bird>", "http://x.test/a/b?x=1&y=2"),
        "spaces and letters": ("<img src=' b \u00fc.png ' alt=bird>", "http://x.test/a/b%20%C3%BC.png"),
        "line end within": ("<img src='b\n.png' alt=bird>", "http://x.test/a/b.png"),
        "fragment": ("<img src=b.png#c alt=bird>", "http://x.test/a/b.png"),
        "host of letters": ("<img src=http://b\u00fccher.test/b alt=bird>", "http://xn--bcher-kva.test/b"),
        "no path": ("<img src=http://y.test alt=bird>", "http://y.test/"),
        "upper case": ("<IMG SRC=HTTP://Y.test/B ALT=bird>", "http://y.test/B"),
        "lazy": ("<img src='data:image/gif;base64,R0' data-src=b.png alt=bird>", "http://x.test/a/b.png"),
        "lazy before src": ("<img src=small.gif data-src=b.png alt=bird>", "http://x.test/a/b.png"),
        "set": ("<img srcset='s.png 1x, l.png 2x' alt=bird>", "http://x.test/a/l.png"),
        "src before set": ("<img src=b.png srcset='s.png 1x, l.png 2x' alt=bird>", "http://x.test/a/b.png"),
        "noscript": ("<noscript><img src=b.png alt=bird></noscript>", "http://x.test/a/b.png"),
        "unclosed": ("<div><p><img src=b.png alt=bird", None),
        "comment": ("<!-- <img src=b.png alt=bird> -->", None),
        "script": ("<script>'<img src=b.png alt=bird>'</script>", None),
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_the_url_of_an_image(markup, expected):
    text, url = expected
    assert images(text) == ([(url, "bird")] if url else []), markup


@pytest.mark.parametrize("url", [
    "data:image/png;base64,AA", "javascript:alert(1)", "file:///etc/passwd", "ftp://y.test/b", "mailto:a@y.test", "",
    "http://", "http://user:secret@y.test/b", "http://[::1", "http://y.test:99999/b", "http:///b", "//.", "//y..test/b",
    "http://y.test/" + "x" * 5000, "http://" + "x" * 70 + ".test/", "#top",
])  # fmt: skip
def test_what_is_no_url_of_an_image_is_counted(url):
    found = images_of_html(f"<img src='{url}' alt=bird>".encode(), "about:blank")
    assert (found.images, dict(found.skipped)) == ([], {"unsupported_url": 1})


def test_the_caption_is_normalised_and_the_raw_kept():
    markup = "<img src=b alt=' A &lt;b&gt;&nbsp;bird\n\n&eacute; e\u0301 \u202etxt\u200d\ufeff&#1;\x85 '>"
    (image,) = images_of_html(markup.encode(), URL).images
    assert image == Image(
        "http://x.test/a/b",
        "A <b> bird \u00e9 \u00e9 txt\u200d",
        " A <b>\u00a0bird\n\n\u00e9 e\u0301 \u202etxt\u200d\ufeff\u0001\u0085 ",
    )


def test_elements_without_a_caption_too_long_or_beyond_the_cap_are_counted():
    long = "x" * 20_000
    markup = (
        f"<img src=a><img src=a alt><img src=a alt=' &#x200B;&#xFEFF;'><img src=a alt={long}>" + "<img src=a alt=b>" * 5
    )
    found = images_of_html(markup.encode(), URL, max_images=3)
    assert len(found.images) == 3
    assert dict(found.skipped) == {"missing_text": 3, "too_large": 1, "over_cap": 2}


@pytest.mark.parametrize(
    ("data", "charset", "expected"),
    [
        ("Bäume".encode(), "utf-8", "Bäume"),
        ("Bäume".encode(), "iso-8859-1", "Bäume"),  # what it is, not what the server says
        ("Bäume".encode()[:2], "iso-8859-1", "B"),  # cut within a letter
        ("Bäume €".encode("cp1252"), "iso-8859-1", "Bäume €"),
        ("日本語".encode("euc-jp"), "euc-jp", "日本語"),
        ("<meta charset=shift_jis>日本語".encode("shift_jis"), None, "<meta charset=shift_jis>日本語"),
        ("Привет, как дела, мой друг".encode("cp1251"), "nonsense", "Привет, как дела, мой друг"),
        (b"\xef\xbb\xbfBird", "utf-16", "Bird"),
        (b"\xff\xfe" + "Bäume".encode("utf-16le"), "utf-8", "Bäume"),
        (b"bird", "utf-16\0", "bird"),
    ],
)
def test_the_charset_of_a_page(data, charset, expected):
    assert decoded(data, charset) == expected


@pytest.mark.parametrize(
    ("srcset", "expected"),
    {"a 1x, b 2x": "b", "a 480w,b 800w": "b", "b 2x, a": "b", "a": "a", "": "", " , ": "", "a,b 2x": "a,b",
     "data:image/png;base64,AA 1x, b 3x": "b", "a 1x, b -2x": "a", "a 1.5x, b 1.25x": "a"}.items(),
)  # fmt: skip
def test_the_largest_of_a_set(srcset, expected):
    assert largest_of(srcset) == expected


# --- opting out


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (("X-Robots-Tag", "noai"), "X-Robots-Tag: noai"),
        (("x-robots-tag", "nofollow, NoImageAI"), "X-Robots-Tag: nofollow, NoImageAI"),
        (("X-Robots-Tag", "none"), "X-Robots-Tag: none"),
        (
            ("X-Robots-Tag", "unavailable_after: 25 Jun 2010, noindex"),
            "X-Robots-Tag: unavailable_after: 25 Jun 2010, noindex",
        ),
        (("X-Robots-Tag", "otherbot: noindex, noai"), None),
        (("X-Robots-Tag", "dfn-etl: noml"), "X-Robots-Tag: dfn-etl: noml"),
        (("X-Robots-Tag", "otherbot: noindex, dfn-etl: noai"), "X-Robots-Tag: otherbot: noindex, dfn-etl: noai"),
        (("X-Robots-Tag", "index, follow, max-snippet:-1"), None),
        (("TDM-Reservation", "1"), "tdm-reservation: 1"),
        (("tdm-reservation", "0"), None),
        (("X-Robots-Tag-2", "noai"), None),
    ],
)
def test_a_header_says_no(header, expected):
    assert said_by_headers([("Server", "noai"), header], "dfn-etl") == expected


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        (("robots", "noindex,nofollow"), "meta robots: noindex,nofollow"),
        (("ROBOTS", "NoAI, noimageai"), "meta robots: NoAI, noimageai"),
        (("dfn-etl", "noimageindex"), "meta dfn-etl: noimageindex"),
        (("otherbot", "noai"), None),
        (("robots", "all"), None),
        (("tdm-reservation", "1"), "meta tdm-reservation: 1"),
        (("description", "noai"), None),
    ],
)
def test_a_meta_element_says_no(meta, expected):
    name, content = meta
    assert said_by_metas([meta], "dfn-etl") == expected
    assert (
        images_of_html(f'<meta name="{name}" content="{content}">'.encode(), URL, agent="dfn-etl").opt_out == expected
    )
    head = {"Metas": [{"name": name, "content": content}]}
    payload = wat(URL, [], **head).partition(b"\r\n\r\n")[2]
    assert images_of_wat(payload, agent="dfn-etl")[1].opt_out == expected


def test_a_tdmrep_file_says_no_of_what_its_first_rule_covers():
    rules = b"""[{"location": "/free/*.png", "tdm-reservation": 0}, {"location": "/free", "tdm-reservation": 1},
        {"location": "/*.jpg$", "tdm-reservation": 1}, {"location": 3}, 7]"""
    said = {path: said_by_tdmrep(rules, path) for path in ("/free/a.png", "/free/a.gif", "/b.jpg", "/b.jpg?x", "/[b]")}
    no = "/.well-known/tdmrep.json: {} tdm-reservation 1"
    assert said == {
        "/free/a.png": None, "/free/a.gif": no.format("/free"), "/b.jpg": no.format("/*.jpg$"), "/b.jpg?x": None,
        "/[b]": None,
    }  # fmt: skip
    assert [said_by_tdmrep(bad, "/") for bad in (b"", b"<html>", b"{}", b"[" * 100_000)] == [None] * 4


# --- any input


class Independent(HTMLParser):
    """(src, alt) of img elements, by the standard library."""

    def __init__(self, markup: str):
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, str]] = []
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            first: dict[str, str] = {}
            for name, value in attrs:
                first.setdefault(name, value or "")
            self.found.append((first.get("src", ""), first.get("alt", "")))


WORDS = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "Zs", "S", "M"]), max_size=30)


# Not those that begin with a host: many are none, such as `//.`, and are told among what is no URL.
@given(st.lists(st.tuples(st.from_regex(r"(?!//)[a-z0-9_/.-]{1,20}", fullmatch=True), WORDS), max_size=8))
@settings(max_examples=150, deadline=None)
def test_what_is_written_is_read_as_the_standard_library_reads_it(pairs):
    markup = "".join(f'<p>text<img src="{src}" alt="{html.escape(alt)}"> </p>' for src, alt in pairs)
    expected = [(urljoin(URL, src), normalised(alt)) for src, alt in Independent(markup).found]
    known = [(url, text) for url, text in expected if text]
    found = images(markup)
    assert [text for _, text in found] == [text for url, text in known if url.startswith("http")]
    assert len(found) <= len(pairs)


@given(st.binary(max_size=400) | st.text(alphabet="<>img srcalt='\"=/!-&;#x0\0", max_size=200).map(str.encode))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_page(data):
    found = images_of_html(b"<img src=a alt=b>" + data, URL)
    for image in found.images:
        assert image.url.startswith(("http://", "https://"))
        assert image.text == normalised(image.text) != ""
        assert "".join(image).encode()  # nothing that UTF-8 cannot hold
    assert len(images_of_html(data, URL, max_images=1).images) <= 1


@given(
    st.recursive(
        st.none() | st.text(max_size=5) | st.integers(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["path", "url", "alt", "Links", "Head", "Metas", "Base"]), inner)
        ),
    )
)
@settings(max_examples=100, deadline=None)  # fmt: skip
def test_any_json_is_a_wat_record_or_none(value):
    import json

    for depth in (value, {"Envelope": value}, {"Envelope": {"WARC-Header-Metadata": {"WARC-Target-URI": URL},
                  "Payload-Metadata": {"HTTP-Response-Metadata": {"HTML-Metadata": value}}}}):  # fmt: skip
        found = images_of_wat(json.dumps(depth).encode())
        assert found is None or found[0] == URL


# --- files


def scanned(path, **caps) -> tuple[list[str], CrawlFile]:
    """Captions, and the line of the ledger."""
    *found, line = scan_crawl(str(path), caps=Caps(**caps), agent="dfn-etl")
    assert isinstance(line, CrawlFile)
    assert all(isinstance(item, Found) for item in found)
    texts = [image.text for item in found for image in item.page.images]
    assert line.images["ok"] == len(texts)
    return texts, line


def bird(number: int, **how) -> bytes:
    return page(f"http://x.test/{number}", f"<p>{number}<img src={number}.png alt='bird {number}'>" + " " * 300, **how)


@pytest.mark.parametrize("name", ["a.warc.gz", "a.warc"])
def test_a_file_that_is_whole(tmp_path, name):
    link = {"path": "IMG@/src", "url": "w.png", "alt": "w&amp;\ud800"}
    records = [
        record("", b"software: x", "warcinfo", "application/warc-fields"), bird(1), bird(2, status=404),
        page("http://x.test/png", b"\x89PNG", "image/png"), record("dns:x.test", b"", "response", "text/dns"),
        page("http://x.test/gz", gzip.compress(b"<img src=3 alt='bird 3'>", mtime=0), Content_Encoding="gzip"),
        page("http://x.test/kept", b"<img src=4 alt='bird 4'>", Content_Encoding="gzip"),
        page("http://x.test/ch", b"18;x\r\n<img src=5 alt='bird 5'>\r\n0\r\n\r\n", Transfer_Encoding="chunked"),
        page("http://x.test/br", b"zzz", Content_Encoding="br"),
        wat("http://x.test/w/", [link, {"path": "A@/href", "url": "z"}, {**link, "alt": ""}], Base="/b/"),
    ]  # fmt: skip
    texts, line = scanned(write_crawl(tmp_path / name, *records))
    assert texts == ["bird 1", "bird 3", "bird 4", "bird 5", "w&?"]
    assert (line.status, dict(line.images)) == ("ok", {"ok": 5, "missing_text": 1})
    assert dict(line.pages) == {"ok": 5, "not_html": 2, "bad_record": 2}
    *_, last = (item for item in scan_crawl(str(tmp_path / name)) if isinstance(item, Found))
    assert (last.page_url, last.page.images[0].url) == ("http://x.test/w/", "http://x.test/b/w.png")


@pytest.mark.parametrize("name", ["a.warc.gz", "a.warc"])
def test_a_file_cut_anywhere_but_between_records_says_so_and_keeps_what_is_whole(tmp_path, name):
    records = [bird(1), bird(2), bird(3)]
    path = write_crawl(tmp_path / name, *records)
    whole = path.read_bytes()
    sizes = [len(write_crawl(tmp_path / name, part).read_bytes()) for part in records]
    ends = [sum(sizes[:n]) for n in range(4)]
    for cut in {*range(0, len(whole), 7), *range(ends[2] - 12, ends[2] + 60)}:
        path.write_bytes(whole[:cut])
        texts, line = scanned(path)
        num_whole = sum(end <= cut for end in ends) - 1
        expected = [f"bird {n + 1}" for n in range(num_whole)]
        assert texts[:num_whole] == expected, cut
        assert len(texts) <= num_whole + 1  # a record whose last bytes are cut may have its image
        assert (line.status == "ok") == (cut in ends), (cut, line)


def test_damage_costs_the_record_it_hits_and_not_the_rest(tmp_path):
    path = write_crawl(tmp_path / "a.warc.gz", *map(bird, range(6)))
    whole = bytearray(path.read_bytes())
    size = len(gzip.compress(bird(0), 1, mtime=0))
    whole[size + 60 : size + 90] = bytes(30)
    path.write_bytes(bytes(whole) + b"garbage" + gzip.compress(bird(7), mtime=0))
    texts, line = scanned(path)
    assert texts == ["bird 0", *(f"bird {n}" for n in range(2, 6)), "bird 7"]
    assert line.status == "bad_record"
    assert "record at" in line.reason


@pytest.mark.parametrize("length", [10, 10**12, -5])
def test_a_wrong_length_costs_the_record_that_lies(tmp_path, length):
    path = write_crawl(tmp_path / "a.warc", bird(0), bird(1, length=length), bird(2), bird(3))
    texts, line = scanned(path)
    assert (texts[0], texts[-2:]) == ("bird 0", ["bird 2", "bird 3"])
    assert line.status in ("cut", "bad_record")


@pytest.mark.parametrize("data", [b"no warc at all\n" * 50, b"\0" * 5000, gzip.compress(b"text" * 500, mtime=0)])
def test_a_file_that_is_none(tmp_path, data):
    (tmp_path / "a").write_bytes(data)
    texts, line = scanned(tmp_path / "a")
    assert (texts, line.status) == ([], "not_a_crawl_file")
    assert scanned(tmp_path / "missing")[1].status == "unreadable"


def test_an_empty_file_is_whole(tmp_path):
    assert scanned(write_crawl(tmp_path / "a.warc"))[1].status == "ok"


def test_bombs_and_endless_pages_are_capped_in_memory_and_time(tmp_path):
    filler = b"<p>" + b"a" * (64 << 20)
    bombs = [
        page("http://x.test/1", b"<img src=1 alt='bird 1'>" + filler),
        page("http://x.test/2", gzip.compress(b"<img src=2 alt='bird 2'>" + filler, mtime=0), Content_Encoding="gzip"),
        page("http://x.test/3", b"<img src=3 alt='bird 3'>" * 100_000),
        page("http://x.test/4", b"<div>" * 200_000 + b"<img src=4 alt='bird 4'>"),
        page("http://x.test/5", b"<img src=5 alt='" + b"a" * (2 << 20)),
        wat("http://x.test/6", [{"path": "IMG@/src", "url": "6", "alt": "a" * (20 << 20)}]),
        record("http://x.test/7", b"HTTP/1.1 200 OK\r\nX: " + b"a" * (2 << 20)), bird(8),
    ]  # fmt: skip
    path = write_crawl(tmp_path / "a.warc.gz", *bombs)
    del bombs, filler
    started = time.process_time()
    tracemalloc.start()
    texts, line = scanned(path, page_bytes=1 << 20, images_per_page=100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert texts == ["bird 1", "bird 2", *["bird 3"] * 100, "bird 4", "bird 8"]
    assert line.images["over_cap"] > 40_000
    assert (line.pages["cut"], line.pages["too_large"]) == (4, 1)
    assert peak < 60 << 20
    assert time.process_time() - started < 60  # of the CPU: nothing is quadratic
