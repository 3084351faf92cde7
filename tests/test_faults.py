"""Faults that stand in no other file, and the table of all of them (`tests/faults.py`)."""

import ast
import io
import json
import os
import random
import struct
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import faults
import numpy as np
import pydantic
import pytest
from helpers import frame, picture, rows_of, write_shard
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_dedup import ALL, pool, reference
from test_kills import OF_HISTORY, OF_TIME, contents, differing
from test_store import FRUIT, append, rows

from etl.commands.troubles import told
from etl.config import DatasetConfig, load
from etl.project import Project
from etl.run import Runner
from etl.selection.rule import Condition
from etl.shards import ShardWriter
from etl.stage import UserError
from etl.stages import dedup, embed, ingest
from etl.store import Store
from etl.tables import EMBEDDINGS, INPUTS, PAIRS
from models.data import UID_DTYPE, read_uids
from models.images import MAX_PIXELS

TESTS = Path(__file__).parent

# --- the table


def test_every_fault_has_proofs_that_are_there_or_a_reason():
    known = set()
    for path in TESTS.glob("test_*.py"):
        functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
        known |= {f"{path.name}::{function.name}" for function in functions}
    named = {test for fault in faults.FAULTS.values() for test in fault.tests}
    assert named - known == set()
    assert [name for name, fault in faults.FAULTS.items() if not fault.tests] == []
    rows = faults.FAULTS.keys() | faults.NOT_TESTED.keys()
    assert [name for name in (f"F{n}" for n in range(1, 35)) if name not in rows] == []


class Report:
    def __init__(self, nodeid, outcome="passed", when="call"):
        self.nodeid, self.outcome, self.when, self.duration = f"tests/{nodeid}", outcome, when, 1.5


def test_a_fault_passes_when_every_proof_ran_and_passed_and_not_by_skipping():
    def row(name, *reports):
        return next(line for line in faults.table(reports) if line.startswith(f"{name} "))

    (proof,) = faults.FAULTS["F25"].tests
    assert row("F25", Report(f"{proof}[1]"), Report(f"{proof}[2]")).split()[1:3] == ["passed", "3.0"]
    for reports, said in [
        ([], "not run"),
        ([Report(proof, "skipped", "setup")], "skipped"),
        ([Report(proof), Report(proof, "failed", "teardown")], "failed, passed"),
        ([Report(f"{proof}[1]"), Report(f"{proof}[2]", "failed")], "failed, passed"),
    ]:
        line = row("F25", *reports)
        assert line.split()[1] == "FAILED" and line.endswith(f"{proof}: {said}")


# --- a full disk


def on_a_small_disk(folder: Path, size: str, commands: str) -> subprocess.CompletedProcess:
    """Runs shell commands with a disk of this size at `folder`, seen by them alone."""
    folder.mkdir()
    script = f"set -eu; mount -t tmpfs -o size={size} tmpfs {folder}\n{textwrap.dedent(commands)}"
    env = {**os.environ, "PYTHONPATH": str(TESTS.parent), "PYTHON": sys.executable}
    as_root = [] if os.geteuid() == 0 else ["-r"]  # root of a namespace of its own may mount there
    command = ["unshare", *as_root, "-m", "bash", "-c", script]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=1200)


def test_a_full_disk_under_shards_is_named_and_leaves_nothing(tmp_path):
    code = tmp_path / "code.py"
    code.write_text("""
import os, random, sys
from pathlib import Path
from etl.commands.troubles import told
from etl.shards import ShardWriter, publish
path = Path(sys.argv[1])
try:
    with ShardWriter(str(path)) as writer:
        for number in range(4):
            writer.add(str(number), {"png": random.Random(number).randbytes(100_000), "txt": b"noise"})
        publish(str(path.parent), writer.close().temporary, path.name)
except OSError as error:
    print(told(error))
print(sorted(os.listdir(path.parent)))
""")
    disk = tmp_path / "disk"
    done = on_a_small_disk(disk, "300k", f"""
        $PYTHON {code} {disk}/a.tar
        mount -o remount,size=2m {disk}
        $PYTHON {code} {disk}/a.tar
        cp {disk}/a.tar {tmp_path}
    """)  # fmt: skip
    told, nothing, all_of_it = done.stdout.splitlines()
    assert told.startswith(f"wanted room for what is written to {disk}/.a.tar.")
    assert told.endswith("found the disk full; fix: make room, and run again")
    assert (nothing, all_of_it) == ("[]", "['a.tar']")
    with ShardWriter(str(tmp_path / "b.tar")) as writer:
        for number in range(4):
            writer.add(str(number), {"png": random.Random(number).randbytes(100_000), "txt": b"noise"})
        whole = writer.close()
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / whole.temporary).read_bytes()


def noisy_shards(folder: Path, num_shards: int = 4, caption_chars: int = 4000) -> Path:
    """Shards of 20 pairs whose captions hardly compress."""
    folder.mkdir()
    for shard in range(num_shards):
        numbers = range(20 * shard, 20 * shard + 20)
        samples = {
            f"{n:03}": {"png": picture(n), "txt": random.Random(n).randbytes(caption_chars // 2).hex().encode()}
            for n in numbers
        }
        write_shard(folder / f"{shard}.tar", samples)
    return folder


@pytest.mark.slow
def test_a_full_disk_under_tables_is_named_and_a_rerun_is_exact(spark, tmp_path):
    shards, disk = noisy_shards(tmp_path / "shards"), tmp_path / "disk"
    settings = {
        "datasets.pool.corpus": "null",
        "datasets.pool.shards": f"{shards}/*.tar",
        "stages.ingest.chunk_rows": 1,
    }
    sets = " ".join(f"--set {key}={value}" for key, value in settings.items())
    run = f"$PYTHON -m etl run --conf tiny --dataset pool --stage ingest --quiet {sets}"
    done = on_a_small_disk(disk, "250k", f"""
        {run} --set output={disk}/out && exit 9
        echo "code $?"
        mount -o remount,size=50m {disk}
        {run} --set output={disk}/out
        cp -r {disk}/out {tmp_path}/again
        {run} --set output={tmp_path}/clean
    """)  # fmt: skip
    assert "code 2\n" in done.stdout, done.stdout + done.stderr[-3000:]
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said.startswith(f"error: wanted room for what is written to {disk}/out/tables/")
    stores = [Store(spark, str(tmp_path / name / "tables")) for name in ("clean", "again")]
    expected, found = (contents(store, ["pool"], OF_TIME | OF_HISTORY) for store in stores)
    assert len(expected["pool.pairs"]) == 80
    assert differing(found, expected) == []


# --- two writers

INGEST = """
import sys
from pathlib import Path
from helpers import picture, write_shard
from etl.config import DatasetConfig
from etl.run import Runner
from etl.session import session
from etl.stage import UserError
from etl.stages import ingest
from etl.store import Store
folder, who, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
store = Store(session(f"writer {who}"), str(folder / "tables"))
config = ingest.Config(source="mine", shards_root=str(folder), num_tasks=2)
source = DatasetConfig(kind="pool", shards=f"{folder}/*.tar")
for number in range(rounds):
    name = f"{who}-{number}"
    write_shard(folder / f"{name}.tar", {name: {"png": picture(1000 * who + number), "txt": name.encode()}})
    try:
        Runner(store, {"pool": "pool"}).run(ingest.STAGE, "pool", config, source=source)
        print("acknowledged", name, flush=True)
    except UserError as error:
        print("refused", name, "being written by process" in str(error) or error, flush=True)
"""


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_two_processes_ingest_into_one_table_fifty_times(spark, tmp_path):
    """25 times each, with no pause. Whoever is refused leaves its shard to the next run of either."""
    env = {**os.environ, "PYTHONPATH": f"{TESTS.parent}:{TESTS}"}
    command = [sys.executable, "-c", INGEST, str(tmp_path)]
    writers = [subprocess.Popen([*command, str(who), "25"], env=env, stdout=subprocess.PIPE, text=True) for who in "12"]
    said = [line.split() for writer in writers for line in writer.communicate()[0].splitlines()]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert len(said) == 50 and {words[2] for words in said if words[0] == "refused"} <= {"True"}
    store = Store(spark, str(tmp_path / "tables"))
    assert sum(words[0] == "acknowledged" for words in said) >= 10
    found = [text for (text,) in rows_of(store.read("pool", PAIRS), "text")]
    assert len(found) == len(set(found))
    assert {words[1] for words in said if words[0] == "acknowledged"} - set(found) == set()
    # What neither had time for is taken by the next run, and nothing else.
    config = ingest.Config(source="mine", shards_root=str(tmp_path), num_tasks=2)
    Runner(store, {"pool": "pool"}).run(
        ingest.STAGE, "pool", config, source=DatasetConfig(kind="pool", shards=f"{tmp_path}/*.tar")
    )
    every = sorted(f"{who}-{number}" for who in (1, 2) for number in range(25))
    assert sorted(text for (text,) in rows_of(store.read("pool", PAIRS), "text")) == every
    assert len({uri for (uri,) in rows_of(store.read("pool", INPUTS), "uri")}) == 50


# --- damaged images


def saved(image: Image.Image, kind: str, **how) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def whole_images(shards: Path, draw: random.Random, number: int) -> list[bytes]:
    """Real pictures in every format and in odd modes."""
    from etl.shards import index

    found = []
    for shard in sorted(shards.glob("*.tar")):
        data = shard.read_bytes()
        with shard.open("rb") as file:
            members = [m for m in index(file) if m.name.endswith((".png", ".jpg", ".webp"))]
        found += [data[m.offset_bytes : m.offset_bytes + m.size_bytes] for m in members]
    ways = [
        lambda i: saved(i.convert("RGB"), "JPEG", quality=draw.randint(20, 95)),
        lambda i: saved(i.convert("RGB"), "JPEG", progressive=True),
        lambda i: saved(i.convert("CMYK"), "JPEG"),
        lambda i: saved(i.convert("L"), "JPEG", optimize=True),
        lambda i: saved(i.convert("RGBA"), "PNG"),
        lambda i: saved(i.convert("LA"), "PNG"),
        lambda i: saved(i.convert("P"), "PNG", transparency=0),
        lambda i: saved(i.convert("1"), "PNG"),
        lambda i: saved(Image.fromarray(np.asarray(i.convert("L"), np.uint16) * 257), "PNG"),
        lambda i: saved(i.convert("RGB"), "WEBP", quality=60),
        lambda i: saved(i.convert("RGBA"), "WEBP", lossless=True),
        lambda i: saved(i.convert("P"), "GIF"),
        lambda i: saved(i.convert("RGB"), "GIF", save_all=True, append_images=[i.convert("RGB").rotate(90)]),
        lambda i: saved(i.convert("RGB"), "BMP"),
        lambda i: saved(i.convert("RGB"), "TIFF", compression=draw.choice(["raw", "tiff_lzw"])),
    ]
    draw.shuffle(found)
    return [draw.choice(ways)(Image.open(io.BytesIO(data))) for data in found[:number]]


def damaged(draw: random.Random, whole: list[bytes]) -> bytes:
    """One of them cut, flipped, spliced, or left as it is; or a bomb, or none at all."""
    data, other = draw.choice(whole), draw.choice(whole)
    edges = [n for n in range(1, min(len(data) - 1, 4000)) if data[n] == 0xFF or data[n : n + 4] in (b"IDAT", b"PLTE")]

    def flip(start: int, end: int) -> bytes:
        altered = bytearray(data)
        for _ in range(draw.randint(1, 8)):
            altered[draw.randrange(start, max(start + 1, min(end, len(data))))] ^= 1 << draw.randrange(8)
        return bytes(altered)

    ways = [
        lambda: data,
        lambda: data[: draw.randrange(len(data))],
        lambda: data[: draw.choice(edges or [1])],
        lambda: data[:-1],
        lambda: flip(0, 64),
        lambda: flip(64, 700),
        lambda: flip(len(data) // 3, len(data)),
        lambda: data[: len(data) // 2] + other[len(other) // 2 :],
        lambda: other[:20] + data[20:],
        lambda: data + other,
        lambda: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
        lambda: b"",
        lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>" + data,
        lambda: b"BM" + struct.pack("<IHHIIiiHHIIiiII", 60, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
    ]
    return draw.choice(ways)()


def pillow_reads(data: bytes) -> bool:
    """An independent reading: an allowed format, few enough pixels, and its first frame to the last byte."""
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]) as image:
            if image.width * image.height > MAX_PIXELS:
                return False
            image.load()
            image.convert("RGBA")
    except Exception:  # of Pillow's many kinds
        return False
    return True


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_five_thousand_damaged_images_have_the_verdicts_of_pillow(tmp_path):
    from etl.samples import corpora

    draw = random.Random(18)
    whole = whole_images(corpora.build("pool", load(["tiny"]).datasets["pool"].corpus), draw, 300)
    images = [damaged(draw, whole) for _ in range(5000)]
    shards = tmp_path / "shards"
    shards.mkdir()
    for start in range(0, len(images), 500):
        samples = {
            f"{n:05}": {draw.choice(["jpg", "png", "webp", "gif"]): images[n], "txt": f"image {n}".encode()}
            for n in range(start, start + 500)
        }
        write_shard(shards / f"{start:05}.tar", samples)
    settings = {"datasets.pool.corpus": "null", "datasets.pool.shards": f"{shards}/*.tar", "output": tmp_path / "out"}
    project = Project(load(["tiny"], [f"{key}={value}" for key, value in settings.items()]))
    for stage in (ingest.STAGE, embed.STAGE):
        project.run(stage, "pool")
    pairs = project.store.read("pool", PAIRS).select("uid", "text", "status").toPandas()
    vectors = project.store.read("pool", EMBEDDINGS).select("uid", "status").toPandas()
    assert sorted(pairs.text) == sorted(f"image {n}" for n in range(5000))
    encoded = pairs.merge(vectors, on="uid", how="left", suffixes=("", "_encoded"))
    assert encoded.status_encoded[encoded.status == "ok"].notna().all()
    encoded.index = encoded.text.str.removeprefix("image ").astype(int)
    ours = (encoded.status_encoded == "ok").reindex(range(5000)).to_numpy()
    pillows = np.array([pillow_reads(data) for data in images])
    assert 0.2 < pillows.mean() < 0.8
    agree = (ours == pillows).mean()
    assert agree >= 0.99, f"{agree:.4f}: {[(n, encoded.status[n]) for n in np.flatnonzero(ours != pillows)[:20]]}"
    assert "decoder_crash" not in set(encoded.status_encoded)


# --- elsewhere


@pytest.mark.slow
def test_time_zone_and_locale_change_no_row(spark, tmp_path):
    """Turkish lower-cases I to a dotless i; Kathmandu is 5 h 45 min ahead."""
    shards = tmp_path / "shards"
    shards.mkdir()
    texts = [
        "AN ISLAND IN ICELAND",
        "an island in iceland",
        "An Island, in Iceland",
        "A TITLE",
        "a title",
        "3,14 \u0130I \u0131i",
    ]
    samples = {
        f"{n}": {
            "png": picture(n % 4, (30, 20)),
            "txt": text.encode(),
            "json": json.dumps({"url": f"HTTP://EXAMPLE.INFO/I{n // 2}"}).encode(),
        }
        for n, text in enumerate(texts)
    }
    write_shard(shards / "0.tar", samples)
    settings = {"datasets.pool.corpus": "null", "datasets.pool.shards": f"{shards}/*.tar"}
    settings["stages.dedup.methods"] = "[url_text,sha256,phash,minhash]"
    there = {"TZ": "Asia/Kathmandu", "LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8",
             "JAVA_TOOL_OPTIONS": "-Duser.language=tr -Duser.country=TR -Duser.timezone=Asia/Kathmandu"}  # fmt: skip
    for name, env in {"here": {}, "there": there}.items():
        command = [sys.executable, "-m", "etl", "run", "--conf", "tiny", "--dataset", "pool", "--quiet"]
        command += ["--stage", "ingest", "--stage", "signals", "--stage", "dedup"]
        given = {**settings, "output": tmp_path / name}
        command += [part for key, value in given.items() for part in ("--set", f"{key}={value}")]
        subprocess.run(command, env={**os.environ, **env}, check=True, capture_output=True)
    stores = [Store(spark, str(tmp_path / name / "tables")) for name in ("here", "there")]
    expected, found = (contents(store, ["pool"], OF_TIME | OF_HISTORY) for store in stores)
    assert len(expected["pool.pairs"]) == len(texts) and expected["pool.duplicates"]
    assert differing(found, expected) == []


def rows_after_losses(spark) -> tuple[list[tuple], int, int]:
    """(duplicates of `pool`, files lost, tasks failed). The first file of each shuffle goes as soon as it is there."""
    disks = spark.sparkContext._jvm.org.apache.spark.SparkEnv.get().blockManager().diskBlockManager()
    folders = [Path(folder) for folder in disks.localDirsString()]
    removed, is_over = set(), threading.Event()

    def lose() -> None:
        while not is_over.is_set():
            for path in (path for folder in folders for path in folder.glob("*/shuffle_*_0.index")):
                shuffle = path.name.split("_")[1]
                if shuffle not in removed:
                    removed.add(shuffle)
                    path.unlink(missing_ok=True)
                    path.with_suffix(".data").unlink(missing_ok=True)
            time.sleep(0.001)

    pairs = frame(spark, PAIRS, pool(), partitions=5)
    thread = threading.Thread(target=lose)
    thread.start()
    try:
        found = rows_of(dedup.transform(pairs, config=ALL).select("method", "uid", "group_uid", "distance"))
    finally:
        is_over.set()
        thread.join()
    failed = spark.sparkContext._jsc.sc().statusStore().executorList(True).apply(0).failedTasks()
    return found, len(removed), failed


LOSSES = "import json; from etl.session import session; from test_faults import rows_after_losses as f; "
LOSSES += "print(json.dumps(f(session('losses'))))"


@pytest.mark.slow
def test_lost_shuffle_files_are_made_again_with_the_same_rows():
    """In a process of its own: after a lost file an executor that is the driver as well cannot register again, and ten
    minutes later Spark ends it."""
    env = {**os.environ, "PYTHONPATH": f"{TESTS.parent}:{TESTS}"}
    done = subprocess.run([sys.executable, "-c", LOSSES], env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    found, num_removed, num_failed = json.loads(done.stdout.splitlines()[-1])
    assert [tuple(row) for row in found] == reference(pool(), ALL)
    assert num_removed and num_failed


# --- a damaged log


def cut(log: Path) -> None:
    path = log / f"{2:020d}.json"
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("damage", "version", "what"),
    [
        (lambda log: (log / f"{2:020d}.json").write_bytes(b""), 2, "it empty"),
        (cut, 2, "it cut or altered"),
        (lambda log: (log / f"{2:020d}.json").unlink(), 2, "it gone"),
        (lambda log: (log / f"{3:020d}.json").write_bytes(bytes(300)), 3, "it cut or altered"),
    ],
    ids=["empty", "cut", "gone", "zeroes"],
)
def test_a_damaged_log_is_named_with_its_version_and_mended(store, damage, version, what):
    """Delta reads over an empty commit as if nothing had been in it."""
    store.create("garden", FRUIT)
    for name in ("boskoop", "elstar", "gala"):
        append(store, ("apple", name, 100), content=name)
    log = Path(store.root) / "garden" / "fruit" / "_delta_log"
    damage(log)
    again = Store(store.spark, store.root)
    with pytest.raises(UserError) as caught:
        append(again, ("pear", "conference", 100), content="new")
    said = str(caught.value)
    assert f"garden/fruit: wanted version {version} whole; found {what}" in said and "fix: " in said
    # The documented recovery: the damaged version and later ones are taken away, and what they held is written anew.
    for newer in range(version, 4):
        for left in log.glob(f"*{newer:020d}*"):
            left.unlink()
    mended = Store(store.spark, store.root)
    for name in ("boskoop", "elstar", "gala"):
        append(mended, ("apple", name, 100), content=name)
    assert rows(mended) == [("apple", name, 100) for name in ("boskoop", "elstar", "gala")]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(28, "No space left on device", "/data/x.tar"), "wanted room for what is written to /data/x.tar;"),
        (RuntimeError("java.io.IOException: No space left on device"), "spark.local.dir; found the disk full"),
        (RuntimeError("[TASK_WRITE_FAILED] Task failed while writing rows to file:/d/t/pairs. SQLSTATE: 58030\n"
                      "Caused by: java.io.IOException: No space left on device"), "written to /d/t/pairs; found"),
        (RuntimeError("[FAILED_READ_FILE.FILE_NOT_EXIST] Encountered error while reading file file:/d/a.parquet. File "
                      "does not exist."), "wanted a table's file at /d/a.parquet whole; found it damaged or gone"),
        (RuntimeError("Lost task 1.0: org.apache.spark.memory.SparkOutOfMemoryError: [UNABLE_TO_ACQUIRE_MEMORY]"),
         "wanted room in memory for a task's rows; found too little; fix: more and smaller tasks"),
        (RuntimeError("another"), None),
    ],
)  # fmt: skip
def test_what_the_machine_did_is_told_with_the_path(error, says):
    assert says in told(error) if says else told(error) is None


# --- any bytes

HEADERS = st.sampled_from(["u8,u8", "<u8", "O", "u8,u8,u8", "S16"])


@given(st.binary(max_size=200) | st.just(b"PK\3\4no archive") | st.tuples(HEADERS, st.binary(max_size=100)))
def test_any_bytes_are_a_list_of_uids_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.npy"
    if isinstance(content, tuple):
        file = io.BytesIO()
        dtype = UID_DTYPE if content[0] == "u8,u8" else np.dtype(content[0])
        np.lib.format.write_array_header_1_0(
            file, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (3,)}
        )
        content = file.getvalue() + content[1]
    path.write_bytes(content)
    try:
        found = read_uids(path)
    except ValueError as error:
        assert "wanted" in str(error) and "pickle" not in str(error)
    else:
        assert found.dtype == UID_DTYPE and len(content) >= 16 * len(found)


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["text", "language"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["all", "any", "not", "of", "at_least", "below", "is_in", "names", "top_fraction", "x"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@given(ANYTHING)
def test_anything_is_a_condition_or_refused(value):
    try:
        condition = Condition.model_validate(value)
    except pydantic.ValidationError:
        return
    leaves = list(condition.leaves())
    assert all(leaf.of is not None for leaf in leaves)
    assert Condition.model_validate(condition.model_dump(by_alias=True)) == condition
