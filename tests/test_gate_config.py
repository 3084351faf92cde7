"""What is wrong with a gate's config or a command about champions is said before Spark starts."""

from functools import partial

import pytest

import etl.project
from etl.__main__ import _run, app
from etl.config import load
from etl.loop.gate_config import GateConfig
from etl.stage import UserError


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("loop.gate.looks=[3, 2]", "loop.gate.looks: wanted rising numbers of seeds"),
        ("loop.gate.looks=[0]", "loop.gate.looks.0: Input should be greater than 0"),
        ("loop.gate.mode=maybe", "loop.gate.mode: Input should be 'dry_run', 'needs_approval' or 'enforced'"),
        ("loop.gate.guards={pool.r5: 0.1}", "loop.gate.guards: wanted DATASET.METRIC of a set that is evaluated"),
        ("loop.gate.guards={things.r5: -0.1}", "loop.gate.guards.things.r5: Input should be greater than or equal"),
        ("loop.gate.level=0", "loop.gate.level: Input should be greater than 0"),
        ("backfill.max_gpu_hours=-1", "backfill.max_gpu_hours: Input should be greater than or equal to 0"),
    ],
)
def test_a_bad_setting_is_named(setting, says):
    with pytest.raises(UserError) as caught:
        load(["tiny"], [setting])
    assert says in str(caught.value)


def test_the_last_look_is_after_the_last_seed():
    gate = GateConfig(looks=(2, 3, 8))
    assert [gate.looks_of(n) for n in (1, 3, 5, 9)] == [(1,), (2, 3), (2, 3, 5), (2, 3, 8, 9)]
    assert load(["tiny"], ["loop.gate={looks: [2], guards: {things.r5: 0.01}}"]).loop.gate.guards == {"things.r5": 0.01}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["promote"], "promote: wanted one of a decision, --list, --rollback, --version and --from; found none"),
        (["promote", "abc", "--rollback"], "wanted one of a decision, --list, --rollback, --version and --from"),
        (["backfill", "build/filter"], "backfill: wanted models:/NAME@ALIAS or models:/NAME/VERSION; found build/f"),
    ],
)
def test_a_wrong_command_ends_with_2_and_one_line(arguments, says, monkeypatch, capsys):
    monkeypatch.setattr(etl.project, "session", lambda **_: pytest.fail("Spark was started"))
    assert _run(partial(app, [*arguments, "--conf", "tiny"])) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1
