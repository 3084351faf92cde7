"""Who is champion: of two gates against one champion one passes, whatever is killed, and a rollback goes back."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import mlflow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.loop.promotion import PROMOTED, ROLLED_BACK, WAITING, Decision, Promotions, champions, moves, rolled_back
from etl.stage import UserError
from etl.store import Store
from etl.tables import PROMOTIONS
from models import registry, tracking

MODEL = "dfn_filter"
VERSIONS = ("one", "two", "three")


def promoted(challenger, compared="arm random", follows="", verdict=PROMOTED):
    return Decision.of(MODEL, challenger, compared, verdict, "avg better", follows=follows)


@pytest.fixture
def promotions(store, mlflow_uri):
    """A registry with three versions, and no decision."""
    tracking.connect(mlflow_uri)
    client = mlflow.MlflowClient()
    client.create_registered_model(MODEL)
    for version in VERSIONS:
        client.create_model_version(MODEL, "somewhere", tags={"filter_version": version})
    return Promotions(store, MODEL)


def told(version):
    """(tag verdict, description) of a version, by its number."""
    found = mlflow.MlflowClient().get_model_version(MODEL, version)
    return found.tags.get("verdict"), found.description


def alias():
    return registry.aliases(MODEL).get("champion")


@given(st.lists(st.sampled_from(["promote", "back", "refuse"]), max_size=12), st.randoms())
@settings(max_examples=50, deadline=None)
def test_the_champion_is_what_a_stack_says_whatever_the_clocks_and_the_order(acts, random):
    stack, told, tip = [], [], ""
    for number, act in enumerate(acts):
        if act == "refuse":
            told.append(promoted(f"refused {number}", follows=tip, verdict="refused"))
            continue
        if act == "back" and len(stack) < 2:
            continue
        if act == "back":
            last = stack.pop()
            told.append(promoted(stack[-1], last, tip, ROLLED_BACK))
        else:
            stack.append(f"version {number}")
            told.append(promoted(stack[-1], "before", tip))
        tip = told[-1].decision_id
    skewed = [replace(d, decided_at=datetime.now(UTC) + timedelta(hours=random.randint(-9, 9))) for d in told]
    random.shuffle(skewed)
    assert [d.challenger for d in champions(skewed)] == stack
    assert next((d.decision_id for d in reversed(moves(skewed))), "") == tip
    assert rolled_back(skewed) == {d.champion_compared for d in told if d.verdict == ROLLED_BACK}


@pytest.mark.parametrize("is_local", [True, False])
def test_of_two_gates_against_one_champion_exactly_one_succeeds(promotions, monkeypatch, is_local):
    """A lock tells them apart on one disk; elsewhere, as on two machines, the table's log alone."""
    monkeypatch.setattr(Store, "_is_local", is_local)
    assert promotions.move(promoted("one"))
    tip = promotions.tip()
    both = [promoted(version, "one", tip) for version in ("two", "three")]
    with ThreadPoolExecutor() as pool:
        passed = list(pool.map(promotions.move, both))
    assert sorted(passed) == [False, True]
    winner = both[passed.index(True)]
    assert [d.challenger for d in champions(promotions.decisions())] == ["one", winner.challenger]
    assert promotions.move(winner) and not promotions.move(both[passed.index(False)])  # said again, as after a kill
    assert len(promotions.decisions()) == 2


@pytest.mark.slow
def test_a_waiting_decision_is_approved_once_and_a_rollback_undoes_it(promotions):
    assert promotions.align() is None and promotions.tip() == ""
    waiting = promoted("one", verdict=WAITING)
    stale = promoted("two", verdict=WAITING)
    for decision in (waiting, stale, waiting):
        promotions.add(decision)
    assert (len(promotions.decisions()), alias()) == (2, None)
    done = promotions.approve(waiting.decision_id, "Ada")
    assert (done.verdict, done.approver, done.facts["approves"], alias()) == (
        PROMOTED, "Ada", waiting.decision_id, "1"
    )  # fmt: skip
    assert told("1") == (
        "promoted",
        f"promoted by Ada against arm random, {done.decided_at:%Y-%m-%d %H:%M} UTC: avg better",
    )
    assert told("2")[0] == "waiting" and not any(told("3"))
    with pytest.raises(UserError, match=rf"wanted a waiting decision of dfn_filter \({stale.decision_id}\); found"):
        promotions.approve(waiting.decision_id, "Ada")
    with pytest.raises(UserError, match="wanted the champion to be arm random, as compared; found it changed to one"):
        promotions.approve(stale.decision_id, "Ada")
    with pytest.raises(UserError, match="wanted two promotions of dfn_filter; found 1"):
        promotions.roll_back("Ada")
    assert promotions.move(promoted("two", "one", promotions.tip()))
    assert (alias(), promotions.align(), alias()) == ("1", "2", "2")  # killed before the alias, and mended
    back = promotions.roll_back("Grace")
    assert (back.verdict, back.challenger, back.champion_compared, alias()) == (ROLLED_BACK, "one", "two", "1")
    assert rolled_back(promotions.decisions()) == {"two"}
    assert [told(version)[0] for version in "123"] == ["champion again", "rolled back", None]
    assert told("2")[1].startswith("rolled back by Grace, ") and "two was champion since" in told("2")[1]
    assert [(d.verdict, d.approver) for d in promotions.decisions()[-2:]] == [(PROMOTED, None), (ROLLED_BACK, "Grace")]
    missing = promoted("four", "one", promotions.tip(), WAITING)
    promotions.add(missing)
    with pytest.raises(UserError, match="wanted dfn_filter four in MLflow"):
        promotions.approve(missing.decision_id, "Ada")
    assert champions(promotions.decisions())[-1].challenger == "one"


def test_a_table_of_an_earlier_release_gets_the_new_columns_and_its_promotion_stands(promotions):
    old = PROMOTIONS.ddl.partition(",\n    follows")[0]
    store = promotions.store
    store.create("", replace(PROMOTIONS, ddl=old))
    row = ("id", MODEL, "one", "arm random", PROMOTED, "avg better", None, datetime(2026, 1, 1, tzinfo=UTC))
    store.append_once(store.rows("", PROMOTIONS, [row]), "", PROMOTIONS, content="x", note={"slice": {}})
    assert promotions.tip() == "id"
    assert not promotions.move(promoted("two"))  # against no champion: there is one
    assert promotions.move(promoted("three", "one", "id"))
    assert [d.challenger for d in champions(promotions.decisions())] == ["one", "three"]
