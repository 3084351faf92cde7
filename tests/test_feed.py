"""The pass without Spark: blocks in order, full batches, windows, timings; what crashes or fails costs one row."""

import os
import signal
import threading
from functools import partial

import numpy as np
import pandas as pd
import pytest
from helpers import picture, places, write_shard
from hypothesis import example, given, settings
from hypothesis import strategies as st

import etl.encode.lanes
from etl.encode.crash import ChildDecoder
from etl.encode.feed import Feed, Row
from etl.encode.gpu import decode_for
from etl.encode.lanes import TIMINGS, InvalidOutputError, Lane, run_pass
from models.images import ImageError


class Shades:
    """A reader whose results can be foretold: a decoded image is (shade,), its result 10 x shade, per caption."""

    columns = ("value", "label")

    def __init__(self, batch_size: int, invalid=()) -> None:
        self.batch_size, self.batches, self.windows, self._invalid = batch_size, [], [], set(invalid)
        self.num_oom_halvings = 3  # of an earlier task

    def encode(self, images):
        self.batches.append(len(images))
        self.num_oom_halvings += images[0] == 0
        return [10 * image for image in images]

    def finish(self, results, texts):
        self.windows.append(len(texts))
        bad = [text in self._invalid for text in texts]
        return {
            "value": [None if b else r for r, b in zip(results, bad, strict=True)],
            "label": texts,
            "status": ["invalid_output" if b else "ok" for b in bad],
            "status_reason": [None] * len(texts),
        }


def decode_shade(data: bytes):
    if data == b"bad":
        raise ImageError("decode_error", "cut")
    return (int(data), -int(data))


def rows_of(files):
    return [Row(None if file is None else str(file).encode(), f"caption {n}") for n, file in enumerate(files)]


def run(files, *readers, window=8, block_rows=4, threads=2, max_invalid_fraction=1.0):
    lanes = [Lane(r, on_batch=lambda _: None, max_invalid_fraction=max_invalid_fraction) for r in readers]
    feed = Feed(decode_shade, threads=threads, block_rows=block_rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(etl.encode.lanes, "WINDOW_ROWS", window)
        windows = list(run_pass(feed, lanes, iter(rows_of(files))))
    frames = [pd.concat([w[0][n] for w in windows], ignore_index=True) if windows else None for n in range(len(lanes))]
    return frames, windows


def expected(files, sign=1):
    rows = []
    for n, file in enumerate(files):
        if file is None:
            rows.append((None, None, "no_vectors", "the pair has no pixels"))
        elif file == "bad":
            rows.append((None, None, "decode_error", "cut"))
        else:
            rows.append((sign * 10 * file, f"caption {n}", "ok", None))
    return rows


def test_rows_come_back_in_order_whatever_the_sizes():
    @settings(max_examples=60, deadline=None)
    @example([*range(40)], 4, 9, 1, 1, 1)  # one lane waits for its batch while the other's rows leave
    @given(
        st.lists(st.one_of(st.integers(0, 99), st.just("bad"), st.none()), max_size=70),
        st.integers(1, 9), st.integers(1, 9), st.integers(1, 20), st.integers(1, 7), st.integers(1, 3),
    )  # fmt: skip
    def check(files, first, second, window, block_rows, threads):
        readers = Shades(first), Signed(second)
        frames, windows = run(files, *readers, window=window, block_rows=block_rows, threads=threads)
        if not files:
            assert frames == [None, None]
            return
        assert list(frames[0].itertuples(index=False, name=None)) == expected(files)
        assert list(frames[1].itertuples(index=False, name=None)) == expected(files, sign=-1)
        num_images = sum(isinstance(file, int) for file in files)
        for reader in readers:
            assert sum(reader.batches) == num_images
            assert all(n == reader.batch_size for n in reader.batches[:-1]), "a batch was not full"
        assert all(len(frame) >= window for w in windows[:-1] for frame in w[0])

    class Signed(Shades):
        """The second reader takes the second thing that was decoded."""

    check()


def test_timings_stand_in_the_first_row_of_a_window_and_add_up():
    (frame,), windows = run([*range(39), 0], Shades(1))
    assert len(windows) > 1
    for _, timings in windows:
        assert list(timings.columns) == list(TIMINGS)
        assert (timings.iloc[1:] == 0).all(axis=None)
        assert (timings >= 0).all(axis=None)
    assert sum(len(timings) for _, timings in windows) == len(frame) == 40
    assert sum(timings["model_seconds"].sum() for _, timings in windows) > 0
    assert [timings["num_oom_halvings"].sum() for _, timings in windows if timings["num_oom_halvings"].any()] == [1, 1]


def test_only_so_many_blocks_are_in_flight():
    read, most = [], []

    def rows():
        for n in range(400):
            read.append(n)
            yield Row(str(n).encode(), "")

    for done, _ in enumerate(Feed(decode_shade, threads=1, block_rows=4).blocks(rows())):
        most.append(len(read) - 4 * (done + 1))
    assert max(most) <= 4 * (2 * 1 + 2)


def test_decoding_runs_in_as_many_threads_as_told():
    names = set()
    meet = threading.Barrier(3, timeout=20)

    def decode(data):
        names.add(threading.current_thread().name)
        if int(data) < 3:
            meet.wait()
        return (int(data),)

    blocks = list(Feed(decode, threads=3, block_rows=1).blocks(rows_of(range(9))))
    assert [block.images for block in blocks] == [[(n,)] for n in range(9)]
    assert len(names) == 3


def test_a_model_that_gives_too_much_invalid_output_stops_the_run():
    files = list(range(300))
    few, many = ([f"caption {n}" for n in range(0, 300, step)] for step in (30, 2))
    (frame,), _ = run(files, Shades(8, few), window=100, max_invalid_fraction=0.1)
    assert (frame["status"] == "invalid_output").sum() == len(few)
    with pytest.raises(InvalidOutputError, match=r"for at most 10.0% of rows; found 1\d\d of 2\d\d"):
        run(files, Shades(8, many), window=100, max_invalid_fraction=0.1)


def test_pointers_are_read_in_few_ranges_and_one_bad_one_costs_no_other(tmp_path, monkeypatch):
    shard = tmp_path / "0.tar"
    write_shard(shard, {f"{n}": {"txt": str(n).encode()} for n in range(20)})
    at = [places(shard)[f"{n}.txt"] for n in range(20)]
    rows = [Row((str(shard), *place), "") for place in at]
    rows[7] = Row((str(shard), 10**8, 5), "")
    rows[11] = Row((str(tmp_path / "none.tar"), 0, 5), "")
    ranges = []
    from etl.tar import RangeReader

    original = RangeReader._read_up_to
    monkeypatch.setattr(RangeReader, "_read_up_to", lambda *a: ranges.append(a[1:]) or original(*a))
    (block,) = Feed(decode_shade, threads=1).blocks(rows)
    found = [image if isinstance(image, tuple) else image.status for image in block.images]
    assert found == [
        {7: "read_error", 11: "read_error"}.get(n, (n, -n)) for n in range(20)
    ]  # fmt: skip
    assert len(ranges) == 5  # three runs of neighbours, and the two that fail


def crash_on(data: bytes, *, victim: bytes):
    if data == victim:
        os.kill(os.getpid(), signal.SIGSEGV)
    return decode_for(data, prepares=(np.asarray,), max_pixels=10**6)


def test_a_crash_of_the_decoder_costs_one_row():
    files = [picture(n) for n in range(6)] + [b"<html>"]
    child = ChildDecoder(partial(crash_on, victim=files[2]))
    try:
        blocks = list(Feed(child, threads=1, block_rows=3).blocks(Row(file, "") for file in files))
    finally:
        child.close()
    found = [image for block in blocks for image in block.images]
    assert [f.status if isinstance(f, ImageError) else "ok" for f in found] == [
        "ok", "ok", "decoder_crash", "ok", "ok", "ok", "not_an_image"
    ]  # fmt: skip
    assert found[2].reason == "the decoder died: exit code -11"
    wanted = [decode_for(file, prepares=(np.asarray,), max_pixels=10**6)[0] for file in files[:6]]
    assert all(np.array_equal(f[0], w) for f, w in zip(found[:6], wanted, strict=True) if isinstance(f, tuple))


@pytest.mark.slow
def test_the_child_ends_with_its_parent_and_on_close():
    child = ChildDecoder(decode_for_sizes)
    assert child(picture())[0].shape == (3, 6, 8)
    process = child._child
    child.close()
    assert process.poll() is not None


def decode_for_sizes(data: bytes):
    return decode_for(data, prepares=(np.asarray,), max_pixels=10**6)
