"""Sources of noise, as pairs: pictures of documentation with the alt texts of their pages, and noise to plant.

No picture is opened here. Beside `etl/samples/sources.py`, whose table lists these too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from etl.samples.packages import PACKAGES, CorpusError

if TYPE_CHECKING:
    from etl.samples.sources import Pair

DOCUMENTATION = ("gimp-help-en", "gimp-help-de", "debian-handbook", "python-sklearn-doc", "python-skimage-doc")
"""Packages of HTML pages; debian-handbook in 26 languages."""
PICTURES = (".png", ".jpg", ".jpeg")
MAX_IMAGES_PER_PAGE = 5000
LOCALES = "ar bg cs da de el es fi fr hu it ja ko nl pl pt ru sv tr vi"
PHRASES = (
    "click to enlarge|image|photo|logo|banner|thumbnail|icon|advertisement|spacer|untitled|picture 1|header|"
    "image may be subject to copyright|no description available|share on facebook|follow us on twitter|read more|"
    "buy now|free shipping on all orders|back to top|loading|placeholder|preview|full size|view larger image|"
    "main image|product image|all rights reserved|sponsored|download|next|previous|close|menu|search|home|"
    "subscribe to our newsletter|sign up|related posts|featured image|profile picture|user avatar|screenshot|"
    "wallpaper|stock photo|royalty free stock image|copyright 2014|powered by wordpress|cookie settings|"
    "skip to content|gallery image|slideshow image|image not available|alt text|null|undefined|default|unnamed|"
    "image description|insert caption here|photo gallery|background"
)
"""Between bars."""
FILE_NAMES = ("IMG_{:04d}.JPG", "DSC{:05d}.jpg", "image{}.png", "Screenshot {}.png", "banner-{}x90.gif", "{:08x}.jpg",
              "P101{:04d}.JPG", "thumb_{}.jpeg", "scan{:03d}.tif", "wp-image-{}")  # fmt: skip
DATES = ("{y}-{m:02d}-{d:02d}", "{d:02d}.{m:02d}.{y}", "{m}/{d}/{y}", "{y}{m:02d}{d:02d}_{d:02d}{m:02d}00")
NUM_NAMES, NUM_DATES = 400, 200


def documentation(roots: Mapping[str, Path]) -> list[Pair]:
    """Each picture that a page shows, once with each of its alt texts: the web's own noise, boilerplate and all.

    The reader is that of the web's stages (`etl.web.html`): a picture without a text is left out.
    """
    from etl.samples.sources import Pair

    found: dict[tuple[str, str], Pair] = {}
    for package in DOCUMENTATION:
        root, license = roots[package].resolve(), PACKAGES[package].license
        for page in sorted(path for path in root.rglob("*.html") if path.is_file()):
            for picture, text in _shown(page, root):
                url = f"deb:{package}/{picture.relative_to(root)}"
                found.setdefault((url, text), Pair(url, text, license, picture))
    return list(found.values())


def _shown(page: Path, root: Path) -> list[tuple[Path, str]]:
    """(file of the package, alt text) of the images of a page."""
    try:
        from etl.web.html import images_of_html
    except ImportError:
        raise CorpusError("wanted resiliparse, to read pages; found none; fix: pip install 'dfn-etl[web]'") from None
    site = "http://package.invalid/"
    read = images_of_html(page.read_bytes(), f"{site}{page.relative_to(root)}", max_images=MAX_IMAGES_PER_PAGE)
    shown = []
    for image in read.images:
        picture = (root / unquote(urlsplit(image.url).path).lstrip("/")).resolve()
        is_ours = image.url.startswith(site) and picture.is_relative_to(root) and picture.is_file()
        if is_ours and picture.suffix.lower() in PICTURES:
            shown.append((picture, image.text))
    return shown


def boilerplate(roots: Mapping[str, Path]) -> list[Pair]:
    """File names, dates and phrases of no meaning, each as the caption of a blank picture: noise for the evidence
    suite, which gives these captions and these pictures to pairs of its pool."""
    names = [FILE_NAMES[i % len(FILE_NAMES)].format(7 + 37 * i) for i in range(NUM_NAMES)]
    dates = [DATES[i % len(DATES)].format(y=1999 + i % 25, m=1 + i % 12, d=1 + i % 28) for i in range(NUM_DATES)]
    return _blanks("boilerplate", dict.fromkeys([*names, *dates, *PHRASES.split("|")]), "public-domain")


def foreign(roots: Mapping[str, Path]) -> list[Pair]:
    """Tux Paint's captions in other languages, one a stamp, each as the caption of a blank picture: noise likewise."""
    package, captions = "tuxpaint-stamps-default", dict[str, None]()
    texts = sorted((roots[package] / "usr/share/tuxpaint/stamps").rglob("*.txt"))
    for number, text in enumerate(texts):
        said = dict(
            re.findall(r"^(\w\w)\.utf8=(.+)$", text.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        )
        known = [locale for locale in LOCALES.split() if said.get(locale, "").strip()]
        if known:
            captions[said[known[number % len(known)]].strip()] = None
    return _blanks("foreign", captions, PACKAGES[package].license)


def _blanks(kind: str, captions: Sequence[str] | dict[str, None], license: str) -> list[Pair]:
    from etl.samples.sources import Pair

    return [Pair(f"noise:{kind}/{number}", caption, license, _blank(number), svg_px=128)
            for number, caption in enumerate(captions)]  # fmt: skip


def _blank(number: int) -> bytes:
    """A picture of one colour, white and greys first."""
    grey = 255 - 16 * number
    red, green, blue = (grey, grey, grey) if grey >= 0 else ((number * k) % 256 for k in (67, 131, 29))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8" width="8" height="8">'
            f'<rect width="8" height="8" fill="rgb({red},{green},{blue})"/></svg>').encode()  # fmt: skip
