"""Writes evaluation sets in clip_benchmark's layout: what the tests evaluate on."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image


def write_set(
    folder: Path,
    samples: Sequence[Mapping[str, bytes]],
    *,
    kind: str = "",
    classes: Sequence[str] = (),
    templates: Sequence[str] = (),
    per_shard: int = 50,
) -> Path:
    """`samples`: extension -> bytes, of one key each."""
    (folder / "test").mkdir(parents=True)
    texts = {"dataset_type.txt": [kind] if kind else [], "classnames.txt": classes,
             "zeroshot_classification_templates.txt": templates}  # fmt: skip
    for name, lines in texts.items():
        if lines:
            (folder / name).write_text("".join(f"{line}\n" for line in lines))
    starts = range(0, len(samples), per_shard)
    (folder / "test" / "nshards.txt").write_text(f"{len(starts)}\n")
    for number, start in enumerate(starts):
        with tarfile.open(folder / "test" / f"{number}.tar", "w") as tar:
            for at, members in enumerate(samples[start : start + per_shard], start=start):
                for extension, data in members.items():
                    info = tarfile.TarInfo(f"s{at:07d}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder


def image_bytes(image: Image.Image, kind: str = "webp") -> bytes:
    """Lossless, as clip_benchmark's own writer makes them."""
    image.save(buffer := io.BytesIO(), kind, **({"lossless": True, "method": 0} if kind == "webp" else {}))
    return buffer.getvalue()


def from_corpus(corpus: Path, limit: int | None = None) -> list[tuple[bytes, str, str, str]]:
    """(image as lossless webp, caption, class or "", uid) of the samples of a public corpus, in its shards' order."""
    import json

    import pyarrow.parquet as pq

    table = pq.read_table(corpus / "labels.parquet").to_pylist()
    label_of = {row["uid"]: row["label"] for row in table}
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(corpus.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                found.setdefault(f"{path.name} {key}", {})[extension] = tar.extractfile(member).read()
    samples = []
    for members in list(found.values())[:limit]:
        picture = Image.open(io.BytesIO(next(members[kind] for kind in ("jpg", "png") if kind in members)))
        record = json.loads(members["json"])
        small = picture.convert("RGB")
        small.thumbnail((192, 192))
        samples.append((image_bytes(small), record["caption"], label_of.get(record["uid"], ""), record["uid"]))
    return samples
