"""Commands about who is champion and who serves: promote and backfill. They move aliases in MLflow's registry."""

from __future__ import annotations

import getpass
from typing import Annotated, Any

import typer

from etl.commands.cli import Conf, Json, Quiet, Set, app, configured, dataset_of
from etl.console import emit
from etl.stage import UserError


@app.command()
def promote(
    decision: Annotated[str, typer.Argument(help="One that waits for approval; see --list.")] = "",
    list_: Annotated[bool, typer.Option("--list", help="All decisions, and who is champion. Moves nothing.")] = False,
    rollback: Annotated[bool, typer.Option(help="The champion before becomes champion again.")] = False,
    model: Annotated[str, typer.Option(help="dfn_filter or clip; of --rollback and of a decision.")] = "dfn_filter",
    version: Annotated[str, typer.Option(help="Approve what the gate decided of this version, if it is tagged.")] = "",
    tag: Annotated[str, typer.Option(help="Of --version: the tag that must say approved.")] = "approval_check",
    from_: Annotated[
        str,
        typer.Option(
            "--from", help="Copy a version of another environment, such as models:/DEV.S.dfn_filter@champion."
        ),
    ] = "",
    approver: Annotated[str, typer.Option(help="Who is recorded; default: the user of this process.")] = "",
    conf: Conf = ["local"],  # noqa: B006
    override: Set = [],  # noqa: B006
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Approve a decision of the gate, take the last promotion back, or bring a version from another environment.

    A decision is refused where the champion is no longer the one that it was compared with. Moving @champion encodes
    nothing: see `dfn backfill`.
    """
    if bool(decision) + list_ + rollback + bool(version) + bool(from_) != 1:
        raise UserError("promote: wanted one of a decision, --list, --rollback, --version and --from; found none, or "
                        "several")  # fmt: skip
    from etl.loop.gating import CLIP, MODEL

    if model not in (MODEL, CLIP):
        raise UserError(f"promote: wanted --model {MODEL} or {CLIP}; found {model}")
    with configured(conf, override, quiet) as project:
        from etl.loop.adopt import adopt
        from etl.loop.approval import decision_by_tag
        from etl.loop.promotion import Promotions
        from models.tracking import answering

        name = project.registered(model)
        promotions = Promotions(project.store, name)
        if list_:
            emit(_listed(promotions), as_json=json)
            return
        with answering(project.tracking_uri):
            who = approver or getpass.getuser()
            if from_:
                done = adopt(project.store, from_, name)
            elif rollback:
                done = promotions.roll_back(who)
            else:
                done = promotions.approve(decision or decision_by_tag(name, version, tag), who)
        told = {"decision": done.decision_id, "model": name, "verdict": done.verdict, "champion": done.challenger}
        emit({**told, "before": done.champion_compared, "approver": done.approver}, as_json=json)


def _listed(promotions: Any) -> dict[str, Any]:
    from etl.loop.promotion import champions

    known = promotions.decisions()
    standing = champions(known)
    found: dict[str, Any] = {"champion": standing[-1].challenger if standing else "none"}
    for each in reversed(known):
        who = f" by {each.approver}" if each.approver else ""
        found[each.decision_id] = (
            f"{each.decided_at:%Y-%m-%d %H:%M} UTC: {each.challenger} {each.verdict}{who} against "
            f"{each.champion_compared}: {each.reason}"
        )
    return found


@app.command()
def backfill(
    filter: Annotated[str, typer.Argument(help="models:/NAME@ALIAS or models:/NAME/VERSION.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Also above backfill.max_gpu_hours.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what it would take.")] = False,
    conf: Conf = ["local"],  # noqa: B006
    override: Set = [],  # noqa: B006
    dataset: Annotated[str, typer.Option(help="The dataset; empty: the pool.")] = "",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Encode and score what the filter (default: the champion) has not covered, then point @serving at it.

    Work above backfill.max_gpu_hours (default: twice what the last runs took) is not begun without --yes: the plan is
    printed, and the exit code is 2.
    """
    from etl.loop.backfill import Backfill, model_of

    if filter:
        model_of(filter)
    with configured(conf, override, quiet) as project:
        job = Backfill(project, dataset_of(project, dataset))
        uri = filter or job.champion_uri
        found, _ = job.plan(uri)
        if plan:
            emit(found.facts(), as_json=json)
            return
        if found.wants_consent and not yes:
            emit(found.facts(), as_json=json)
            limit = "no earlier run to take a limit from" if found.max_hours is None else f"{found.max_hours:.3g} hours"
            raise UserError(f"backfill: wanted at most {limit} of work; found {found}; fix: --yes, or "
                            "backfill.max_gpu_hours")  # fmt: skip
        number = job.run(uri)
        emit({**found.facts(), "serving": f"version {number}"}, as_json=json)
