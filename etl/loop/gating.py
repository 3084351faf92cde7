"""The gate of a round: the challenger's induced models against the champion's, at each look; then the decision.

Two models are judged, each against its own champion: the filter, and the CLIP that its dataset induced. The champion's
runs are read from MLflow, never trained again. Without a champion the strongest control arm stands in for one. A
filter's own accuracy is told in the decision and used for nothing. Touches MLflow's registry and `promotions`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import mean
from typing import Any

from etl.filters.recipe import Filtered
from etl.loop.arms import ArmResult, headline
from etl.loop.promotion import PROMOTED, WAITING, Decision, Promotions, champions, rolled_back
from etl.loop.training import Data, EvalSet, Trained
from etl.loop.yardstick import Yardstick, run_id, values_of
from etl.project import Project
from etl.stage import UserError
from models.gate import MIN_SEEDS, GateDecision, GateRule, confirm, gate
from models.records import FilterRecord

MODEL = "dfn_filter"
"""Name of the registered filter, after the catalog and schema of `registry`."""
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
    confirmation: _Confirmation | None = None


@dataclass(frozen=True)
class _Confirmation:
    """Of a win at the proxy's scale."""

    models: Mapping[int, Trained]
    """seed -> the challenger's induced model at the target scale."""
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Gate:
    project: Project
    eval_sets: tuple[EvalSet, ...]
    data: Data
    """The pool's."""
    induce: Callable[[str, int], Trained]
    """(arm, seed) -> its induced model at `loop.induced`: asked for to confirm what was won at a proxy scale."""

    @cached_property
    def _yardstick(self) -> Yardstick:
        return Yardstick(self.project, self.eval_sets, self.data)

    @cached_property
    def rule(self) -> GateRule:
        loop = self.project.config.loop
        return GateRule(loop.headline, loop.gate.level, loop.gate.guards, loop.gate.looks_of(len(loop.seeds)))

    @property
    def challenger(self) -> str | None:
        return self.project.config.loop.challenger

    @cached_property
    def _filter(self) -> str:
        return self.project.registered(MODEL)

    @cached_property
    def _clip(self) -> str:
        return self.project.registered(CLIP)

    def cost(self) -> str:
        """What the round trains at most, told before it starts."""
        loop, rule = self.project.config.loop, self.rule
        samples, num = loop.of_seeds.samples, len(loop.seeds) * len(loop.arms)
        of_filter = loop.filter.samples + (loop.finetune.samples if loop.finetune else 0)
        looks = ", ".join(map(str, rule.looks))
        proxy = f", at a proxy scale; a win is confirmed by a run of each side of {loop.induced.samples:,} samples"
        return (
            f"gate: {loop.gate.mode}; at most {num} induced runs ({num * samples:,} samples seen) and "
            f"{len(loop.seeds)} filters ({len(loop.seeds) * of_filter:,}){proxy if loop.gate.proxy else ''}; looks "
            f"after {looks} seeds at the level of {rule.level_at_a_look:.3g} each; runs that are there, the champion's "
            "among them, are not run again"
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
        models = {self._filter: filters[first].final, self._clip: arms[self.challenger].models[first]}
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

        promotions, yardstick = Promotions(self.project.store, model), self._yardstick
        number = promotions.align() or registry.champion(model)
        version, follows = FilterRecord.read(trained.folder).version, promotions.tip()
        values, baseline = arms[str(self.challenger)].metrics, ""
        if number is None:
            baseline = yardstick.control(arms)
            compared, others = f"arm {baseline}", arms[baseline].metrics
        else:
            tags = registry.tags_of(model, number)
            compared = tags["filter_version"]
            mine = arms[str(self.challenger)].models
            # A CLIP that was won at a proxy scale is the one of the target scale: it is known by its proxy's runs.
            if compared == version or (model == self._clip and yardstick.is_judged_by(tags, mine)):
                return _Judged(model, trained, version, None, compared, follows)
            others = dict(yardstick.champion(model, number, tags))
        confirmation = None
        try:
            num_shared = len(values[self.rule.metric].keys() & others[self.rule.metric].keys())
            spread = yardstick.spread(arms, self.project.config.loop.of_seeds) if num_shared < MIN_SEEDS else None
            decision = gate(values, others, self.rule, is_last=is_last, spread=spread)
            if decision.is_better and self.project.config.loop.gate.proxy:
                decision, confirmation = self._confirmed(decision, model, number, baseline, arms)
                trained = trained if model == self._filter else next(iter(confirmation.models.values()))
                version = FilterRecord.read(trained.folder).version
        except (ValueError, KeyError) as error:
            raise UserError(f"gate: {model}: {error}; fix: loop.headline_parts and loop.gate.guards") from None
        return _Judged(model, trained, version, decision, compared, follows, confirmation)

    def _confirmed(self, won: GateDecision, model: str, number: str | None, baseline: str,
                   arms: Mapping[str, ArmResult]) -> tuple[GateDecision, _Confirmation]:  # fmt: skip
        """A win at the proxy's scale beside a run of each side at the target's: trained now where none is there."""
        from models import registry, spool

        loop, seed = self.project.config.loop, self.project.config.loop.seeds[0]
        if number is not None:
            tags, mine_by_seed = registry.tags_of(model, number), arms[str(self.challenger)].models
            seed, their_run, theirs = self._yardstick.champion_at_target(model, number, tags, mine_by_seed)
        mine = self.induce(str(self.challenger), seed)
        other = self.induce(baseline, seed) if number is None else None
        spool.sync(self.project.config.output_folder / "models", self.project.tracking_uri)
        if other is not None:
            their_run, theirs = run_id(other), values_of(loop, {seed: other.metrics})
        spread = self._yardstick.spread(arms, loop.induced)
        values = values_of(loop, {seed: mine.metrics})
        decision = confirm(won, values, theirs, self.rule, spread)
        source = spread.source if spread else "none: its sign decided"
        facts = {"proxy_samples": loop.of_seeds.samples, "target_samples": loop.induced.samples,
                 "runs": {"challenger": run_id(mine), "compared": their_run}, "spread": source}  # fmt: skip
        return decision, _Confirmation({seed: mine}, facts)

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
        number = self._register(judged, arm) if judged.model == self._filter or decision.is_better else None
        verdict = self._verdict(decision, judged.version in rolled_back(known))
        metric = self.rule.metric
        values = {str(seed): round(value, 6) for seed, value in arm.metrics[metric].items()}
        facts = {"metric": metric, "values": values, "level": decision.level, "num_seeds": decision.num_seeds,
                 "p_value": decision.p_value, "guards": dict(decision.guards), "version": number,
                 "filters_own_not_used": round(own, 6),
                 **({"confirmed_by": judged.confirmation.facts} if judged.confirmation else {})}  # fmt: skip
        reason = f"{metric} {decision.reason} (the filters' own, not used: {own:.4f})"
        made = Decision.of(judged.model, judged.version, judged.compared, verdict, reason,
                           follows=judged.follows, facts=facts)  # fmt: skip
        is_promoted = verdict == PROMOTED and promotions.move(made)
        if verdict == PROMOTED and not is_promoted:
            now = champions(promotions.decisions())[-1].challenger
            made = Decision.of(made.model, made.challenger, made.champion_compared, "overtaken",
                               f"{reason}; but the champion has changed to {now} meanwhile",
                               follows=made.follows, facts=facts)  # fmt: skip
        if not is_promoted:
            promotions.add(made)
        promotions.align()
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
        confirmed = judged.confirmation.models if judged.confirmation else None
        number, evidence = registry.registered(model, folder), self._yardstick.evidence(arm.models, confirmed)
        if number is None and model == self._filter:
            number = registry.register_filter(run_id(judged.trained), folder, encoder, name=model)
        elif number is None:
            receipt = arm.receipts[next(iter(confirmed or self.project.config.loop.seeds))]
            number = registry.register_clip(run_id(judged.trained), folder, encoder, receipt=receipt, name=model)
            self.project.say(f"{model} version {number}: induced by selection {receipt['selection_id']}")
        before = json.loads(registry.tags_of(model, number).get("judged", "{}"))
        whose = ("recipe", "eval_sets", "pool")
        if all(before.get(name) == evidence[name] for name in whose):  # seeds of an earlier round stay
            evidence = {**before, **evidence, "runs": before["runs"] | evidence["runs"]}
        registry.set_tags(model, number, {"judged": json.dumps(evidence)})
        return number
