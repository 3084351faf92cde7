"""What a package holds, as pairs: one function per source, and the table of sources. No picture is opened here."""

import hashlib
import html
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from etl.samples import noisy_sources
from etl.samples.packages import PACKAGES


@dataclass(frozen=True)
class Pair:
    url: str
    caption: str
    license: str
    image: Path | bytes
    svg_px: int = 0
    """If not 0, `image` is an SVG, to be drawn with its longer side at so many pixels."""
    label: str | None = None


Roots = Mapping[str, Path]
"""Name of a package -> the folder that it is unpacked in."""


def _pair(package: str, roots: Roots, image: Path, caption: str) -> Pair:
    scheme = {"apt": "deb"}.get(PACKAGES[package].client, PACKAGES[package].client)
    return Pair(f"{scheme}:{package}/{image.relative_to(roots[package])}", caption, PACKAGES[package].license, image)


def order_of(pair: Pair) -> str:
    """Pairs are spread, cut and set aside in the order of this hash, whatever order a package lists them in."""
    return hashlib.sha256(pair.url.encode()).hexdigest()


def _texts(pattern: str, markup: str) -> list[str]:
    return [" ".join(html.unescape(found).split()) for found in re.findall(pattern, markup, flags=re.DOTALL)]


def _is_flag(path: str, keywords: Sequence[str] = ()) -> bool:
    """Flags are left out of every source: hundreds of look-alikes, the same ones in every collection."""
    return bool({"flag", "flags"} & {*re.split(r"[^a-z]+", path.lower()), *keywords})


def _openclipart(roots: Roots, *, is_heldout: bool) -> list[Pair]:
    pngs = roots["openclipart-png"] / "usr/share/openclipart/png"
    svgs = roots["openclipart-svg"] / "usr/share/openclipart/svg"
    pairs, huge = [], set()
    for png in sorted(pngs.rglob("*.png")):
        if png.is_symlink():  # a second name of the same picture
            continue
        svg = (svgs / png.relative_to(pngs)).with_suffix(".svg")
        markup = svg.read_text(encoding="utf-8", errors="replace") if svg.exists() else ""
        title = next(iter(_texts(r"<dc:title>(.*?)</dc:title>", markup)), "")
        if title and not _is_flag(str(png.relative_to(pngs)), _texts(r"<rdf:li>(.*?)</rdf:li>", markup)):
            pair = _pair("openclipart-png", roots, png, title)
            pairs.append(pair)
            huge |= {pair.url} if _num_pixels(png) > 50_000_000 else set()
    num_with_title = Counter(pair.caption.casefold() for pair in pairs)
    # A title on ten pictures or more names a collection ("gramastar", on 1,375 stars). That is real noise, but half of
    # the source: 1,500 pairs of it stay.
    boilerplate = sorted((pair for pair in pairs if num_with_title[pair.caption.casefold()] >= 10), key=order_of)
    pool, heldout = _set_apart(pairs, 600, never=huge)
    surplus = {pair.url for pair in boilerplate[1500:]}
    return heldout if is_heldout else [pair for pair in pool if pair.url not in surplus]


def _num_pixels(png: Path) -> int:
    with png.open("rb") as file:
        header = file.read(24)
    return int.from_bytes(header[16:20]) * int.from_bytes(header[20:24])


def _set_apart(pairs: Sequence[Pair], number: int, never: Set[str] = frozenset()) -> tuple[list[Pair], list[Pair]]:
    """(the rest, `number` pairs whose captions no other pair has), the latter without those too large for a reader."""
    times = Counter(pair.caption.casefold() for pair in pairs)
    unique = [pair for pair in pairs if times[pair.caption.casefold()] == 1 and pair.url not in never]
    heldout = sorted(unique, key=order_of)[:number]
    taken = {pair.url for pair in heldout}
    return [pair for pair in pairs if pair.url not in taken], heldout


def _iconify(roots: Roots, *, packages: Sequence[str]) -> list[Pair]:
    pairs = []
    for package in packages:
        icons = json.loads((roots[package] / "package/icons.json").read_text(encoding="utf-8"))
        metadata = json.loads((roots[package] / "package/metadata.json").read_text(encoding="utf-8"))
        styles = {*metadata.get("suffixes", {}), *STYLES.get(package, ())} - {""}
        named: dict[str, str] = {}
        for name, icon in sorted(icons["icons"].items()):
            words = name.split("-")
            words = words[:-1] if words[-1] in styles and len(words) > 1 else words
            if not icon.get("hidden") and not _is_flag(name):
                named[" ".join(words)] = name  # sizes and styles of one drawing: the last, which is the largest
        for caption, name in named.items():
            svg = _svg(icons, icons["icons"][name])
            pairs.append(Pair(f"npm:{package}/{name}", caption, PACKAGES[package].license, svg, svg_px=160))
    return pairs


def _svg(icons: dict[str, Any], icon: dict[str, Any]) -> bytes:
    box = {"left": 0, "top": 0, "width": 16, "height": 16} | icons | icon
    links = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    view = f'viewBox="{box["left"]} {box["top"]} {box["width"]} {box["height"]}"'
    return f'<svg {links} {view} width="{box["width"]}" height="{box["height"]}">{icon["body"]}</svg>'.encode()


def _tuxpaint(roots: Roots, *, is_heldout: bool) -> list[Pair]:
    pairs = []
    stamps = roots["tuxpaint-stamps-default"] / "usr/share/tuxpaint/stamps"
    for image in sorted((*stamps.rglob("*.png"), *stamps.rglob("*.svg"))):
        text = image.with_suffix(".txt")
        if text.exists() and not _is_flag(str(image.relative_to(stamps))):
            english, *_translations = text.read_text(encoding="utf-8", errors="replace").split("\n")
            pair = _pair("tuxpaint-stamps-default", roots, image, english.strip())
            pairs.append(replace(pair, svg_px=256 if image.suffix == ".svg" else 0))
    pool, heldout = _set_apart(pairs, 200)
    return heldout if is_heldout else pool


def _emoji(roots: Roots, *, vendor: str) -> list[Pair]:
    package = f"emoji-datasource-{vendor}"
    folder = roots[package] / "package"
    return [
        _pair(package, roots, folder / f"img/{vendor}/64" / emoji["image"], emoji["name"].lower())
        for emoji in json.loads((folder / "emoji.json").read_text(encoding="utf-8"))
        if emoji["category"] not in ("Flags", "Component") and emoji[f"has_img_{vendor}"]
    ]


def _art4apps(roots: Roots) -> list[Pair]:
    pairs = []
    for image in sorted((roots["pysiogame"] / "usr/share/games/pysiogame/res/images/art4apps").glob("*/*.jpg")):
        label = image.parent.name.replace("_n_", " and ").replace("_", " ")
        pair = _pair("pysiogame", roots, image, image.stem.replace("_", " "))
        pairs.append(replace(pair, label=label))
    return pairs


STYLES = {"@iconify-json/skill-icons": ("dark", "light"), "@iconify-json/material-icon-theme": ("light",)}
"""Suffixes that name a style, of sets whose own metadata.json does not say."""
ICON_SETS = tuple(name for name in PACKAGES if name.startswith("@iconify-json/"))
SMALL_ICON_SETS = ("@iconify-json/flat-color-icons", "@iconify-json/marketeq")  # 0.1 MB
_HELD_OUT = ("streamline-freehand", "streamline-kameleon", "streamline-cyber", "streamline-stickies")
HELD_OUT_ICON_SETS = (*(f"@iconify-json/{name}-color" for name in _HELD_OUT), "@iconify-json/flat-color-icons")
"""Drawn in styles that no other set has: what the evidence suite evaluates on."""
POOL_ICON_SETS = tuple(name for name in ICON_SETS if name not in HELD_OUT_ICON_SETS)

_CLIPART, _STAMPS = ("openclipart-png", "openclipart-svg"), ("tuxpaint-stamps-default",)
_TABLE: tuple[tuple[str, Callable[[Roots], list[Pair]], tuple[str, ...]], ...] = (
    ("openclipart", partial(_openclipart, is_heldout=False), _CLIPART),
    ("openclipart_heldout", partial(_openclipart, is_heldout=True), _CLIPART),
    ("iconify", partial(_iconify, packages=ICON_SETS), ICON_SETS),
    ("iconify_small", partial(_iconify, packages=SMALL_ICON_SETS), SMALL_ICON_SETS),
    ("iconify_pool", partial(_iconify, packages=POOL_ICON_SETS), POOL_ICON_SETS),
    ("iconify_heldout", partial(_iconify, packages=HELD_OUT_ICON_SETS), HELD_OUT_ICON_SETS),
    ("documentation", noisy_sources.documentation, noisy_sources.DOCUMENTATION),
    ("noise_boilerplate", noisy_sources.boilerplate, ()),
    ("noise_foreign", noisy_sources.foreign, _STAMPS),
    ("tuxpaint", partial(_tuxpaint, is_heldout=False), _STAMPS),
    ("tuxpaint_heldout", partial(_tuxpaint, is_heldout=True), _STAMPS),
    ("emoji_google", partial(_emoji, vendor="google"), ("emoji-datasource-google",)),
    ("emoji_twitter", partial(_emoji, vendor="twitter"), ("emoji-datasource-twitter",)),
    ("art4apps", _art4apps, ("pysiogame",)),
)
SOURCES = {name: read for name, read, _ in _TABLE}
NEEDS = {name: packages for name, _, packages in _TABLE}
DRAWN = {name for name in SOURCES if name.startswith(("iconify", "noise", "tuxpaint"))}
"""Hold SVG: their bytes are the renderer's too."""
