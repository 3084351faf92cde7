"""Pairs by number, wherever they lie: an export that is verified first, or pointers into somebody's shards."""

import json
import os
import tarfile
from io import BytesIO

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers import picture, places
from hypothesis import given
from hypothesis import strategies as st
from training_data import SIDE_PX, export, job, make_uid, size_and_sha256, tiny_encoder

from models import clip
from models.augment import crop_box
from models.exported import index_folder
from models.images import sha256_hex
from models.order import Draw, draws
from models.pairs import DataError, Pairs, Pointer, write_pointers
from models.pixel_source import PixelSource
from models.pixels import preprocess
from models.recipe import Augmentation, Recipe


def test_an_export_becomes_pointers_to_its_images(tmp_path):
    folder = export(tmp_path / "data", 5, per_shard=3, n1={"txt": b""}, n4={"json": b'{"caption": "no uid"}'})
    said = []
    path = index_folder(str(folder), tmp_path / "pairs", say=said.append)
    pairs = Pairs.open(path)
    wanted = []
    for number in range(5):
        shard = folder / f"{number // 3:05d}.tar"
        offset, size = places(shard)[f"{number:08d}.png"]
        text = "" if number == 1 else f"picture {number}"
        wanted.append(Pointer(make_uid(number), str(shard), offset, size, None, text))
    found = [pairs[n] for n in range(len(pairs))]
    made = next(p for p in found if p.text == "picture 4")  # a uid made up, from the shard's name and the key
    wanted[4] = wanted[4]._replace(uid=made.uid)
    assert found == sorted(wanted)
    assert len(made.uid) == 32 and made.uid != make_uid(4)
    assert [p.read() for p in sorted(wanted)] == [p.read() for p in found]
    assert pairs[0].read() in {picture(n, (20 + n % 5, 18)) for n in range(5)}
    assert said == [f"2 shards of {folder} verified: 5 pairs"]
    assert index_folder(str(folder), tmp_path / "pairs", say=said.append) == path and len(said) == 1


def cut(path):
    path.write_bytes(path.read_bytes()[: -(-path.stat().st_size // 2 // 512) * 512])


def alter(path):
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)


def lie(path):
    """One sample less than the manifest says, in a whole shard whose size and sha256 it has."""
    manifest = path.parent / "manifest.json"
    known = json.loads(manifest.read_text())
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("a.txt")
        tar.addfile(info, BytesIO(b""))
    known["shards"][1] |= size_and_sha256(path)
    manifest.write_text(json.dumps(known))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut, r"00001.tar with bytes \d+; found \d+|00001.tar with sha256"),
        (alter, "00001.tar with sha256 .*; found .*; fix: the shard was cut or altered"),
        (lie, "00001.tar with samples 3; found 1"),
        (os.remove, "FileNotFoundError"),
        (lambda path: (path.parent / "manifest.json").unlink(), "without a manifest an export is not whole"),
        (lambda path: (path.parent / "manifest.json").write_text("{"), "JSONDecodeError"),
    ],
)
def test_a_shard_that_is_not_its_manifest_s_is_refused(tmp_path, damage, says):
    folder = export(tmp_path / "data", 6, per_shard=3)
    index_folder(str(folder), tmp_path / "pairs")
    damage(folder / "00001.tar")  # after it was verified once, too
    with pytest.raises(DataError, match=says):
        index_folder(str(folder), tmp_path / "pairs")


def test_members_that_python_would_run_are_bytes_that_nobody_reads(tmp_path):
    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    import pickle

    bad = pickle.dumps(Payload())
    folder = export(tmp_path / "data", 4, n1={"pyd": bad, "pkl": bad}, n2={"png": bad})
    pairs = Pairs.open(index_folder(str(folder), tmp_path / "pairs"))
    source = source_of(tmp_path, pairs)
    assert len(pairs) == 4
    assert len(batch(source, range(4))[0]) == 4
    assert list(source.bad) == [make_uid(2)] and not (tmp_path / "ran").exists()


ROWS = {"uid": [3, 1, 2, 1], "shard": ["b", "a", "b", "a"], "offset_bytes": [512, 0, 9, 0], "size_bytes": [1, 2, 3, 2]}


def write_rows(path, rows=ROWS, **changes):
    columns = dict(rows) | {"sha256": [None] * len(rows["uid"]), "text": [f"t{uid}" for uid in rows["uid"]]} | changes
    columns["uid"] = [bytes.fromhex(f"{uid:032x}") for uid in rows["uid"]]
    write_pointers(path, columns)
    return path


def test_pointers_come_in_uid_order_whatever_the_files(tmp_path):
    whole = Pairs.open(write_rows(tmp_path / "whole.arrow"))
    parts = tmp_path / "parts"
    parts.mkdir()
    for number, row in enumerate((2, 0, 3, 1)):
        write_rows(parts / f"part-{number}.arrow", {name: values[row : row + 1] for name, values in ROWS.items()})
    (parts / "manifest.json").write_text('{"num_rows": 4}')
    split = Pairs.open(parts)
    for pairs in (whole, split):
        assert [(int(p.uid, 16), *p[1:4], p.text) for p in (pairs[n] for n in range(4))] == [
            (1, "a", 0, 2, "t1"), (1, "a", 0, 2, "t1"), (2, "b", 9, 3, "t2"), (3, "b", 512, 1, "t3"),
        ]  # fmt: skip
    assert whole.content == split.content
    assert whole.content != Pairs.open(write_rows(tmp_path / "w", ROWS | {"offset_bytes": [0] * 4})).content
    (parts / "part-2.arrow").unlink()
    with pytest.raises(DataError, match=r"wanted 4 pairs in .*; found 3"):
        Pairs.open(parts)


def test_what_are_no_pointers_is_refused(tmp_path):
    table = pa.table({"uid": ["a"]})
    with pa.ipc.new_file(str(tmp_path / "x.arrow"), table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "y.arrow").write_bytes(b"no arrow")
    for name in ("x.arrow", "y.arrow", "z.arrow"):
        with pytest.raises(DataError, match=f"wanted pointers in .*{name}"):
            Pairs.open(tmp_path / name)


def test_a_range_that_is_not_there_is_named(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"0123456789")
    assert Pointer("", str(tmp_path / "a.tar"), 3, 4, None, "").read() == b"3456"
    with pytest.raises(DataError, match=r"wanted 4 bytes at 8 of .*a.tar; found 2"):
        Pointer("", str(tmp_path / "a.tar"), 8, 4, None, "").read()
    with pytest.raises(DataError, match=r"b\.tar; found FileNotFoundError"):
        Pointer("", str(tmp_path / "b.tar"), 0, 4, None, "").read()


def source_of(root, pairs, **options):
    folder = root / "encoder"
    if not folder.exists():
        tiny_encoder(folder)
    record = clip.EncoderRecord.read(folder)
    return PixelSource(pairs, record, clip.load_tokenizer(folder, record), **{"seed": 0} | options)


def batch(source, rows, positions=None):
    rows = np.array(rows)
    ((images, tokens),) = source.batches([Draw(rows, rows if positions is None else np.array(positions))], "cpu")
    return images, tokens


@pytest.fixture
def pairs(tmp_path):
    return Pairs.open(index_folder(str(export(tmp_path / "data")), tmp_path / "pairs"))


def test_a_batch_is_pixels_as_the_encoder_sees_them_and_the_tokens_of_the_captions(tmp_path, pairs):
    source = source_of(tmp_path, pairs)
    images, tokens = batch(source, range(40))
    record = clip.EncoderRecord.read(tmp_path / "encoder")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (record.preprocessing.mean, record.preprocessing.std))
    for row in range(40):
        pixels = torch.from_numpy(preprocess(pairs[row].read(), record.preprocessing))
        torch.testing.assert_close(images[row] * std + mean, pixels / 255, atol=1e-5, rtol=0)
    wanted = clip.load_tokenizer(tmp_path / "encoder", record)([pairs[row].text for row in range(40)])
    assert (images.shape, images.dtype) == ((40, 3, SIDE_PX, SIDE_PX), torch.float32)
    assert torch.equal(tokens, wanted)


def test_a_batch_follows_from_its_draw_alone(tmp_path, pairs):
    """Whatever the threads, and whether the run began at the first step or was resumed."""
    recipe = Recipe(steps=9, batch_size=20, lr=1, warmup_steps=0, weight_decay=0, seed=3)
    one = source_of(tmp_path, pairs, augmentation=Augmentation(mirror_probability=0.5, grey_probability=0.5))
    many = source_of(tmp_path, pairs, augmentation=one._augmentation, num_threads=3, batches_ahead=4)
    every = list(one.batches(draws(40, recipe), "cpu"))
    resumed = list(many.batches(draws(40, recipe, 5), "cpu"))
    assert len(every) == 9 and len(resumed) == 4
    for ours, theirs in zip(every[5:], resumed, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_augmentation_of_a_pair_is_another_at_every_position_and_with_every_seed(tmp_path, pairs):
    def images(seed, positions):
        return batch(source_of(tmp_path, pairs, augmentation=Augmentation(), seed=seed), [7, 7], positions)[0]

    first = images(0, [0, 40])
    assert torch.equal(first, images(0, [0, 40]))
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], images(1, [0, 40])[0])


def test_probabilities_of_one_mirror_and_grey_everything(tmp_path, pairs):
    still = {"crop_area": (1.0, 1.0), "crop_ratio": (0.5, 2.0)}
    plain, changed = (
        batch(source_of(tmp_path, pairs, augmentation=Augmentation(**still, **more)), [0])[0][0]
        for more in ({}, {"mirror_probability": 1.0})
    )
    torch.testing.assert_close(changed, plain.flip(-1), atol=1e-6, rtol=0)
    grey = batch(source_of(tmp_path, pairs, augmentation=Augmentation(**still, grey_probability=1.0)), [0])[0][0]
    record = clip.EncoderRecord.read(tmp_path / "encoder").preprocessing
    levels = grey * torch.tensor(record.std).view(3, 1, 1) + torch.tensor(record.mean).view(3, 1, 1)
    assert torch.allclose(levels[0], levels[1], atol=1e-5) and torch.allclose(levels[0], levels[2], atol=1e-5)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 2**32), st.floats(0.05, 1), st.floats(0.3, 3))
def test_a_crop_lies_within_its_image_and_has_the_area_and_ratio_that_were_asked_for(height, width, seed, area, ratio):
    config = Augmentation(crop_area=(area, area), crop_ratio=(ratio, ratio))
    top, left, h, w = crop_box(height, width, config, np.random.default_rng(seed))
    assert 0 <= top <= top + h <= height and 0 <= left <= left + w <= width and h and w
    exact_w, exact_h = (area * height * width * ratio) ** 0.5, (area * height * width / ratio) ** 0.5
    if 1 <= exact_w <= width and 1 <= exact_h <= height:
        assert abs(w - exact_w) <= 0.5 and abs(h - exact_h) <= 0.5
    elif exact_w > width + 0.5 or exact_h > height + 0.5:  # the fallback: as large as the ratio allows
        assert w == width or h == height


def test_crops_are_drawn_as_torchvision_draws_them():
    """Means of area, ratio and place over two thousand crops each."""
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    image, config = torch.empty(3, 300, 200), Augmentation(crop_area=(0.2, 1.0))
    theirs = [RandomResizedCrop.get_params(image, list(config.crop_area), list(config.crop_ratio)) for _ in range(2000)]
    ours = [crop_box(300, 200, config, np.random.default_rng([0, n])) for n in range(2000)]
    spread = np.std(theirs, axis=0)
    assert (np.abs(np.mean(ours, axis=0) - np.mean(theirs, axis=0)) < 0.15 * spread).all()
    assert np.abs(np.std(ours, axis=0) - spread).max() < 0.1 * spread.max()


def test_a_broken_picture_costs_its_own_place(tmp_path):
    good = Pairs.open(index_folder(str(export(tmp_path / "good", 8)), tmp_path / "pairs"))
    at = next(row for row in range(8) if good[row].uid == make_uid(5))
    broken = export(tmp_path / "broken", 8, n5={"png": b"no picture"})
    source = source_of(tmp_path, Pairs.open(index_folder(str(broken), tmp_path / "pairs")))
    images, tokens = batch(source, [at, 0])
    wanted = batch(source_of(tmp_path, good), [(at + 1) % 8, 0])
    assert torch.equal(images, wanted[0]) and torch.equal(tokens, wanted[1])
    assert source.bad == {make_uid(5): "not_an_image: the bytes are unknown"}


def test_a_picture_that_changed_since_it_was_ingested_is_not_trained_on(tmp_path, pairs):
    rows = [pairs[row] for row in range(4)]
    hashes = [sha256_hex(row.read()) for row in rows]
    hashes[1] = hashes[0]
    columns = {name: [getattr(row, name) for row in rows] for name in Pointer._fields}
    columns |= {"uid": [bytes.fromhex(row.uid) for row in rows], "sha256": [bytes.fromhex(h) for h in hashes]}
    write_pointers(tmp_path / "p.arrow", columns)
    source = source_of(tmp_path, Pairs.open(tmp_path / "p.arrow"))
    batch(source, range(4))
    assert source.bad == {rows[1].uid: "read_error: its bytes are not those that were ingested"}


def test_too_many_broken_pictures_end_the_run(tmp_path):
    broken = {f"n{n}": {"png": b"no picture"} for n in range(30)}
    pairs = Pairs.open(index_folder(str(export(tmp_path / "d", 40, **broken)), tmp_path / "pairs"))
    with pytest.raises(DataError, match=r"at most 5% of the pairs broken; found 21 of \d+ .*not_an_image"):
        batch(source_of(tmp_path, pairs), range(40))


def test_the_ranks_shares_are_the_batch_and_positions_go_on(tmp_path):
    recipe = Recipe(steps=5, batch_size=6, lr=1, warmup_steps=0, weight_decay=0)
    whole = list(draws(10, recipe))
    shares = [list(draws(10, recipe, rank=rank, num_ranks=3)) for rank in range(3)]
    for step, draw in enumerate(whole):
        for field in ("rows_B", "positions_B"):
            parts = [getattr(share[step], field) for share in shares]
            assert np.concatenate(parts).tolist() == getattr(draw, field).tolist()
    assert np.concatenate([draw.positions_B for draw in whole]).tolist() == list(range(30))
    assert [d.positions_B.tolist() for d in draws(10, recipe, 3)] == [d.positions_B.tolist() for d in whole[3:]]


def test_with_replacement_every_draw_is_from_all(tmp_path):
    recipe = Recipe(steps=50, batch_size=100, lr=1, warmup_steps=0, weight_decay=0, with_replacement=True)
    rows = np.concatenate([draw.rows_B for draw in draws(100, recipe)])
    first = np.bincount(rows[:100], minlength=100)
    assert 55 < (first > 0).sum() < 72  # 1 - 1/e of them, 63
    assert np.bincount(rows, minlength=100).min() > 20  # 50 on average
    assert [d.rows_B.tolist() for d in draws(100, recipe, 48)] == [rows[4800:4900].tolist(), rows[4900:].tolist()]


def test_a_job_on_pointers_trains_as_one_on_the_export(tmp_path):
    from models.pretrain import run

    exported = run(job(tmp_path, "a", samples_seen=16))
    (index,) = (tmp_path / "a" / "pairs").glob("*.arrow")
    pointed = run(job(tmp_path, "b", samples_seen=16, data=str(index)))
    assert pointed["losses"] == exported["losses"] and len(exported["losses"]) == 2
