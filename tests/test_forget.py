"""Takedowns on real tables, tars and exports: what is found, what goes, what stays out, and kills at every step."""

import contextlib
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import frame, picture, rows_of, write_shard

from etl.checks import verify as checks
from etl.commands.forget import _named, _of_table, forget
from etl.config import load
from etl.export.export import export_selection
from etl.forget import rows as rows_module
from etl.forget import shards as shards_module
from etl.forget.find import Place, find
from etl.forget.takedown import Takedown
from etl.intake.blocklists import Blocklist, read_blocklists
from etl.project import Project
from etl.selection.receipts import prove, receipt_of
from etl.selection.uid_lists import uid_list
from etl.shards import verify
from etl.stage import Table, UserError
from etl.stages import selection
from etl.stages.selection import Config, Keep
from etl.store import Store
from etl.tables import DATASET_TABLES, DUPLICATES, FORGOTTEN, INPUTS, PAIRS, SCORES, SELECTIONS, SHARDS, SIGNALS
from models.data import read_uids, u8_to_uid, write_part

F1 = {"filter": "f", "filter_version": "v"}
RULE = Config(name="top", keep=Keep(top_fraction=0.5), scored_by={"dfn": ("f", "v")})
STAGES = ["ingest", "signals", "dedup", "decontaminate"]


def uid(number: int) -> str:
    return hashlib.md5(str(number).encode()).hexdigest()


def url(number: int) -> str:
    return {8: "http://img.bad.org/8.png", 9: "https://bad.org/9.png"}.get(number, f"http://h{number}.org/{number}.png")


def image(number: int) -> bytes:
    """Pair 3 has the bytes of pair 2, and a pair of `clean` those of 6."""
    return picture({3: 2, 106: 6}.get(number, number), size=(32, 24))


def write_pair(folder: Path, number: int, **other) -> None:
    """As img2dataset's `files` has one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{number}.png").write_bytes(other.get("image", image(number)))
    (folder / f"{number}.txt").write_text(f"caption number {number}")
    (folder / f"{number}.json").write_text(
        json.dumps({"uid": uid(number), "url": url(number)} | other.get("facts", {}))
    )


def sha256(number: int) -> str:
    return hashlib.sha256(image(number)).hexdigest()


@pytest.fixture(scope="module")
def project(spark, tmp_path_factory) -> Project:
    """Twelve pairs packed by the project, three in shards of others; a selection, an export, vectors, a report."""
    root = tmp_path_factory.mktemp("forget")
    for number in range(12):
        write_pair(root / "in" / f"part{number % 2}", number)
    samples = {uid(n): {"png": image(n), "txt": b"clean one", "json": json.dumps({"uid": uid(n)}).encode()}
               for n in (100, 101, 106)}  # fmt: skip
    write_shard(root / "clean" / "0.tar", samples)
    (root / "conf.yaml").write_text(json.dumps({
        "name": "forget", "output": str(root / "out"), "evalsets": {"root": str(root / "sets")},
        "datasets": {"pool": {"kind": "pool", "images": f"{root}/in/*/"},
                     "clean": {"kind": "filter", "shards": f"{root}/clean/*.tar"}},
    }))  # fmt: skip
    made = Project(load([str(root / "conf.yaml")]))
    made.run_all(STAGES)
    put(made.store, SCORES, [{**F1, "uid": uid(n), "score": n / 100, "status": "ok"} for n in range(12)])
    run = made.run(selection.STAGE, "pool", RULE)
    id_ = str(run.slice["selection_id"])
    uid_list(made.store, "pool", id_, made.config.output_folder / "selections" / f"{id_}.npy")
    export_selection(
        made.store, "pool", id_, root / "exported", shards_root=f"{root}/out/packed/pool", pairs_per_shard=3
    )
    halves = np.ones((12, 2), np.float16)
    write_part(root / "out" / "vectors" / "pool-1" / "p.arrow", [uid(n) for n in range(12)], halves, halves)
    shown = "".join(f"<li><figure>{n}<code>{uid(n)}</code></figure></li>" for n in range(12))
    (root / "out" / "report.html").write_text(shown)
    return made


def put(store: Store, table: Table, rows: list[dict], dataset: str = "pool") -> None:
    if not store.exists(dataset, table):
        store.create(dataset, table)
    made = frame(store.spark, table, rows)
    store.append_once(made, dataset, table, content=str(rows), note={"slice": {}})


def places(project: Project) -> list[Place]:
    return Takedown(project).places


def named(**given) -> Blocklist:
    distance = given.pop("distance", 0)
    options = {kind: given.get(kind, []) for kind in ("uid", "url", "domain", "sha256", "phash")}
    return _named(options, distance, Blocklist())


def phash(project: Project, number: int, flipped: int = 0) -> str:
    row = project.store.read("pool", PAIRS).where(f"uid = '{uid(number)}'").first()
    return f"{(row['phash'] ^ flipped) & ((1 << 64) - 1):016x}"


# --- what is found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"uid": [uid(1)]}, {1: True}),
        ({"uid": [uid(2).upper()]}, {2: True, 3: False}),  # the same bytes
        ({"url": [url(6)]}, {6: True, 106: False}),  # and in another dataset
        ({"domain": ["bad.org"]}, {8: True, 9: True}),
        ({"domain": ["img.bad.org"]}, {8: True}),
        ({"domain": ["ad.org"]}, {}),
        ({"sha256": [sha256(3)]}, {2: True, 3: True}),
        ({"phash": [1]}, {1: True}),
        ({"phash": [-1]}, {}),  # one bit away
        ({"phash": [-1], "distance": 1}, {1: True}),
        ({"uid": [uid(1)], "url": [url(4)]}, {1: True, 4: True}),
    ],
    ids=str,
)
def test_what_is_named_is_found_with_all_that_shows_the_same_picture(project, given, wanted):
    if "phash" in given:
        given = given | {"phash": [phash(project, abs(n), flipped=n < 0) for n in given["phash"]]}
    found = rows_of(find(places(project), named(**given)).pairs)
    expected = [("clean" if n > 99 else "pool", uid(n), is_named) for n, is_named in wanted.items()]
    assert found == sorted(expected)


@pytest.mark.slow
def test_names_come_from_files_and_tables_too(project, tmp_path):
    listed = f"# a takedown\n{uid(1)}\n{sha256(2).upper()}\nBad.org\n{url(4)}\n{'0' * 15}1~2\n"
    (tmp_path / "list.txt").write_text(listed)
    read = read_blocklists([tmp_path / "list.txt"])
    assert read == Blocklist({url(4)}, {"bad.org"}, {sha256(2)}, {(1, 2)}, {uid(1)})
    project.store.spark.createDataFrame([(uid(1), None), (None, url(4))], "uid string, url string").write.format(
        "delta"
    ).save(str(tmp_path / "t"))
    given = _of_table(project, f"table:{tmp_path}/t")
    assert _named(given, 0, Blocklist()) == Blocklist({url(4)}, uids={uid(1)})
    with pytest.raises(UserError, match=r"--from table:.*wanted a column of uid, url, .* found selection_id, "):
        _of_table(project, f"table:{project.store.root}/pool/receipts")
    for bad in ({"uid": ["abc"]}, {"sha256": [uid(1)]}, {"phash": ["x" * 16]}):
        with pytest.raises(UserError, match="hex digits; found"):
            named(**bad)


# --- what goes


class Killed(BaseException):
    """A kill: no handler catches it."""


def dying_after(function, calls: int = 1):
    """Does its work so many times, and dies."""
    count = []

    def dies(*args, **kwargs):
        done = function(*args, **kwargs)
        count.append(done)
        if len(count) == calls:
            raise Killed
        return done

    return dies


STEPS = [
    (shards_module.Shards, "blank", 1), (shards_module, "mend_exports", 2), (Takedown, "_mended", 1),
    (rows_module, "redact_texts", 1), (rows_module, "mend_ledgers", 2), (Store, "merge", 1), (Store, "merge", 1),
    (Store, "merge", 1), (rows_module, "delete_rows", 2), (Store, "purge", 1), (rows_module, "purge", 1),
]  # fmt: skip
"""Where a takedown is killed, one run after the other: after so many calls."""


def contents(project: Project) -> dict[str, list[dict]]:
    """dataset.table -> rows, of all tables of all datasets."""
    found = {}
    for place in places(project):
        for table in place.tables(DATASET_TABLES):
            rows = place.store.read(place.dataset, table).collect()
            found[f"{place.label}.{table.name}"] = sorted((row.asDict() for row in rows), key=str)
    return found


def grep(root: Path, *keys: str) -> dict[str, str]:
    """file -> which of the keys it names, in its bytes, as text or packed; of parquet files in every column too."""
    forms = {form: key for key in keys for form in [key.encode()]}
    for key in keys:
        if len(key) in (32, 64) and set(key) <= set("0123456789abcdef"):
            forms[bytes.fromhex(key)] = key
            forms[np.frombuffer(bytes.fromhex(key), ">u8").astype("<u8").tobytes()] = key
    found = {}
    for path in (path for path in root.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if path.suffix == ".parquet":
            data += str(pq.read_table(path).to_pylist()).encode()
        found |= {str(path.relative_to(root)): key for form, key in forms.items() if form in data}
    return found


@pytest.fixture(scope="module")
def taken(project):
    """(before, plan, after) of a takedown of pair 6, killed at every step. It is the pair at the cut of the selection,
    and its picture is in `clean` as well; then of 2, which takes 3 along."""
    root = project.config.output_folder.parent
    before, gone = contents(project), (uid(6), url(6), sha256(6), uid(106))
    was = grep(root / "out", *gone)
    assert len(was) == 11
    assert grep(root / "exported", *gone)
    plan = Takedown(project).plan(named(uid=[uid(6)]))
    assert contents(project) == before, "a plan changes nothing"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Takedown, "_record", dying_after(lambda *_: None))
        with pytest.raises(Killed):
            Takedown(project).begin(plan)
    assert Takedown(project).open() == []
    again = Takedown(project).plan(named(uid=[uid(6)]))
    assert (again.takedown_id, again.facts, again.is_new) == (plan.takedown_id, plan.facts, True)
    Takedown(project).begin(again)
    for owner, name, calls in STEPS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, dying_after(getattr(owner, name), calls))
            with pytest.raises(Killed):
                Takedown(project).finish(plan.takedown_id)
        assert Takedown(project).open() == [plan.takedown_id], f"{name} {calls}"
    done = Takedown(project).finish(plan.takedown_id)
    assert Takedown(project).open() == []
    return before, plan, contents(project), done


@pytest.mark.slow
def test_it_says_first_what_it_would_do(taken, project):
    _, plan, _, _ = taken
    facts = plan.facts
    assert facts["pairs"] == {"clean": {"named": 0, "same_picture": 1}, "pool": {"named": 1, "same_picture": 0}}
    assert facts["rows"]["pool.pairs"] == facts["rows"]["pool.selections"] == facts["rows"]["clean.pairs"] == 1
    assert (facts["num_tars_to_blank"], facts["num_tars_of_others"]) == (1, 1)
    assert facts["exports"] == [str(project.config.output_folder.parent / "exported")]
    ids = {name.partition(".")[2] for name in facts["selections"]}
    assert facts["files"] == {"list": [f"selections/{next(iter(ids))}.npy"], "report": ["report.html"],
                              "vectors": ["vectors/pool-1"]}  # fmt: skip
    assert not any(key in json.dumps(facts) for key in (uid(6), url(6), sha256(6), uid(106)))


@pytest.mark.slow
def test_rows_go_from_every_table_and_no_other_changes(taken):
    before, _, after, done = taken
    doomed = {uid(6), uid(106)}
    wanted = {name: [row for row in rows if row.get("uid") not in doomed] for name, rows in before.items()}
    for name in ("pool.inputs", "clean.inputs", "pool.receipts", "pool.shards"):
        assert len(after[name]) == len(wanted[name])
        after, wanted = ({**some, name: []} for some in (after, wanted))
    assert after == wanted
    assert done["done"]["logs_with_values"] == []


@pytest.mark.slow
def test_nothing_that_is_left_names_them(taken, project):
    root = project.config.output_folder.parent
    for folder in (root / "out", root / "exported"):
        assert grep(folder, uid(6), url(6), sha256(6), uid(106)) == {}
    assert grep(root / "out", uid(5), sha256(5)), "the search finds what is there"
    assert grep(root / "clean", uid(106)), "not ours to write"


@pytest.mark.slow
def test_the_ledgers_and_the_receipt_count_what_was_forgotten(taken, project):
    store = project.store
    assert sorted(r["num_by_status"].get("forgotten", 0) for r in store.read("clean", INPUTS).collect()) == [1]
    id_ = store.read("pool", SELECTIONS).first()["selection_id"]
    receipt = receipt_of(store, "pool", id_)
    assert receipt["facts"]["threshold_uid"] == "-"
    proof = prove(store, "pool", receipt)
    assert (proof.how, proof.is_proved, proof.num_forgotten, proof.num_rows) == ("stored", True, 1, 6)
    assert not prove(store, "pool", {**receipt, "hash": "0" * 32}).is_proved


@pytest.mark.slow
def test_exports_and_lists_are_whole_without_them(taken, project):
    root = project.config.output_folder.parent
    assert verify(str(root / "exported")) == []
    left = u8_to_uid(read_uids(root / "exported" / "uids.npy"))
    assert left == sorted(uid(n) for n in range(7, 12))
    (list_,) = (root / "out" / "selections").glob("*.npy")
    assert u8_to_uid(read_uids(list_)) == left
    assert sum(row["num_samples"] for row in project.store.read("pool", SHARDS).collect()) == 5
    assert (root / "out" / "report.html").read_text().count("<li>") == 11


@pytest.mark.slow
def test_the_same_again_finds_nothing_and_the_next_run_is_up_to_date(taken, project):
    plan = Takedown(project).plan(named(uid=[uid(6)]))
    assert (plan.is_new, plan.facts["pairs"]) == (False, {})
    before = contents(project)
    project.run_all(STAGES)
    assert contents(project) == before


@pytest.mark.slow
def test_the_command_says_what_it_would_do_and_that_nothing_is_left(taken, project, monkeypatch, capsys):
    monkeypatch.setattr("etl.commands.forget.configured", lambda *_: contextlib.nullcontext(project))
    before = contents(project)
    forget(uid=[uid(6)], yes=True, json=True)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["state"] == "nothing is left to forget"
    forget(domain=["bad.org"], json=True)
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["state"], told["pairs"]) == ("not done: add --yes to do it", {"pool": {"named": 2, "same_picture": 0}})
    assert told["unplaced"] == {"pool": {"ok": 2}}
    assert contents(project) == before
    with pytest.raises(UserError, match="wanted something to forget; found nothing named"):
        forget()


@pytest.mark.slow
def test_its_keys_are_hashes_alone(taken, project):
    rows = project.store.read("", FORGOTTEN).collect()
    assert {(row["kind"], len(row["key_hash"])) for row in rows} == {("uid", 64), ("url", 64), ("sha256", 64)}
    assert len(rows) == 4


@pytest.mark.slow
def test_the_same_content_stays_out_with_a_status(taken, project):
    """Its bytes under another name, its name with other bytes, its URL; and one more that comes in."""
    root = project.config.output_folder.parent
    more = root / "in" / "part2"
    write_pair(more, 20, image=image(6))
    write_pair(more, 21, facts={"uid": uid(6)})
    write_pair(more, 22, facts={"url": url(6)})
    write_pair(more, 23)
    project.run_all(["ingest"], ["pool"])
    new = {row["uid"] for row in project.store.read("pool", PAIRS).where("uid != ''").collect()}
    assert new & {uid(n) for n in (6, 21, 22, 23)} == {uid(23)}
    (line,) = project.store.read("pool", INPUTS).where("uri LIKE '%part2%'").collect()
    # Packed it would be stored: its bytes are refused before, and its row says so, under its own name.
    assert line["num_by_status"] == {"ok": 1, "blocklisted": 1, "forgotten": 2}
    blocked = project.store.read("pool", PAIRS).where("status = 'blocklisted'").collect()
    assert [(row["uid"], row["sha256"], row["status_reason"]) for row in blocked] == [
        (uid(20), None, "it was forgotten")
    ]
    assert grep(root / "out", uid(6), url(6), sha256(6)) == {}
    project.run_all(STAGES)
    shutil.rmtree(more)


@pytest.mark.slow
def test_a_group_gets_another_first_or_goes(taken, project):
    """Pairs 2 and 3 are a group by their bytes, and with a third by their looks."""
    store = project.store
    ids = sorted(uid(n) for n in (1, 4, 5))
    group = [{"method": "phash", "uid": one, "group_uid": ids[0], "distance": float(n)} for n, one in enumerate(ids)]
    put(store, DUPLICATES, group)
    takedown = Takedown(project)
    plan = takedown.plan(Blocklist(uids=frozenset({ids[0]}), sha256s=frozenset({sha256(2)})))
    takedown.begin(plan)
    takedown.finish(plan.takedown_id)
    left = rows_of(store.read("pool", DUPLICATES), "method", "uid", "group_uid", "distance")
    assert left == [("phash", ids[1], ids[1], 0.0), ("phash", ids[2], ids[1], 2.0)]
    assert not {uid(2), uid(3), ids[0]} & {row["uid"] for row in store.read("pool", PAIRS).collect()}


# --- verify


def damage(project: Project, table: Table, row: dict) -> None:
    project.store.append_once(frame(project.store.spark, table, [row]), "pool", table, content=str(row),
                              note={"slice": {}})  # fmt: skip


@pytest.mark.slow
def test_verify_finds_nothing_on_what_is_whole_and_then_each_fault(taken, project, monkeypatch):
    monkeypatch.setattr("etl.checks.pixels.encoder_problems", lambda project: [])  # see test_checks.py
    project.run_all(STAGES)
    assert list(checks.contents(project)) == []
    assert list(checks.rows(project)) == []
    store, root = project.store, project.config.output_folder.parent
    row = store.read("pool", PAIRS).where("status = 'ok'").orderBy("shard", "offset_bytes").first()
    tar, at = root / "out" / "packed" / "pool" / row["shard"], row["offset_bytes"] + 40
    data = bytearray(tar.read_bytes())
    data[at] ^= 1
    tar.write_bytes(data)
    found = list(checks.contents(project))
    assert [line.partition(" are not")[0] for line in found] == [f"pool: {tar.name}: 1 of its images"]
    assert "fix: give the shard back" in found[0]
    data[at] ^= 1
    tar.write_bytes(data)
    damage(project, SIGNALS, {"uid": uid(77), "status": "ok"})
    damage(project, SIGNALS, {"uid": uid(77), "status": "missing_text"})
    damage(project, DUPLICATES, {"method": "minhash", "uid": uid(10), "group_uid": uid(11), "distance": 0.0})
    damage(project, SELECTIONS, {"selection_id": "f" * 16, "uid": uid(10), "num_repeats": 1})
    store.spark.sql(f"DELETE FROM {store.name('pool', PAIRS)} WHERE uid = '{uid(10)}'")
    damage(project, PAIRS, {"uid": uid(6), "status": "metadata_only"})
    assert [line.partition("; ")[0] for line in checks.contents(project)] == [
        "pool.signals: 1 keys (uid) come more than once"
    ]  # fmt: skip
    lines = [line.partition("; fix: ") for line in checks.rows(project)]
    assert all(fix for *_, fix in lines)
    found = sorted(line for line, *_ in lines)
    id_ = next(
        row["selection_id"] for row in store.read("pool", SELECTIONS).collect() if row["selection_id"] != "f" * 16
    )
    assert found == sorted([
        "pool.pairs: 8 rows ok, 13 in inputs", "pool.pairs: 1 rows metadata_only, 0 in inputs",
        "pool.signals: 2 uids that no pair has", "pool.scores: 1 uids that no pair has",
        "pool.selections: 1 uids that no pair has", "pool.duplicates: 1 uids that no pair has",
        "pool.signals: 1 pairs without a row", "pool.duplicates: 1 groups of one, or named after none of theirs",
        f"pool.selections: {'f' * 16} has no receipt", "pool.pairs: 1 rows of forgotten pairs",
        f"pool.shards: {id_}: 5 samples, wanted 4",
    ])  # fmt: skip
