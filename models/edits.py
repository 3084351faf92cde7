"""What happens to pictures that are copied around the web: edits of known kinds and strengths. Pillow; touches nothing.

Evaluation pictures are looked for as VARIANTS too, and what finds copies is tried on EDITS, of other strengths: see
`dfn evalset calibrate`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps

Picture = Image.Image
"""Mode RGB."""
Edit = Callable[[Picture], bytes]


def jpeg(image: Picture, quality: int = 90) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def png(image: Picture) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def cropped(image: Picture, share: float) -> Picture:
    """Without that share of the width at the left and of the height at the bottom."""
    return image.crop((round(image.width * share), 0, image.width, image.height - round(image.height * share)))


def centred(image: Picture, share: float) -> Picture:
    """Without that share of the width at the left and the right, and of the height above and below."""
    x, y = round(image.width * share), round(image.height * share)
    return image.crop((x, y, image.width - x, image.height - y))


def bordered(image: Picture, border: tuple[float, str]) -> Picture:
    """With a border as wide as that share of the longer side, of a colour."""
    share, colour = border
    return ImageOps.expand(image, max(1, round(max(image.size) * share)), colour)


def captioned(image: Picture, share: float) -> Picture:
    """With white letters on black across the middle, as high as that share of the picture."""
    found, height = image.copy(), max(4, round(image.height * share))
    draw, top = ImageDraw.Draw(found), (image.height - height) // 2
    draw.rectangle((0, top, image.width, top + height), fill="black")
    draw.text((2, top), "SAMPLE TEXT", fill="white", font=ImageFont.load_default(height * 0.8))
    return found


def turned(image: Picture, degrees: float) -> Picture:
    return image.rotate(degrees, Image.Resampling.BICUBIC, expand=True, fillcolor="white")


def resized(image: Picture, scale: float) -> Picture:
    return image.resize([max(8, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)


def grey(image: Picture, _: float) -> Picture:
    return image.convert("L").convert("RGB")


def brightened(image: Picture, factor: float) -> Picture:
    return ImageEnhance.Brightness(image).enhance(factor)


def blurred(image: Picture, radius_px: float) -> Picture:
    return image.filter(ImageFilter.GaussianBlur(radius_px))


def _each(name: str, edit: Callable[[Picture, Any], Picture], strengths: Sequence[Any]) -> dict[str, Edit]:
    return {name.format(strength): lambda image, s=strength: jpeg(edit(image, s)) for strength in strengths}  # type: ignore[misc]


EDITS: Mapping[str, Mapping[str, Edit]] = {
    "recompress": {"png": png, **{f"jpeg {q}": partial(jpeg, quality=q) for q in (90, 50, 20)}},
    "resize": _each("x {:g}", resized, (2, 0.5, 0.25)),
    "crop": _each("{:.0%}", cropped, (0.02, 0.05, 0.1, 0.2)),
    "flip": {"left-right": lambda image: jpeg(ImageOps.mirror(image)),
             "upside down": lambda image: jpeg(ImageOps.flip(image))},
    "grey": _each("all", grey, (1,)),
    "border": _each("{0[0]:.0%} {0[1]}", bordered, ((0.02, "white"), (0.1, "white"), (0.1, "black"))),
    "text": _each("{:.0%} high", captioned, (0.05, 0.1, 0.2)),
    "rotate": _each("{} degrees", turned, (2, 5, 15, 90)),
    "brightness": _each("x {:g}", brightened, (0.9, 0.7, 0.4)),
    "blur": _each("{} px", blurred, (1, 3, 8)),
}  # fmt: skip
"""Kind -> strength -> the file that it makes of a picture. All but recompression are written as JPEG of quality 90."""


def _saved(edit: Callable[[Picture], Picture]) -> Edit:
    return lambda image: jpeg(edit(image), quality=75)


VARIANTS: Mapping[str, Edit] = {
    "recompressed": partial(jpeg, quality=30),
    "mirrored": _saved(ImageOps.mirror),
    "upside down": _saved(ImageOps.flip),
    "turned left": _saved(partial(turned, degrees=90)),
    "turned right": _saved(partial(turned, degrees=-90)),
    "tilted": _saved(partial(turned, degrees=8)),
    "cropped": _saved(partial(centred, share=0.075)),
    "white border": _saved(partial(bordered, border=(0.05, "white"))),
    "black border": _saved(partial(bordered, border=(0.05, "black"))),
}
"""Name -> the file that it makes of a picture. What is near one of these is near the picture so edited, and what was
edited more or less, or once more, is nearer to it than to the picture. Of 22 such edits these are the ones that find
much which the others do not (`tests/bench/leaks.py`): recompressed ones have the noise of a JPEG, that makes hashes of
symmetric figures."""
