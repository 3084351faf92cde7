"""Data cards in MLflow: a page beside the run that made its selection, or in a run of its own. Touches MLflow."""

from pathlib import Path

import mlflow

from models.tracking import answering, experiment_of

FOLDER = "cards"
"""Of artefacts."""
KIND = "card"
"""The tag `kind` of a run that holds nothing but a card; its tag `card_of` names the selection."""


def log_card(tracking_uri: str, path: Path, run_id: str) -> None:
    """A page as an artefact of a run, in place of one of that name. Raises TrackingDownError."""
    with answering(tracking_uri):
        mlflow.MlflowClient().log_artifact(run_id, str(path), FOLDER)


def card_run(tracking_uri: str, experiment: str, selection_id: str) -> str:
    """The run for the card of a selection, opened at most once. Raises TrackingDownError."""
    with answering(tracking_uri):
        client = mlflow.MlflowClient()
        experiment_id = experiment_of(client, experiment, tracking_uri)
        wanted = f"tags.kind = '{KIND}' AND tags.card_of = '{selection_id}'"
        if found := client.search_runs([experiment_id], wanted, max_results=1):
            return str(found[0].info.run_id)
        tags = {"kind": KIND, "card_of": selection_id}
        run = client.create_run(experiment_id, tags=tags, run_name=f"{KIND} {selection_id}")
        client.set_terminated(run.info.run_id, "FINISHED")
        return str(run.info.run_id)
