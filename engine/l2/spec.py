"""One `--l2-adapter`: what is the adapter's own, and what the engine keeps around it.

    {"type": "fs", "base_path": "/data/kv", "shared": false, "serde": [{"type": "zstd"}],
     "eviction": {"eviction_policy": "LRU", "trigger_watermark": 0.8, "eviction_ratio": 0.2}}

field     what it says
--------  -------------------------------------------------------------------------------------------------------
type      the adapter, see registry.py
shared    other servers write to the same storage: it is asked for what the catalog does not know
serde     codecs in the order of encoding, see serde/
eviction  who leaves when the storage fills up; without it LRU, but noop for a shared storage, which is not ours alone

All other fields are the adapter's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from engine.errors import StartError
from engine.l2.registry import ADAPTERS, read_config

#: Policies of engine/l1/eviction.py that make sense for a storage.
EVICTION_POLICIES = ("LRU", "IsolatedLRU", "noop")
OWN_FIELDS = ("type", "shared", "serde", "eviction")


@dataclass(frozen=True)
class EvictionSpec:
    """Shares of the capacity, above 0 and at most 1."""

    eviction_policy: str = "LRU"
    trigger_watermark: float = 0.8
    eviction_ratio: float = 0.2

    def __post_init__(self) -> None:
        if self.eviction_policy not in EVICTION_POLICIES:
            allowed = ", ".join(EVICTION_POLICIES)
            raise ValueError(f"eviction_policy is {self.eviction_policy!r}, allowed is one of {allowed}")
        for name in ("trigger_watermark", "eviction_ratio"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise ValueError(f"{name} is {value}, allowed is a number above 0 and at most 1")


@dataclass(frozen=True)
class TierSpec:
    """One configured adapter. `fields` are the adapter's own and may hold secrets."""

    type_name: str
    fields: Mapping[str, Any]
    shared: bool
    serde: tuple[Mapping[str, Any], ...]
    eviction: EvictionSpec


def read_spec(given: Mapping[str, Any]) -> TierSpec:
    """Checks the engine's part of one adapter's object. Raises StartError naming what is wrong and what is allowed."""
    type_name = given.get("type")
    if not isinstance(type_name, str) or type_name not in ADAPTERS:
        raise StartError(f"l2_adapter: unknown type {type_name!r}; there are {', '.join(sorted(ADAPTERS))}")
    where = f"l2_adapter {type_name!r}"
    shared = given.get("shared", False)
    if not isinstance(shared, bool):
        raise StartError(f"{where}: shared is {shared!r}, allowed is true or false")
    serde = given.get("serde", [])
    steps = [serde] if isinstance(serde, Mapping) else serde
    if not isinstance(steps, list) or not all(isinstance(step, Mapping) for step in steps):
        raise StartError(f'{where}: serde is an object such as {{"type": "zstd"}}, or a list of such objects')
    eviction = given.get("eviction", {"eviction_policy": "noop"} if shared else {})
    if not isinstance(eviction, Mapping):
        allowed = ", ".join(field.name for field in fields(EvictionSpec))
        raise StartError(f"{where}: eviction is an object with the fields {allowed}")
    own = {name: value for name, value in given.items() if name not in OWN_FIELDS}
    return TierSpec(type_name, own, shared, tuple(steps), read_config(f"{type_name}: eviction", EvictionSpec, eviction))
