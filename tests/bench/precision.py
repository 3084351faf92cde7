"""What our forms do to results: vectors against open_clip called directly, and a trained filter's choice in bfloat16.

On real pictures, Tux Paint's stamps on white.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2

from etl.samples import corpora
from models import clip
from models.data import Vectors, write_part
from models.encoder import Encoder
from models.filters import Filter
from models.images import decode_rgb
from models.train import FILTER, train
from tests.bench.measure import Ratio, load
from tests.bench.peers import MODEL

KEPT = 0.15
NUM_TRAINED = 500
"""Pairs that the filter is trained on; the others are scored."""


def pairs(limit: int) -> tuple[list[bytes], list[str]]:
    """Tux Paint's stamps and their sentences."""
    folder = corpora.build("bench-precision", corpora.CorpusSpec(sources=("tuxpaint",), limit=limit))
    images, texts = [], []
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}  # type: ignore[union-attr]
        for name in sorted(members):
            if name.endswith(".txt"):
                texts.append(members[name].decode())
                images.append(next(members[o] for o in members if o.startswith(name[:-3]) and o.endswith("png")))
    return images, texts


def direct(root: Path, num_pairs: int) -> list[Ratio]:
    """Pair by pair: bytes through our pixels and towers, and through open_clip's transform, tokeniser and model."""
    images, texts = pairs(num_pairs)
    wanted, made = None, []
    for precision in ("fp32", "bf16"):
        folder = (root / f"{MODEL}-{precision}").absolute()
        if not folder.is_dir():
            clip.build_open_clip(MODEL, None, folder, seed=0, precision=precision)
        if wanted is None:
            model, record = clip.load(folder)
            transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
            tokens_NL = clip.load_tokenizer(folder, record)(texts)
            with torch.inference_mode():
                pixels = [transform(decode_rgb(image))[None] for image in images]
                sides = torch.cat([model.encode_image(p) for p in pixels]), model.encode_text(tokens_NL)
            wanted = [unit(side.numpy()) for side in sides]
        encoder = Encoder.load(folder)
        ours = [
            unit(encoder.encode_images([encoder.preprocess(image) for image in images])),
            unit(encoder.encode_texts(texts)),
        ]
        cosine = min(float((a * b).sum(1).min()) for a, b in zip(ours, wanted, strict=True))
        off = np.abs((ours[0] * ours[1]).sum(1) - (wanted[0] * wanted[1]).sum(1)).max()
        note = f"smallest cosine of a vector with open_clip's, {len(images)} pairs; largest score difference {off:.5f}"
        goal = ">= 0.9999" if precision == "fp32" else "-"
        made.append(Ratio(f"vectors_{precision}_vs_open_clip", cosine, 1.0, "cosine", cosine, goal, None, load(), note))
    return made


def unit(vectors_ND: np.ndarray) -> np.ndarray:
    return vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)


def rows(root: Path, limit: int) -> list[Ratio]:
    """The share of pairs that change sides of the 15 % cut, and the largest difference of a score."""
    images, texts = pairs(limit)
    half = min(NUM_TRAINED, len(images) // 2)
    scores, filter_ = {}, None
    for precision in ("fp32", "bf16"):
        folder = (root / f"lit-{precision}").absolute()
        if not folder.is_dir():
            weights = corpora.fetch_weights("efficientnet_lite0"), corpora.fetch_weights("minilm")
            clip.build_lit(*weights, folder, precision=precision)
        encoder = Encoder.load(folder)
        vectors = [
            encoder.encode_images([encoder.preprocess(image) for image in images]).astype("<f2"),
            encoder.encode_texts(texts).astype("<f2"),
        ]
        if filter_ is None:
            uids = [f"{n:032x}" for n in range(half)]
            write_part(root / "precision" / "part-0.arrow", uids, *(side[:half] for side in vectors))
            train(Vectors.open(root / "precision"), FILTER, root / "heads", encoder_record=encoder.record)
            filter_ = Filter.load(root / "heads")
        scores[precision] = filter_.score(*(side[half:] for side in vectors))
    num_kept = int(KEPT * len(scores["fp32"]))
    fp32, bf16 = (set(np.argsort(-values, kind="stable")[:num_kept].tolist()) for values in scores.values())
    moved = len(fp32 - bf16)
    off = np.abs(scores["fp32"] - scores["bf16"])
    note = (
        f"a filter trained on {half} real pairs, {len(off)} others scored in fp32 and bf16: {moved} of {num_kept} kept "
        f"by one are not kept by the other ({moved / len(off):.2%} of all); score difference mean {off.mean():.4f}, "
        f"largest {off.max():.4f}, standard deviation of scores {scores['fp32'].std():.3f}"
    )
    return [Ratio("bf16_moves_across_cut", moved, len(off), "pairs", moved / len(off), "-", None, load(), note)]
