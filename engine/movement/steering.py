"""What operators may change while the engine runs, beside quotas and L2's own reconfiguration.

    settings   those of CHANGEABLE, each at once, until the next start
    switches   freeze, block log (switches.py)
    hot cache  on: objects stay in L1 once they are stored in L2; off: they go (l2_store_policy skip_l1)
    bypass     an L2 adapter that is neither asked nor written; what it holds stays

L1 is where every object passes through, so it can neither be bypassed nor, without an L2 adapter, be switched off.
"""

import dataclasses
import logging
import threading
from collections.abc import Mapping
from typing import Any

from engine.config import EngineConfig
from engine.errors import BadRequest
from engine.housekeeping import Housekeeping
from engine.l1.cache import L1Cache
from engine.movement.second_tier import SecondTier
from engine.switches import Switches

logger = logging.getLogger(__name__)

#: Settings of EngineConfig that every part reads anew.
CHANGEABLE = (
    "eviction_trigger_watermark",
    "eviction_ratio",
    "l1_write_ttl_seconds",
    "l1_read_ttl_seconds",
    "l2_store_policy",
    "l2_lookup_deadline_seconds",
    "write_back_drain_seconds",
)
#: L1 as other servers call it.
L1_NAME = "LocalCPUBackend"


class Steering:
    """Any thread may call."""

    def __init__(
        self, config: EngineConfig, switches: Switches, housekeeping: Housekeeping, l1: L1Cache, l2: SecondTier
    ) -> None:
        self.config, self.switches = config, switches
        self._housekeeping, self._l1, self._l2 = housekeeping, l1, l2
        self._lock = threading.Lock()

    # ---- settings

    def change(self, values: Mapping[str, Any]) -> None:
        """Goes by these values, which have been checked, from now on. Raises BadRequest for one that cannot change."""
        if fixed := sorted(set(values) - set(CHANGEABLE)):
            raise BadRequest(f"{', '.join(fixed)} cannot be changed while the engine runs")
        if values.get("l2_store_policy") == "skip_l1":
            self._need_l2()
        with self._lock:
            self.config = config = dataclasses.replace(self.config, **values)
            self._l1.follow(write_ttl_s=config.l1_write_ttl_seconds, read_ttl_s=config.l1_read_ttl_seconds)
            self._l2.follow(config)
            self._housekeeping.follow(config)
        logger.info("settings changed: %s", ", ".join(f"{name}={value}" for name, value in values.items()))

    # ---- switches

    def set_frozen(self, on: bool) -> bool:
        """Whether it was frozen before."""
        was, self.switches.frozen = self.switches.frozen, on
        logger.info("the cache is %s", "frozen" if on else "no longer frozen")
        return was

    def set_log_blocks(self, on: bool) -> bool:
        """Whether block ids were logged before."""
        was, self.switches.log_blocks = self.switches.log_blocks, on
        return was

    @property
    def is_hot(self) -> bool:
        """Whether objects stay in L1 once they are stored in L2."""
        return self.config.l2_store_policy == "default"

    def set_hot(self, on: bool) -> bool:
        """Whether it was hot before. Raises BadRequest without an L2 adapter."""
        was = self.is_hot
        if was != on:
            self.change({"l2_store_policy": "default" if on else "skip_l1"})
        return was

    def _need_l2(self) -> None:
        if not self._l2.tiers:
            raise BadRequest("without an L2 adapter L1 is the only place where objects are kept")

    # ---- adapters

    def backends(self) -> dict[str, str]:
        """Name -> class, L1 first."""
        return {
            L1_NAME: type(self._l1).__name__,
            **{tier.label: type(tier.adapter).__name__ for tier in self._l2.tiers},
        }

    def bypassed(self) -> list[str]:
        """Labels of the adapters that are bypassed."""
        return [tier.label for tier in self._l2.tiers if tier.bypassed]

    def set_bypass(self, name: str, on: bool) -> tuple[str, bool]:
        """(the adapter's label, whether it was bypassed before). `name`: a label, or a type, whose first is meant.

        Raises BadRequest for an unknown one, and for L1.
        """
        if name == L1_NAME:
            raise BadRequest(f"{L1_NAME} is L1, through which every object passes: it cannot be bypassed")
        by_name = {tier.type_name: tier for tier in reversed(self._l2.tiers)}
        by_name.update((tier.label, tier) for tier in self._l2.tiers)
        if name not in by_name:
            raise BadRequest(f"unknown backend {name[:80]!r}; there are {', '.join(self.backends())}")
        tier = by_name[name]
        was, tier.bypassed = tier.bypassed, on
        logger.info("L2 adapter %s is %s", tier.label, "bypassed" if on else "in use")
        return tier.label, was
