"""Fetching from a hostile server on loopback: a status for every URL, nothing to who must not be asked. No Spark."""

import asyncio
import gzip
import ipaddress
import ssl
import subprocess
import time
from email.utils import formatdate

import pytest
from helpers import picture
from hostile import (
    PICTURE,
    Site,
    bomb,
    drip,
    endless,
    flaky,
    garbage,
    hang_up,
    image,
    redirect,
    serving,
    silent,
    slow_head,
    status,
)  # fmt: skip
from hypothesis import given
from hypothesis import strategies as st

from etl.intake.blocklists import read_blocklists
from etl.stage import UserError
from etl.web.addresses import is_allowed, networks
from etl.web.answers import retry_after
from etl.web.fetch import Fetched, Fetcher, Limits
from etl.web.pace import Pace, fetch_all

ALLOWED = networks(["127.0.0.1/32", "127.0.0.3/32"])
FAST = {"deadline_seconds": 2.0, "connect_seconds": 1.0, "backoff_seconds": 0.05, "max_bytes": 1 << 20}
NAMES = {"good.test": ["127.0.0.1"], "evil.test": ["127.0.0.2"], "mapped.test": ["::ffff:127.0.0.1"],
         "metadata.test": ["169.254.169.254"], "mixed.test": ["127.0.0.2", "127.0.0.1"]}  # fmt: skip


async def resolve(host: str, port: int) -> list[str]:
    if host not in NAMES:
        raise OSError(-2, "Name or service not known")
    return NAMES[host]


def fetched(*urls: str, names=None, tls=None, blocklist=(), **limits) -> list[Fetched]:
    """All at once, with an own resolver where `names` is given."""

    async def run() -> list[Fetched]:
        more = {} if names is None else {"resolve": names}
        fetcher = Fetcher(Limits(**{**FAST, "allowed": ALLOWED, **limits}), read_blocklists(blocklist), tls=tls, **more)
        async with fetcher:
            return await asyncio.gather(*map(fetcher.fetch, urls))

    return asyncio.run(run())


@pytest.fixture(scope="module")
def blocked():
    """A server that must never be asked, where nothing but the policy keeps anyone from it."""
    with serving(Site({"/secret": image()}, host="127.0.0.2")) as site:
        yield site
        assert site.requests == []


@pytest.fixture
def site(blocked):
    with serving(Site({"/ok": image()})) as site:
        yield site


def test_an_image_comes_whole(site):
    (found,) = fetched(f"{site.url}/ok", user_agent="dfn-etl/0.1 (+http://x.test)")
    assert found == Fetched("ok", None, PICTURE, 200, f"{site.url}/ok", 1)
    assert site.agents == {"dfn-etl/0.1 (+http://x.test)"}
    assert sorted(path for _, path in site.requests) == ["/.well-known/tdmrep.json", "/ok", "/robots.txt"]


VICES = {  # path -> (answer, status, what its reason has)
    "/missing": (status(404), "http_error", "status 404"),
    "/gone": (status(410, b"<html>gone</html>"), "http_error", "status 410"),
    "/partial": (status(206, PICTURE[:10]), "http_error", "status 206"),
    "/always503": (status(503), "http_error", "status 503"),
    "/circle": (redirect("/circle"), "too_many_redirects", "circle"),
    "/long0": (redirect("/long1"), "too_many_redirects", "more than 5"),
    "/to_file": (redirect("file:///etc/passwd"), "unsupported_url", "http"),
    "/to_data": (redirect("data:image/png;base64,AAAA"), "unsupported_url", "http"),
    "/to_nothing": (redirect("http://:80"), "unsupported_url", "http"),
    "/to_user": (redirect("http://me:secret@127.0.0.1/"), "unsupported_url", "credentials"),
    "/to_smtp": (redirect("http://127.0.0.1:25/"), "unsupported_url", "port 25"),
    "/drip": (drip, "timeout", "2 s"),
    "/slow_head": (slow_head, "timeout", "2 s"),
    "/silent": (silent, "timeout", "2 s"),
    "/endless": (endless, "too_large", "1048576"),
    "/declared": (lambda h: h.send(PICTURE, length=10**12), "too_large", "1000000000000"),
    "/short": (lambda h: h.send(PICTURE, length=len(PICTURE) + 100), "cut", "shorter"),
    "/bomb": (image(bomb(), Content_Encoding="gzip"), "too_large", "unfolded"),
    "/half_gzip": (image(gzip.compress(PICTURE)[:-20], Content_Encoding="gzip"), "cut", "gzip"),
    "/no_gzip": (image(Content_Encoding="gzip"), "http_error", "gzip"),
    "/br": (image(Content_Encoding="br"), "http_error", "br"),
    "/garbage": (garbage, "http_error", "valid answer"),
    "/hang_up": (hang_up, "connect_error", ""),
    "/429": (status(429, Retry_After="3600"), "http_error", "status 429; the host asks to wait 3600 s"),
    "/noai": (image(X_Robots_Tag="noai"), "opted_out", "answer"),
    "/other_bot": (image(X_Robots_Tag="otherbot: noai"), "ok", None),
    "/noimageai": (image(X_Robots_Tag="dfn-etl: noimageai"), "opted_out", "answer"),
    "/tdm": (image(TDM_Reservation="1"), "opted_out", "answer"),
    "/gzip": (image(gzip.compress(PICTURE), Content_Encoding="gzip"), "ok", None),
    "/moved": (redirect("/ok", 301), "ok", None),
    "/html": (image(b"<!doctype html>", Content_Type="text/html"), "ok", None),  # what its bytes are is seen later
}  # fmt: skip


@pytest.fixture(scope="module")
def vices(blocked):
    """path -> how it ended, all fetched at once, each vice on a server of its own name; and the seconds of it all."""
    chain = {f"/long{n}": redirect(f"/long{n + 1}") for n in range(1, 8)}
    with serving(Site({"/ok": image(), **chain} | {path: answer for path, (answer, *_) in VICES.items()})) as site:

        async def any_name(host: str, port: int) -> list[str]:
            return ["127.0.0.1"]

        urls = [f"http://{path[1:].replace('_', '-')}.test:{site.port}{path}" for path in VICES]
        started = time.monotonic()
        found = fetched(*urls, names=any_name)
        yield dict(zip(VICES, found, strict=True)), time.monotonic() - started, site


@pytest.mark.parametrize("path", VICES)
def test_each_vice_ends_with_its_status(vices, path):
    found, (_, wanted, reason) = vices[0][path], VICES[path]
    assert (found.status, reason is None or reason in (found.reason or "")) == (wanted, True), found
    assert (found.data != b"") == (wanted == "ok")
    assert (found.evidence is not None) == (wanted == "opted_out")
    assert (found.reason or "").isprintable()
    assert "secret" not in str(found)


def test_all_of_them_end_within_the_deadline_and_requests_are_counted(vices):
    found, seconds, site = vices
    assert seconds < 2.0 + 10  # of slack, for a busy machine; sleepers alone would take 30 s
    assert {path: found[path].num_attempts for path in ("/always503", "/short", "/missing", "/429", "/noai")} == {
        "/always503": 3, "/short": 3, "/missing": 1, "/429": 1, "/noai": 1,
    }  # fmt: skip
    assert [site.asked(path) for path in ("/always503", "/short", "/missing", "/429")] == [3, 3, 1, 1]


@pytest.mark.parametrize("how", ["url", "redirect"])
def test_no_request_reaches_a_blocked_target(site, blocked, how):
    port = blocked.port
    hosts = {
        "127.0.0.2": "blocked_address", "2130706434": "unsupported_url", "0x7f000002": "unsupported_url",
        "017700000002": "unsupported_url", "127.2": "unsupported_url", "0177.0.0.2": "unsupported_url",
        "127.0.0.0x2": "unsupported_url", "[::ffff:127.0.0.2]": "blocked_address",
        "[::ffff:7f00:2]": "blocked_address", "[::1]": "blocked_address", "[::]": "blocked_address",
        "0.0.0.0": "blocked_address", "169.254.169.254": "blocked_address", "10.0.0.1": "blocked_address",
        "[fe80::1]": "blocked_address", "[fd00::1]": "blocked_address", "[64:ff9b::7f00:2]": "blocked_address",
        "[2002:7f00:2::]": "blocked_address", "224.0.0.1": "blocked_address", "255.255.255.255": "blocked_address",
    }  # fmt: skip
    targets = {f"http://{host}:{port}/secret": wanted for host, wanted in hosts.items()}
    if how == "redirect":
        site.answers |= {f"/{n}": redirect(url) for n, url in enumerate(targets)}
        urls = [f"{site.url}/{n}" for n in range(len(targets))]
    else:
        urls = list(targets)
    found = fetched(*urls)
    assert {url: end.status for url, end in zip(targets, found, strict=True)} == targets
    assert all(end.data == b"" for end in found)
    assert blocked.requests == []


@pytest.mark.parametrize("host", ["evil.test", "mapped.test", "metadata.test"])
def test_a_name_at_a_blocked_address_is_not_connected_to(site, blocked, host):
    site.answers["/to"] = redirect(f"http://{host}:{blocked.port}/secret")
    urls = [f"http://{host}:{blocked.port}/secret", f"http://good.test:{site.port}/to"]
    assert [end.status for end in fetched(*urls, names=resolve)] == ["blocked_address"] * 2
    assert blocked.requests == []


def test_a_name_whose_address_changes_is_connected_to_where_it_was_allowed(site, blocked):
    """DNS rebinding: whatever comes second, each answer is checked where it is dialled."""
    answers = iter([["127.0.0.1"], *[["127.0.0.2"]] * 50])

    async def rebinding(host: str, port: int) -> list[str]:
        return next(answers)

    (first,) = fetched(f"http://evil.test:{site.port}/ok", names=rebinding)
    assert first.status == "ok"  # robots.txt and image by the first answer, which is remembered
    (second,) = fetched(f"http://evil.test:{blocked.port}/secret", names=rebinding)
    assert second.status == "blocked_address"
    mixed = fetched(f"http://mixed.test:{site.port}/ok", names=resolve)
    assert [end.status for end in mixed] == ["ok"]
    assert blocked.requests == []


def test_names_that_do_not_resolve_and_ports_where_nobody_listens(site):
    with serving(Site()) as closed:
        port = closed.port
    urls = [f"http://nowhere.test:{site.port}/a", f"http://good.test:{port}/a"]
    found = fetched(*urls, names=resolve)
    assert [(end.status, end.num_attempts) for end in found] == [("dns_error", 0), ("connect_error", 0)]
    assert "nowhere.test" in found[0].reason
    impolite = fetched(*urls, names=resolve, is_polite=False)
    assert [(end.status, end.num_attempts) for end in impolite] == [("dns_error", 3), ("connect_error", 3)]


@pytest.mark.parametrize("url", [
    "file:///etc/passwd", "data:,x", "ftp://127.0.0.1/x", "//127.0.0.1/x", "", "http://", "http://a:b@127.0.0.1/",
    "http://127.0.0.1:22/", "http://[::1", "x" * 5000,
])  # fmt: skip
def test_what_is_no_url_of_the_web_is_refused_unasked(url):
    (found,) = fetched(url)
    assert (found.status, found.num_attempts) == ("unsupported_url", 0)
    assert "a:b" not in str(found)


def test_a_certificate_that_nobody_vouches_for_is_refused(site, tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=good.test", "-addext",
         "subjectAltName=DNS:good.test", "-keyout", key, "-out", certificate], check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    from http.server import ThreadingHTTPServer
    from threading import Thread

    from hostile import Handler

    secure = Site({"/ok": image()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OfSite", (Handler,), {"site": secure}))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    url = f"https://good.test:{server.server_port}/ok"
    trusting = ssl.create_default_context(cafile=certificate)
    try:
        assert [end.status for end in fetched(url, names=resolve)] == ["tls_error"]
        assert [end.status for end in fetched(f"https://good.test:{site.port}/ok", names=resolve)] == ["tls_error"]
        assert secure.requests == []
        assert [end.status for end in fetched(url, names=resolve, tls=trusting)] == ["ok"]
    finally:
        server.shutdown()
        server.server_close()


# --- manners


def test_robots_txt_is_asked_once_and_obeyed_with_evidence(site):
    site.answers |= {"/robots.txt": status(200, b"User-agent: dfn-etl\nDisallow: /private/\nCrawl-delay: 0\n"),
                     "/private/a": image()}  # fmt: skip
    found = fetched(f"{site.url}/private/a", f"{site.url}/ok", f"{site.url}/ok?2")
    assert [end.status for end in found] == ["opted_out", "ok", "ok"]
    assert (found[0].evidence, found[0].num_attempts) == ("robots.txt: dfn-etl may not fetch /private/a", 0)
    assert (site.asked("/robots.txt"), site.asked("/private/a")) == (1, 0)
    assert fetched(f"{site.url}/private/a", is_polite=False)[0].status == "ok"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [(status(503), "opted_out"), (status(404), "ok"), (status(200, b"\xff\0garbage"), "ok"),
     (redirect("/r2"), "opted_out"), (redirect("/robots.txt"), "ok"), (garbage, "http_error"), (drip, "timeout")],
)  # fmt: skip
def test_robots_txt_that_is_not_as_it_should_be(site, answer, expected):
    site.answers |= {"/robots.txt": answer, "/r2": status(200, b"User-agent: *\nDisallow: /")}
    (found,) = fetched(f"{site.url}/ok")
    assert (found.status, site.asked("/ok")) == (expected, int(expected == "ok"))


def test_a_redirect_to_another_host_obeys_its_robots_txt(site):
    with serving(
        Site({"/robots.txt": status(200, b"User-agent: *\nDisallow: /"), "/a": image()}, host="127.0.0.3")
    ) as other:
        site.answers["/to"] = redirect(f"{other.url}/a")
        assert [end.status for end in fetched(f"{site.url}/to")] == ["opted_out"]
        assert other.asked("/a") == 0


def test_a_tdmrep_file_is_obeyed(site):
    site.answers["/.well-known/tdmrep.json"] = status(200, b'[{"location": "/o", "tdm-reservation": 1}]')
    (found,) = fetched(f"{site.url}/ok")
    assert (found.status, found.evidence) == ("opted_out", "/.well-known/tdmrep.json: /o tdm-reservation 1")
    assert site.asked("/ok") == 0


def test_retry_after_is_obeyed_by_all_that_want_something_of_the_host(site):
    site.answers["/busy"] = flaky(1, image(), Retry_After="1")
    (found,) = fetched(f"{site.url}/busy", deadline_seconds=10.0)
    first, second = (at for at, path in site.requests if path == "/busy")
    assert (found.status, found.num_attempts) == ("ok", 2)
    assert second - first >= 1.0

    async def in_turn() -> list[Fetched]:
        async with Fetcher(Limits(**FAST, allowed=ALLOWED)) as fetcher:
            return [await fetcher.fetch(f"{site.url}/{path}") for path in ("closed", "ok", "ok?2")]

    site.requests.clear()
    site.answers["/closed"] = status(429, Retry_After="600")
    found = asyncio.run(in_turn())
    assert [(end.status, end.num_attempts) for end in found] == [("http_error", n) for n in (1, 0, 0)]
    assert site.asked("/ok") == 0


def test_only_what_may_pass_is_tried_again(site):
    site.answers |= {"/flaky": flaky(2, image()), "/never": flaky(9, image())}
    found = fetched(f"{site.url}/flaky", f"{site.url}/never", f"{site.url}/nothing")
    assert [(end.status, end.num_attempts) for end in found] == [("ok", 3), ("http_error", 3), ("http_error", 1)]


@given(st.text(max_size=30))
def test_any_retry_after_is_a_number_or_nothing(value):
    found = retry_after({"Retry-After": value}, 0.0)
    assert found is None or found >= 0


def test_retry_after_as_a_date():
    assert retry_after({"Retry-After": formatdate(1000, usegmt=True)}, 990.0) == 10.0
    assert retry_after({"Retry-After": formatdate(1000, usegmt=True)}, 2000.0) == 0.0


def test_a_host_is_asked_at_its_pace_and_others_meanwhile(site):
    with serving(Site({"/ok": image()}, host="127.0.0.3")) as other:
        queues = [[(f"{here.url}/ok?{n}", n) for n in range(6)] for here in (site, other)]
        site.answers["/robots.txt"] = status(200, b"User-agent: *\nCrawl-delay: 0.2")
        ended = []

        async def run() -> None:
            async def done(item: int, found: Fetched) -> None:
                ended.append((item, found.status))

            async with Fetcher(Limits(**FAST, allowed=ALLOWED)) as fetcher:
                await fetch_all(queues, fetcher, Pace(per_host=3, delay_seconds=0.01), done)

        asyncio.run(run())
        assert sorted(ended) == sorted([(n, "ok") for n in range(6)] * 2)
        starts = [at for at, path in site.requests if path.startswith("/ok")]
        assert starts[-1] - starts[0] >= 0.9  # five pauses of 0.2 s
        assert max(at for at, path in other.requests) < starts[-1]


# --- blocklists and addresses


def test_blocked_urls_and_domains_are_not_asked_for(site, tmp_path):
    (tmp_path / "list.txt").write_text(f"# why\n\n{site.url}/ok\nEvil.test\n" + "a" * 64 + "\n")
    site.answers["/to"] = redirect("/ok")
    urls = [
        f"{site.url}/ok",
        f"{site.url}/to",
        f"http://a.b.evil.test:{site.port}/x",
        f"http://notevil.test:{site.port}/",
    ]
    found = fetched(*urls, blocklist=[tmp_path / "list.txt"], names=resolve)
    assert [end.status for end in found] == ["blocklisted", "blocklisted", "blocklisted", "dns_error"]
    assert site.asked("/ok") == 0
    assert read_blocklists([tmp_path / "list.txt"]).of_sha256("a" * 64) == "its sha256"
    with pytest.raises(UserError, match="blocklists: wanted a text file"):
        read_blocklists([tmp_path / "missing.txt"])


@given(st.ip_addresses())
def test_only_public_addresses_are_allowed(address):
    if is_allowed(str(address)):
        assert address.is_global or address in ipaddress.ip_network("192.0.0.0/24")
        assert not (address.is_multicast or address.is_loopback or address.is_private or address.is_link_local)
        assert getattr(address, "ipv4_mapped", None) is None
        assert getattr(address, "sixtofour", None) is None
    assert is_allowed(str(address), [ipaddress.ip_network(str(address))])


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "2a00:1450:4001::1"])
def test_public_addresses_are_allowed(address):
    assert is_allowed(address)


@pytest.mark.parametrize(
    "address", ["", "x", "127.0.0.1", "100.100.100.200", "fe80::1%eth0", "8.8.8.8%eth0", "::ffff:8.8.8.8"]
)
def test_others_are_not(address):
    assert not is_allowed(address)


def test_what_a_test_allows_is_all_that_it_allows():
    assert is_allowed("127.0.0.1", ALLOWED)
    assert not is_allowed("::ffff:127.0.0.1", ALLOWED)
    assert not is_allowed("127.0.0.2", ALLOWED)
    assert picture(1) != PICTURE
