"""The engine's settings, as plain values. Whoever starts an engine fills this in; here nothing is parsed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

GIB = 1024**3

#: Token hashing algorithms; see token_hasher.py.
HASH_ALGORITHMS = ("blake3", "sha256_cbor", "builtin")
#: Eviction policies; see l1/eviction.py.
EVICTION_POLICIES = ("LRU", "IsolatedLRU", "ARC", "noop")
#: Which kinds of clients may register.
TRANSFER_MODES = ("auto", "lmcache_driven", "engine_driven")
#: What becomes of an object in L1 once it is stored in L2: it stays, or it goes.
STORE_POLICIES = ("default", "skip_l1")
#: Value of `shm_name` that keeps the pool from being offered to clients: their data travels in messages.
SHM_OFF = "off"


@dataclass(frozen=True)
class EngineConfig:
    """Settings of one engine. Sizes in bytes, times in seconds, shares as fractions of 1."""

    instance_id: str = "default"
    l1_size_bytes: int = 2 * GIB
    #: Tokens per chunk.
    chunk_size: int = 256
    hash_algorithm: str = "blake3"
    eviction_policy: str = "LRU"
    #: Share of the pool at which eviction begins.
    eviction_trigger_watermark: float = 0.8
    #: Share of the watermark that one pass frees.
    eviction_ratio: float = 0.2
    #: "" = made from instance and boot id; "off" = not offered to clients; else the segment's name.
    shm_name: str = ""
    supported_transfer_mode: str = "auto"
    #: How long a client may take from prepare_store to commit_store.
    l1_write_ttl_seconds: float = 600.0
    #: How long a looked-up object is kept for its reader.
    l1_read_ttl_seconds: float = 300.0
    #: Silence after which a worker that has pinged is removed; 0 = never.
    worker_reap_timeout_seconds: float = 120.0
    #: Silence allowed to a worker that never pinged.
    worker_registration_grace_seconds: float = 3600.0
    #: Idle time after which a session (token hashes, lookup result) is dropped.
    session_ttl_seconds: float = 600.0
    #: One object per L2 adapter, the first is the primary; see l2/spec.py.
    l2_adapter: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    l2_store_policy: str = "default"
    #: Bytes of L1 that may wait for being written to L2; 0 = a quarter of the pool.
    write_back_max_bytes: int = 0
    #: How long a stop waits for what is queued for L2.
    write_back_drain_seconds: float = 10.0
    #: A lookup is answered after this time with what there is by then.
    l2_lookup_deadline_seconds: float = 2.0
    #: Where the engine keeps what outlives it beside L2; "" = nowhere.
    data_dir: str = ""
    #: Data-plane address, shown by the configuration report.
    host: str = "127.0.0.1"
    port: int = 5555
