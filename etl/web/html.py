"""Images with their alt texts, out of HTML pages and WAT records. Pure functions: no Spark, no files, no network.

One image an `img` element: of `data-src`, `src`, `srcset` and `data-srcset` (their largest) the first that is an
absolute http or https URL against the base. Every element is counted: as a candidate, or by
the status that says why not.
"""

from __future__ import annotations

import codecs
import html
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5
from resiliparse.parse.html import HTMLTree

from etl.web.opt_out import said_by_headers, said_by_metas

MAX_URL_CHARS = 4096
MAX_TEXT_CHARS = 16_384
SOURCES: tuple[tuple[str, bool], ...] = (("data-src", False), ("src", False), ("srcset", True), ("data-srcset", True))
"""Attribute, and whether it is a set. Lazy pages have a placeholder in `src`."""
_CUT = {0x200B, 0x2060, 0xFEFF, *range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0x20), *range(0x7F, 0xA0)} - {
    9,
    10,
    12,
    13,
}
_NOT_TEXT = dict.fromkeys(_CUT)
"""What a caption loses: control characters, spaces without width, and what turns the direction of text around."""
_SPACE_AND_CONTROL, _PRINTABLE = "".join(map(chr, range(0x21))), "".join(map(chr, range(0x21, 0x7F)))
_BOMS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16le", codecs.BOM_UTF16_BE: "utf-16be"}


class Image(NamedTuple):
    """An image of a page. `text` is not empty, `url` is absolute."""

    url: str
    text: str
    alt_raw: str


@dataclass
class Page:
    """What a page gave: images in its order, and the elements that gave none, by status."""

    images: list[Image] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    opt_out: str | None = None
    """How the page says no, for all of its images."""

    def take(self, attribute: Callable[[str], str | None], base: str, max_images: int) -> None:
        """One img element, by its attributes."""
        if len(self.images) >= max_images:
            self.skipped["over_cap"] += 1
            return
        alt_raw = _sound(attribute("alt") or "")
        text = normalised(alt_raw)
        if not text:
            self.skipped["missing_text"] += 1
        elif len(alt_raw) > MAX_TEXT_CHARS:
            self.skipped["too_large"] += 1
        elif (url := _url_of(attribute, base)) is None:
            self.skipped["unsupported_url"] += 1
        else:
            self.images.append(Image(url, text, alt_raw))


def images_of_html(
    data: bytes, page_url: str, *, charset: str | None = None, headers: Iterable[tuple[str, str]] = (),
    agent: str = "", max_images: int = 1000,
) -> Page:  # fmt: skip
    """The images of an HTML page. `charset`: what the HTTP header says. Any bytes are a page."""
    document = HTMLTree.parse(decoded(data, charset)).document
    if document is None:
        return Page()
    # Sliced, for to iterate over a collection of this library searches the whole page again at every step.
    found = document.query_selector_all("img")
    elements, metas = found[0 : len(found)], document.query_selector_all("meta[name]")
    base = document.query_selector("base[href]")
    page = Page(opt_out=said_by_headers(headers, agent))
    if page.opt_out is None:
        said = ((m.getattr("name") or "", m.getattr("content") or "") for m in metas[0 : min(len(metas), 1000)])
        page.opt_out = said_by_metas(said, agent)
    at = absolute(page_url, base.getattr("href") or "") if base is not None else page_url
    for element in elements:
        page.take(element.getattr, at or page_url, max_images)
    return page


def images_of_wat(data: bytes, *, agent: str = "", max_images: int = 1000) -> tuple[str, Page] | None:
    """(page URL, its images) of a WAT record about an HTML page; None of another, or where it does not parse.

    The format is that of ia-web-commons: links with `path` such as IMG@/src, beside `url` and `alt`, not yet resolved,
    their entities not decoded.
    """
    try:
        envelope = json.loads(data)["Envelope"]
        page_url = envelope["WARC-Header-Metadata"]["WARC-Target-URI"]
        response = envelope["Payload-Metadata"]["HTTP-Response-Metadata"]
        metadata = response["HTML-Metadata"]
        headers = [(k, v) for k, v in response.get("Headers", {}).items() if isinstance(v, str)]
        head, links = metadata.get("Head", {}), metadata.get("Links", [])
        metas = [(m.get("name"), m.get("content")) for m in head.get("Metas", []) if isinstance(m, Mapping)]
        base = head.get("Base")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not isinstance(page_url, str) or not isinstance(links, list):
        return None
    named = [(n, c) for n, c in metas if isinstance(n, str) and isinstance(c, str)]
    page = Page(opt_out=said_by_headers(headers, agent) or said_by_metas(named, agent))
    at = absolute(page_url, base) if isinstance(base, str) else page_url
    for link in links:
        if isinstance(link, Mapping) and str(link.get("path", "")).startswith("IMG@/"):
            page.take(_attributes(link), at or page_url, max_images)
    return _sound(page_url), page


def _attributes(link: Mapping[str, Any]) -> Callable[[str], str | None]:
    """An img element as a link of a WAT record has it: one attribute with a URL, and the alt text."""
    kind = str(link["path"]).removeprefix("IMG@/")

    def attribute(name: str) -> str | None:
        value = link.get("alt") if name == "alt" else link.get("url") if name == kind else None
        return html.unescape(value) if isinstance(value, str) else None

    return attribute


def decoded(data: bytes, charset: str | None) -> str:
    """A page as text: by its byte order mark; as UTF-8 where it is that; else as the header or the page says.

    Text that is valid UTF-8 and not ASCII is hardly ever anything else, whatever a server says of it.
    """
    for bom, name in _BOMS.items():
        if data.startswith(bom):
            return str(bytes_to_str(data, name, errors="replace"))
    if not data.isascii():
        try:
            return codecs.getincrementaldecoder("utf-8")().decode(data)  # not final: a page may be cut within a letter
        except UnicodeDecodeError:
            pass
    named = _known(charset) or detect_encoding(data, from_html_meta=True) or "utf-8"
    return str(bytes_to_str(data, named, errors="replace"))


def _known(charset: str | None) -> str | None:
    try:
        return map_encoding_to_html5(codecs.lookup(charset.strip()).name) if charset else None
    except (LookupError, ValueError):
        return None


def normalised(raw: str) -> str:
    """A caption of a decoded alt text: NFC, runs of white space one space, no control characters."""
    return " ".join(unicodedata.normalize("NFC", raw.translate(_NOT_TEXT)).split())


def _sound(text: str) -> str:
    """`text` as UTF-8 can hold it: a lone surrogate becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


def _url_of(attribute: Callable[[str], str | None], base: str) -> str | None:
    for name, is_set in SOURCES:
        value = attribute(name)
        if value and (url := absolute(base, largest_of(value) if is_set else value)):
            return url
    return None


def largest_of(srcset: str) -> str:
    """The URL of a srcset with the largest width or density; '' where there is none."""
    best, best_size = "", -1.0
    for part in re.split(r",\s+|(?<=\d[wx]),", srcset):
        url, _, descriptor = part.strip().partition(" ")
        number = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)[wx]\s*", descriptor)
        size = float(number[1]) if number else 1.0
        if url and size > best_size:
            best, best_size = url.rstrip(","), size
    return best


def absolute(base: str, reference: str) -> str | None:
    """An absolute http or https URL without fragment and credentials; None where there is none."""
    reference = re.sub(r"[\t\r\n]", "", reference).strip(_SPACE_AND_CONTROL)
    if not reference or len(reference) > MAX_URL_CHARS:
        return None
    try:
        parts = urlsplit(urljoin(base, _sound(reference)))
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            return None
        port = f":{parts.port}" if parts.port is not None else ""
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname.encode("idna").decode()
    except ValueError:  # UnicodeError too
        return None
    url = parts._replace(netloc=f"{host}{port}", path=parts.path or "/", fragment="").geturl()
    clean = quote(url, safe=_PRINTABLE)
    return clean if len(clean) <= MAX_URL_CHARS else None
