"""Stored vectors, whatever the files' order, and the order of training, which has no state."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data import UID_DTYPE, Vectors, _view, read_uids, u8_to_uid, uid_to_u8, write_part
from models.order import batches

UIDS = [hashlib.md5(str(i).encode()).hexdigest() for i in range(7)]
IMAGES = np.arange(21, dtype=np.float16).reshape(7, 3)
TEXTS = -np.arange(14, dtype=np.float16).reshape(7, 2)
CAPTIONS = [f"caption {i}" for i in range(7)]
ORDER = sorted(range(7), key=UIDS.__getitem__)


def write(folder, *parts):
    for number, rows in enumerate(parts):
        write_part(
            folder / f"part-{number}.arrow",
            [UIDS[i] for i in rows],
            IMAGES[rows],
            TEXTS[rows],
            [CAPTIONS[i] for i in rows],
        )
    return folder


def test_rows_come_in_uid_order_whatever_the_files(tmp_path):
    wanted = ([UIDS[i] for i in ORDER], IMAGES[ORDER].tolist(), TEXTS[ORDER].tolist(), [CAPTIONS[i] for i in ORDER])
    for name, parts in {"a": [[0, 1, 2, 3, 4, 5, 6]], "b": [[6, 2], [], [4, 0, 5, 1], [3]]}.items():
        vectors = Vectors.open(write(tmp_path / name, *parts))
        assert (vectors.uids, vectors.image_NI.tolist(), vectors.text_NT.tolist(), vectors.captions) == wanted
        assert (len(vectors), vectors.image_dim, vectors.text_dim) == (7, 3, 2)
        assert vectors.images(np.array([5, 0, 5])).tolist() == IMAGES[ORDER][[5, 0, 5]].tolist()


def test_a_subset_by_a_uid_list_as_datacomp_publishes_it(tmp_path):
    halves = [(int(UIDS[i][:16], 16), int(UIDS[i][16:], 16)) for i in (4, 1, 4)]
    np.save(tmp_path / "uids.npy", np.array(halves, np.dtype("u8,u8")))
    vectors = Vectors.open(write(tmp_path / "v", [0, 1, 2], [3, 4, 5, 6]), read_uids(tmp_path / "uids.npy"))
    wanted = sorted((1, 4, 4), key=UIDS.__getitem__)
    assert (vectors.uids, vectors.image_NI.tolist()) == ([UIDS[i] for i in wanted], IMAGES[wanted].tolist())
    assert vectors.captions == [CAPTIONS[i] for i in wanted]


@pytest.mark.parametrize("binary", [pa.binary(), pa.large_binary(), pa.binary(6)], ids=str)
def test_every_binary_type_and_slices_of_it(tmp_path, binary):
    data = [row.tobytes() for row in IMAGES]
    table = pa.table({"uid": UIDS, "image": pa.array(data, binary), "text": pa.array(data, pa.binary())})
    with pa.ipc.new_file(str(tmp_path / "part-0.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
        writer.write_table(table.slice(7))
    assert Vectors.open(tmp_path).image_NI.tolist() == IMAGES[ORDER].tolist()
    assert _view(pa.array(data, binary)[2:6], "image").tolist() == IMAGES[2:6].tolist()


def parts_with(image):
    return pa.table({"uid": UIDS[:2], "image": image, "text": [b"abcd", b"abcd"]})


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (parts_with([b"abcd", None]), "1 NULL in image"),
        (parts_with([b"abcd", b"abcdef"]), "several lengths"),
        (parts_with([b"abc", b"abc"]), "float16"),
        (pa.table({"uid": UIDS[:1] * 2, "image": [b"ab"] * 2, "text": [b"ab"] * 2}), "twice: " + UIDS[0]),
        (pa.table({"uid": ["A" * 32], "image": [b"ab"], "text": [b"ab"]}), "lower-case hex"),
        (parts_with([b"abcd", b"abcd"]).slice(0, 0), "found none"),
    ],
)
def test_broken_vectors_are_refused(tmp_path, table, says):
    with pa.ipc.new_file(str(tmp_path / "part-0.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ValueError, match=says):
        Vectors.open(tmp_path)


def test_missing_uids_files_and_captions_are_named(tmp_path):
    vectors = write(tmp_path / "v", [0, 1, 2])
    with pytest.raises(ValueError, match=f"2 uids.*1 of them missing, such as {UIDS[5]}"):
        Vectors.open(vectors, uid_to_u8([UIDS[0], UIDS[5]]))
    with pytest.raises(FileNotFoundError, match=r"part-\*.arrow"):
        Vectors.open(tmp_path)
    write_part(tmp_path / "w" / "part-0.arrow", UIDS, IMAGES, TEXTS)
    with pytest.raises(ValueError, match="caption"):
        _ = Vectors.open(tmp_path / "w").captions


def test_a_pickled_npy_is_refused_and_its_payload_does_not_run(tmp_path):
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(marker),))

    np.save(tmp_path / "bad.npy", np.array([Payload()], object), allow_pickle=True)
    with pytest.raises(ValueError, match="of plain numbers"):
        read_uids(tmp_path / "bad.npy")
    np.save(tmp_path / "float.npy", np.zeros(3))
    with pytest.raises(ValueError, match="float64"):
        read_uids(tmp_path / "float.npy")
    assert not marker.exists()


@given(st.lists(st.binary(min_size=16, max_size=16).map(bytes.hex)))
def test_uids_survive_the_round_trip_and_sort_as_their_hex(uids):
    array = uid_to_u8(uids)
    assert array.dtype == UID_DTYPE
    assert array.tolist() == [(int(uid[:16], 16), int(uid[16:], 16)) for uid in uids]
    assert u8_to_uid(np.sort(array)) == sorted(uids)


@pytest.mark.parametrize("bad", ["0" * 31, "0" * 33, "G" * 32, "A" * 32, "0" * 31 + " ", ""])
def test_what_is_no_uid_is_refused(bad):
    with pytest.raises(ValueError, match="32 lower-case hex"):
        uid_to_u8(["0" * 32, bad])


@given(st.integers(1, 20), st.integers(1, 30), st.integers(1, 12), st.integers(0, 2**32), st.data())
def test_each_epoch_is_a_fresh_permutation_and_any_step_can_be_resumed_at(num_rows, batch_size, steps, seed, data):
    every = list(batches(num_rows, batch_size, steps, seed))
    assert [len(rows) for rows in every] == [batch_size] * steps
    stream = np.concatenate(every)
    for epoch in range(len(stream) // num_rows):
        assert sorted(stream[epoch * num_rows : (epoch + 1) * num_rows]) == list(range(num_rows))
    start = data.draw(st.integers(0, steps))
    assert [rows.tolist() for rows in batches(num_rows, batch_size, steps, seed, start)] == [
        rows.tolist() for rows in every[start:]
    ]


def test_the_order_depends_on_seed_and_epoch():
    epochs = np.concatenate(list(batches(100, 100, 2, seed=1)))
    other = next(batches(100, 100, 1, seed=2))
    assert len({tuple(epochs[:100]), tuple(epochs[100:]), tuple(other)}) == 3


def test_data_and_filters_do_not_import_torch():
    code = "import models.data, models.filters, sys; assert not {'torch', 'open_clip', 'pyspark'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
