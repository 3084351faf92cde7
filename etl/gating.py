"""The gate of a round: the challenger's induced models against the champion's, at each look; then the decision.

Two models are judged, each against its own champion: the filter, and the CLIP that its dataset induced. The champion's
runs are read from MLflow, never trained again. Without a champion the strongest control arm stands in for one. A
filter's own accuracy is told in the decision and used for nothing. Touches MLflow's registry and `promotions`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import mean
from typing import Any

from etl.arms import ArmResult, headline
from etl.filter_recipe import Filtered
from etl.project import Project
from etl.promotion import PROMOTED, WAITING, Decision, Promotions, champions, rolled_back
from etl.stage import UserError
from etl.stages import selection
from etl.training import Data, EvalSet, Trained
from models.gate import MIN_SEEDS, GateDecision, GateRule, Spread, Values, gate, pooled
from models.records import FilterRecord

MODEL = "dfn_filter"
"""Name of the registered filter."""
CLIP = "clip"
"""Name of the registered model that the champion's dataset induced."""


@dataclass(frozen=True)
class Verdict:
    """What the gate said at a look."""

    text: str
    is_promoted: bool = False
    is_closed: bool = True
    """More seeds would change nothing."""


@dataclass(frozen=True)
class _Judged:
    """A registered model's challenger beside its champion."""

    model: str
    trained: Trained
    version: str
    decision: GateDecision | None
    """None: the challenger is the champion."""
    compared: str
    follows: str


def run_id(trained: Trained) -> str:
    """Of its run in MLflow, to which it was sent by now."""
    from models import spool

    found = spool.run_id_of(trained.folder) or trained.mlflow_run_id
    if found is None:
        raise UserError(f"wanted the run of {trained.folder} in MLflow; found none; fix: dfn sync, then run it again")
    return found


@dataclass(frozen=True)
class Gate:
    project: Project
    eval_sets: tuple[EvalSet, ...]
    data: Data
    """The pool's."""

    @cached_property
    def rule(self) -> GateRule:
        loop = self.project.config.loop
        return GateRule(loop.headline, loop.gate.level, loop.gate.guards, loop.gate.looks_of(len(loop.seeds)))

    @cached_property
    def challenger(self) -> str | None:
        """The arm that selects by the filter that the round trains."""
        arms = self.project.config.loop.arms.items()
        return next((name for name, arm in arms if arm.keep == "filter" and arm.of == selection.DFN), None)

    def cost(self) -> str:
        """What the round trains at most, told before it starts."""
        loop, rule = self.project.config.loop, self.rule
        samples = loop.induced.steps * loop.induced.batch_size
        steps = [loop.filter, *([loop.finetune] if loop.finetune else [])]
        of_filter = sum(step.steps * step.batch_size for step in steps)
        num = len(loop.seeds) * len(loop.arms)
        looks = ", ".join(map(str, rule.looks))
        return (
            f"gate: {loop.gate.mode}; at most {num} induced runs ({num * samples:,} samples seen) and "
            f"{len(loop.seeds)} filters ({len(loop.seeds) * of_filter:,}); looks after {looks} seeds at the level of "
            f"{rule.level_at_a_look:.3g} each; runs that are there, the champion's among them, are not run again"
        )

    def look(self, arms: Mapping[str, ArmResult], filters: Mapping[int, Filtered]) -> Verdict:
        """Sends the runs that wait for MLflow, then looks. Where it does not answer, the next round decides."""
        from models import spool
        from models.tracking import TrackingDownError, answering

        loop = self.project.config.loop
        is_last = len(filters) == len(loop.seeds)
        if self.challenger is None:
            return Verdict("no arm uses the trained filter: nothing to promote", is_closed=is_last)
        first = loop.seeds[0]
        models = {MODEL: filters[first].final, CLIP: arms[self.challenger].models[first]}
        try:
            with answering(self.project.tracking_uri):
                spool.sync(self.project.config.output_folder / "models", self.project.tracking_uri)
                found = [self._judge(model, trained, arms, is_last) for model, trained in models.items()]
                opened = [judged.decision for judged in found if judged.decision and judged.decision.outcome == "open"]
                if opened:
                    return Verdict(f"open after {len(filters)} seeds: {opened[0].reason}", is_closed=False)
                own = mean(headline(loop, filtered.final.metrics) for filtered in filters.values())
                verdicts = [self._conclude(judged, arms[self.challenger], own) for judged in found]
        except TrackingDownError as error:
            return Verdict(f"not decided: {error}", is_closed=is_last)
        self.project.say(f"gate: {verdicts[1].text}")
        return verdicts[0]

    def _judge(self, model: str, trained: Trained, arms: Mapping[str, ArmResult], is_last: bool) -> _Judged:
        from models import registry

        promotions = Promotions(self.project.store, model)
        number = promotions.align() or registry.champion(model)
        version, follows = FilterRecord.read(trained.folder).version, promotions.tip()
        values = arms[str(self.challenger)].metrics
        if number is None:
            compared, baseline = self._control(arms)
        else:
            tags = registry.tags_of(model, number)
            compared = tags["filter_version"]
            if compared == version:
                return _Judged(model, trained, version, None, compared, follows)
            baseline = self._champion(model, number, tags)
        try:
            num_shared = len(values[self.rule.metric].keys() & baseline[self.rule.metric].keys())
            spread = self._spread(arms) if num_shared < MIN_SEEDS else None
            decision = gate(values, baseline, self.rule, is_last=is_last, spread=spread)
        except (ValueError, KeyError) as error:
            raise UserError(f"gate: {model}: {error}; fix: loop.headline_parts and loop.gate.guards") from None
        return _Judged(model, trained, version, decision, compared, follows)

    def _control(self, arms: Mapping[str, ArmResult]) -> tuple[str, Values]:
        """The strongest arm that no filter chose."""
        loop = self.project.config.loop
        controls = {name: arms[name].metrics for name, arm in loop.arms.items() if arm.keep != "filter"}
        if not controls:
            raise UserError("gate: wanted a champion, or a control arm (whole_pool, random); found neither")
        strongest = max(controls, key=lambda name: mean(controls[name][loop.headline].values()))
        return f"arm {strongest}", controls[strongest]

    def _champion(self, model: str, number: str, tags: Mapping[str, str]) -> Values:
        """metric -> seed -> value of the runs that the champion was judged by."""
        from models import registry

        loop, judged = self.project.config.loop, json.loads(tags.get("judged", "{}"))
        fix = f"fix: the tag judged of {model} version {number}, or another alias @champion"
        if "runs" not in judged:
            raise UserError(f"gate: wanted the runs that judged the champion; found none named; {fix}")
        now = self._judged({})
        if judged["recipe"] != now["recipe"]:
            raise UserError(f"gate: wanted loop.induced as the champion's, {judged['recipe']}; found {now['recipe']}; "
                            f"{fix}")  # fmt: skip
        needed = {part.partition(".")[0] for part in (*loop.headline_parts, *self.rule.guards)}
        if any(judged["eval_sets"].get(name) != now["eval_sets"].get(name) for name in needed):
            raise UserError(f"gate: wanted the evaluation sets that the champion was judged on; found others; {fix}")
        if judged["pool"] != now["pool"]:
            self.project.say(f"gate: the champion of {model} was judged on an earlier state of the pool")
        runs = registry.metrics_of({int(seed): id_ for seed, id_ in judged["runs"].items()})
        first = {loop.headline: {seed: headline(loop, metrics) for seed, metrics in runs.items()}}
        names = set.intersection(*(set(metrics) for metrics in runs.values()))
        return first | {name: {seed: metrics[name] for seed, metrics in runs.items()} for name in names}

    def _judged(self, models: Mapping[int, Trained]) -> dict[str, Any]:
        """What names the evidence for a version, in its tag `judged`."""
        return {"runs": {str(seed): run_id(model) for seed, model in models.items()},
                "recipe": self.project.config.loop.induced.model_dump(),
                "eval_sets": {each.name: each.vectors.name for each in self.eval_sets},
                "pool": dict(self.data.inputs)}  # fmt: skip

    def _spread(self, arms: Mapping[str, ArmResult]) -> Spread | None:
        """Of induced runs under the same recipe in MLflow, by arm; without those that are judged now."""
        from models.tracking import finished_runs

        loop, name = self.project.config.loop, self.project.config.name
        judged = {str(receipt["hash"]) for arm in arms.values() for receipt in arm.receipts.values()}
        recipe = {name: str(value) for name, value in loop.induced.model_dump().items()}
        groups: dict[str, list[float]] = {}
        for params, metrics in finished_runs(self.project.tracking_uri, name, kind="induced"):
            is_alike = recipe.items() <= params.items() and all(part in metrics for part in loop.headline_parts)
            if is_alike and params.get("content") not in judged:
                groups.setdefault(params.get("arm", ""), []).append(headline(loop, metrics))
        samples = loop.induced.steps * loop.induced.batch_size
        return pooled(groups.values(), f"earlier induced runs of {name} with {samples:,} samples seen")

    def _conclude(self, judged: _Judged, arm: ArmResult, own: float) -> Verdict:
        """Registers, records, and moves the champion where the mode lets it."""
        from models import registry

        decision, promotions = judged.decision, Promotions(self.project.store, judged.model)
        known = promotions.decisions()
        if decision is None:
            last = next(reversed(champions(known)), None)
            why = f": {last.verdict} against {last.champion_compared}: {last.reason}" if last else ""
            number = registry.champion(judged.model)
            return Verdict(f"{judged.model} version {number} is the champion{why}", True)
        number = self._register(judged, arm) if judged.model == MODEL or decision.is_better else None
        verdict = self._verdict(decision, judged.version in rolled_back(known))
        metric = self.rule.metric
        values = {str(seed): round(value, 6) for seed, value in arm.metrics[metric].items()}
        facts = {"metric": metric, "values": values, "level": decision.level, "num_seeds": decision.num_seeds,
                 "p_value": decision.p_value, "guards": dict(decision.guards), "version": number,
                 "filters_own_not_used": round(own, 6)}  # fmt: skip
        reason = f"{metric} {decision.reason} (the filters' own, not used: {own:.4f})"
        made = Decision.of(judged.model, judged.version, judged.compared, verdict, reason,
                           follows=judged.follows, facts=facts)  # fmt: skip
        is_promoted = verdict == PROMOTED and promotions.move(made)
        if verdict == PROMOTED and not is_promoted:
            now = champions(promotions.decisions())[-1].challenger
            made = Decision.of(made.model, made.challenger, made.champion_compared, "overtaken",
                               f"{reason}; but the champion has changed to {now} meanwhile",
                               follows=made.follows, facts=facts)  # fmt: skip
        if is_promoted:
            promotions.align()
        else:
            promotions.add(made)
        name = f"{made.model} version {number}" if number else f"{made.model} {made.challenger}"
        fix = f" (dfn promote {made.decision_id})" if made.verdict == WAITING else ""
        told = f"{made.verdict.replace('_', ' ')}{fix} against {made.champion_compared}: {made.reason}"
        return Verdict(f"{name} {told}", is_promoted)

    def _verdict(self, decision: GateDecision, was_rolled_back: bool) -> str:
        mode = self.project.config.loop.gate.mode
        if not decision.is_better:
            return "refused"
        if mode == "dry_run":
            return mode
        return WAITING if mode == "needs_approval" or was_rolled_back else PROMOTED

    def _register(self, judged: _Judged, arm: ArmResult) -> str:
        """The challenger's number in the registry, with what it was judged by."""
        from models import registry

        encoder, folder, model = self.project.encoder[1], judged.trained.folder, judged.model
        number, evidence = registry.registered(model, folder), self._judged(arm.models)
        if number is None and model == MODEL:
            number = registry.register_filter(run_id(judged.trained), folder, encoder, name=MODEL)
        elif number is None:
            receipt = arm.receipts[self.project.config.loop.seeds[0]]
            number = registry.register_clip(run_id(judged.trained), folder, encoder, receipt=receipt)
            self.project.say(f"{CLIP} version {number}: induced by selection {receipt['selection_id']}")
        before = json.loads(registry.tags_of(model, number).get("judged", "{}"))
        if {**before, "runs": {}} == {**evidence, "runs": {}}:  # seeds of an earlier round stay
            evidence["runs"] = before["runs"] | evidence["runs"]
        registry.set_tags(model, number, {"judged": json.dumps(evidence)})
        return number
