"""A model of another environment, brought into this project's registry, where it waits for approval.

Touches MLflow's registry and `promotions`. The version is copied with what it was judged by; no alias moves.
"""

from __future__ import annotations

from etl.loop.backfill import model_of
from etl.loop.promotion import WAITING, Decision, Promotions, champions
from etl.stage import UserError
from etl.store import Store


def adopt(store: Store, uri: str, name: str) -> Decision:
    """Copies a registered version to the model `name`, once, and adds the decision that waits.

    Args:
        uri: models:/CATALOG.SCHEMA.MODEL@ALIAS or models:/CATALOG.SCHEMA.MODEL/VERSION, in the same registry.

    Raises:
        UserError: it is a version of `name` itself, or has no filter_version, or is the champion here already.
        RegistryError: no such version.
    """
    from models import registry

    source = model_of(uri)
    if source == name:
        raise UserError(f"promote --from: wanted a model of another environment; found {uri}; fix: --set registry=...")
    number = registry.number_of(uri)
    tags = registry.tags_of(source, number)
    if not (version := tags.get("filter_version", "")):
        raise UserError(f"promote --from: wanted a version with the tag filter_version; found {uri}; fix: dfn loop")
    promotions = Promotions(store, name)
    standing = champions(promotions.decisions())
    compared = standing[-1].challenger if standing else "none"
    if compared == version:
        raise UserError(f"promote --from: wanted another than the champion of {name}; found it: {version}")
    if registry.version_of(name, version) is None:
        registry.set_tags(name, registry.copy(source, number, name), tags)
    reason = f"copied from {source} version {number}, {tags.get('verdict', 'not judged')} there"
    waiting = Decision.of(name, version, compared, WAITING, reason, follows=promotions.tip(), facts={"from": uri})
    promotions.add(waiting)
    promotions.align()  # the tags then say what was decided here
    return waiting
