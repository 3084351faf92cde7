"""Evaluation images in the pool: planted copies by bytes, look and vector; sets registered once for every project."""

import hashlib
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from helpers import frame, picture, rows_of, schema_of, uid, write_shard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.sql import functions as F
from test_semantic import VERSION, clustered, embedded

from etl.__main__ import _run, app
from etl.config import load
from etl.dedup import evalsets
from etl.project import Project
from etl.run import Runner
from etl.selection.explain import explain
from etl.stage import UserError
from etl.stages import decontaminate, decontaminate_semantic, selection
from etl.tables import CONTAMINATED, EMBEDDINGS, PAIRS, VARIANTS
from models import hamming
from models.images import inspect

PARTITIONS = (1, 4, 13)
FACTS = ("eval_set", "method", "uid", "distance")


def signed(bits: int) -> int:
    return bits - 2**64 if bits >= 2**63 else bits


def by_set(spark, table, rows: dict[str, list[dict]]):
    """What a run hands over as references: rows of all evaluation datasets, with their names."""
    parts = [frame(spark, table, some).withColumn("dataset", F.lit(name)) for name, some in rows.items()]
    found = parts[0]
    for part in parts[1:]:
        found = found.unionByName(part)
    return found


def hashes(rng: np.random.Generator, number: int) -> list[int]:
    return [int(h) for h in rng.integers(0, 2**64, number, dtype=np.uint64)]


def test_near_hashes_are_found_with_their_true_distance_and_the_closest_of_each_set(spark):
    """Against all distances in Python, with planted ones of 0 to 12 bits: in the sign bit too, and side by side."""
    rng = np.random.default_rng(4)
    known = {"birds": hashes(rng, 40), "cars": hashes(rng, 25)}
    known["cars"] += [known["birds"][0] ^ 1]  # near in two sets
    pool = hashes(rng, 60)
    for n, seen in enumerate([*known["birds"], *known["cars"]]):
        flipped = rng.permutation(hamming.BITS)[: n % 13] if n % 5 else np.arange(hamming.BITS - n % 13, hamming.BITS)
        pool.append(seen ^ sum(1 << int(bit) for bit in flipped))
    rows = [{"uid": uid(n), "phash": signed(h), "status": "ok"} for n, h in enumerate(pool)]
    rows.append({"uid": uid(9999), "phash": None, "status": "ok"})
    refs = {name: [{"uid": uid(n), "phash": signed(h)} for n, h in enumerate(some)] for name, some in known.items()}
    refs["birds"].append({"uid": uid(8888), "phash": None})
    references = by_set(spark, PAIRS, refs)
    for max_bits, partitions in ((0, 1), (4, 4), (7, 13)):
        config = decontaminate.Config(methods=("phash",), max_distance_bits=max_bits)
        found = decontaminate.transform(frame(spark, PAIRS, rows, partitions), references, config=config)
        closest = {
            (name, n): min((h ^ k).bit_count() for k in some)
            for n, h in enumerate(pool)
            for name, some in known.items()
        }
        wanted = [(name, "phash", uid(n), float(d)) for (name, n), d in closest.items() if d <= max_bits]
        assert rows_of(found, *FACTS) == sorted(wanted)
    assert {row[3] for row in wanted} == {float(d) for d in range(8)} and len(wanted) > 40


@settings(max_examples=300, deadline=None)
@given(a=st.integers(0, 2**64 - 1), bits=st.sets(st.integers(0, 63), max_size=15), spare=st.integers(0, 15))
def test_hashes_within_the_distance_share_a_band(a, bits, spare):
    """Else a near pair would never meet."""
    max_bits = min(15, len(bits) + spare)
    b = a ^ sum(1 << bit for bit in bits)
    assert any(a & mask == b & mask for mask in hamming.bands(max_bits))


def test_bands_are_the_bits_of_the_hash(spark):
    values = [0, 1, 2**63, 2**64 - 1, 0x0123456789ABCDEF, 0xFEDCBA9876543210]
    made = spark.createDataFrame([(signed(v),) for v in values], "phash bigint")
    for max_bits in (0, 1, 4, 15):
        found = [row[0] for row in made.select(decontaminate.bands(F.col("phash"), max_bits)).collect()]
        assert found == [[signed(value & mask) for mask in hamming.bands(max_bits)] for value in values]
        assert len(found[0]) == max_bits + 1


def test_a_set_pushed_through_itself_is_flagged_whole_by_every_method(spark):
    rng = np.random.default_rng(0)
    facts = [(n, signed(h)) for n, h in enumerate(hashes(rng, 300))]
    rows = [{"uid": uid(n), "sha256": f"{n}", "phash": h, "status": "ok"} for n, h in facts]
    references = by_set(spark, PAIRS, {"own": rows})
    found = decontaminate.transform(frame(spark, PAIRS, rows, 4), references, config=decontaminate.Config())
    assert rows_of(found, *FACTS) == sorted(("own", m, uid(n), 0.0) for n in range(300) for m in ("phash", "sha256"))
    vectors = [embedded(n, v) for n, v in enumerate(rng.standard_normal((300, 24)))]
    assert rows_of(semantic(spark, vectors, {"own": vectors}, 0.01, part_rows=70), *FACTS) == [
        ("own", "semantic", uid(n), 0.0) for n in range(300)
    ]


def semantic(
    spark, pool, references, max_distance, *, hashes=None, max_joint=0, variants=None, part_rows=50_000, partitions=2
):
    """`hashes`: of the pool's rows and of each set's, in their order; not given: no pairs are read. `variants`: rows of
    each set, with EDITS."""
    limits = {"max_distance": max_distance, "max_joint_distance": max_joint, "part_rows": part_rows}
    config = decontaminate_semantic.Config(**limits, **VERSION, edits=EDITS if variants else ())
    inputs = [frame(spark, EMBEDDINGS, pool, partitions), by_set(spark, EMBEDDINGS, references)]
    if hashes:
        ours = [{"uid": row["uid"], "phash": h} for row, h in zip(pool, hashes[0], strict=True)]
        theirs = {name: [{"uid": row["uid"], "phash": h} for row, h in zip(rows, hashes[1][name], strict=True)]
                  for name, rows in references.items()}  # fmt: skip
        inputs += [frame(spark, PAIRS, ours, partitions), by_set(spark, PAIRS, theirs)]
    inputs += [by_set(spark, VARIANTS, variants)] if variants else []
    found = decontaminate_semantic.transform(
        *inputs, config=config, facts=decontaminate_semantic.prepare(*inputs, config=config)
    )
    assert found.columns == schema_of(CONTAMINATED).names
    return found


def test_vectors_near_to_evaluation_vectors_are_found_with_the_distance_to_the_closest_of_each_set(spark):
    vectors = clustered(500, seed=9)
    pool, known = dict(enumerate(vectors[:400])), {"birds": vectors[400:470], "cars": vectors[470:]}
    lengths = {name: np.linalg.norm(v.astype(float), axis=1, keepdims=True) for name, v in known.items()}
    units = {name: v.astype(float) / lengths[name] for name, v in known.items()}
    wanted = []
    for n, vector in pool.items():
        for name, others in units.items():
            apart = 1 - (others @ vector.astype(float) / np.linalg.norm(vector.astype(float))).max()
            wanted += [(name, "semantic", uid(n), apart)] if apart <= 0.05 else []
    assert len(wanted) > 50
    unusable = [embedded(600, None), embedded(601, vectors[400], "invalid_output"), embedded(602, np.zeros(32))]
    ours = [embedded(n, v) for n, v in pool.items()] + unusable
    theirs = {name: [embedded(n, v) for n, v in enumerate(some)] + unusable for name, some in known.items()}
    results = [
        rows_of(semantic(spark, ours, theirs, 0.05, part_rows=part_rows, partitions=partitions), *FACTS)
        for partitions, part_rows in ((1, 50_000), (4, 120), (13, 33))
    ]
    assert results[0] == results[1] == results[2]
    assert [row[:3] for row in results[0]] == sorted(row[:3] for row in wanted)
    np.testing.assert_allclose([r[3] for r in results[0]], [r[3] for r in sorted(wanted)], atol=2e-7)


def test_vector_and_hash_together_flag_what_neither_does(spark):
    """Against all distances in float64. Rows without a hash have no part in it, and keep their verdict by vector."""
    rng = np.random.default_rng(6)
    vectors = clustered(260, seed=3)
    names = {"birds": range(200, 240), "cars": range(240, 260)}
    seen = [int(h) for h in rng.integers(0, 2**64, 200, dtype=np.uint64)]
    theirs = {n: int(h) for n, h in zip(range(200, 260), rng.integers(0, 2**64, 60, dtype=np.uint64), strict=True)}
    for n in range(120):  # somewhat near one of the evaluation pictures, by vector and by hash
        flipped, far = rng.permutation(64)[: rng.integers(0, 40)], rng.uniform(0, 1.2)
        seen[n] = theirs[200 + n % 60] ^ sum(1 << int(bit) for bit in flipped)
        vectors[n] = vectors[200 + n % 60] + far * rng.standard_normal(32)
    vectors[3], vectors[7], seen[3], theirs[207] = vectors[203], vectors[207], 1, 1  # near what a hash of 0 would be
    units = vectors.astype(float) / np.linalg.norm(vectors.astype(float), axis=1, keepdims=True)
    wanted = []
    for n in range(200):
        for name, members in names.items():
            apart = {m: 1 - units[n] @ units[m] for m in members}
            joint = min((2 * apart[m] + (seen[n] ^ theirs[m]).bit_count() / 32) / 3 for m in members if m != 203)
            wanted += [(name, "semantic", uid(n), min(apart.values()))] if min(apart.values()) <= 0.05 else []
            wanted += [(name, "semantic_phash", uid(n), joint)] if joint <= 0.3 and n != 7 else []
    by = {method: {row[2] for row in wanted if row[1] == method} for method in ("semantic", "semantic_phash")}
    assert min(map(len, (by["semantic"], by["semantic_phash"], by["semantic_phash"] - by["semantic"]))) > 10
    hashes = [signed(h) for h in seen], {name: [signed(theirs[m]) for m in some] for name, some in names.items()}
    hashes[0][7] = hashes[1]["birds"][3] = None
    ours = [embedded(n, vectors[n]) for n in range(200)]
    references = {name: [embedded(m, vectors[m]) for m in some] for name, some in names.items()}
    results = [
        rows_of(
            semantic(spark, ours, references, 0.05, hashes=hashes, max_joint=0.3, part_rows=size, partitions=p), *FACTS
        )
        for p, size in ((1, 50_000), (4, 70), (13, 23))
    ]
    assert results[0] == results[1] == results[2]
    assert [row[:3] for row in results[0]] == sorted(row[:3] for row in wanted)
    np.testing.assert_allclose([r[3] for r in results[0]], [r[3] for r in sorted(wanted)], atol=2e-7)


EDITS = ("mirrored", "cropped")


def test_a_copy_of_an_edited_evaluation_picture_is_found_and_told_as_that(spark):
    """Against all distances to pictures and to what they were made into. Of equal ones the unedited picture is told."""
    rng = np.random.default_rng(8)
    vectors, bits = clustered(500, seed=4).astype(np.float16), hashes(rng, 500)
    sets, looks = {"birds": range(200, 250), "cars": range(250, 280)}, {}
    for place, n in enumerate(n for members in sets.values() for n in members):
        looks[n] = {"": (vectors[n], bits[n])} | {
            edit: (vectors[300 + 2 * place + e], bits[300 + 2 * place + e]) for e, edit in enumerate(EDITS)
        }
    looks[205]["mirrored"] = looks[205][""]  # a symmetric one
    looks[207]["cropped"] = looks[207]["mirrored"] = vectors[300], bits[301]
    made = [look for of_one in looks.values() for look in of_one.values()]
    ours = {}
    for n in range(200):  # near one of them by both, or by the vector alone
        vector, seen = made[int(rng.integers(len(made)))] if n > 4 else looks[205 + n % 2 * 2]["mirrored"]
        flipped = rng.permutation(64)[: rng.integers(0, 30)] if n > 4 else []
        far = rng.uniform(0, 1.2) if n > 4 else 0
        noisy = (vector + far * rng.standard_normal(32)).astype(np.float16)
        ours[n] = noisy, seen ^ sum(1 << int(bit) for bit in flipped)

    def unit(vector):
        return vector.astype(float) / np.linalg.norm(vector.astype(float))

    wanted = []
    for n, (vector, seen) in ours.items():
        for name, members in sets.items():
            near = [(1 - unit(vector) @ unit(v), (seen ^ b).bit_count() / 32, e)
                    for m in members for e, (v, b) in looks[m].items()]  # fmt: skip
            for method, of, most in (
                ("semantic", lambda a, b: a, 0.05),
                ("semantic_phash", lambda a, b: (2 * a + b) / 3, 0.3),
            ):
                distance, edit = min((round(of(a, b), 6), e) for a, b, e in near)
                wanted += [(name, method, uid(n), distance, edit or None)] if distance <= most else []
    told = {edit: sum(row[4] == edit for row in wanted) for edit in (None, *EDITS)}
    assert min(told.values()) > 10
    assert [row[4] for row in wanted if row[2] in (uid(0), uid(1)) and row[1] == "semantic"] == [None, "cropped"]
    rows = {name: [embedded(m, looks[m][""][0]) for m in members] for name, members in sets.items()}
    variants = {
        name: [{**VERSION, "uid": uid(m), "status": "ok", "looks": [
            {"edit": e, "phash": signed(looks[m][e][1]), "image_embedding": looks[m][e][0].tobytes()} for e in EDITS]}
            for m in members] + [{**VERSION, "uid": uid(9), "status": "decode_error"}]
        for name, members in sets.items()
    }  # fmt: skip
    seen = (
        [signed(b) for _, b in ours.values()],
        {name: [signed(looks[m][""][1]) for m in some] for name, some in sets.items()},
    )
    pool = [embedded(n, v) for n, (v, _) in ours.items()]
    for partitions, size in ((1, 50_000), (4, 70), (13, 23)):
        found = semantic(spark, pool, rows, 0.05, hashes=seen, max_joint=0.3, variants=variants, part_rows=size,
                         partitions=partitions)  # fmt: skip
        found = sorted(map(tuple, found.collect()), key=lambda row: row[:3])
        assert [(*row[:3], row[4]) for row in found] == [
            (*row[:3], row[4]) for row in sorted(wanted, key=lambda r: r[:3])
        ]
        distances = [row[3] for row in sorted(wanted, key=lambda r: r[:3])]
        np.testing.assert_allclose([row[3] for row in found], distances, atol=1e-6)


def test_no_vectors_on_either_side_flag_nothing(spark):
    some = [embedded(n, v) for n, v in enumerate(clustered(8))]
    nothing = [embedded(0, None)]
    for ours, theirs in ((some, nothing), (nothing, some)):
        assert rows_of(semantic(spark, ours, {"birds": theirs}, 0.1)) == []
        hashes = [0] * len(ours), {"birds": [0] * len(theirs)}
        assert rows_of(semantic(spark, ours, {"birds": theirs}, 0.1, hashes=hashes, max_joint=0.5)) == []
    hashes = [None] * 8, {"birds": [None] * 8}
    found = semantic(spark, some, {"birds": some}, 0.1, hashes=hashes, max_joint=0.5)
    assert {row[1] for row in rows_of(found, *FACTS)} == {"semantic"}


# --- registered sets


def project_of(root, *more: str) -> Project:
    given = [
        "name=mine", f"output={root}/out", f"evalsets.root={root}/registry", "encoder={published: datacomp_b32}",
        f"datasets={{mine: {{kind: filter, shards: '{root}/pool/*.tar'}}}}",
    ]  # fmt: skip
    return Project(load(["local"], [*given, *more]))


def decontaminated(project: Project) -> list[tuple]:
    project.run_all(("decontaminate",))
    return rows_of(project.store.read("mine", CONTAMINATED), "eval_set", "method", "distance")


@pytest.fixture(scope="module")
def registered(spark, tmp_path_factory):
    """(folder, what `add` told, what was flagged before and after): a dataset of five pictures; and a set that
    has two of them by their bytes and one by its look (another format)."""
    root = tmp_path_factory.mktemp("registered")
    (root / "seen").mkdir()
    kinds = {1: "PNG", 2: "PNG", 3: "BMP"}
    members = {f"{n}": {"png": picture(n, (64, 48), kind), "txt": b"a"} for n, kind in kinds.items()}
    write_shard(root / "seen" / "0.tar", members)
    first, rows = project_of(root), []
    for n in range(1, 6):
        data, place = picture(n, (64, 48)), {"shard": "0.tar", "offset_bytes": 0, "size_bytes": 1}
        seen = {"sha256": hashlib.sha256(data).hexdigest(), "phash": inspect(data).phash}
        rows.append({"uid": uid(n), "status": "ok", **place, **seen})
    first.store.create("mine", PAIRS)
    first.store.replace(frame(spark, PAIRS, rows), "mine", PAIRS, where={}, note={"slice": {}})
    before = decontaminated(first)
    held = evalsets.add(first, "seen", f"{root}/seen/*.tar")
    return root, held, before, decontaminated(project_of(root))


@pytest.mark.slow
def test_a_set_that_is_registered_once_is_held_against_every_project(registered):
    root, held, before, after = registered
    assert held == {"source": f"{root}/seen/*.tar", "sha256": 3, "phash": 3, "semantic": 0, "edited": 0}
    assert (before, after) == ([], [("seen", m, 0.0) for m in ("phash",) * 3 + ("sha256",) * 2])
    again = project_of(root)
    assert decontaminated(again) == after and again.runs[-1].is_up_to_date
    assert again.runs[-1].inputs.keys() == {"mine.pairs", "evalsets.seen.pairs"}
    assert not again.store.exists("seen", PAIRS)


@pytest.mark.slow
def test_what_cannot_be_registered_or_used_is_told(registered):
    root = registered[0]
    project = project_of(root)
    with pytest.raises(UserError, match="its source; found /else; fix: another name"):
        evalsets.add(project, "seen", "/else")
    with pytest.raises(UserError, match=r"wanted pictures in .*found none"):
        evalsets.add(project, "nothing", f"{root}/none/*.tar")
    with pytest.raises(UserError, match=r"registered ones \(seen\); found sene"):
        decontaminated(project_of(root, "evalsets.use=[sene]"))
    assert evalsets.used(project_of(root, "evalsets.use=[]")) == {}


@pytest.mark.slow
def test_the_command_lists_and_reports(registered, capsys):
    root, held, _, _ = registered
    conf = root / "mine.yaml"
    conf.write_text(json.dumps(project_of(root).config.model_dump(mode="json", exclude_defaults=True)))

    def dfn(*arguments):
        capsys.readouterr()
        assert _run(partial(app, [*arguments, "--conf", str(conf), "--json", "--quiet"])) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    assert dfn("evalset", "add", "seen", f"{root}/seen") == dfn("evalset", "list") == {"seen": held}
    counts = {"rows": 3, "sha256": {"0": 2}, "phash": {"0": 3}, "semantic": 0, "semantic_phash": 0, "edited": 0}
    assert dfn("evalset", "report") == {"mine.seen": counts}
    assert _run(partial(app, ["evalset", "add", "a-b", "x", "--conf", str(conf)])) == 2


@pytest.mark.slow
def test_explain_and_a_selection_s_verdict_show_the_closest(spark, store):
    for table in (PAIRS, CONTAMINATED):
        store.create("pool", table)
    place = {"shard": "s", "offset_bytes": 0, "size_bytes": 1}
    pairs = frame(spark, PAIRS, [{"uid": uid(n), "status": "ok", **place} for n in (1, 2, 3)])
    store.replace(pairs, "pool", PAIRS, where={}, note={"slice": {}})
    seen = [("a", "semantic", 0.01), ("a", "phash", 3.0), ("b", "phash", 1.0), ("c", "semantic", 0.0)]
    rows = [{"eval_set": s, "method": m, "uid": uid(1), "distance": d} for s, m, d in seen]
    rows.append({"eval_set": "a", "method": "semantic", "uid": uid(3), "distance": 0.05, "edit": "mirrored"})
    store.replace(frame(spark, CONTAMINATED, rows), "pool", CONTAMINATED, where={}, note={"slice": {}})
    Runner(store, {"pool": "pool"}).run(selection.STAGE, "pool", selection.Config(keep=selection.Keep(all=True)))
    found = explain(store, "pool", uid(1))
    shown = [(row["eval_set"], row["method"]) for row in found["contaminated"]]
    assert shown == [("b", "phash"), ("a", "phash"), ("c", "semantic"), ("a", "semantic")]
    assert list(found["selections"].values()) == ["contaminated (phash of b, distance 1)"]
    assert list(explain(store, "pool", uid(2))["selections"].values()) == ["kept"]
    edited = explain(store, "pool", uid(3))
    assert edited["contaminated"][0]["edit"] == "mirrored"
    assert list(edited["selections"].values()) == ["contaminated (semantic of a as mirrored, distance 0.05)"]


def test_the_report_counts_rows_that_only_an_edited_picture_is_near_to(spark):
    seen = [
        (1, "semantic", "mirrored"), (1, "semantic_phash", None), (2, "semantic", "cropped"),
        (2, "semantic_phash", "cropped"), (3, "phash", None), (4, "semantic_phash", "mirrored"),
    ]  # fmt: skip
    rows = [{"eval_set": "a", "method": m, "uid": uid(n), "distance": 0.1, "edit": e} for n, m, e in seen]
    found = evalsets._by_distance(frame(spark, CONTAMINATED, rows))
    assert found["a"]["edited"] == {"cropped": 1, "mirrored": 1} and found["a"]["rows"] == 4
    assert "edited" not in evalsets._by_distance(frame(spark, CONTAMINATED, rows).drop("edit"))["a"]


def test_a_table_of_an_earlier_release_gets_the_column_that_it_lacks(spark, store):
    before = replace(CONTAMINATED, ddl=CONTAMINATED.ddl.partition(",\n    edit")[0])
    for table in (PAIRS, before):
        store.create("pool", table)
    old = frame(spark, CONTAMINATED, [{"eval_set": "a", "method": "semantic", "uid": uid(8), "distance": 0.0}])
    store.replace(old.drop("edit"), "pool", before, where={}, note={"slice": {}})
    pair = {"uid": uid(1), "status": "ok", "shard": "s", "offset_bytes": 0, "size_bytes": 1, "sha256": "5"}
    store.create("exam", PAIRS)
    for dataset in ("pool", "exam"):
        store.replace(frame(spark, PAIRS, [pair]), dataset, PAIRS, where={}, note={"slice": {}})
    assert explain(store, "pool", uid(1))["contaminated"] == []
    runner = Runner(store, {"pool": "pool", "exam": "eval"})
    assert not runner.run(decontaminate.STAGE, "pool", decontaminate.Config()).is_up_to_date
    assert runner.run(decontaminate.STAGE, "pool", decontaminate.Config()).is_up_to_date
    assert rows_of(store.read("pool", CONTAMINATED)) == [
        ("a", "semantic", uid(8), 0.0, None), ("exam", "sha256", uid(1), 0.0, None)
    ]  # fmt: skip
