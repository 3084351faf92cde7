"""What commands print: one JSON line for programs, lines for people."""

import json

from etl.console import Reporter, emit
from etl.encode.lanes import TIMINGS
from etl.job import Progress, StageRun
from etl.project import _sentence

RESULT = {
    "name": "x", "rows": {"ok": 3, "cut": 1}, "none": {}, "rule": {"keep": {"all": True}, "seed": 0},
    "pairs": [{"uid": "a", "text": "b"}, {"uid": "c", "text": None}], "list": [1, 2],
    "wide": {"one": "x" * 50, "two": "y" * 50},
}  # fmt: skip


def test_people_get_a_line_for_each_value_and_what_holds_more_below_its_name(capsys):
    emit(RESULT, as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "name   x",
        "rows   ok: 3, cut: 1",
        "none   -",
        "rule",
        "  keep  all: True",
        "  seed  0",
        "pairs  uid: a, text: b",
        "pairs  uid: c",
        "list   [1, 2]",
        "wide",
        f"  one  {'x' * 50}",
        f"  two  {'y' * 50}",
    ]


def test_progress_can_be_json_a_line_each_that_standard_output_has_none_of(capsys):
    reporter = Reporter(is_json_lines=True)
    reporter.say("ingest [pool] " + "x" * 300)
    reporter.progress(Progress("embed", "pool", 60, 100, 20, 4.0, 0.93))
    out, err = capsys.readouterr()
    said, at = (json.loads(line) for line in err.splitlines())
    assert out == "" and said["said"] == "ingest [pool] " + "x" * 300 and said["seconds"] >= 0
    assert at | {"seconds": 0} == {
        "seconds": 0, "stage": "embed", "dataset": "pool", "rows_done": 60, "rows_total": 100, "rows_per_second": 5.0,
        "seconds_left": 8.0, "busiest": "cpu 93%",
    }  # fmt: skip
    Reporter(is_json_lines=True, is_quiet=True).say("nothing")
    assert capsys.readouterr() == ("", "")


def test_progress_tells_what_a_chunk_s_time_went_into_most(capsys):
    def told(**measured):
        Reporter().progress(Progress("embed", "pool", 60, 100, 20, 4.0, **measured))
        return capsys.readouterr().err.partition("embed ")[2].strip()

    place = "pool           60 of 100 rows, 5 rows/s, 8 s left"
    assert told() == place
    of_pass = {"read_seconds": 1.0, "decode_seconds": 2.0, "model_seconds": 6.0, "wait_seconds": 2.0}
    for measured, busiest in (
        ({"cpu_share": 0.934}, "cpu 93%"),
        ({"cpu_share": 1.0, "timings": of_pass}, "model 75%"),
        ({"timings": of_pass | {"wait_seconds": 9.0}}, "decode 60%"),
        ({"timings": of_pass | {"wait_seconds": 9.0, "read_seconds": 3.0}}, "read 60%"),
    ):
        assert told(**measured) == f"{place}, {busiest}"


def test_programs_get_one_line_of_json(capsys):
    emit(RESULT, as_json=True)
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == RESULT


def test_a_pass_over_pixels_tells_its_pace_and_whether_batches_did_not_fit():
    timings = dict(zip(TIMINGS, (1.0, 2.0, 6.0, 2.0, 0), strict=True))
    facts = {"num_rows_in": 9, "num_rows_written": 8, "num_rows_by_status": {"ok": 9}, "seconds": 4.0}
    said = []
    for halvings in (0, 3):
        told = timings | {"num_oom_halvings": halvings}
        said.append(_sentence(StageRun("embed", "pool", "k", {}, False, {}, timings=told, **facts)))
    pace = "2 pairs/s; of all tasks: read 1.0 s, decode 2.0 s, model 6.0 s, model idle 25%"
    assert said[0] == f"embed          pool           8 of 9 rows in 4.0 s (9 ok); {pace}"
    assert said[1] == f"{said[0]}; 3 batches did not fit and were halved: a smaller encoder.batch_size is faster"
