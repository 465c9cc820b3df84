"""One L2 adapter with its evictor, for tests of what goes when."""

from prometheus_client import CollectorRegistry

from engine.l1.eviction import IsolatedLRU, make_policy
from engine.l1.quota import QuotaTable
from engine.l2.catalog import Catalog, Form
from engine.l2.fault_adapter import FaultAdapter, Faults
from engine.l2.metrics import TierMetrics
from engine.l2.record import HEADER_BYTES
from engine.l2.spec import read_spec
from engine.l2.tier import Tier
from engine.movement.l2_eviction import TierEvictor
from engine.object_key import ObjectKey

FORM = Form(b"f" * 16, 0)
#: Stored bytes of one small object.
SIZE = HEADER_BYTES + 100
SALTS = ("", "alice", "bob")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class World:
    """One adapter, its evictor and a clock."""

    def __init__(self, quotas: QuotaTable | None = None, index: int = 0, **spec: object) -> None:
        self.quotas = quotas or loaded({})
        given_spec = {"type": "memory", **spec}
        checked = read_spec(given_spec)
        policy = make_policy(checked.eviction.eviction_policy, self.quotas.limit_of, 0)
        counters = TierMetrics(CollectorRegistry()).of(checked.type_name, index)
        self.tier = Tier(index, checked, Catalog(policy), counters)
        self.tier.open()
        self.tier.refresh()
        if isinstance(policy, IsolatedLRU):
            policy.capacity = self.tier.capacity_bytes or 0
        self.clock = Clock()
        self.evictor = TierEvictor(self.tier, self.quotas, lambda: False, self.clock)

    def put(self, *keys: ObjectKey, payload_bytes: int = 100) -> None:
        for key in keys:
            self.tier.store(key, FORM, memoryview(bytearray(payload_bytes)))

    def left(self) -> list[ObjectKey]:
        """What is stored, in the order in which it would go."""
        listed = [key for key, _ in self.tier.catalog.oldest(0, 10_000)]
        assert {stored.key for stored in self.tier.adapter.scan()} == set(self.tier.catalog.keys())
        return listed

    def fault(self, **rates: float) -> None:
        assert isinstance(self.tier.adapter, FaultAdapter)
        self.tier.adapter.set_faults(Faults(**rates))


def loaded(limits: dict[str, int]) -> QuotaTable:
    quotas = QuotaTable()
    quotas.load(limits)
    return quotas


def key(number: int, salt: str = "") -> ObjectKey:
    return ObjectKey(number.to_bytes(4, "big"), "model", 16777472, 0, salt)


def keys(count: int, salt: str = "", start: int = 0) -> list[ObjectKey]:
    return [key(number, salt) for number in range(start, start + count)]


def isolated(trigger: float = 0.8, ratio: float = 0.2) -> dict[str, object]:
    return {"eviction_policy": "IsolatedLRU", "trigger_watermark": trigger, "eviction_ratio": ratio}
