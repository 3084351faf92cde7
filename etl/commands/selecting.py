"""`dfn select`, `filters` and `export`: a rule's selection and its receipt, filters side by side, shards out of it."""

from __future__ import annotations

from dataclasses import asdict
from json import loads as load_json
from pathlib import Path
from typing import Annotated, Any

import typer

from etl.commands.cli import PARTIAL, Conf, Dataset, Json, Quiet, Set, app, configured, dataset_of, samples
from etl.console import emit
from etl.stage import UserError


@app.command()
def select(
    conf: Conf = ["local"],  # noqa: B006
    override: Set = [],  # noqa: B006
    filter: Annotated[
        str, typer.Option(help="What the rule calls dfn: one of the config's, a folder, models:/NAME@ALIAS, cosine.")
    ] = "",
    receipt: Annotated[str, typer.Option(help="Replay and prove this one instead: a selection, or a JSON file.")] = "",
    uids: Annotated[Path | None, typer.Option(help="Keep what this list names instead: a published .npy.")] = None,
    samples_seen: Annotated[str, typer.Option(help="Of a training run, such as 128M: repeats, and what pays.")] = "",
    dataset: Dataset = "",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Apply the rule in stages.selection, scoring first where its filters have not. Prints the receipt.

    The filter `cosine` is the CLIP score: the cosine of the encoder's own vectors. A receipt is replayed on the tables
    as they were, and its hash must come again; past retention the stored rows are hashed. A list of uids is taken as it
    is; a uid that comes again is a repeat, and those that the pool lacks are counted.
    """
    from etl.stages import listed

    budget = samples(samples_seen)
    if given := [name for name, value in (("--filter", filter), ("--receipt", receipt)) if uids and value]:
        raise UserError(f"select: wanted --uids or {given[0]}; found both; fix: leave one out")
    wanted = listed.of_list(uids, uids.stem) if uids else None
    with configured(conf, override, quiet) as project:
        from etl.filters.applied import selected
        from etl.loop.budget import repeats_by_fraction, which_pays
        from etl.selection.compare import churn
        from etl.selection.receipts import prove, receipt_of

        pool = dataset_of(project, dataset)
        if receipt:
            proof = prove(project.store, pool, _receipt(receipt) or receipt_of(project.store, pool, receipt))
            emit(asdict(proof), as_json=json)
            if not proof.is_proved:
                raise typer.Exit(PARTIAL)
            return
        if wanted:
            listed_id = str(project.run(listed.STAGE, pool, wanted).slice["selection_id"])
            found = receipt_of(project.store, pool, listed_id)
        else:
            found = selected(project, pool, filter)
        if lacking := found["facts"].get("num_not_in_pool"):
            project.say(f"{lacking:,} of {found['facts']['num_listed']:,} listed uids are not in the pool")
        found |= {"churn": moved} if (moved := churn(project.store, pool, found)) else {}
        if budget:
            found["samples_seen"] = repeats_by_fraction(found, budget)
            found["samples_seen"]["which_pays"] = which_pays(project, pool, found, budget)
        emit(found, as_json=json)


def _receipt(name: str) -> dict[str, Any] | None:
    """A receipt from a file, such as an export's manifest.json or what `dfn select --json` printed."""
    if not name.endswith(".json"):
        return None
    try:
        found = load_json(Path(name).read_text())
        found = found.get("receipt", found)
        lacking = {"selection_id", "inputs", "rule", "facts", "hash", "num_rows"} - found.keys()
    except (OSError, ValueError, AttributeError):
        lacking = {"JSON"}
    if lacking:
        raise UserError(f"--receipt: wanted a JSON file with a receipt; found {name}; fix: dfn select --json")
    return dict(found)


@app.command()
def filters(
    fraction: Annotated[float, typer.Option(min=0.0001, max=1, help="The share that each keeps.")] = 0.15,
    conf: Conf = ["local"],  # noqa: B006
    override: Set = [],  # noqa: B006
    filter: Annotated[str, typer.Option(help="One more, called dfn: a folder, models:/NAME@ALIAS, or cosine.")] = "",
    dataset: Dataset = "",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Every configured filter side by side: pairs kept, overlap with the first, and precision where noise was planted.

    Precision and overlap do not say how good a filter is: `dfn loop` with an arm for each does.
    """
    with configured(conf, override, quiet) as project:
        from etl.filters.applied import given
        from etl.filters.table import filter_table

        if not filter and not project.config.filters:
            raise UserError(
                "filters: wanted some in the config, or --filter; found none; fix: see docs/how-to/select.md"
            )
        emit(filter_table(project, dataset_of(project, dataset), fraction, given(project, filter)), as_json=json)


@app.command()
def export(
    selection_id: Annotated[str, typer.Argument(help="From `dfn select` or `dfn status`.")],
    folder: Annotated[Path, typer.Argument(help="A folder that driver and executors see.")],
    conf: Conf = ["local"],  # noqa: B006
    override: Set = [],  # noqa: B006
    dataset: Dataset = "",
    pairs_per_shard: Annotated[int, typer.Option(min=1)] = 1000,
    blur_faces: Annotated[bool, typer.Option("--blur-faces", help="By the boxes in image_signals.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a selection as tar shards, uids.npy (DataComp's u8,u8) and, last, manifest.json.

    Killed and run again, it goes on with the shards that are left; when all are there it says `up to date`.
    """
    with configured(conf, override, quiet) as project:
        from etl.config import folder_of
        from etl.export.export import export_selection

        pool = dataset_of(project, dataset)
        shards = project.sources[pool].shards
        done = export_selection(
            project.store, pool, selection_id, folder.absolute(), shards_root=folder_of(shards) if shards else "",
            pairs_per_shard=pairs_per_shard, blur_faces=blur_faces, storage=project.config.storage,
        )  # fmt: skip
        kept = {"shards_kept": done.num_kept} if done.num_kept else {}
        state = {"state": "up to date"} if done.is_up_to_date else kept
        samples = sum(entry["num_samples"] for entry in done.shards)
        emit({"folder": folder, "shards": len(done.shards), "samples": samples, **state}, as_json=json)
