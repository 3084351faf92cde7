"""Part `encode`: how fast shards become vectors. `make bench PART=encode`, about 10 minutes of 2 cores.

Rows (ours / theirs; rates per CPU second of the whole process tree, unless the unit says otherwise):

    feed        the Spark path with a null model: against a plain torchvision loop (the limit), one fused pandas UDF,
                Spark's documented pattern, Daft twice
    preprocess  bytes -> pixels: against open_clip's transform
    image       the image tower inside Spark: against matmul in the same run
    text        the text tower: against open_clip's
    pass        shard -> vectors and cosine: against stock open_clip, clip-retrieval, and the limit of matmul
    overlap     decoding ahead of the model: against the slower of the two alone; wall seconds
    bytes       bytes read by ingest and by three models: against the size of the shards
    udf         `dfn_score` over bytes: against the embed stage
    precision   our vectors against open_clip's; pairs that bf16 moves across the cut of a trained filter

Figures of a CPU are a proxy for a cluster of GPUs. `--device cuda` measures one GPU instead: see `gpu.py`.
"""

from __future__ import annotations

import argparse
import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import open_clip
import torch
import torchvision
from pyspark.sql import SparkSession

from tests.bench import data, engines, ours, peers, precision
from tests.bench.measure import (
    OUT,
    REPETITIONS,
    Rates,
    Ratio,
    Side,
    against,
    compare,
    cpu_seconds,
    has_bf16,
    interleaved,
    report,
    say,
)

IMAGES, PAIRS, TEXTS, GFLOP = (f"{what} / CPU s" for what in ("images", "pairs", "texts", "GFLOP"))


Measured = tuple[dict[str, Rates], dict[str, str]]


@dataclass(frozen=True)
class Bench:
    """What the parts share. Sizes: large enough to drown fixed costs, unless --quick."""

    spark: SparkSession
    data: data.Data
    folder: Path
    """The encoder's: ViT-B-32."""
    repetitions: int
    num_preprocess: int = 1500
    num_pattern: int = 64
    num_pairs: int = 512
    num_stock: int = 32
    """Pairs through stock models, which take seconds for each dozen."""
    num_texts: int = 256

    @functools.cached_property
    def images(self) -> list[bytes]:
        return self.data.images()

    def measure(self, sides: Mapping[str, Side], clock: Callable[[], float] = cpu_seconds, **ready: Side) -> Measured:
        return interleaved(sides, repetitions=self.repetitions, clock=clock, ready=ready)


def feed(bench: Bench) -> list[Ratio]:
    spark, given = bench.spark, bench.data
    sides = {
        "ours": ours.feed(spark, given, bench.folder, len(given.pairs)),
        "limit": peers.torchvision_loop(bench.images),
        "fused_pandas_udf": engines.fused_pandas_udf(spark, given),
        "daft_pattern": engines.daft_pattern(given),
        "daft_native": engines.daft_native(given),
        "spark_pattern": engines.spark_pattern(spark, given, bench.num_pattern),
    }
    wake = ours.feed(spark, given, bench.folder, 8)
    measured = bench.measure(sides, ours=wake, fused_pandas_udf=wake, spark_pattern=wake)
    goals = {"limit": ">= 0.85", "fused_pandas_udf": ">= 2.5", "daft_pattern": ">= 3", "daft_native": ">= 1.7"}
    goals |= {"spark_pattern": "-"}
    notes = {
        "limit": f"torchvision {torchvision.__version__}, one process and thread, images in memory",
        "daft_pattern": engines.daft_version(),
        "daft_native": f"{engines.daft_version()}; squashes instead of cropping",
        "spark_pattern": f"{bench.num_pattern} images",
    }
    row = functools.partial(against, *measured, "ours")
    return [row(peer, (f"feed_vs_{peer}", IMAGES, goal), notes.get(peer, "")) for peer, goal in goals.items()]


def preprocess(bench: Bench) -> list[Ratio]:
    images = bench.images[: bench.num_preprocess]
    measured = bench.measure({"ours": ours.preprocess(bench.folder, images), "open_clip": peers.open_clip_loop(images)})
    difference = [
        np.abs(ours.pixels(bench.folder, image).astype(int) - peers.open_clip_pixels(image)) for image in images[:200]
    ]
    same = np.mean([(image == 0).mean() for image in difference])
    note = f"{same:.2%} of bytes identical (at least 99.5 %), largest difference {np.max(difference)} (at most 2)"
    return [against(*measured, "ours", "open_clip", ("preprocess_vs_open_clip", IMAGES, ">= 4"), note)]


def image(bench: Bench) -> list[Ratio]:
    dtype = torch.bfloat16 if has_bf16() else torch.float32
    gflop = peers.image_gflop()
    tower = functools.partial(ours.image_tower, bench.spark, bench.folder, gflop_an_image=gflop)
    measured = bench.measure({"ours": tower(bench.num_pairs), "limit": peers.matmul(dtype)}, ours=tower(2))
    row = ("image_vs_matmul", GFLOP, ">= 0.80" if has_bf16() else ">= 0.90")
    note = f"inside Spark, {gflop:.2f} GFLOP an image; matmul in {str(dtype).removeprefix('torch.')}"
    return [against(*measured, "ours", "limit", row, note)]


def text(bench: Bench) -> list[Ratio]:
    texts, stock = bench.data.texts[: bench.num_texts], bench.data.texts[: bench.num_stock]
    sides = {"ours": ours.text_tower(bench.folder, texts)}
    sides["fp32"] = peers.stock_texts(bench.folder, stock, torch.float32)
    if has_bf16():
        sides["bf16"] = peers.stock_texts(bench.folder, stock, torch.bfloat16)
    corpus = data.corpus_captions()[:: max(1, 823 // bench.num_texts)][: bench.num_texts]
    if corpus:
        sides["corpus"] = ours.text_tower(bench.folder, corpus)
    measured = bench.measure(sides)
    note = f"{peers.token_counts(texts).mean():.1f} tokens a caption, open_clip {open_clip.__version__} in "
    row = functools.partial(against, *measured)
    rows = [row("ours", "fp32", ("text_vs_open_clip_fp32", TEXTS, "-" if has_bf16() else ">= 4"), note + "float32")]
    if has_bf16():
        rows.insert(0, row("ours", "bf16", ("text_vs_open_clip", TEXTS, ">= 25"), note + "bf16"))
    if corpus:
        note = f"{peers.token_counts(corpus).mean():.1f} tokens a caption: Tux Paint's; theirs as above"
        return [*rows, row("corpus", "bf16" if has_bf16() else "fp32", ("text_vs_open_clip_short", TEXTS, "-"), note)]
    return rows


def whole_pass(bench: Bench) -> list[Ratio]:
    shards = sorted(bench.data.folder.glob("*.tar"))
    clip_retrieval = peers.ClipRetrieval(shards, bench.folder, bench.num_stock)
    files = bench.data.files[: bench.num_stock]
    dtype = torch.bfloat16 if has_bf16() else torch.float32
    sides = {
        "ours": ours.embed_pass(bench.spark, bench.data, bench.folder, bench.num_pairs),
        "stock in float32": peers.stock_loop(bench.folder, files),
        "clip-retrieval": clip_retrieval,
        "limit": peers.matmul(dtype),
    }
    if has_bf16():
        sides["stock in bf16"] = peers.stock_loop(bench.folder, files, dtype=dtype)
        sides["stock under bf16 autocast"] = peers.stock_loop(bench.folder, files[:16], autocast=True)
    rates, missing = bench.measure(sides, ours=ours.embed_pass(bench.spark, bench.data, bench.folder, 4))
    clip_retrieval.close()
    faster = max((name for name in rates if name.startswith("stock")), key=lambda name: np.median(rates[name]))
    others = ", ".join(f"{name} {np.median(found):.3g}" for name, found in rates.items() if name.startswith("stock"))
    num_tokens = peers.token_counts(bench.data.texts[: bench.num_pairs]).mean()
    gflop = peers.image_gflop() + peers.text_gflop(num_tokens)
    rates["limit"] = [rate / gflop for rate in rates["limit"]]
    row = functools.partial(against, rates, missing, "ours")
    return [
        row(faster, ("pass_vs_stock", PAIRS, ">= 5.5" if has_bf16() else ">= 1.5"), f"{others}; the faster counts"),
        row("limit", ("pass_vs_limit", PAIRS, ">= 0.80"), f"matmul; {gflop:.2f} GFLOP a pair, {num_tokens:.1f} tokens"),
        row(
            "clip-retrieval", ("pass_vs_clip_retrieval", PAIRS, "-"), "clip-retrieval 2.45.0 in float32, batches of 16"
        ),
    ]


def overlap(bench: Bench) -> list[Ratio]:
    images = bench.images[: bench.num_preprocess]
    batches = [images[start : start + 32] for start in range(0, len(images) - 31, 32)]
    decode = ours.decode_alone(bench.folder, batches)
    decode()
    started = perf_counter()
    num_images = decode()
    seconds = perf_counter() - started
    model_rate = num_images / seconds
    together = ours.overlapped(bench.folder, batches, seconds / len(batches))
    rates, _ = bench.measure({"ours": together, "decode": decode}, clock=perf_counter)
    slower = [min(rate, model_rate) for rate in rates["decode"]]
    note = f"a model that sleeps as long as decoding took: {model_rate:.0f} images/s alone"
    return [compare("overlap", rates["ours"], slower, "images / wall s", ">= 0.95", note)]


def bytes_read(bench: Bench) -> list[Ratio]:
    small = data.build(100)
    found = ours.more_bytes_read(bench.spark, small, bench.data, bench.folder, 3, turns=2)
    more = bench.data.size_bytes - small.size_bytes
    note = "ingest, then two encoders and a third model in one pass. Counted, not timed"
    return [compare("bytes_read_vs_one_pass", [found / 1e6], [more / 1e6], "MB", "<= 2.05", note)]


def udf(bench: Bench) -> list[Ratio]:
    given = bench.spark, bench.data, bench.folder
    sides = {"udf": ours.score_udf(*given, bench.num_pairs), "bulk": ours.embed_pass(*given, bench.num_pairs)}
    wake = ours.embed_pass(*given, 4)
    measured = bench.measure(sides, udf=wake, bulk=wake)
    return [against(*measured, "udf", "bulk", ("udf_vs_bulk", PAIRS, "-"), "ours: dfn_score over bytes; theirs: embed")]


def bf16(bench: Bench) -> list[Ratio]:
    return precision.direct(OUT / "data", bench.num_stock) + precision.rows(OUT / "data", bench.num_preprocess)


PARTS: dict[str, Callable[[Bench], list[Ratio]]] = {
    "feed": feed, "preprocess": preprocess, "overlap": overlap, "bytes": bytes_read, "image": image, "text": text,
    "pass": whole_pass, "udf": udf, "precision": bf16,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.encode", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that all runs, not for figures")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), metavar="NAME", help=", ".join(PARTS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--master", default="local[2]", help="Spark's")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.set_num_threads(1)
    if given.device == "cuda":
        from tests.bench import gpu

        report("encode-cuda", gpu.rows(quick=given.quick))
        return
    if not has_bf16():
        say("this CPU has neither AVX-512 bf16 nor AMX: the float32 forms of the rows")
    quick = {"num_preprocess": 200, "num_pattern": 32, "num_pairs": 32, "num_stock": 16, "num_texts": 64}
    bench = Bench(
        spark=ours.spark_session(given.master),
        data=data.build(600 if given.quick else 6000),
        folder=ours.encoder_folder(OUT / "data"),
        repetitions=2 if given.quick else REPETITIONS,
        **(quick if given.quick else {}),
    )
    rows: list[Ratio] = []
    try:
        for name in given.part:
            say(f"part {name}")
            rows += PARTS[name](bench)
    finally:  # what was measured before a part failed took minutes
        report("encode-quick" if given.quick else "encode", rows)


if __name__ == "__main__":
    main()
