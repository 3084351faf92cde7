"""Bytes in; RGB, facts or a status out."""

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import imagehash
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile

from models.images import (
    FORMATS,
    UPRIGHT,
    ImageError,
    ImageFacts,
    decode_rgb,
    inspect,
    one_line,
    orientation,
    sha256_hex,
    sniff,
)
from models.phash import phash

RED = (200, 30, 60)
SIZE = (40, 30)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, pixels: bytes) -> bytes:
    """8-bit grey, with a header that may lie."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def turned(turn: int, size: tuple[int, int] = SIZE) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = turn
    return encode(Image.new("RGB", size, RED), "JPEG", exif=exif)


def photo(seed: int = 0, size: tuple[int, int] = (128, 96)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def status_of(data: bytes, **options) -> str:
    with pytest.raises(ImageError) as caught:
        decode_rgb(data, **options)
    return caught.value.status


def uint16(value: int) -> Image.Image:
    return Image.fromarray(np.full(SIZE[::-1], value, np.uint16))


def float32(*values: float) -> Image.Image:
    return Image.fromarray(np.resize(np.array(values, np.float32), SIZE[::-1]))


def palette() -> Image.Image:
    """Left half index 0, right half index 1."""
    image = Image.new("P", SIZE, 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.paste(0, (0, 0, 20, 30))
    return image


def lab() -> Image.Image:
    srgb, lab_profile = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.profileToProfile(Image.new("RGB", SIZE, RED), srgb, lab_profile, outputMode="LAB")


CONVERSIONS: dict[str, tuple[Callable[[], bytes], tuple[float, float, float]]] = {
    "rgb jpeg": (lambda: encode(Image.new("RGB", SIZE, RED), "JPEG"), RED),
    "rgb webp": (lambda: encode(Image.new("RGB", SIZE, RED), "WEBP", lossless=True), RED),
    "rgb bmp": (lambda: encode(Image.new("RGB", SIZE, RED), "BMP"), RED),
    "cmyk jpeg": (lambda: encode(Image.new("CMYK", SIZE, (0, 255, 0, 0)), "JPEG"), (255, 0, 255)),
    "cmyk tiff": (lambda: encode(Image.new("CMYK", SIZE, (0, 255, 0, 0)), "TIFF"), (255, 0, 255)),
    "rgba, a fifth of black": (lambda: encode(Image.new("RGBA", SIZE, (0, 0, 0, 51)), "PNG"), (204, 204, 204)),
    "rgba webp, clear": (lambda: encode(Image.new("RGBA", SIZE, (0, 0, 0, 0)), "WEBP"), (255, 255, 255)),
    "la, half of black": (lambda: encode(Image.new("LA", SIZE, (0, 128)), "PNG"), (127, 127, 127)),
    "palette": (lambda: encode(palette(), "PNG"), (5, 100, 15)),
    "palette, half clear": (lambda: encode(palette(), "PNG", transparency=0), (132.5, 227.5, 142.5)),
    "palette with alphas": (lambda: encode(palette(), "PNG", transparency=bytes([51, 255])), (107, 202, 117)),
    "gif, half clear": (lambda: encode(palette(), "GIF", transparency=0), (132.5, 227.5, 142.5)),
    "grey with a clear value": (lambda: encode(Image.new("L", SIZE, 7), "PNG", transparency=7), (255, 255, 255)),
    "1 bit, white": (lambda: encode(Image.new("1", SIZE, 1), "PNG"), (255, 255, 255)),
    "16 bits": (lambda: encode(uint16(32768), "PNG"), (128, 128, 128)),
    "16 bits, dark": (lambda: encode(uint16(200), "TIFF"), (1, 1, 1)),
    "16 bits, a clear value": (lambda: encode(uint16(500), "PNG", transparency=500), (255, 255, 255)),
    "float 0 to 1": (lambda: encode(float32(0.2), "TIFF"), (51, 51, 51)),
    "float 0 to 255": (lambda: encode(float32(100, 200), "TIFF"), (150, 150, 150)),
    "float 0 to 65535": (lambda: encode(float32(257 * 9), "TIFF"), (9, 9, 9)),
    "float beyond": (lambda: encode(float32(-1, 1), "TIFF"), (127.5, 127.5, 127.5)),
    "float without a number": (lambda: encode(float32(1, 1, np.nan, np.inf), "TIFF"), (127.5, 127.5, 127.5)),
    "int32": (lambda: encode(Image.fromarray(np.full(SIZE[::-1], 70, np.int32)), "TIFF"), (70, 70, 70)),
    "lab": (lambda: encode(lab(), "TIFF"), RED),
    "animated: the first frame": (
        lambda: encode(palette(), "GIF", save_all=True, append_images=[Image.new("P", SIZE, 0)]),
        (5, 100, 15),
    ),
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_each_kind_of_pixel_becomes_the_documented_rgb(name):
    make, expected = CONVERSIONS[name]
    image = decode_rgb(make())
    assert (image.mode, image.size) == ("RGB", SIZE)
    tolerance = 1.5 if name in {"rgb jpeg", "cmyk jpeg", "lab"} else 0.01
    assert np.asarray(image).reshape(-1, 3).mean(0) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_applied_as_pillow_says(kind, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    upright = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # orientation -> Pillow's Transpose
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    original = photo(size=(32, 24))
    data = encode(original, kind, exif=exif, **options)
    expected = original.transpose(Image.Transpose(upright[turn])) if turn != 1 else original
    error = np.abs(np.asarray(decode_rgb(data)).astype(int) - np.asarray(expected)).mean()
    assert decode_rgb(data).size == expected.size and error < 4
    assert orientation(data) == turn


def test_exif_that_does_not_parse_counts_as_upright():
    damaged = turned(6).replace(b"Exif\0\0MM", b"Exif\0\0XX")
    for data in (damaged, encode(Image.new("RGB", SIZE), "PNG", exif=b"no directory")):
        assert (decode_rgb(data).size, orientation(data)) == (SIZE, 1)


NOT_IMAGES = {
    "svg": b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "html": b"\xef\xbb\xbf\n<!DOCTYPE html><html>404</html>",
    "json": b'{"error": "gone"}',
    "xml": b"<?xml version='1.0'?><rss/>",
    "pdf": b"%PDF-1.7\n" + encode(Image.new("RGB", SIZE), "JPEG"),  # a polyglot: its first bytes decide
    "postscript": b"%!PS-Adobe-3.0",
    "mp4": b"\0\0\0\x20ftypisom\0\0\2\0",
    "webm": b"\x1a\x45\xdf\xa3webm",
    "avi": b"RIFF\0\0\0\0AVI LIST",
    "mpeg": b"\0\0\1\xba\x44",
    "flv": b"FLV\1\5",
    "ogg": b"OggS\0",
    "gzip": b"\x1f\x8b\x08\0",
    "zip": b"PK\3\4",
    "unknown": b"BMW is a car, not a bitmap",
}
OTHER_IMAGES = {
    "avif": encode(Image.new("RGB", SIZE), "AVIF"),
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0",
    "jpeg2000": encode(Image.new("RGB", SIZE), "JPEG2000"),
    "jxl": b"\xff\x0a\xfa\x1f",
    "ico": encode(Image.new("RGB", (16, 16)), "ICO"),
    "psd": b"8BPS\0\1",
    "qoi": encode(Image.new("RGB", SIZE), "QOI"),
    "dds": encode(Image.new("RGB", SIZE), "DDS"),
    "exr": b"\x76\x2f\x31\x01\2\0\0\0",
    "pnm": encode(Image.new("RGB", SIZE), "PPM"),
    "cr2": b"II*\0\x10\0\0\0CR\2\0",
}
UNDECODABLE = [(k, "not_an_image", d) for k, d in NOT_IMAGES.items()]
UNDECODABLE += [(k, "unsupported_format", d) for k, d in OTHER_IMAGES.items()]


@pytest.mark.parametrize(("kind", "status", "data"), UNDECODABLE, ids=lambda value: str(value)[:12])
def test_what_is_not_an_allowed_image_meets_no_decoder(kind, status, data, monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("handed to a decoder"))
    assert (sniff(data), status_of(data)) == (kind, status)
    assert status_of(b"") == "empty_file"


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_the_sniffed_decoder_alone_is_tried_and_can_be_disallowed(kind, monkeypatch):
    data, tried, open_ = encode(photo(), kind.upper()), [], Image.open
    monkeypatch.setattr(Image, "open", lambda file, formats: tried.append(formats) or open_(file, formats=formats))
    assert (sniff(data), decode_rgb(data).size, tried) == (kind, (128, 96), [[kind.upper()]])
    assert status_of(data, formats=FORMATS - {kind}) == "unsupported_format"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_cut_image_is_a_decode_error(kind):
    data = encode(photo(), kind)
    assert [status_of(data[: int(len(data) * share)]) for share in (0.5, 0.9)] == ["decode_error"] * 2
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_cut_jpeg_that_verify_passes_is_found():
    cut = encode(photo(), "JPEG")[:-200]
    Image.open(io.BytesIO(cut)).verify()
    assert status_of(cut) == "decode_error"


@pytest.mark.parametrize("error", [MemoryError(), struct.error("x"), SyntaxError(), zlib.error(), KeyError("x")])
def test_whatever_pillow_raises_is_a_decode_error(error, monkeypatch):
    def load(self):
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    assert status_of(encode(photo(), "PNG")) == "decode_error"


def test_the_same_bytes_have_the_same_reason():
    """Pillow names the object that it read, and where that is in memory."""
    damaged, reasons = encode(photo(size=(16, 12)), "PNG")[:40], set()
    for _ in range(3):
        with pytest.raises(ImageError) as raised:
            inspect(damaged)
        reasons.add(raised.value.reason)
    assert reasons == {"UnidentifiedImageError: cannot identify image file <_io.BytesIO object>"}


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.data())
def test_damage_raises_nothing_but_image_error(kind, data):
    damaged = bytearray(encode(photo(size=(16, 12)), kind.upper()))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        facts = inspect(bytes(damaged), max_pixels=10_000)
    except ImageError as error:
        assert error.status != "empty_file" and error.reason == one_line(error.reason)
    else:
        assert facts.width_px * facts.height_px <= 10_000


@pytest.mark.parametrize(
    ("data", "max_pixels", "reason"),
    [
        (png(65_000, 65_000, b""), 10**12, "4225000000 pixels"),
        (png(1, 50_000_000, b""), 10**12, "1 x 50000000"),
        (png(50_000_000, 1, b""), 10**12, "50000000 x 1"),
        (encode(Image.new("RGB", (101, 100)), "JPEG"), 10_000, "101 x 100 pixels; the caps are 10000"),
    ],
)
def test_the_caps_are_held_against_the_header(data, max_pixels, reason, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageError, match=reason) as caught:
        decode_rgb(data, max_pixels=max_pixels)
    assert caught.value.status == "too_many_pixels"


def test_as_many_pixels_as_the_cap_are_decoded():
    assert decode_rgb(encode(Image.new("RGB", (100, 100)), "JPEG"), max_pixels=10_000).size == (100, 100)


BOMBS = """
import resource, sys, time
from pathlib import Path
from PIL import Image
from models.images import ImageError, inspect
from models.phash import phash

phash(Image.new("RGB", (50, 40)))  # numba compiles
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20),) * 2)
for name in sys.argv[1:]:
    data, start = Path(name).read_bytes(), time.process_time()
    try:
        found = inspect(data)[:3]
    except ImageError as error:
        found = error.status
    assert time.process_time() - start < 2, name
    sys.stdout.write(f"{Path(name).name} {found}\\n")
"""


def test_bombs_cost_neither_memory_nor_time(tmp_path):
    squeeze = zlib.compressobj(1)
    pixels = b"".join(squeeze.compress(bytes(10_001)) for _ in range(10_000)) + squeeze.flush()
    frames = [Image.new("L", (20, 20), 7 * i % 256) for i in range(10_000)]
    bombs = {
        "a-100-mpx": png(10_000, 10_000, pixels),
        "b-65k-header": png(65_000, 65_000, b""),
        "c-strip": png(1, 50_000_000, pixels),
        "d-gif": encode(frames[0], "GIF", save_all=True, append_images=frames[1:], optimize=False),
    }
    for name, data in bombs.items():
        (tmp_path / name).write_bytes(data)
    command = [sys.executable, "-c", BOMBS, *(str(tmp_path / name) for name in bombs)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert (run.stdout.splitlines() or [run.stderr]) == [
        "a-100-mpx too_many_pixels",
        "b-65k-header too_many_pixels",
        "c-strip too_many_pixels",
        "d-gif ('gif', 20, 20)",
    ]


def test_inspect_gives_the_facts_after_orientation():
    data = turned(6)
    assert inspect(data) == ImageFacts("jpeg", 30, 40, inspect(data).phash)


def test_phash_is_imagehash_of_the_rgb_as_a_signed_integer():
    data = [encode(photo(seed), kind) for seed in range(8) for kind in ("JPEG", "PNG")]
    data.append(encode(Image.new("RGB", SIZE), "PNG"))  # black: the one kind whose first coefficient, the mean, is low
    found = [inspect(image).phash for image in data]
    expected = [str(imagehash.phash(decode_rgb(image))) for image in data]
    assert [f"{value % 2**64:016x}" for value in found] == expected
    assert -(2**63) <= min(found) < max(found) == 0


LARGE = {
    "4:2:0": ("RGB", {}),
    "4:4:4": ("RGB", {"subsampling": 0}),
    "progressive": ("RGB", {"progressive": True}),
    "kept as RGB": ("RGB", {"keep_rgb": True}),
    "grey": ("L", {}),
    "CMYK": ("CMYK", {}),
}


@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.parametrize("size", [(400, 300), (480, 640), (300, 901), (191, 1200)])
def test_a_large_jpeg_is_hashed_from_its_luma_decoded_small(kind, size, monkeypatch):
    mode, options = LARGE[kind]
    data = encode(photo(1, size).convert(mode), "JPEG", **options)
    small = Image.open(io.BytesIO(data))
    small.draft("L", (96, 96))
    assert small.mode == ("CMYK" if mode == "CMYK" else "L")
    assert 96 <= min(small.size) <= 191
    grey = small.convert("RGB").convert("L")
    rows_first = grey.resize((32, grey.height), Image.Resampling.LANCZOS).resize((32, 32), Image.Resampling.LANCZOS)
    facts = inspect(data)
    assert facts[:3] == ("jpeg", *size)
    assert f"{facts.phash % 2**64:016x}" == str(imagehash.phash(rows_first))
    assert (facts.phash ^ phash(decode_rgb(data))).bit_count() <= 4
    hashed = []
    monkeypatch.setattr("models.phash.phash", lambda image: hashed.append(image) or 7)
    assert inspect(data).phash == 7
    np.testing.assert_array_equal(np.asarray(hashed[0].convert("L")), np.asarray(grey))


def test_a_grey_picture_s_clear_value_is_hashed_as_white():
    grey = photo(3).convert("L").point(lambda value: 40 if value < 90 else value)
    on_white = grey.point(lambda value: 255 if value == 40 else value)
    assert inspect(encode(grey, "PNG", transparency=40)).phash == inspect(encode(on_white, "PNG")).phash
    assert inspect(encode(grey, "PNG")).phash != inspect(encode(on_white, "PNG")).phash


@pytest.mark.parametrize("turn", UPRIGHT)
def test_a_large_jpeg_is_hashed_upright(turn):
    original = photo(1, (480, 360))
    exif = Image.Exif()
    exif[0x0112] = turn
    facts = inspect(encode(original, "JPEG", exif=exif))
    assert facts[1:3] == ((360, 480) if turn > 4 else (480, 360))
    upright = inspect(encode(original.transpose(UPRIGHT[turn]), "PNG"))
    assert (facts.phash ^ upright.phash).bit_count() <= 4


@settings(max_examples=100, deadline=None)
@given(st.booleans(), st.integers(0, 6000), st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 255)), max_size=3))
def test_a_jpeg_that_is_only_decoded_small_is_checked_as_wholly(is_progressive, cut, damages):
    """Whether it is cut or damaged: all of its bytes are read either way."""
    data = bytearray(encode(photo(2, (400, 300)), "JPEG", progressive=is_progressive, quality=30))
    del data[max(100, len(data) - cut) :]
    for place, value in damages:
        data[place % len(data)] = value
    found = []
    for look in (inspect, decode_rgb):
        try:
            look(bytes(data))
            found.append("ok")
        except ImageError as error:
            found.append(error.status)
    assert found[0] == found[1]


def test_phash_of_a_known_pattern():
    ramp = Image.fromarray(np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1)))
    assert f"{inspect(encode(ramp, 'PNG')).phash % 2**64:016x}" == str(imagehash.phash(ramp.convert("RGB")))


def test_sha256_is_of_the_bytes():
    assert sha256_hex(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_reason_is_one_short_printable_line():
    error = ImageError("decode_error", "a\r\nb\x1b[31m\u202ec\x00" + "x" * 500)
    assert error.reason == "a  b [31m c " + "x" * 188
    assert (str(error), len(error.reason)) == (f"decode_error: {error.reason}", 200)
