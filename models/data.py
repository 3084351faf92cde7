"""Stored vectors of a dataset, memory-mapped.

`etl.encode.vectors` writes them: a folder of Arrow IPC files `part-*.arrow`, a row a pair, with columns uid (string),
image and text (binary, little-endian float16), and optionally caption (string) and text_hash. Of the vectors only what
is asked for is read.

Dimensions: N pairs, B rows of a batch, D dimensions of a vector (I image, T text).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

UID_DTYPE = np.dtype([("f0", "<u8"), ("f1", "<u8")])
"""DataComp's `u8,u8`: the first and the last 16 hex digits of a uid, as numbers. Sorts as the hex does."""

Uids = NDArray[Any]
Float16 = NDArray[np.float16]
Indices = NDArray[np.int64]


def uid_to_u8(uids: Sequence[str]) -> Uids:
    """Uids of 32 lower-case hex digits as an array of UID_DTYPE, same order.

    Raises:
        ValueError: something else than a uid.
    """
    joined = "".join(uids)
    if not re.fullmatch("[0-9a-f]*", joined) or any(len(uid) != 32 for uid in uids):
        bad = next(uid for uid in uids if not re.fullmatch("[0-9a-f]{32}", uid))
        raise ValueError(f"wanted uids of 32 lower-case hex digits; found {bad[:64]!r}")
    return np.frombuffer(bytes.fromhex(joined), ">u8").astype("<u8").view(UID_DTYPE)


def u8_to_uid(uids_N: Uids) -> list[str]:
    """The inverse of `uid_to_u8`."""
    return [f"{high:016x}{low:016x}" for high, low in uids_N.tolist()]


def open_npy(path: Path) -> NDArray[Any]:
    """The array of an `.npy` file, memory-mapped. Never unpickles.

    Raises:
        ValueError: no such file, or one that is no `.npy` of plain numbers.
    """
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise ValueError(f"wanted an .npy file; found {path}: {error.strerror or error}") from None
    except (ValueError, EOFError, BadZipFile):  # numpy's text advises to unpickle it
        raise ValueError(f"wanted an .npy file of plain numbers; found another kind of file: {path}") from None
    if not isinstance(found, np.ndarray):
        found.close()
        raise ValueError(f"wanted an .npy file; found an archive: {path}")
    return found


def read_uids(path: Path) -> Uids:
    """A uid list as DataComp publishes them: `.npy`, dtype `u8,u8`, memory-mapped. Never unpickles.

    Raises:
        ValueError: another dtype or shape, or no `.npy` file of plain numbers.
    """
    uids_N = open_npy(path)
    if uids_N.dtype != UID_DTYPE or uids_N.ndim != 1:
        raise ValueError(f"wanted a list of dtype {UID_DTYPE}; found {uids_N.dtype}, shape {uids_N.shape}: {path}")
    return uids_N


@dataclass(frozen=True)
class _Column:
    """Vectors in the files' order, a view (rows of one file, shape ND) a record batch."""

    views: list[Float16]
    starts: Indices

    @classmethod
    def of(cls, table: pa.Table, name: str) -> Self:
        chunks = [chunk for chunk in table.column(name).chunks if len(chunk)]
        views = [_view(chunk, name) for chunk in chunks]
        if len({view.shape[1] for view in views}) > 1:
            raise ValueError(f"wanted {name} vectors of one length; found {sorted({v.shape[1] for v in views})}")
        return cls(views, np.cumsum([0] + [len(view) for view in views[:-1]]))

    def take(self, rows_B: Indices) -> Float16:
        """Shape BD, in the order asked for."""
        vectors_BD = np.empty((len(rows_B), self.views[0].shape[1]), np.float16)
        view_of_B = np.searchsorted(self.starts, rows_B, side="right") - 1
        for i in np.unique(view_of_B):
            in_view = view_of_B == i
            vectors_BD[in_view] = self.views[i][rows_B[in_view] - self.starts[i]]
        return vectors_BD


def _view(chunk: pa.Array, name: str) -> Float16:
    """The chunk's own memory as float16, shape ND.

    Raises:
        ValueError: a NULL, or vectors of several lengths.
    """
    if chunk.null_count:
        raise ValueError(f"wanted a vector in every row; found {chunk.null_count} NULL in {name}; fix: export ok rows")
    if pa.types.is_fixed_size_binary(chunk.type):
        width, start = chunk.type.byte_width, chunk.offset * chunk.type.byte_width
        data = chunk.buffers()[1]
    else:
        offset_type = np.int64 if pa.types.is_large_binary(chunk.type) else np.int32
        offsets = np.frombuffer(chunk.buffers()[1], offset_type)[chunk.offset : chunk.offset + len(chunk) + 1]
        width, start = int(offsets[1] - offsets[0]), int(offsets[0])
        data = chunk.buffers()[2]
        if (np.diff(offsets) != width).any() or width % 2:
            raise ValueError(f"wanted {name} vectors of one length in float16; found several lengths")
    values = np.frombuffer(data, "<f2", count=len(chunk) * width // 2, offset=start)
    return values.reshape(len(chunk), width // 2)


class Vectors:
    """Pairs of stored vectors, ordered by uid whatever the order in the files."""

    def __init__(
        self, table: pa.Table, image_rows_N: Indices, uids_N: Uids, text_rows_N: Indices | None = None
    ) -> None:
        self.uids_u8 = uids_N
        """dtype UID_DTYPE, ascending."""
        self._table, self._image_rows_N = table, image_rows_N
        self._text_rows_N = image_rows_N if text_rows_N is None else text_rows_N
        self._image, self._text = _Column.of(table, "image"), _Column.of(table, "text")

    def __len__(self) -> int:
        return len(self.uids_u8)

    def take(self, indices_B: Indices) -> Self:
        """Some of the pairs, by their positions here, which rise."""
        return self.re_paired(indices_B, indices_B, indices_B)

    def re_paired(self, indices_B: Indices, images_B: Indices, texts_B: Indices) -> Self:
        """The pairs at `indices_B`, which rise, under their uids, with the images and the captions of other rows:
        planted noise without a copy of a vector. Positions in uid order, shape B each."""
        return type(self)(
            self._table, self._image_rows_N[images_B], self.uids_u8[indices_B], self._text_rows_N[texts_B]
        )

    @classmethod
    def open(cls, folder: Path, uids: Uids | None = None) -> Self:
        """Maps a folder of parts.

        Args:
            uids: only these pairs (UID_DTYPE, any order); a uid given twice gives two rows. None: all.

        Raises:
            FileNotFoundError: the folder has no part.
            ValueError: no rows, a uid twice in the files, a uid asked for that is not there, or broken vectors.
        """
        paths = sorted(folder.glob("part-*.arrow"))
        if not paths:
            raise FileNotFoundError(f"wanted part-*.arrow in {folder}; found none; fix: export its vectors first")
        table = pa.concat_tables([_map_file(path) for path in paths])
        stored = uid_to_u8(table.column("uid").to_pylist())
        order = np.lexsort((stored["f1"], stored["f0"]))
        sorted_uids = stored[order]
        if len(stored) == 0:
            raise ValueError(f"wanted pairs to train on or evaluate; found none in {folder}")
        if (twice := sorted_uids[1:] == sorted_uids[:-1]).any():
            raise ValueError(
                f"wanted each uid once in {folder}; found twice: {u8_to_uid(sorted_uids[1:][twice][:1])[0]}"
            )
        if uids is None:
            return cls(table, order, sorted_uids)
        wanted = np.sort(uids)
        at = np.minimum(np.searchsorted(sorted_uids, wanted), len(sorted_uids) - 1)
        if (missing := sorted_uids[at] != wanted).any():
            raise ValueError(
                f"wanted {len(wanted)} uids of {folder}; found {int(missing.sum())} of them missing, "
                f"such as {u8_to_uid(wanted[missing][:1])[0]}; fix: export the vectors of the whole selection"
            )
        return cls(table, order[at], wanted)

    @property
    def image_dim(self) -> int:
        return int(self._image.views[0].shape[1])

    @property
    def text_dim(self) -> int:
        return int(self._text.views[0].shape[1])

    def images(self, indices_B: Indices) -> Float16:
        """Image vectors of these rows (positions in uid order), float16, shape BI."""
        return self._image.take(self._image_rows_N[indices_B])

    def texts(self, indices_B: Indices) -> Float16:
        """Text vectors of these rows, float16, shape BT."""
        return self._text.take(self._text_rows_N[indices_B])

    @cached_property
    def image_NI(self) -> Float16:  # noqa: N802
        """All image vectors, copied to memory: for what fits there."""
        return self._image.take(self._image_rows_N)

    @cached_property
    def text_NT(self) -> Float16:  # noqa: N802
        """All text vectors, copied to memory."""
        return self._text.take(self._text_rows_N)

    @cached_property
    def uids(self) -> list[str]:
        return u8_to_uid(self.uids_u8)

    @cached_property
    def captions(self) -> list[str]:
        """In the order of the rows.

        Raises:
            ValueError: the files have no captions.
        """
        if "caption" not in self._table.column_names:
            raise ValueError("wanted a column caption, to tell equal captions; found none; fix: export with captions")
        captions: list[str] = self._table.column("caption").take(pa.array(self._text_rows_N)).to_pylist()
        return captions


def _map_file(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def write_part(
    path: Path, uids: Sequence[str], image_NI: Float16, text_NT: Float16, captions: Sequence[str] | None = None
) -> None:
    """Writes one `part-*.arrow` of a folder that `Vectors.open` reads."""
    columns: dict[str, pa.Array] = {"uid": pa.array(uids, pa.string())}
    for name, vectors_ND in (("image", image_NI), ("text", text_NT)):
        data = np.ascontiguousarray(vectors_ND, "<f2")
        buffers = [None, pa.py_buffer(data)]
        columns[name] = pa.Array.from_buffers(pa.binary(data.shape[1] * 2), len(data), buffers)
    if captions is not None:
        columns["caption"] = pa.array(captions, pa.string())
    table = pa.table(columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
