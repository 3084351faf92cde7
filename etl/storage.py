"""Files by URL, on disks and object stores: options for fsspec, and reads by range. Touches fsspec's config, and files.

Credentials come from where each file system looks for them itself (environment, profile, instance role), on the driver
and on executors. Options and URLs that hold one are refused, so that none can reach a log, a history or a receipt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import IO, Annotated, Any, TypeVar

import fsspec
import pydantic
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

Batches = TypeVar("Batches")

SECRET = re.compile(r"secret|password|passwd|token|credential|signature|(^|_)sas(_|$)|(^|_)key($|_(?!path|file))", re.I)
"""Names of options that hold one: key, secret and token of S3, account_key and sas_token of Azure, and their like."""
SECRET_IN_URL = re.compile(
    r"^[^/]*://[^/@]*:[^/@]*@|[?&][^=&]*(sig|signature|token|key|secret|credential)[^=&]*=", re.I
)
"""A password before the host, or a signed query."""
FIX = "fix: the environment, a profile or an instance role, where the file system looks for credentials"
_first: dict[str, dict[str, Any]] | None = None
"""fsspec's own configuration: what its environment variables and files said."""


def _no_secret_options(storage: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
    for protocol, options in storage.items():
        if bad := next((name for name in _names(options) if SECRET.search(name)), None):
            raise ValueError(f"wanted options without credentials; found {protocol}.{bad}; {FIX}")
        for value in options.values():
            _no_secret_url(str(value))
    return storage


def _names(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        yield name
        yield from _names(value) if isinstance(value, Mapping) else ()


def _no_secret_url(url: str) -> str:
    if SECRET_IN_URL.search(url):
        raise ValueError(f"wanted a URL without credentials; found some in it; {FIX}")
    return url


def is_readable(url: str) -> str:
    protocol = url.partition("://")[0] if "://" in url else "file"
    try:
        fsspec.get_filesystem_class(protocol.rpartition("::")[2])
    except (ImportError, ValueError) as error:
        extra = "; fix: pip install 'dfn-etl[s3]'" if protocol in ("s3", "s3a") else ""
        raise ValueError(f"wanted a kind of URL that fsspec reads; found {protocol}://: {error}{extra}") from None
    return url


Options = Annotated[dict[str, dict[str, Any]], pydantic.AfterValidator(_no_secret_options)]
"""Protocol -> options of its file system, such as {s3: {endpoint_url: ..., anon: true}}."""
NoSecret = Annotated[str, pydantic.AfterValidator(_no_secret_url)]
Files = Annotated[NoSecret, pydantic.AfterValidator(is_readable)]
"""A path or a URL of a file system that is installed here."""


def use(storage: Mapping[str, Mapping[str, Any]]) -> None:
    """From here on, in this process, file systems get these options over fsspec's own configuration."""
    global _first
    conf = fsspec.config.conf
    _first = deepcopy(conf) if _first is None else _first
    conf.clear()
    conf.update(deepcopy(_first))
    for protocol, options in storage.items():
        conf[protocol] = {**conf.get(protocol, {}), **deepcopy(dict(options))}


def with_storage(
    function: Callable[[Iterator[Batches]], Iterator[Batches]], storage: Mapping[str, Mapping[str, Any]]
) -> Callable[[Iterator[Batches]], Iterator[Batches]]:
    """`function`, for executors, which know nothing of what the driver `use`s."""

    def on_executor(batches: Iterator[Batches]) -> Iterator[Batches]:
        use(storage)
        return function(batches)

    return on_executor


def open_ranges(uri: str, ahead_bytes: int = 0) -> IO[bytes]:
    """A file to read parts of. On an object store a read is a request for its range, and for `ahead_bytes` more.

    fsspec's default would ask for some 50 MB more, most of them of columns that nobody wants.
    """
    files, path = url_to_fs(uri)
    if isinstance(files, LocalFileSystem):
        return files.open(path, "rb")  # type: ignore[no-any-return]
    how = {"cache_type": "readahead", "block_size": ahead_bytes} if ahead_bytes else {"cache_type": "none"}
    return files.open(path, "rb", **how)  # type: ignore[no-any-return]


def folder_of(pattern: str) -> str:
    """The folder before the first wildcard of a glob: what `shard` is relative to, spelt as the glob's results are."""
    files, path = url_to_fs(pattern)
    folder = re.split(r"[*?\[]", path)[0].rpartition("/")[0]
    return folder if isinstance(files, LocalFileSystem) else str(files.unstrip_protocol(folder))
