"""What commands print: one JSON line for programs, lines for people."""

import json

from etl.console import emit

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


def test_programs_get_one_line_of_json(capsys):
    emit(RESULT, as_json=True)
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == RESULT
