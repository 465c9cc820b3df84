"""Tenants: what each cache_salt may hold (quota) and holds (usage), over both tiers.

Quotas act on each tier by itself, where its policy is IsolatedLRU. Usage is counted by the tiers as they go; here it
is put together.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from engine.config import EngineConfig
from engine.errors import BadRequest
from engine.l1.cache import L1Cache
from engine.l1.eviction import IsolatedLRU
from engine.l1.quota import MAX_LIMIT_BYTES, QuotaTable
from engine.l2.catalog import Catalog
from engine.l2.spec import TierSpec
from engine.quota_epoch import Holdings, QuotaEpoch


class Usage(NamedTuple):
    """Bytes of one salt: readable ones in L1, stored ones over all L2 adapters."""

    l1_bytes: int
    l2_bytes: int


class Storage(Protocol):
    """What is asked about one L2 adapter."""

    @property
    def label(self) -> str: ...
    @property
    def spec(self) -> TierSpec: ...
    @property
    def catalog(self) -> Catalog: ...


class SecondTier(Protocol):
    """What is asked of L2; see movement/second_tier.py."""

    @property
    def tiers(self) -> Sequence[Storage]: ...
    def bytes_by_salt(self) -> dict[str, int]: ...
    def take_changed_salts(self) -> dict[str, int]: ...


class Tenants:
    """Thread-safe, but for `load`, `*_epoch` and `changed_usage`: those belong to one thread."""

    def __init__(
        self,
        config: EngineConfig,
        quotas: QuotaTable,
        l1: L1Cache,
        l2: SecondTier,
        *,
        quotas_changed: Callable[[], None],
    ) -> None:
        """`quotas_changed` is called, under no lock, after every change of a limit."""
        self._quotas, self._l1, self._l2, self._quotas_changed = quotas, l1, l2, quotas_changed
        self._known: dict[str, Usage] = {}
        self._policies = {"l1": config.eviction_policy}
        self._policies.update((tier.label, tier.spec.eviction.eviction_policy) for tier in l2.tiers)
        directory = Path(config.data_dir) / "l2" if config.data_dir else None
        quota_hash = f"larder:{{{config.instance_id}}}:quota"
        self._epoch = QuotaEpoch(
            quotas, directory, self._holdings, isolates=bool(self._isolated()), quota_hash=quota_hash
        )

    # ---- quotas

    def load(self, limits: Mapping[str, int], epoch: str = "") -> None:
        """Takes over the durable quotas; from now on they are enforced where the policy is IsolatedLRU.

        `epoch` names the life of the durable quotas and their generation; "" when nobody keeps them, and nothing can be
        in doubt.
        """
        if epoch:
            self._epoch.take(epoch)
        self._quotas.load(limits)
        self._quotas_changed()

    def set_quota(self, cache_salt: str, limit_bytes: int) -> None:
        """Registers or replaces a salt's limit in bytes. Raises BadRequest when out of range."""
        if not 0 <= limit_bytes <= MAX_LIMIT_BYTES:
            raise BadRequest(f"limit of {limit_bytes} bytes is not in 0..{MAX_LIMIT_BYTES}")
        self._quotas.set(cache_salt, limit_bytes)
        self._quotas_changed()

    def delete_quota(self, cache_salt: str) -> bool:
        """Whether there was a quota to remove; the salt's limit is 0 from now on."""
        removed = self._quotas.delete(cache_salt)
        self._quotas_changed()
        return removed

    def quotas(self) -> dict[str, int]:
        """Every registered limit in bytes."""
        return self._quotas.all()

    def review_epoch(self) -> bool:
        """To be called now and then. True: write all quotas where they are durable, then call `keep_epoch`."""
        return self._epoch.review()

    def advance_epoch(self) -> str:
        """What to write beside the durable quotas together with their next change; then call `keep_epoch`."""
        return self._epoch.advance()

    def keep_epoch(self) -> None:
        """All quotas are durable under the epoch that was loaded or advanced: L2 goes with it from now on."""
        self._epoch.keep()

    def _holdings(self) -> Holdings:
        catalogs = [tier.catalog for tier in self._l2.tiers]
        # `complete` first: what a scan finds is counted before it says that it is over.
        complete = all(catalog.complete for catalog in catalogs)
        objects = sum(map(len, catalogs))
        return Holdings(len(catalogs), objects, sum(catalog.bytes_used for catalog in catalogs), complete)

    def _isolated(self) -> list[str]:
        return [place for place, policy in self._policies.items() if policy == IsolatedLRU.name]

    # ---- usage

    def usage_by_salt(self) -> dict[str, Usage]:
        """What every salt holds that holds anything."""
        l1, l2 = self._l1.bytes_by_salt(), self._l2.bytes_by_salt()
        return {salt: Usage(l1.get(salt, 0), l2.get(salt, 0)) for salt in l1.keys() | l2.keys()}

    def changed_usage(self) -> dict[str, Usage]:
        """`usage_by_salt` of the salts that changed since the last call; zeros for one that has nothing left."""
        l1, l2 = self._l1.take_changed_salts(), self._l2.take_changed_salts()
        changed = {}
        for salt in l1.keys() | l2.keys():
            before = self._known.pop(salt, Usage(0, 0))
            changed[salt] = now = Usage(l1.get(salt, before.l1_bytes), l2.get(salt, before.l2_bytes))
            if any(now):
                self._known[salt] = now
        return changed

    # ---- looking

    @property
    def suspended_because(self) -> str | None:
        """Why salts without a quota keep what they hold, where that has an effect; None when they do not."""
        return self._epoch.suspended_because

    def report(self) -> dict[str, object]:
        """`quotas` of GET /status: where quotas act, and if nowhere why."""
        isolated, why = self._isolated(), None
        if not isolated:
            policies = ", ".join(f"{place} {policy}" for place, policy in self._policies.items())
            why = f"eviction policies are {policies}; quotas act under IsolatedLRU alone"
        elif not self._quotas.loaded:
            why = "the stored quotas have not been read yet"
        return {
            "enforced": why is None,
            "enforced_on": [] if why else isolated,
            "not_enforced_because": why,
            "unregistered_suspended_because": self.suspended_because,
            "registered": len(self._quotas.all()),
        }
