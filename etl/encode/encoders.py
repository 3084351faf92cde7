"""The configured encoders as folders: fetched, built once, kept in the cache. Touches the cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from etl.cache import cache_folder
from etl.encode.encoder_config import EncoderConfig
from etl.samples import corpora
from etl.stage import UserError, digest
from models.canary import CANARIES
from models.published import PUBLISHED
from models.records import RECORD, EncoderRecord, Precision, VectorsRecord, whole_folder

FORMAT = 2
"""Raise it when a folder that was built before lacks something: it is then built anew."""
LATER_FIELDS = ("pretrained", "cache", "hub_folder", "sha256")
"""Not in the names of folders that were built before there were such fields."""


def naming(record: VectorsRecord, folder: Path) -> dict[str, Any]:
    """The fields by which a stage's config names an encoder."""
    return {"encoder": record.name, "encoder_version": record.version, "encoder_folder": folder}


def encoder_folder(config: EncoderConfig, say: Callable[[str], None]) -> tuple[VectorsRecord, Path]:
    """The record of the configured encoder and its folder, built once and kept in the cache.

    It holds the weights as well, but for published vectors.
    """
    if config.folder:
        return EncoderRecord.read(config.folder), config.folder
    cache = cache_folder() / "encoders"
    if config.published:
        record = PUBLISHED[config.published].record
        folder = cache / f"{record.name}-{record.version}"
        if not (folder / RECORD).exists():
            with whole_folder(folder) as new:
                record.write(new)
        return record, folder
    name = config.open_clip or (config.hub_folder.name if config.hub_folder else config.packages)
    unset = {key for key in LATER_FIELDS if getattr(config, key) is None}
    out = cache / f"{name}-{digest(FORMAT, config.model_dump(mode='json', exclude={'published'} | unset))[:12]}"
    if not (out / CANARIES).exists():
        say(f"building encoder {name}")
        _build(config, out, say)
    return EncoderRecord.read(out), out


def _build(config: EncoderConfig, out: Path, say: Callable[[str], None]) -> None:
    import torch  # seconds, and only when there is something to build

    from models import clip
    from models.canary import write_canaries
    from models.encoder import Encoder
    from models.towers import good_precision

    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = good_precision(device) if config.precision == "auto" else config.precision
    if config.pretrained or config.hub_folder:
        _build_pretrained(config, out, precision)
    elif config.open_clip:
        clip.build_open_clip(
            config.open_clip, config.checkpoint, out, quick_gelu=config.quick_gelu, batch_size=config.batch_size,
            precision=precision,
        )  # fmt: skip
    else:
        image_weights = corpora.fetch_weights("efficientnet_lite0", say=say)
        text_folder = corpora.fetch_weights("minilm", say=say)
        clip.build_lit(image_weights, text_folder, out, batch_size=config.batch_size, precision=precision)
    encoder = Encoder.load(out, device=device)
    for note in encoder.notes:
        say(note)
    write_canaries(out, encoder)


def _build_pretrained(config: EncoderConfig, out: Path, precision: Precision) -> None:
    from models import pretrained

    if config.hub_folder:
        source = pretrained.by_hub_folder(config.hub_folder)
    else:
        try:
            source = pretrained.by_tag(
                config.open_clip or "", config.pretrained or "", checkpoint=config.checkpoint, cache=config.cache
            )
        except ValueError as error:
            raise UserError(f"encoder.pretrained: {error}") from None
    pretrained.build(
        source, out, quick_gelu=config.quick_gelu, sha256=config.sha256, batch_size=config.batch_size,
        precision=precision,
    )  # fmt: skip
