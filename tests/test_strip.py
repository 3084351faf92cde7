"""Images with secrets in, the same images without them out."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from etl.export.strip import Stripped, strip_metadata
from models.images import ImageError, decode_rgb, orientation

SECRET = b"SECRET-48.8584N"
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="%d"/>' + SECRET + b"</x:xmpmeta>"
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
MODES = {"JPEG": ["RGB", "L", "CMYK"], "PNG": ["RGB", "L", "P", "RGBA", "LA", "1", "I;16"], "WEBP": ["RGB", "RGBA"]}


def photo(mode: str, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (24, 32, 4), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    return Image.fromarray(noise).convert(mode)


def exif(turn: int) -> Image.Exif:
    found = Image.Exif()
    found[0x010E] = SECRET.decode()
    found.get_ifd(0x8825)[1] = "N"
    if turn:
        found[0x0112] = turn
    return found


def image(kind: str, mode: str, turn: int, **options) -> bytes:
    """With all the metadata that Pillow can write: EXIF, XMP, comment, text, ICC profile."""
    file, text = io.BytesIO(), PngImagePlugin.PngInfo()
    text.add_text("Comment", SECRET.decode())
    text.add_itxt("Location", SECRET.decode())
    text.add_text("Long", SECRET.decode() * 9, zip=True)
    options = {"JPEG": {"comment": SECRET}, "PNG": {"pnginfo": text}, "WEBP": {"lossless": True}}[kind] | options
    options = ({"xmp": XMP % 1} if kind != "PNG" else {}) | options
    photo(mode).save(file, kind, exif=exif(turn), icc_profile=PROFILE, **options)
    return file.getvalue()


def check(data: bytes) -> bytes:
    """Stripped: the same pixels, the same orientation, no secret, and nothing left to strip."""
    bare, is_stripped = strip_metadata(data)
    assert is_stripped and SECRET not in bare and orientation(bare) == orientation(data)
    assert decode_rgb(bare).tobytes() == decode_rgb(data).tobytes()
    assert strip_metadata(bare) == Stripped(bare, True)
    return bare


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind in MODES for mode in MODES[kind]])
@pytest.mark.parametrize("turn", [0, 1, 2, 3, 4, 5, 6, 7, 8])
def test_metadata_goes_and_pixels_and_orientation_stay(kind, mode, turn):
    data = image(kind, mode, turn)
    assert (SECRET in data, orientation(data)) == (True, turn or 1)
    bare = check(data)
    with Image.open(io.BytesIO(bare)) as found:
        assert dict(found.getexif()) == ({0x0112: turn} if turn > 1 else {})
        assert found.info.get("icc_profile") == PROFILE
        assert not {"xmp", "comment", "Comment", "Location", "Long"} & set(found.info)
    if kind == "WEBP":
        assert bare[20] & 0x0C == (0x08 if turn > 1 else 0)  # EXIF, XMP


def test_odd_chunks_of_a_webp_keep_their_padding():
    for padding in (b"", b" "):
        check(image("WEBP", "RGB", 6, xmp=XMP % 1 + padding))


def test_the_colour_transform_of_adobe_stays():
    data = bytearray(image("JPEG", "CMYK", 6))
    data[data.index(b"Adobe") + 11] = 2  # YCCK
    check(bytes(data))


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_blocks": 1}, {"optimize": True}])
def test_scans_and_restarts_of_a_jpeg_stay(options):
    check(image("JPEG", "RGB", 6, **options))


def test_an_orientation_that_only_xmp_tells_stays():
    file = io.BytesIO()
    photo("RGB").save(file, "JPEG", xmp=XMP % 8)
    assert orientation(check(file.getvalue())) == 8


def test_what_follows_the_end_goes():
    for kind, mode in (("JPEG", "RGB"), ("PNG", "P"), ("WEBP", "RGB")):
        data = image(kind, mode, 3)
        assert check(data + b"tail" + SECRET) == check(data)


def test_the_second_image_of_an_mpo_goes():
    file = io.BytesIO()
    photo("RGB").save(file, "MPO", save_all=True, append_images=[photo("RGB", 1)], exif=exif(6))
    data = file.getvalue()
    with Image.open(io.BytesIO(check(data))) as found:
        assert (found.format, getattr(found, "n_frames", 1)) == ("JPEG", 1)


def test_thumbnails_in_app0_go_and_jfif_stays_first():
    data = image("JPEG", "RGB", 6)
    content = b"JFXX\0\x10" + SECRET
    thumbnail = b"\xff\xe0" + struct.pack(">H", len(content) + 2) + content
    bare = check(data[:20] + thumbnail + data[20:])
    assert (bare[:11], bare[20:30]) == (b"\xff\xd8\xff\xe0\0\x10JFIF\0", b"\xff\xe1\0\x22Exif\0\0")


def test_animation_stays():
    for kind in ("PNG", "WEBP"):
        file = io.BytesIO()
        frames = [photo("RGB", seed) for seed in range(3)]
        options = {"lossless": True} if kind == "WEBP" else {}
        frames[0].save(file, kind, save_all=True, append_images=frames[1:], exif=exif(6), **options)
        with Image.open(io.BytesIO(check(file.getvalue()))) as found:
            found.seek(2)
            assert (found.n_frames, found.convert("RGB").tobytes()) == (3, frames[2].tobytes())


def test_an_image_without_metadata_is_given_back_byte_for_byte():
    for kind in MODES:
        file = io.BytesIO()
        photo("RGB").save(file, kind)
        assert strip_metadata(file.getvalue()) == Stripped(file.getvalue(), True)


def test_the_minimal_exif_of_a_png_has_a_right_checksum():
    bare = check(image("PNG", "RGB", 5))
    start = bare.index(b"eXIf")
    (length,), (crc,) = struct.unpack(">I", bare[start - 4 : start]), struct.unpack(">I", bare[start + 30 : start + 34])
    assert (length, crc, start) == (26, zlib.crc32(bare[start : start + 30]), 8 + 25 + 4)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF"])
def test_other_formats_come_back_as_they_are(kind):
    file = io.BytesIO()
    photo("RGB").save(file, kind)
    assert strip_metadata(file.getvalue()) == Stripped(file.getvalue(), False)


@pytest.mark.parametrize("kind", MODES)
def test_a_cut_image_comes_back_as_it_is(kind):
    file = io.BytesIO()
    photo("RGB").save(file, kind)
    for data in (image(kind, "RGB", 6), file.getvalue()):
        for size in [*range(60), *range(60, len(data), 41), len(data) - 1]:
            assert strip_metadata(data[:size]) == Stripped(data[:size], False)


def test_lengths_that_lead_nowhere_are_not_understood():
    webp, png = image("WEBP", "RGB", 6), image("PNG", "RGB", 6)
    broken = [
        b"\xff\xd8\xff\xe1\0\1" + b"\xff\xd9" * 9,  # shorter than its own length field
        b"\xff\xd8\xff\xe1\0\x08Exif",
        png[:8] + png[33:],
        png[:8] + bytes(4) + b"teSt" + struct.pack(">I", zlib.crc32(b"teSt")) + png[8:],  # IHDR is not first
        webp[:4] + struct.pack("<I", 12) + webp[8:],
        b"RIFF" + struct.pack("<I", 12) + b"WEBPEXIF" + bytes(4),
        b"RIFF" + struct.pack("<I", 20) + b"WEBPVP8X" + bytes(4) + b"ALPH" + bytes(4),
    ]
    assert [strip_metadata(data) for data in broken] == [Stripped(data, False) for data in broken]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(MODES)), st.integers(0, 2**32), st.integers(1, 8))
def test_damage_never_raises_and_what_decodes_still_decodes_alike(kind, seed, num_flips):
    chance = random.Random(seed)
    damaged = bytearray(image(kind, "RGB", 6))
    for _ in range(num_flips):
        span = len(damaged) if chance.random() < 0.5 else 400  # most of the structure is at the front
        damaged[chance.randrange(span)] = chance.randrange(256)
    bare, is_stripped = strip_metadata(bytes(damaged))
    assert is_stripped or bare == damaged
    try:
        expected = decode_rgb(bytes(damaged), max_pixels=10**6)
    except ImageError:
        return
    assert decode_rgb(bare, max_pixels=10**6).tobytes() == expected.tobytes()


@given(st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x40\0\0\0WEBP"]), st.binary(max_size=300))
def test_random_bytes_behind_a_magic_never_raise(magic, data):
    bare, is_stripped = strip_metadata(magic + data)
    assert is_stripped or bare == magic + data
