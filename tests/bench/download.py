"""Part `download`: fetching images from a server on loopback. `make bench PART=download`.

    download_vs_img2dataset    images per CPU second: the download stage under Spark (JVM and workers) / img2dataset, on
                               the same URLs, hosts and size (longest side 256 px, JPEG quality 95), as many processes.
                               Both write web datasets; ours asks each host for robots.txt and tdmrep.json too
    dead_hosts_vs_none         wall time with 20 % of the hosts dead (they take a connection and say nothing) / with
                               none, as many URLs, at the stage's own pace and deadlines

img2dataset lives in an environment of its own, build/bench/img2dataset, made by the first run (`--img2dataset PYTHON`:
one that is there). Where it cannot be installed the row says so, and its peer is a plain aiohttp loop of the same work:
fetch, decode, resize, encode, one tar, in one process.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from etl.intake.uids import uid_of
from etl.session import session
from etl.stages import download
from etl.stages.collect import group_of_host
from etl.tar import index
from tests.bench.measure import OUT, MissingError, Ratio, Side, against, compare, interleaved, report, say
from tests.bench.web_server import dead, live, serving

PIN = "img2dataset==1.47.0"
RESIZE_PX = 256
PROCESSES = 2
NUM_HOSTS = 20
NUM_FILES = 200
"""Different images; URLs of one differ in their query."""


def photos(folder: Path) -> None:
    """Photo-like JPEGs of 512 x 384, about 50 KB: noise, smoothed."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(NUM_FILES):
        if not (path := folder / f"{number}.jpg").exists():
            small = Image.fromarray(rng.integers(0, 256, (96, 128, 3), dtype=np.uint8))
            noise = Image.fromarray(rng.integers(0, 256, (384, 512, 3), dtype=np.uint8))
            Image.blend(small.resize((512, 384), Image.Resampling.BICUBIC), noise, 0.12).save(path, quality=85)


def urls(port: int, count: int, dead_hosts: int = 0) -> pd.DataFrame:
    """(url, text, host), spread over the hosts, of which the last `dead_hosts` are dead."""
    hosts = [live(n) for n in range(NUM_HOSTS - dead_hosts)] + [dead(n) for n in range(dead_hosts)]
    rows = [(f"http://{hosts[n % NUM_HOSTS]}:{port}/{n % NUM_FILES}.jpg?{n}", f"number {n}", hosts[n % NUM_HOSTS])
            for n in range(count)]  # fmt: skip
    return pd.DataFrame(rows, columns=["url", "text", "host"])


class Ours:
    """The stage's transform over a frame of candidates, its rows thrown away: images stay in tars."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._spark = folder, session("bench", master=f"local[{PROCESSES}]")

    def run(self, rows: pd.DataFrame, **settings: object) -> int:
        """Images in tars."""
        shutil.rmtree(self._folder, ignore_errors=True)
        config = download.Config(web_folder=str(self._folder), allowed_networks=("127.0.0.0/8",), num_tasks=PROCESSES,
                                 resize_px=RESIZE_PX, **settings)  # fmt: skip
        names = {"page_url": None, "crawl": "bench", "sha256": None, "opt_out_evidence": None}
        frame = rows.assign(
            uid=[uid_of(url, text) for url, text in zip(rows["url"], rows["text"], strict=True)],
            chunk_group=rows["host"].map(group_of_host), **names,
        )  # fmt: skip
        ddl = ", ".join(f"{name} string" for name in frame.columns)
        candidates = self._spark.createDataFrame(frame.astype(object).where(frame.notna(), None), ddl)
        facts = download.prepare(candidates, config=config)
        download.transform(candidates, config=config, facts=facts).write.format("noop").mode("overwrite").save()
        return sum(_num_images(tar) for tar in self._folder.glob("*/*.tar"))


def _num_images(tar: Path) -> int:
    with tar.open("rb") as file:
        return sum(member.name.endswith(".jpg") for member in index(file))


class Img2dataset:
    """Its process, which downloads the list once for each line."""

    def __init__(self, python: str, list_file: Path) -> None:
        self._python, self._list, self._process = python, list_file, None

    def turn(self) -> float:
        if self._process is None:
            script = Path(__file__).with_name("img2dataset_row.py")
            command = [self._python or str(environment()), str(script), str(self._list.absolute()),
                       str((OUT / "img2dataset-out").absolute()), str(RESIZE_PX), str(PROCESSES)]  # fmt: skip
            # Its own modules only: beside the script lies a select.py.
            own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PYTHONSAFEPATH": "1"}
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=own,
                                             stderr=(OUT / "img2dataset.log").open("w"))  # fmt: skip
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found = json.loads(self._process.stdout.readline() or '{"error": "it ended"}')
        if "error" in found:
            raise MissingError(f"{PIN} does not run: {found['error']}")
        return float(found["images"])


def environment() -> Path:
    """The Python of an environment with PIN, made if it is not there. Raises MissingError."""
    home = OUT / "img2dataset"
    if not (home / "ready").exists():
        try:
            subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True, capture_output=True, text=True)
            pip = [home / "bin/python", "-m", "pip", "install", "--quiet", PIN]
            subprocess.run(pip, check=True, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            raise MissingError(f"{PIN} does not install: {error.stderr.strip()[-200:]}") from None
        (home / "ready").touch()
    return (home / "bin/python").absolute()


def plain_loop(rows: Sequence[str], folder: Path) -> float:
    """What there is to do and nothing else: aiohttp, 64 at a time; Pillow; a tar."""
    import tarfile

    import aiohttp

    folder.mkdir(parents=True, exist_ok=True)

    async def run() -> int:
        gate, done = asyncio.Semaphore(64), 0
        with tarfile.open(folder / "plain.tar", "w") as tar:
            async with aiohttp.ClientSession() as client:

                async def one(number: int, url: str) -> None:
                    nonlocal done
                    async with gate, client.get(url) as response:
                        data = await response.read()
                    image = Image.open(io.BytesIO(data)).convert("RGB")
                    image.thumbnail((RESIZE_PX, RESIZE_PX), Image.Resampling.LANCZOS)
                    image.save(file := io.BytesIO(), "JPEG", quality=95)
                    info = tarfile.TarInfo(f"{number}.jpg")
                    info.size = file.tell()
                    file.seek(0)
                    tar.addfile(info, file)
                    done += 1

                await asyncio.gather(*(one(number, url) for number, url in enumerate(rows)))
        return done

    return float(asyncio.run(run()))


def speed(port: int, count: int, repetitions: int, python: str) -> Ratio:
    rows = urls(port, count)
    list_file = OUT / "urls.parquet"
    rows[["url", "text"]].to_parquet(list_file)
    ours, peer = Ours(OUT / "download-out"), Img2dataset(python, list_file)

    def all_of(images: float) -> float:
        if images != count:
            raise RuntimeError(f"wanted {count} images; found {images:.0f}")
        return images

    sides: dict[str, Side] = {
        "ours": lambda: all_of(ours.run(rows, per_host=8, delay_seconds=0)), "img2dataset": lambda: all_of(peer.turn()),
        "plain": lambda: all_of(plain_loop(list(rows["url"]), OUT / "download-out")),
    }  # fmt: skip
    rates, missing = interleaved(sides, repetitions=repetitions)
    row = ("download_vs_img2dataset", "images / CPU s", ">= 1.0")
    note = (
        f"{count} images of 512 x 384 to {RESIZE_PX} px; a plain loop: {np.median(rates['plain']):.4g} images / CPU s"
    )
    if "img2dataset" in missing:
        return against(rates, {}, "ours", "plain", row, f"{missing['img2dataset']}; peer: a plain aiohttp loop. {note}")
    return against(rates, missing, "ours", "img2dataset", row, note)


def dead_hosts(port: int, count: int, repetitions: int) -> Ratio:
    """At the stage's own pace and deadlines. `ours`: seconds with dead hosts; `theirs`: without."""
    ours, num_dead = Ours(OUT / "download-out"), NUM_HOSTS // 5
    seconds: dict[int, list[float]] = {0: [], num_dead: []}
    for turn in range(repetitions):
        for number, found in seconds.items():
            started = time.monotonic()
            images = ours.run(urls(port, count, number))
            if images != count * (NUM_HOSTS - number) // NUM_HOSTS:
                raise RuntimeError(f"wanted all images of the hosts that live; found {images}")
            found.append(time.monotonic() - started)
            say(f"{number} dead hosts {turn}: {found[-1]:.1f} s")
    note = f"{count} URLs of {NUM_HOSTS} hosts, {num_dead} of them dead"
    return compare("dead_hosts_vs_none", seconds[num_dead], seconds[0], "s", "<= 1.3", note)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer images and turns: no verdict")
    parser.add_argument("--img2dataset", default="", help="the Python of an environment that has it")
    given = parser.parse_args(arguments)
    OUT.mkdir(parents=True, exist_ok=True)
    photos(OUT / "data/web")
    with serving(OUT / "data/web", NUM_HOSTS, NUM_HOSTS // 5) as port:
        rows = [
            speed(port, 400 if given.quick else 3000, 2 if given.quick else 5, given.img2dataset),
            dead_hosts(port, 2000 if given.quick else 8000, 1 if given.quick else 2),
        ]
    report("download", rows)


if __name__ == "__main__":
    main()
