"""The harness on sides of no weight: what it counts, what it writes. How fast anything is, `make bench` says."""

import json
import os
import subprocess
import sys

import pytest
from training_data import tiny_encoder

from tests.bench import data, measure, ours, peers
from tests.bench.measure import MissingError, against, compare, interleaved


def ticking(monkeypatch, seconds: dict[str, list[float]]):
    """Sides that take so many seconds of a clock of their own, in turn, and do 6 units of work each time; the clock."""
    now, calls = [0.0], []

    def side(name: str):
        def run() -> float:
            calls.append(name)
            now[0] += seconds[name].pop(0)
            return 6

        return run

    monkeypatch.setattr(measure, "load", lambda: 0.5)
    return {name: side(name) for name in seconds}, lambda: now[0], calls


@pytest.mark.parametrize(("ratio", "goal", "verdict"), [
    (1.0, "<= 1", "reached"), (1.01, "<= 1", "MISSED"), (0.5, "<= 1", "reached"), (1.0, ">= 1", "reached"),
    (0.99, ">= 1", "MISSED"), (1.0, "-", ""), (None, ">= 1", ""),
])  # fmt: skip
def test_a_goal_that_is_met_exactly_is_reached(ratio, goal, verdict):
    assert measure.Ratio("a", 1.0, 1.0, "unit", ratio, goal, None, 0.5).verdict == verdict


def test_sides_take_turns_and_the_first_turn_does_not_count(monkeypatch):
    sides, clock, calls = ticking(monkeypatch, {"a": [9, 1, 2, 3], "b": [9, 2, 4, 6]})
    assert interleaved(sides, repetitions=3, clock=clock) == ({"a": [6, 3, 2], "b": [3, 1.5, 1]}, {})
    assert calls == ["b", "a", "a", "b"] * 2  # what drifts falls on both alike


def test_what_makes_a_side_ready_does_not_count(monkeypatch):
    sides, clock, calls = ticking(monkeypatch, {"a": [9, 2], "wake": [5, 5]})
    ready = {"a": sides.pop("wake")}
    assert interleaved(sides, repetitions=1, clock=clock, ready=ready) == ({"a": [3]}, {})
    assert calls == ["wake", "a"] * 2


def test_rows_in_table_and_json_out(monkeypatch, tmp_path, capsys):
    sides, clock, _ = ticking(monkeypatch, {"ours": [9, 1, 2, 3], "theirs": [9, 2, 4, 12]})
    measured = interleaved(sides, repetitions=3, clock=clock)
    rows = [
        against(*measured, "ours", "theirs", ("fast", "units / CPU s", ">= 2.5")),
        compare("read", [200.0], [100.0], "MB", "<= 2.05", "counted"),
    ]
    path = measure.report("tiny", rows, out=tmp_path)
    assert path == tmp_path / "tiny.json"
    assert json.loads(path.read_text()) == [
        {
            "name": "fast", "ours": 3, "theirs": 1.5, "unit": "units / CPU s", "ratio": 2, "goal": ">= 2.5",
            "spread": 0.5, "load": 0.5,
        },
        {
            "name": "read", "ours": 200, "theirs": 100, "unit": "MB", "ratio": 2, "goal": "<= 2.05", "spread": 0,
            "load": 0.5, "note": "counted",
        },
    ]  # fmt: skip
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["fast", "3", "1.5", "units", "/", "CPU", "s", "2", ">=", "2.5", "50%", "0.5", "MISSED"] in printed
    assert ["read", "200", "100", "MB", "2", "<=", "2.05", "0%", "0.5", "reached"] in printed
    assert not any("VOID:" in line for line in printed)


def test_a_busy_machine_makes_the_run_void(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(measure, "load", lambda: 4.5)
    measure.report("busy", [compare("x", [1.0], [1.0], "s")], out=tmp_path)
    assert capsys.readouterr().out.splitlines()[-1].startswith("VOID: the load was above 4")


def test_a_peer_that_is_not_there_becomes_a_row_that_says_so(monkeypatch, tmp_path, capsys):
    sides, clock, _ = ticking(monkeypatch, {"ours": [1, 1, 1]})

    def absent() -> float:
        raise MissingError("daft is not installed")

    measured = interleaved({**sides, "daft": absent}, repetitions=2, clock=clock)
    row = against(*measured, "ours", "daft", ("feed_vs_daft", "images / CPU s", ">= 3"))
    measure.report("absent", [row], out=tmp_path)
    assert json.loads((tmp_path / "absent.json").read_text()) == [
        {
            "name": "feed_vs_daft", "ours": 6, "theirs": None, "unit": "images / CPU s", "ratio": None, "goal": ">= 3",
            "spread": None, "load": 0.5, "note": "daft not measured: daft is not installed",
        }
    ]  # fmt: skip
    assert "daft is not installed" in capsys.readouterr().out


BURN = """
import os, signal, subprocess, sys, time
def burn():
    while time.process_time() < 0.3: pass
"""
# Spark's daemon of Python workers does this: nobody waits for its children, so no cutime grows.
IGNORED = """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
if not os.fork():
    burn(); time.sleep(0.5); os._exit(0)
try: os.wait()
except ChildProcessError: pass
"""


@pytest.mark.parametrize(
    "code",
    [
        "burn()",
        "subprocess.run([sys.executable, '-c', 'import time\\nwhile time.process_time() < 0.3: pass'])",
        IGNORED,
    ],
    ids=["child", "grandchild", "grandchild that nobody waits for"],
)
def test_the_cpu_time_of_descendants_counts_while_they_run_and_after(code):
    before = measure.cpu_seconds()
    command = [sys.executable, "-c", f"{BURN}\n{code}\nprint(1, flush=True)\ninput()"]
    with (
        measure.watching(0.05),
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child,
    ):
        assert child.stdout.readline() == b"1\n"
        assert {os.getpid(), child.pid} <= set(measure.TREE.look())
        during = measure.cpu_seconds() - before
        child.communicate(b"\n")
    after = measure.cpu_seconds() - before
    assert 0.28 <= during <= after < during + 0.3  # once, not twice


def test_bytes_that_a_child_reads_count(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(5_000_000))
    code = f"print(len(open({str(path)!r}, 'rb').read()), flush=True); input()"
    before = measure.tree_bytes_read()
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"5000000\n"
        assert 5_000_000 <= measure.tree_bytes_read() - before < 10_000_000
        child.communicate(b"\n")


def test_shards_are_read_once_by_ingest_and_once_by_all_models(spark, tmp_path):
    encoder, small, large = tiny_encoder(tmp_path / "encoder"), *(data.build(n, root=tmp_path) for n in (4, 64))
    found = ours.more_bytes_read(spark, small, large, encoder, 3, turns=4)
    more = large.size_bytes - small.size_bytes
    assert 1.99 * more < found < 2.05 * more  # what else a process reads differs by some hundred bytes


def test_flops_are_those_of_the_architecture():
    """ViT-B/32 has 8.82 GFLOP an image by the paper's own counting (4.41 multiplications and additions)."""
    assert peers.image_gflop() == pytest.approx(8.82, abs=0.01)
    assert peers.image_gflop() + peers.text_gflop(77) == pytest.approx(14.78, abs=0.01)
    assert peers.text_gflop(10) < peers.text_gflop(20) / 1.9
