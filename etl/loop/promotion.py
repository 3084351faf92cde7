"""Who is champion: the table `promotions` says, and MLflow's alias follows it. Touches that table and the alias.

A decision that moves the champion names the one that it follows. Of all that follow one decision the table takes one,
whoever writes: what is followed is the content that `Store.append_once` takes once. A kill between table and alias is
made good by `align`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pyspark.sql import functions as F

from etl.stage import UserError, digest
from etl.store import Store
from etl.tables import PROMOTIONS

PROMOTED, ROLLED_BACK, WAITING = "promoted", "rolled_back", "waiting"


@dataclass(frozen=True)
class Decision:
    """One row of `promotions`, see there."""

    decision_id: str
    model: str
    challenger: str
    champion_compared: str
    verdict: str
    reason: str
    approver: str | None = None
    decided_at: datetime = field(default_factory=lambda: datetime.now(UTC), compare=False)
    follows: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(model: str, challenger: str, compared: str, verdict: str, reason: str, *, follows: str,
           approver: str | None = None, facts: Mapping[str, Any] | None = None) -> Decision:  # fmt: skip
        """Named by what it says, so that a round that is run again says it once."""
        id_ = digest(model, challenger, compared, verdict, reason, follows)[:16]
        now = datetime.now(UTC)
        return Decision(id_, model, challenger, compared, verdict, reason, approver, now, follows, facts or {})


def moves(decisions: Sequence[Decision]) -> list[Decision]:
    """The decisions of one model that moved its champion, in their order."""
    there = [d for d in decisions if d.verdict in (PROMOTED, ROLLED_BACK)]
    chain = sorted((d for d in there if not d.follows), key=lambda d: d.decided_at)
    next_of = {d.follows: d for d in there if d.follows}
    while chain and (following := next_of.get(chain[-1].decision_id)):
        chain.append(following)
    return chain


def champions(decisions: Sequence[Decision]) -> list[Decision]:
    """The promotions that stand, the champion's last: a rollback takes the last one back."""
    standing: list[Decision] = []
    for move in moves(decisions):
        if move.verdict == PROMOTED:
            standing.append(move)
        else:
            standing.pop()
    return standing


def rolled_back(decisions: Sequence[Decision]) -> set[str]:
    """Filter versions that were taken back: they pass again only with an approver."""
    return {move.champion_compared for move in moves(decisions) if move.verdict == ROLLED_BACK}


@dataclass(frozen=True)
class Promotions:
    """The decisions of one registered model."""

    store: Store
    model: str

    def decisions(self) -> list[Decision]:
        """Oldest first."""
        if not self.store.exists("", PROMOTIONS):
            return []
        self.store.extend("", PROMOTIONS)
        rows = self.store.read("", PROMOTIONS).where(F.col("model") == self.model).collect()
        found = [row.asDict() for row in rows]
        told = [
            Decision(**{**row, "follows": row["follows"] or "", "facts": json.loads(row["facts"] or "{}")})
            for row in found
        ]
        return sorted(told, key=lambda decision: decision.decided_at)

    def tip(self) -> str:
        """The decision that a new one follows; empty before the first."""
        return last.decision_id if (last := next(reversed(moves(self.decisions())), None)) else ""

    def add(self, decision: Decision) -> None:
        """One that moves nothing; once, whoever says it again."""
        self._write(decision, decision.decision_id)

    def move(self, decision: Decision) -> bool:
        """Moves the champion, unless another decision has followed the same one: whether it did."""
        if self.tip() == decision.follows:
            self._write(decision, digest("move", self.model, decision.follows))
        return any(d.decision_id == decision.decision_id for d in self.decisions())

    def _write(self, decision: Decision, content: str) -> None:
        store, d = self.store, decision
        if not store.exists("", PROMOTIONS):
            store.create("", PROMOTIONS)
        store.extend("", PROMOTIONS)
        row = (d.decision_id, d.model, d.challenger, d.champion_compared, d.verdict, d.reason, d.approver, d.decided_at,
               d.follows, json.dumps(d.facts))  # fmt: skip
        store.append_once(store.rows("", PROMOTIONS, [row]), "", PROMOTIONS, content=content, note={"slice": {}})

    def align(self) -> str | None:
        """Points `@champion` at what the table says: the version's number, None where the table names none. Each
        version tells by its tags and description what was decided of it last.

        MLflow is to be connected. Raises UserError where MLflow has no such version.
        """
        from models import registry

        known = self.decisions()
        self._tell(known)
        if not (standing := champions(known)):
            return None
        number = self._number(standing[-1].challenger)
        if registry.champion(self.model) != number:
            registry.set_alias(self.model, registry.CHAMPION, number)
        return number

    def _tell(self, known: Sequence[Decision]) -> None:
        from models import registry

        last: dict[str, Decision] = {}
        for decision in known:
            last[decision.challenger] = decision
            if decision.verdict == ROLLED_BACK:
                last[decision.champion_compared] = decision
        there = registry.versions(self.model) if last else {}
        for version, decision in last.items():
            number, tags = there.get(version, ("", {}))
            if not number or tags.get("decision") == decision.decision_id:
                continue
            is_back = decision.verdict == ROLLED_BACK and version == decision.challenger
            verdict = "champion again" if is_back else decision.verdict.replace("_", " ")
            by = f" by {decision.approver}" if decision.approver else ""
            other = there.get(decision.champion_compared, ("", {}))[0]
            compared = f"version {other}" if other else decision.champion_compared
            against = f" against {compared}" if decision.verdict != ROLLED_BACK else ""
            told = f"{verdict}{by}{against}, {decision.decided_at:%Y-%m-%d %H:%M} UTC: {decision.reason}"
            registry.describe(self.model, number, told)
            registry.set_tags(self.model, number, {"verdict": verdict, "decision": decision.decision_id})

    def _number(self, version: str) -> str:
        from models import registry

        if (number := registry.version_of(self.model, version)) is None:
            raise UserError(f"wanted {self.model} {version} in MLflow, as the table promotions names it; found none; "
                            "fix: the tracking_uri that it was promoted with")  # fmt: skip
        return number

    def approve(self, decision_id: str, approver: str) -> Decision:
        """Promotes what waits. Raises UserError where it does not, or where the champion has changed since."""
        known = self.decisions()
        done = {d.facts.get("approves") for d in known}
        open_ = {d.decision_id: d for d in known if d.verdict == WAITING and d.decision_id not in done}
        if (waiting := open_.get(decision_id)) is None:
            there = ", ".join(open_) or "none"
            raise UserError(f"promote: wanted a waiting decision of {self.model} ({there}); found {decision_id}; "
                            "fix: dfn promote --list")  # fmt: skip
        promoted = Decision.of(
            self.model, waiting.challenger, waiting.champion_compared, PROMOTED, waiting.reason,
            follows=waiting.follows, approver=approver, facts={**waiting.facts, "approves": decision_id},
        )  # fmt: skip
        return self._moved(promoted)

    def roll_back(self, approver: str) -> Decision:
        """Makes the champion before this one champion again. Raises UserError where there is none."""
        known = self.decisions()
        standing = champions(known)
        if len(standing) < 2:
            raise UserError(f"promote --rollback: wanted two promotions of {self.model}; found {len(standing)}; "
                            "fix: nothing to go back to")  # fmt: skip
        before, last = standing[-2:]
        reason = f"rolled back: {last.challenger} was champion since {last.decided_at:%Y-%m-%d %H:%M} UTC"
        back = Decision.of(self.model, before.challenger, last.challenger, ROLLED_BACK, reason,
                           follows=moves(known)[-1].decision_id, approver=approver)  # fmt: skip
        return self._moved(back)

    def _moved(self, decision: Decision) -> Decision:
        self._number(decision.challenger)
        if not self.move(decision):
            now = champions(self.decisions())[-1]
            raise UserError(
                f"promote: wanted the champion to be {decision.champion_compared}, as compared; found it changed to "
                f"{now.challenger} by {now.decision_id}; fix: dfn loop, which compares with that one"
            )
        self.align()
        return decision
