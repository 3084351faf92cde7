"""An application on a cluster: does what lines of standard input say, [function, arguments], and answers in JSON.

Started by `cluster.py` in a process of its own, since the process of the tests has its Spark already.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Queue

import pandas as pd
from helpers import frame
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from etl.encode import gpu
from etl.session import session
from etl.shards import RangeReader, list_shards, scan
from etl.stages import embed, score
from etl.tables import PAIRS

NUM_TASKS = 4


def slots(spark: SparkSession, num_tasks: int, seconds: float) -> list[dict]:
    """Where and when each of many tasks ran: its GPU by Spark, by `encode/gpu.py`, its device had it CUDA, its code."""

    def record(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        from types import SimpleNamespace
        from unittest import mock

        from pyspark import TaskContext

        import etl.encode.gpu

        for _ in batches:
            start = time.time()
            time.sleep(seconds)
            seen = {"spark": ",".join(TaskContext.get().resources()["gpu"].addresses)}
            seen |= {"ours": etl.encode.gpu.task_gpu_address(), "code": str(Path(etl.encode.gpu.__file__).absolute())}
            with_cuda = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: True))
            with mock.patch.dict(sys.modules, torch=with_cuda):
                seen["device"] = etl.encode.gpu.task_device()
            yield pd.DataFrame([seen | {"start": start, "end": time.time()}])

    columns = "spark string, ours string, code string, device string, start double, end double"
    frame = spark.range(0, num_tasks, 1, num_tasks).mapInPandas(record, columns)
    return [row.asDict() for row in frame.collect()]


def pairs(spark: SparkSession, shards: str) -> DataFrame:
    """Pointers to what is in `shards`, as the table `pairs` has them."""
    rows = [row for shard in list_shards(f"{shards}/*.tar") for row in scan(shard.uri) if isinstance(row, dict)]
    return frame(spark, PAIRS, rows)


def bulk(spark: SparkSession, shards: str, encoder: str, out: str, calls: str | None = None) -> list:
    """The stage embed, written to a folder, and what came to be there: uid, status, vectors."""
    config = embed.Config(
        encoder="e", encoder_version="v", encoder_folder=Path(encoder), num_tasks=NUM_TASKS,
        calls_file=Path(calls) if calls else None,
    )  # fmt: skip
    embed.transform(pairs(spark, shards), config=config).write.parquet(out)
    rows = spark.read.parquet(out).select("uid", "status", F.hex("image_embedding"), F.hex("text_embedding"))
    return sorted(map(list, rows.collect()))


def bulk_scores(spark: SparkSession, vectors: str, filter_: str) -> dict[str, float]:
    """The stage score on what `bulk` wrote."""
    config = score.Config(filter_folder=Path(filter_))
    scored = score.transform(spark.read.parquet(vectors), config=config)
    return {row["uid"]: row["score"] for row in scored.collect()}


def query(spark: SparkSession, shards: str, encoder: str, filter_: str, statement: str) -> list:
    """A statement of SQL over the view `pairs`, which has the bytes of the images too."""
    gpu.register(spark, Path(encoder), Path(filter_))
    found = pairs(spark, shards)
    with RangeReader() as reader:
        images = [
            (row["uid"], bytearray(reader.read(row["shard"], row["offset_bytes"], row["size_bytes"])))
            for row in found.collect()
        ]
    with_bytes = found.join(spark.createDataFrame(images, "uid string, image binary"), "uid")
    with_bytes.repartition(NUM_TASKS).createOrReplaceTempView("pairs")
    return [list(row) for row in spark.sql(statement).collect()]


def listen(asked: Queue) -> None:
    """Queues what is asked. When nobody can ask any more, this process ends, whatever it does, and its JVM with it."""
    for line in sys.stdin:
        asked.put(json.loads(line))
    os._exit(1)


def main() -> None:
    conf = json.loads(sys.argv[1])
    asked: Queue = Queue()
    threading.Thread(target=listen, args=[asked], daemon=True).start()
    spark = session("cluster", master=conf.pop("spark.master"), conf=conf)
    while True:
        name, arguments = asked.get()
        try:
            answer = {"result": globals()[name](spark, **arguments)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
