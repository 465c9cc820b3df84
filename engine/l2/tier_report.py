"""What people see of one tier: its entry in GET /status, and its gauges."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.l2.tier import Tier


def tier_gauges(tier: "Tier") -> dict[str, float]:
    """Its values of the gauges in metrics.py, but for those of the write-back."""
    state = str(tier.breaker.describe()["state"])
    return {
        "bytes": tier.catalog.bytes_used,
        "objects": len(tier.catalog),
        "capacity_bytes": tier.capacity_bytes or 0,
        "breaker_state": ("closed", "half_open", "open").index(state),
        "breaker_opened": tier.breaker.times_opened,
        "bypassed": tier.bypassed,
        "catalog_complete": tier.catalog.complete,
        "catalog_scanned": tier.catalog.scanned,
        "running_calls": len(tier.calls),
    }


def describe_tier(
    tier: "Tier", own_facts: Mapping[str, object], quarantined: Sequence[Mapping[str, object]]
) -> dict[str, object]:
    """Its entry in GET /status. The storage is not asked: `own_facts` are what it said of itself last."""
    catalog = tier.catalog
    return {
        "is_healthy": tier.is_healthy(),
        "type": type(tier.adapter).__name__,
        "type_name": tier.type_name,
        "adapter_index": tier.index,
        "primary": tier.index == 0,
        "shared": tier.spec.shared,
        "bypassed": tier.bypassed,
        "serde": [str(step.get("type")) for step in tier.spec.serde],
        "eviction_policy": tier.spec.eviction.eviction_policy,
        "keeps_order_of_use": tier.adapter.keeps_order_of_use,
        "stored_object_count": len(catalog),
        "current_size_bytes": catalog.bytes_used,
        "max_capacity_bytes": tier.capacity_bytes,
        "catalog": {"complete": catalog.complete, "scanned": catalog.scanned, "error": tier.scan_error or None},
        "breaker": tier.breaker.describe(),
        "running_calls": len(tier.calls),
        "quarantined": list(quarantined),
        **own_facts,
    }
