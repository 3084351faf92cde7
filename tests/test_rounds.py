"""Rounds after the tiny recipe's: a better filter is promoted, one that is only better itself is not, and back again.

They run on a copy of what that recipe left, so that its vectors, scores and runs are used again. It is far too small
for a finding: the levels are those at which its few seeds say what the test is about.
"""

import re
import shutil

import mlflow
import pytest
from test_models_spool import Server

from etl.config import load
from etl.loop.loop import Loop
from etl.loop.promotion import Promotions, champions
from etl.loop.yardstick import run_id
from etl.project import Project
from etl.tables import RUNS
from models import registry, spool
from models.data import Vectors
from models.tracking import answering, connect
from models.train import ImageStats, TrainConfig, train

WEAK = ["loop.filter.steps=1", "loop.gate.level=1", "loop.arms.random=null"]
"""A filter that has seen one batch, before a gate that lets everything pass that is not worse for certain."""
BETTER = ["loop.gate.level=0.3", "loop.arms.random=null", "loop.arms.whole_pool=null"]
"""The tiny recipe's own filters; the champion is there, so that no other arm is needed."""

DEV = "datasets.dev={kind: dev, corpus: {sources: [art4apps], skip: 200, limit: 100, pairs_per_shard: 50}}"
SEARCH = "loop.search={steps: [%s], fractions: [0.15, 0.5], budget: 10240, headline_parts: [dev.r5], seeds: [%s]}"
"""At two seeds 6 models of 1,280 samples: 4 candidates under one, 2 of them under the other. It could afford 8."""
PROXY = "loop.gate={proxy: {steps: 10, batch_size: 32}, level: 1}"

pytestmark = pytest.mark.slow


def interrupt():
    raise KeyboardInterrupt


class Rounds:
    """Rounds over the same tables and registry, with what the last one said."""

    def __init__(self, output, tiny):
        self.output, self.said, self.project = output, [], None
        for name in ("tables", "models", "vectors", "selections"):
            shutil.copytree(tiny / name, output / name)
        for path in (*tiny.glob("guard-*.json"), tiny / "mlflow.db"):
            shutil.copyfile(path, output / path.name)
        shutil.rmtree(output / "tables" / "project" / "promotions")
        connect(f"sqlite:///{output}/mlflow.db")
        for model in mlflow.MlflowClient().search_registered_models():
            mlflow.MlflowClient().delete_registered_model(model.name)

    def run(self, *overrides, stop_at="never", act=interrupt):
        """A round; at the line that begins with `stop_at`, `act` happens."""
        self.said.clear()
        given = [f"output={self.output}", f"stages.embed.calls_file={self.output}/calls", *overrides]

        def say(line):
            self.said.append(line)
            if line.startswith(stop_at):
                act()

        self.project = Project(load(["tiny"], given), say)
        return Loop(self.project).run()

    def trained(self):
        """Labels of the runs that the last round trained."""
        return [found[1] for line in self.said if (found := re.match(r"(\w+ .+? seed \d+) +\d+ steps in ", line))]

    def decisions(self, model="dfn_filter"):
        return Promotions(self.project.store, model).decisions()

    def aliases(self):
        with answering(self.project.tracking_uri):
            return {model: registry.champion(model) for model in ("dfn_filter", "clip")}


def leaked_filter(rounds, folder):
    """Trained on the evaluation set."""
    things = Vectors.open(next((rounds.output / "vectors").glob("things-*")))
    stats = ImageStats.of(Vectors.open(next((rounds.output / "vectors").glob("pool-*"))))
    recipe = TrainConfig(steps=100, batch_size=32, dropout=0.0, seed=0)
    return train(things, recipe, folder, encoder_record=rounds.project.encoder[0], stats=stats).folder


def runs_of(rounds, wanted):
    with answering(rounds.project.tracking_uri):
        client = mlflow.MlflowClient()
        return client.search_runs([client.get_experiment_by_name("tiny").experiment_id], wanted)


@pytest.fixture(scope="module")
def rounds(tiny, tiny_output, tmp_path_factory):
    return Rounds(tmp_path_factory.mktemp("rounds") / "out", tiny_output)


@pytest.fixture(scope="module")
def weak(rounds):
    """(the first champion's round, what was trained in it): killed twice, then run to its end."""
    trained = []
    with pytest.raises(KeyboardInterrupt):
        rounds.run(*WEAK, stop_at="induced whole_pool seed 1")
    trained += rounds.trained()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(registry, "set_alias", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        rounds.run(*WEAK)
    trained += rounds.trained()
    assert rounds.aliases() == {"dfn_filter": None, "clip": None}
    ended = rounds.run(*WEAK)
    return ended, trained + rounds.trained()


@pytest.fixture(scope="module")
def better(rounds, weak):
    """(the round of the tiny recipe's own filters, what was trained in it, the aliases after it)."""
    return rounds.run(*BETTER), rounds.trained(), rounds.aliases()


def test_killed_in_mid_round_it_decides_the_same_and_trains_nothing_twice(rounds, weak):
    """Once between two seeds, once after the table said promoted and before the alias moved."""
    ended, trained = weak
    wanted = [f"{kind} dfn seed {seed}" for seed in (0, 1, 2) for kind in ("filter", "induced")]
    assert trained == wanted
    assert ended.is_promoted and "dfn_filter version 1 is the champion: promoted against arm" in ended.verdict
    first = [champions(rounds.decisions(model))[0] for model in ("dfn_filter", "clip")]
    assert [d.verdict for d in first] == ["promoted", "promoted"]
    runs = rounds.project.store.read("", RUNS).where("name IN ('filter', 'induced')")
    assert runs.count() == runs.select("name", "key").distinct().count()


def test_a_better_filter_is_promoted_against_the_champions_own_runs(rounds, weak, better):
    ended, trained, aliases = better
    assert (ended.is_promoted, trained) == (True, [])  # neither the champion's runs nor the tiny recipe's
    assert aliases == {"dfn_filter": "2", "clip": "2"}
    decision = next(d for d in rounds.decisions() if d.facts["version"] == "2")
    values = [round_.arms["dfn"].metrics["avg"] for round_ in (weak[0], ended)]
    difference = sum(values[1][seed] - values[0][seed] for seed in (0, 1, 2)) / 3
    assert difference > 0 and f"mean difference {difference:+.4f} over 3 seeds" in decision.reason
    assert decision.follows == champions(rounds.decisions())[0].decision_id


def test_a_filter_that_is_only_better_itself_is_refused(rounds, better, tmp_path_factory):
    """Trained on the evaluation set: its own accuracy is above any other, and its dataset is no better."""
    ended, leaked = better[0], leaked_filter(rounds, tmp_path_factory.mktemp("leaked") / "filter")
    refused = rounds.run(f"loop.init={leaked}", "loop.filter={steps: 1, batch_size: 32, lr: 1.0e-6}", *BETTER[1:])
    own = [min(f.final.metrics["things.r5"] for f in refused.filters.values())]
    own += [max(f.final.metrics["things.r5"] for f in ended.filters.values())]
    assert own[0] > 2 * own[1]
    assert not refused.is_promoted and "dfn_filter version 3 refused against" in refused.verdict
    assert rounds.aliases() == {"dfn_filter": "2", "clip": "2"}
    told = rounds.decisions()[-1].facts["filters_own_not_used"]
    assert own[0] <= told and len(rounds.trained()) == 6


def test_a_rollback_goes_back_and_what_was_rolled_back_waits_for_a_person(rounds, better):
    with answering(rounds.project.tracking_uri):
        back = Promotions(rounds.project.store, "dfn_filter").roll_back("Grace")
    assert (rounds.aliases()["dfn_filter"], back.approver) == ("1", "Grace")
    again = rounds.run(*BETTER)
    assert (again.is_promoted, rounds.trained(), rounds.aliases()["dfn_filter"]) == (False, [], "1")
    waiting = rounds.decisions()[-1]
    assert waiting.verdict == "waiting" and f"waiting (dfn promote {waiting.decision_id}) against" in again.verdict

    # At a look after two seeds, whose spread is that of earlier runs: the third is not run.
    early = rounds.run(*BETTER, "loop.gate={looks: [2], level: 1, mode: dry_run}")
    assert (list(early.filters), rounds.decisions()[-1].verdict) == ([0, 1], "dry_run")
    assert "over 2 seeds" in early.verdict and "earlier induced runs of tiny with 1,280 samples seen" in early.verdict
    assert rounds.aliases()["dfn_filter"] == "1"

    with answering(rounds.project.tracking_uri):
        Promotions(rounds.project.store, "dfn_filter").approve(waiting.decision_id, "Ada")
    assert rounds.aliases()["dfn_filter"] == "2"
    judged = registry.tags_of("dfn_filter", "2")["judged"]
    assert all(run_id(model) in judged for model in better[0].arms["dfn"].models.values())


def test_with_a_budget_two_rounds_promote_the_third_is_refused_and_the_second_is_taken_back(tiny_output, tmp_path):
    rounds = Rounds(tmp_path / "out", tiny_output)
    weak = (DEV, SEARCH % ("1, 2", "7, 8"), *WEAK[1:])
    with pytest.raises(KeyboardInterrupt):
        rounds.run(*weak, stop_at="search: rung 1")
    trained = rounds.trained()
    first = rounds.run(*weak)
    trained += rounds.trained()
    searched = [label for label in trained if label.startswith("induced search")]
    assert len(searched) == len(set(searched)) == 6 and first.searched.samples_seen == 6 * 1280
    assert {label.rpartition(" ")[2] for label in searched} == {"7", "8"}
    assert len([label for label in trained if not label.startswith(("induced search", "filter"))]) == 6
    assert {arm.receipts[0]["rule"]["name"] for arm in first.arms.values()} == {"whole_pool", "dfn"}
    values = first.searched.rungs[-1].values
    assert first.searched.winner == max(values, key=lambda name: sum(values[name]))
    fraction = float(first.searched.winner.rpartition("=")[2])
    assert {receipt["num_rows"] for receipt in first.arms["dfn"].receipts.values()} == {round(400 * fraction)}
    assert rounds.aliases() == {"dfn_filter": "1", "clip": "1"} and first.is_promoted

    # What chose saw the development set alone; all runs are children of their round.
    (round_run,) = [run for run in runs_of(rounds, "tags.kind = 'round'") if "search.winner" in run.data.tags]
    assert round_run.data.tags["search.winner"] == first.searched.winner
    children = runs_of(rounds, f"tags.`mlflow.parentRunId` = '{round_run.info.run_id}'")
    assert len(children) == len(trained)
    choosing = [run for run in children if run.data.tags["arm"].startswith("search")]
    metrics = {name for run in choosing for name in run.data.metrics if not name.startswith("system/")}
    assert len(choosing) == 6 and {name.partition(".")[0] for name in metrics} == {"loss", "dev"}

    better = rounds.run(DEV, SEARCH % ("30", "7"), *WEAK[1:], BETTER[2])
    assert better.is_promoted and "dfn_filter version 2 promoted against" in better.verdict
    leaked = leaked_filter(rounds, tmp_path / "leaked")
    begun = (f"loop.init={leaked}", "loop.filter={steps: 1, batch_size: 32, lr: 1.0e-6}")
    refused = rounds.run(DEV, SEARCH % ("1", "7"), *begun, *BETTER[1:])
    own = [[f.final.metrics["things.r5"] for f in ended.filters.values()] for ended in (refused, better)]
    assert min(own[0]) > 2 * max(own[1])
    assert not refused.is_promoted and "dfn_filter version 3 refused against" in refused.verdict
    assert rounds.aliases() == {"dfn_filter": "2", "clip": "2"}
    with answering(rounds.project.tracking_uri):
        Promotions(rounds.project.store, "dfn_filter").roll_back("Grace")
        tags = {number: registry.tags_of("dfn_filter", number)["verdict"] for number in "123"}
    assert rounds.aliases() == {"dfn_filter": "1", "clip": "2"}
    assert tags == {"1": "champion again", "2": "rolled back", "3": "refused"}


def test_a_win_at_a_proxy_scale_is_confirmed_by_one_run_of_each_side_at_the_target_scale(tiny, tiny_output, tmp_path):
    rounds = Rounds(tmp_path / "out", tiny_output)
    first = rounds.run(PROXY, WEAK[0], WEAK[2])
    assert "at a proxy scale; a win is confirmed by a run of each side of 1,280 samples" in "".join(rounds.said)
    labels = rounds.trained()
    # The whole pool's model of the target scale is one of the tiny recipe's own.
    assert labels.count("induced dfn seed 0") == 2 and labels.count("induced whole_pool seed 0") == 1
    assert len(labels) == 3 + 2 * 3 + 1 and first.is_promoted
    facts = [champions(rounds.decisions(model))[0].facts["confirmed_by"] for model in ("dfn_filter", "clip")]
    assert facts[0] == facts[1]
    assert (facts[0]["proxy_samples"], facts[0]["target_samples"]) == (320, 1280)
    assert facts[0]["runs"]["compared"] == run_id(tiny[1].arms["whole_pool"].models[0])
    assert "earlier induced runs of tiny with 1,280 samples seen" in facts[0]["spread"]
    assert "over 3 seeds" in first.verdict and "at the target scale" in first.verdict and ": confirmed" in first.verdict
    with answering(rounds.project.tracking_uri):
        run = mlflow.MlflowClient().get_run(facts[0]["runs"]["challenger"])
        assert (run.data.params["steps"], run.data.params["arm"]) == ("40", "dfn")
        # The CLIP that is registered is the one of the target scale.
        assert registry.tags_of("clip", "1")["filter_version"] == run.data.tags["filter_version"]

    second = rounds.run(PROXY, WEAK[2], BETTER[2])
    assert rounds.trained() == [f"induced dfn seed {seed}" for seed in (0, 1, 2)]  # at the proxy scale only
    told = next(d for d in reversed(rounds.decisions()) if d.verdict == "promoted").facts["confirmed_by"]
    assert told["runs"]["compared"] == facts[0]["runs"]["challenger"]
    assert told["runs"]["challenger"] == run_id(tiny[1].arms["dfn"].models[0])
    assert second.is_promoted and rounds.aliases() == {"dfn_filter": "2", "clip": "2"}
    again = rounds.run(PROXY, WEAK[2], BETTER[2])
    assert (again.is_promoted, rounds.trained(), len(rounds.decisions("clip"))) == (True, [], 2)


def test_a_round_whose_mlflow_server_is_killed_ends_and_is_decided_when_it_is_back(tiny_output, tmp_path, monkeypatch):
    monkeypatch.setitem(spool._lost, "seconds", 0.0)
    rounds, server = Rounds(tmp_path / "out", tiny_output), Server(tmp_path)
    shutil.copyfile(rounds.output / "mlflow.db", tmp_path / "server.db")
    given = (*WEAK, f"tracking_uri={server.start().uri}")
    try:
        ended = rounds.run(*given, stop_at="induced dfn seed 1", act=server.kill)
        trained = rounds.trained()
        assert len(trained) == 6 and ended.verdict.startswith(f"not decided: wanted MLflow at {server.uri}; found no")
        server.start()
        again = rounds.run(*given)
        assert (rounds.trained(), again.is_promoted) == ([], True)
        assert rounds.aliases() == {"dfn_filter": "1", "clip": "1"}
        (round_run,) = runs_of(rounds, "tags.kind = 'round' AND params.`filter.steps` = '1'")
        assert "dfn_filter version 1 promoted" in round_run.data.tags["verdict"]
        children = runs_of(rounds, f"tags.`mlflow.parentRunId` = '{round_run.info.run_id}'")
        assert sorted(run.info.run_name for run in children) == sorted(trained)
        assert spool.pending(rounds.output / "models") == []
    finally:
        server.kill()
