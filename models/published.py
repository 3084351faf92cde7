"""Vectors that releases came with: whose they are, and how they are read out of the release's files. Knows no Spark.

DataComp (Gadre et al. 2023, arXiv 2304.14108) gives HEX.npz beside each HEX.parquet of its metadata: `b32_img`,
`b32_txt`, `l14_img`, `l14_txt`, float16; row i belongs to row i of the parquet file. An npz is a zip of npy files.

Dimensions: N rows, D of a vector.
"""

import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from models.records import PublishedRecord

MAX_HEADER_BYTES = 1 << 16
"""Of an npy file: what is before the numbers."""
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class Published(NamedTuple):
    """Vectors of a release."""

    record: PublishedRecord
    image_array: str
    """Name of the array in the npz, shape ND."""
    text_array: str


def _datacomp(short: str, model: str, dim: int) -> Published:
    record = PublishedRecord(
        name=f"datacomp_{short}",
        published_as=f"openai {model} as published with DataComp",
        image_dim=dim,
        text_dim=dim,
        shares_space=True,
        is_normalised=True,
    )
    return Published(record, f"{short}_img", f"{short}_txt")


PUBLISHED = {p.record.name: p for p in (_datacomp("b32", "ViT-B-32", 512), _datacomp("l14", "ViT-L-14", 768))}
"""Name -> vectors of a release that this project can read."""


class FeaturesError(Exception):
    """An npz that does not hold what it should. One line: what was wanted, what was found."""


def read_arrays(file: IO[bytes], dims: Mapping[str, int], num_rows: int, folder: Path) -> list[NDArray[Any]]:
    """The arrays of an npz, name -> D, mapped from copies in `folder`, so that no file is ever whole in memory.

    Each was read to its end, and held against the checksum, before a row of it is seen. Nothing is unpickled.

    Raises:
        FeaturesError: not an npz, cut or damaged, without an array, or with one of another shape or type.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return [_array(archive, name, (num_rows, dim), folder) for name, dim in dims.items()]
    except FeaturesError:
        raise
    except KeyError as error:
        raise FeaturesError(f"wanted arrays {', '.join(dims)}; {error.args[0]}") from error
    except Exception as error:  # zipfile, zlib and numpy raise as many kinds as there are ways to damage a file
        raise FeaturesError(f"{type(error).__name__}: {error}") from error


def _array(archive: zipfile.ZipFile, name: str, shape_ND: tuple[int, int], folder: Path) -> NDArray[Any]:
    info = archive.getinfo(f"{name}.npy")
    path = folder / name
    with archive.open(info) as member:
        read_header = HEADERS[npy.read_magic(member)]
        found, is_fortran, dtype = read_header(member)
        if dtype.kind != "f" or dtype.itemsize > 4:
            raise FeaturesError(f"{name}: wanted numbers of type float16; found {dtype}")
        if found != shape_ND:
            raise FeaturesError(f"{name}: wanted shape {shape_ND}, a row for each of the parquet file; found {found}")
        num_bytes = shape_ND[0] * shape_ND[1] * dtype.itemsize
        if not num_bytes <= info.file_size <= num_bytes + MAX_HEADER_BYTES:
            raise FeaturesError(f"{name}: wanted {num_bytes} bytes of numbers; found {info.file_size} in all")
        with path.open("wb") as copy:
            shutil.copyfileobj(member, copy, 1 << 20)
    if path.stat().st_size != num_bytes:
        raise FeaturesError(f"{name}: wanted {num_bytes} bytes of numbers; found {path.stat().st_size}")
    if not num_bytes:
        return np.empty(shape_ND, dtype)
    return np.memmap(path, dtype, "r", shape=shape_ND, order="F" if is_fortran else "C")
