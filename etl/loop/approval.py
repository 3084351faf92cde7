"""Approvals that were given on a version's page in the registry, as a tag. Reads MLflow.

An MLflow deployment job ends at a task whose name begins with `approval` until a person has approved the version: the
page then sets a tag of that task's name to `approved`, and the task is run again.
"""

from __future__ import annotations

from etl.stage import UserError

APPROVED = "approved"


def decision_by_tag(model: str, number: str, tag: str) -> str:
    """The decision about a version, whose tag says that a person has approved it.

    Args:
        tag: the name of the job's task; case does not count, in its value neither.

    Raises:
        UserError: not approved yet, or nothing was decided of this version.
    """
    from models import registry

    tags = registry.tags_of(model, number)
    given = {name.lower(): value for name, value in tags.items()}
    if given.get(tag.lower(), "").lower() != APPROVED:
        raise UserError(f"promote: wanted the tag {tag}={APPROVED} on {model} version {number}; found "
                        f"{given.get(tag.lower(), 'none')}; fix: approve it on the version's page")  # fmt: skip
    if "decision" not in tags:
        raise UserError(f"promote: wanted a version that the gate has judged; found {model} version {number} without "
                        "the tag decision; fix: dfn loop")  # fmt: skip
    return tags["decision"]
