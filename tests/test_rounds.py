"""Rounds after the tiny recipe's: a better filter is promoted, one that is only better itself is not, and back again.

They run on a copy of what that recipe left, so that its vectors, scores and runs are used again. It is far too small
for a finding: the levels are those at which its few seeds say what the test is about.
"""

import re
import shutil

import mlflow
import pytest

from etl.config import load
from etl.gating import run_id
from etl.loop import Loop
from etl.project import Project
from etl.promotion import Promotions, champions
from etl.tables import RUNS
from models import registry
from models.data import Vectors
from models.tracking import answering, connect
from models.train import ImageStats, TrainConfig, train

WEAK = ["loop.filter.steps=1", "loop.gate.level=1", "loop.arms.random=null"]
"""A filter that has seen one batch, before a gate that lets everything pass that is not worse for certain."""
BETTER = ["loop.gate.level=0.3", "loop.arms.random=null", "loop.arms.whole_pool=null"]
"""The tiny recipe's own filters; the champion is there, so that no other arm is needed."""

pytestmark = pytest.mark.slow


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

    def run(self, *overrides, stop_at="never"):
        self.said.clear()
        given = [f"output={self.output}", f"stages.embed.calls_file={self.output}/calls", *overrides]
        self.project = Project(load(["tiny"], given), self._say(stop_at))
        return Loop(self.project).run()

    def _say(self, stop_at):
        def say(line):
            self.said.append(line)
            if line.startswith(stop_at):
                raise KeyboardInterrupt

        return say

    def trained(self):
        """Labels of the runs that the last round trained."""
        return [found[1] for line in self.said if (found := re.match(r"(\w+ \w+ seed \d+) +\d+ steps in ", line))]

    def decisions(self, model="dfn_filter"):
        return Promotions(self.project.store, model).decisions()

    def aliases(self):
        with answering(self.project.tracking_uri):
            return {model: registry.champion(model) for model in ("dfn_filter", "clip")}


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
    project, ended = rounds.project, better[0]
    things = Vectors.open(next((rounds.output / "vectors").glob("things-*")))
    stats = ImageStats.of(Vectors.open(next((rounds.output / "vectors").glob("pool-*"))))
    leaked = tmp_path_factory.mktemp("leaked") / "filter"
    recipe = TrainConfig(steps=100, batch_size=32, dropout=0.0, seed=0)
    train(things, recipe, leaked, encoder_record=project.encoder[0], stats=stats)
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
