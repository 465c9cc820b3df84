"""One adapter with all the engine knows of it: catalog, breaker, codec, counters. Every call to the storage goes here.

    store    encode, header, write, catalog                     raises what the storage raises
    load     read, verify, decode; what is damaged is quarantined   never raises: the outcome is a value
    delete   storage and catalog, unless the key is in use      raises what the storage raises

Blocking; called from the threads of movement/. A quarantined object is deleted; its key and the reason are kept for
people to see. What cannot even be deleted is never served again.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import NamedTuple

import numpy as np

from engine.l2.base import ConnectionFault, L2Adapter, Stored
from engine.l2.breaker import Breaker
from engine.l2.calls import Calls, Reading
from engine.l2.catalog import FOREIGN, Catalog, Form
from engine.l2.complaints import Complaints
from engine.l2.counted_calls import CountedCalls
from engine.l2.metrics import TierCounters
from engine.l2.record import HEADER_BYTES, Verdict, fingerprint_of, make_header, missing_of, verify
from engine.l2.registry import open_adapter
from engine.l2.serde.codec import Codec, Undecodable, stored_fingerprint
from engine.l2.serde.registry import open_codecs
from engine.l2.spec import TierSpec
from engine.l2.tier_report import describe_tier, tier_gauges
from engine.object_key import ObjectKey, key_to_json

logger = logging.getLogger(__name__)

GIGABYTE = 1e9
#: A key that no object has: no chunk hashes to nothing but zeros.
NOBODYS_KEY = ObjectKey(bytes(32), "probe", 0)
#: Most quarantined objects that are remembered for people.
MAX_REMEMBERED = 64
#: Most objects of which nobody knows whether they were stored; what comes beyond is found by the next scan.
MAX_DOUBTFUL = 4096


class Outcome(Enum):
    """How a load ended."""

    LOADED = "loaded"
    #: Nothing is stored, or nothing that this caller could use.
    MISS = "miss"
    CORRUPT = "corrupt"
    #: The storage failed, or is not asked at present.
    FAULT = "fault"


class Loaded(NamedTuple):
    """`missing`: the KV groups that the loaded object lacks (a bit each)."""

    outcome: Outcome
    missing: int = 0


def _nobody_listens(tier: "Tier", key: ObjectKey) -> None:
    """Nobody wants to know what is deleted."""


class Tier:
    """Thread-safe. `on_deleted` is called, under no lock, for each object that was removed from the storage."""

    adapter: L2Adapter
    codec: Codec | None

    def __init__(self, index: int, spec: TierSpec, catalog: Catalog, counters: TierCounters) -> None:
        self.index, self.spec = index, spec
        self.type_name, self.catalog, self.counters = spec.type_name, catalog, counters
        self.label = f"{index}-{spec.type_name}"
        self.breaker = Breaker(changed=self._breaker_changed)
        self.calls = Calls(self.breaker)
        self.on_deleted: Callable[[Tier, ObjectKey], None] = _nobody_listens
        self.bypassed = False  # by operators: neither asked nor written; what it holds can be listed and deleted
        #: Objects that were known and turned out to be gone; each is a reason to compare the catalog with the storage.
        self.ghosts_met = 0
        #: Why the last scan failed; empty when it did not.
        self.scan_error = ""
        self._own_facts: dict[str, object] = {}
        self._capacity_bytes: int | None = None
        self._quarantine: deque[dict[str, object]] = deque(maxlen=MAX_REMEMBERED)
        self._fingerprints: dict[bytes, bytes] = {}
        #: Written to without an answer: what is stored there, if anything, is nobody's.
        self._doubtful: dict[ObjectKey, None] = {}
        self._counted = CountedCalls(self.label, self.calls, counters)
        self._complaints = Complaints(f"L2 adapter {self.label}")

    def open(self) -> None:
        """Connects to the storage; nothing else works before. Raises StartError."""
        self.codec = open_codecs(self.spec.serde, f"l2_adapter {self.type_name!r}")
        self.adapter = open_adapter(self.spec.type_name, self.spec.fields)

    # ---- what may be asked for

    @property
    def closed_because(self) -> str:
        """Why nothing is loaded or written at present, as an outcome of write-back; "" when it is open."""
        return "bypassed" if self.bypassed else "breaker_open" if self.breaker.state == "open" else ""

    def may_have(self, key: ObjectKey, layouts: Iterable[bytes]) -> bool:
        """Whether it is worth asking for `key` in one of `layouts`: known, or not known for sure to be absent."""
        if not self.catalog.contains(key):
            return not self.surely_lacks(key)
        form = self.catalog.form_of(key)
        return form is None or any(form.fingerprint == self._stored_fingerprint(layout) for layout in layouts)

    def surely_lacks(self, key: ObjectKey) -> bool:
        """Whether the storage need not be asked to know that `key` is absent."""
        return self.catalog.complete and not self.spec.shared and not self.catalog.contains(key)

    def knows(self, key: ObjectKey, form: Form) -> bool:
        """Whether what is stored under `key` is of this layout and lacks nothing that `form` has.

        Of what only the scan has seen nothing is known: it may be of another build.
        """
        known = self.catalog.form_of(key)
        return (
            known is not None
            and known == self._stored_form(Form(form.fingerprint, known.missing))
            and (not known.missing & ~form.missing)
        )

    # ---- calls

    def store(self, key: ObjectKey, form: Form, payload: memoryview) -> None:
        """Writes an object. Raises ConnectionFault, StorageFull, another OSError, or BadRequest for the key.

        After a connection fault nobody knows what is stored: unless the object is written again, it is deleted.
        """
        stored = self._stored_form(form)
        data = payload if self.codec is None else memoryview(self.codec.encode(payload, key))
        header = make_header(key, stored.fingerprint, data, form.missing)
        with self.calls.changing(key):
            started = time.perf_counter()
            asked = False
            try:
                with self._counted.call("write"):
                    asked = True
                    self.adapter.write(key, [memoryview(header), data])
            except ConnectionFault:
                if asked:
                    self._doubt(key)
                raise
            took = time.perf_counter() - started
            size = len(header) + len(data)
            self._doubtful.pop(key, None)
            self.catalog.add(key, size, stored)
        self.counters.written_bytes.inc(size)
        self.counters.store_throughput.observe(size / GIGABYTE / max(1e-9, took))

    def _doubt(self, key: ObjectKey) -> None:
        self.catalog.note_form(key, FOREIGN)
        if len(self._doubtful) < MAX_DOUBTFUL:
            self._doubtful[key] = None

    def settle_doubts(self) -> int:
        """Deletes what writes may have left whose answer was lost; returns how many. Raises OSError."""
        settled = 0
        for key in list(self._doubtful):
            with self.calls.changing_if_idle(key) as idle:
                if not idle or key not in self._doubtful:
                    continue
                with self._counted.call("delete") as call:
                    if not self.adapter.delete(key):
                        call.outcome = "miss"
                self.catalog.remove(key)
                del self._doubtful[key]
                settled += 1
        return settled

    def load(self, key: ObjectKey, fingerprint: bytes, into: memoryview) -> Loaded:
        """Reads an object of the layout `fingerprint` into `into`; what is there means nothing unless it is LOADED."""
        started = time.perf_counter()
        with self.calls.reading(key) as reading:
            try:
                header, data, stored_bytes = self._read(key, into)
            except OSError as error:
                self._complaints.add("read", key, error)
                return Loaded(Outcome.FAULT)
            took_s = time.perf_counter() - started
            if stored_bytes is None:
                # What was written meanwhile is there all the same.
                if not reading.stale:
                    self.ghosts_met += self.catalog.remove(key)
                return Loaded(Outcome.MISS)
            verdict = verify(header, data, stored_bytes, key, self._stored_fingerprint(fingerprint))
            if verdict is Verdict.GOOD and self.codec is not None:
                verdict = self._decode(key, data, into)
            # Whatever the read has shown is about what is stored now, or else not noted.
            if verdict is Verdict.OTHER_LAYOUT:
                self._counted.count("read", "other_layout")
                self._note(reading, key, stored_bytes, Form(fingerprint_of(header), missing_of(header)))
                return Loaded(Outcome.MISS)
            if verdict is Verdict.CORRUPT:
                self._counted.count("read", "corrupt")
                self.quarantine(key, f"{stored_bytes} bytes are not the record they should be", own=reading)
                return Loaded(Outcome.CORRUPT)
            form = Form(self._stored_fingerprint(fingerprint), missing_of(header))
            self._note(reading, key, stored_bytes, form)
        self.counters.read_bytes.inc(stored_bytes)
        self.counters.load_throughput.observe(stored_bytes / GIGABYTE / max(1e-9, took_s))
        return Loaded(Outcome.LOADED, form.missing)

    def _note(self, reading: Reading, key: ObjectKey, stored_bytes: int, form: Form) -> None:
        if reading.stale:
            return
        if self.catalog.contains(key):
            self.catalog.used(key)
            self.catalog.note_form(key, form)
        else:
            self.catalog.add(key, stored_bytes, form)

    def note_use(self, key: ObjectKey) -> None:
        """Has the storage remember that `key` was loaded, where it can; to be called when nobody waits any more."""
        try:
            with self.calls.guarded():
                self.adapter.used(key)
        except OSError as error:
            self._complaints.add("note the use of", key, error)

    def _read(self, key: ObjectKey, into: memoryview) -> tuple[memoryview, memoryview, int | None]:
        """(header, stored payload, stored bytes); with a codec, the stored size is not that of the object."""
        header = memoryview(bytearray(HEADER_BYTES))
        if self.codec is None:
            return header, into, self._read_into(key, header, into)
        size = self.catalog.size_of(key) or HEADER_BYTES + len(into)
        data = _room(max(0, size - HEADER_BYTES))
        stored = self._read_into(key, header, data)
        if stored is not None and stored != size and HEADER_BYTES <= stored <= 2 * len(into) + HEADER_BYTES:
            data = _room(stored - HEADER_BYTES)
            stored = self._read_into(key, header, data)
        return header, data, stored

    def _read_into(self, key: ObjectKey, header: memoryview, data: memoryview) -> int | None:
        with self._counted.call("read") as call:
            stored = self.adapter.read(key, [header, data])
            if stored is None:
                call.outcome = "miss"
            return stored

    def _decode(self, key: ObjectKey, data: memoryview, into: memoryview) -> Verdict:
        assert self.codec is not None
        try:
            payload = self.codec.decode(data, key, len(into))
        except Undecodable:
            return Verdict.CORRUPT
        if len(payload) != len(into):
            return Verdict.CORRUPT
        np.copyto(np.frombuffer(into, np.uint8), np.frombuffer(payload, np.uint8))
        return Verdict.GOOD

    def judge(self, key: ObjectKey) -> tuple[Verdict | None, int]:
        """(what the stored record is worth by itself, its bytes); None when nothing is stored. Raises OSError.

        The caller quarantines what is CORRUPT. No object is decoded, so codecs and their keys are not needed.
        """
        with self.calls.reading(key):
            header = memoryview(bytearray(HEADER_BYTES))
            size = max(HEADER_BYTES, self.catalog.size_of(key) or HEADER_BYTES)
            data = _room(size - HEADER_BYTES)
            stored = self._read_into(key, header, data)
            if stored is not None and stored != size and stored >= HEADER_BYTES:
                data = _room(stored - HEADER_BYTES)
                stored = self._read_into(key, header, data)
            if stored is None:
                return None, 0
            payload = data[: max(0, stored - HEADER_BYTES)]
            return verify(header, payload, stored, key, fingerprint_of(header)), stored

    def quarantine(self, key: ObjectKey, why: str, own: Reading | None = None) -> None:
        """Takes a damaged object out of service and remembers it. `own`: the caller's reading, if it still reads."""
        if own is not None and own.stale:
            return
        self.counters.quarantined.inc()
        entry = {"key": key_to_json(key), "reason": why, "at": round(time.time(), 3), "deleted": False}
        self._quarantine.append(entry)
        self.catalog.note_form(key, FOREIGN)
        try:
            entry["deleted"] = self.delete(key, own=own)
        except OSError as error:
            self._complaints.add("delete the damaged", key, error)
        logger.error("L2 adapter %s: quarantined %s: %s", self.label, key_to_json(key), why)

    def delete(self, key: ObjectKey, *, evicted: bool = False, own: Reading | None = None) -> bool:
        """Removes an object; False when it is absent, or being read or written just now. Raises OSError.

        `own`: the caller's own reading of the key, which is not in the way.
        """
        with self.calls.changing_if_idle(key, own) as idle:
            if not idle:
                return False
            with self._counted.call("delete") as call:
                removed = self.adapter.delete(key)
                if not removed:
                    call.outcome = "miss"
            self._doubtful.pop(key, None)
            self.catalog.remove(key, evicted=evicted)
        if removed:
            if evicted:
                self.counters.evicted.inc()
            self.on_deleted(self, key)
        return removed

    def take_scan(self) -> None:
        """Reads the catalog anew from the storage. Raises OSError, with what was found so far kept."""
        with self._counted.call("scan", may_take_long=True):
            self.catalog.take_scan(self._noticed(self.adapter.scan()))

    def compare_catalog(self) -> tuple[int, int]:
        """Has the catalog forget what the storage has lost; (objects lost, objects new). Raises OSError."""
        with self._counted.call("scan", may_take_long=True):
            return self.catalog.compare(self._noticed(self.adapter.scan()))

    def _noticed(self, found: Iterator[Stored]) -> Iterator[Stored]:
        """A scan may take minutes; its first object shows already that the storage can be reached."""
        for number, stored in enumerate(found):
            if not number:
                self.breaker.succeeded()
            yield stored

    def probe(self) -> None:
        """Asks for an object that nobody has, so that the breaker learns of the storage. Raises OSError."""
        with self._counted.call("exists") as call:
            if not self.adapter.exists(NOBODYS_KEY):
                call.outcome = "miss"

    @property
    def capacity_bytes(self) -> int | None:
        """Bytes the storage offers in all, as of the last `refresh`; None when it does not say."""
        return self._capacity_bytes

    def refresh(self) -> None:
        """Asks the storage about itself, which may take its time. Raises OSError."""
        self._own_facts = self.adapter.describe()
        self._capacity_bytes = self.adapter.capacity_bytes()

    def close(self) -> None:
        """Lets go of the storage; nobody calls any more."""
        try:
            self.adapter.close()
        except Exception as error:  # noqa: BLE001  # a library's own exception must not keep the others open
            logger.warning("L2 adapter %s: closing it: %s", self.label, error)

    # ---- steps

    def _stored_form(self, form: Form) -> Form:
        return Form(self._stored_fingerprint(form.fingerprint), form.missing)

    def _stored_fingerprint(self, fingerprint: bytes) -> bytes:
        stored = self._fingerprints.get(fingerprint)
        if stored is None:
            stored = self._fingerprints[fingerprint] = stored_fingerprint(fingerprint, self.codec)
        return stored

    def _breaker_changed(self, state: str) -> None:
        if state == "open":
            logger.warning(
                "L2 adapter %s is away, it is tried again by itself: %s", self.label, self.breaker.last_fault
            )
        else:
            logger.info("L2 adapter %s answers again", self.label)

    def is_healthy(self) -> bool:
        """Whether the storage can be reached and its catalog is known, or about to be."""
        return self.breaker.state == "closed" and not self.scan_error

    def gauges(self) -> dict[str, float]:
        """See tier_report.py."""
        return tier_gauges(self)

    def describe(self) -> dict[str, object]:
        """See tier_report.py."""
        return describe_tier(self, self._own_facts, list(self._quarantine))


def _room(nbytes: int) -> memoryview:
    """Memory with anything in it: filling megabytes with zeros would keep all other threads from running."""
    return np.empty(nbytes, np.uint8).data
