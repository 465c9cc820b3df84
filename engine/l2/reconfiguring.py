"""Adapters that can be changed at runtime, found by type and number, with catalogs that learn what changed.

`adapter_index` counts the reconfigurable adapters of one backend; `l2_adapter_index` is the place among all.
"""

import json
import logging
from collections.abc import Mapping, Sequence

from engine.errors import EngineError
from engine.l2.base import ConnectionFault, Stored
from engine.l2.reconfigure import Reconfigurable, Reconfigured, ReconfigureError
from engine.l2.registry import adapter_class
from engine.l2.tier import Tier
from engine.object_key import ObjectKey

logger = logging.getLogger(__name__)

MAX_WORDS = 300


def statuses(tiers: Sequence[Tier]) -> list[dict[str, object]]:
    """An entry for each adapter that can be changed, in the order of the configuration."""
    counts: dict[str, int] = {}
    entries: list[dict[str, object]] = []
    for tier in tiers:
        adapter = tier.adapter
        if isinstance(adapter, Reconfigurable):
            number = counts[tier.type_name] = counts.get(tier.type_name, -1) + 1
            entries.append(
                {
                    "backend": tier.type_name,
                    "supported_operations": list(adapter.supported_operations),
                    "adapter_index": number,
                    "l2_adapter_index": tier.index,
                    "status": _status(adapter),
                }
            )
    return entries


def _status(adapter: Reconfigurable) -> dict[str, object]:
    """An adapter that cannot tell must not keep the others from being shown."""
    try:
        return adapter.status()
    except (OSError, EngineError) as error:
        return {"error": str(error)[:MAX_WORDS]}


def reconfigure(
    tiers: Sequence[Tier], backend: str, operation: str, adapter_index: int, fields: Mapping[str, object]
) -> dict[str, object]:
    """Changes one adapter; what its answer says, with `adapter_index`. Raises ReconfigureError.

    What is wrong with the operation itself is told before it is looked whether there is such an adapter.
    """
    check = getattr(adapter_class(backend), "check_operation", None)
    if check is not None:
        check(operation, fields)
    of_backend = [tier for tier in tiers if tier.type_name == backend and isinstance(tier.adapter, Reconfigurable)]
    if not 0 <= adapter_index < len(of_backend):
        raise ReconfigureError("not_found", f"{backend} adapter not found")
    tier = of_backend[adapter_index]
    logger.info("L2 adapter %s: %s begins", tier.label, operation)
    changed = _change(tier, operation, fields)
    _learn(tier, changed.deleted, changed.found)
    logger.info(
        "L2 adapter %s: %s done, %d objects deleted, %d found",
        tier.label, operation, len(changed.deleted), len(changed.found),
    )  # fmt: skip
    status: dict[str, object] = {name: changed.body[name] for name in ("status", "operation") if name in changed.body}
    return {**status, "adapter_index": adapter_index, **changed.body}


def _change(tier: Tier, operation: str, fields: Mapping[str, object]) -> Reconfigured:
    assert isinstance(tier.adapter, Reconfigurable)
    try:
        return tier.adapter.reconfigure(operation, fields)
    except ReconfigureError as error:
        _learn(tier, error.deleted, ())
        details = json.dumps({**fields, **error.fields}, default=str)[:MAX_WORDS]
        logger.warning("L2 adapter %s: %s refused: %s %s", tier.label, operation, str(error), details)
        raise


def _learn(tier: Tier, deleted: Sequence[ObjectKey], found: Sequence[Stored]) -> None:
    """Has what is known of the storage agree with it; what was written or deleted meanwhile counts as it is now."""
    for key in deleted:
        try:
            with tier.calls.changing(key):
                is_gone = not tier.adapter.exists(key) and tier.catalog.remove(key)
        except ConnectionFault as error:
            logger.warning("L2 adapter %s: the catalog did not learn of a deleted object: %s", tier.label, error)
            continue
        if is_gone:
            tier.on_deleted(tier, key)
    for stored in sorted(found, key=lambda stored: stored.used_at):
        try:
            with tier.calls.changing(stored.key):
                if tier.adapter.exists(stored.key) and not tier.catalog.contains(stored.key):
                    tier.catalog.add(stored.key, stored.size)
        except ConnectionFault as error:
            logger.warning("L2 adapter %s: the catalog did not learn of a found object: %s", tier.label, error)
    try:
        tier.refresh()
    except OSError as error:
        logger.warning("L2 adapter %s: it does not tell about itself: %s", tier.label, error)
