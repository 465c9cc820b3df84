"""Moving KV bytes between clients and L1: who copies, under which protection, and what the answer is.

mode            store                                     retrieve
--------------  ----------------------------------------  -----------------------------------------
server-driven   reserve, copy from the client, commit     pin, copy to the client, unpin
engine-driven   prepare_store reserves slots,             prepare_retrieve pins slots,
(shared memory) the client writes, commit_store commits   the client reads, commit_retrieve unpins
engine-driven   commit_store brings the bytes: reserve,   prepare_retrieve pins, copies the bytes
(messages)      copy, commit                              into the answer, unpins

A stored object is readable before the store's answer is given. What a client holds between prepare and commit belongs
to its instance id, and ends with its registration.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec
import numpy as np
from prometheus_client import Histogram

from engine.cache_request import CacheRequest
from engine.device.copier import Copier
from engine.device.tensor_codec import decode_tensors, encode_tensors
from engine.errors import BadRequest, UnknownInstance
from engine.l1.cache import L1Cache
from engine.l1.holds import ENGINE, Pin, Reservation
from engine.l1.index import Entry
from engine.l1.segment import SharedSegment
from engine.l1.windows import usable_chunks
from engine.object_key import ObjectKey
from engine.pending import Match, Pending
from engine.registrations import Registration, Registrations
from engine.sessions import Sessions
from engine.stats import GIGABYTE, Stats
from engine.switches import Switches


class SlotView(msgspec.Struct, frozen=True):
    """Where in the shared segment one chunk lies: offset and length in bytes, C-contiguous, of this shape and dtype."""

    offset: int
    length: int
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class PreparedSlots:
    """Slots to write, and which chunk of the range belongs into each. Without shared memory there are none."""

    slots: list[SlotView] = field(default_factory=list)
    chunk_indices: list[int] = field(default_factory=list)
    shared_memory: bool = True


@dataclass(frozen=True, slots=True)
class PreparedRetrieve:
    """All chunks of the range, as slots or as encoded tensors; `success` False when one is missing."""

    success: bool = False
    slots: list[SlotView] = field(default_factory=list)
    data: bytes = b""


class Transfers:
    """The transfer verbs of the engine. Thread-safe; those that copy block for as long as the copy takes."""

    def __init__(
        self,
        l1: L1Cache,
        segment: SharedSegment,
        sessions: Sessions,
        registrations: Registrations,
        stats: Stats,
        *,
        chunk_size: int,
        offers_shared_memory: bool,
        on_written: Callable[[Sequence[Entry]], None],
        switches: Switches,
    ) -> None:
        """`on_written` is told what each commit made readable, outside all locks; it must be quick."""
        self._l1, self._segment, self._sessions = l1, segment, sessions
        self._registrations, self._stats = registrations, stats
        self._chunk_size, self._offers_shared_memory = chunk_size, offers_shared_memory
        self._on_written, self._switches = on_written, switches
        self._pending_stores: Pending[Reservation] = Pending("stores")
        self._pending_reads: Pending[Pin] = Pending("retrieves")

    def start(self) -> None:
        """Starts the thread that helps with copies."""
        self._copier = Copier("l1-copy-helper")

    def close(self) -> None:
        """Ends the copy helper, after the copies under way."""
        self._copier.close()

    def forget(self, registration: Registration) -> None:
        """The worker is gone: ends what it had prepared."""
        self._pending_stores.forget(registration.number)
        self._pending_reads.forget(registration.number)
        self._l1.release_holder(registration.number)

    # ---- the server copies

    def store(self, request: CacheRequest, instance_id: int, block_ids: Sequence[Sequence[int]]) -> bool:
        """Copies the range's chunks out of the client's blocks. True when nothing went wrong.

        Chunks that are present, being written, made of null blocks, or for which there is no room are left out; all of
        them while the cache is frozen.
        Raises BadRequest, ClientMemoryError.
        """
        registration, chunks = self._begin(request, instance_id, server_driven=True)
        tensors = registration.tensors
        assert tensors is not None
        with registration.in_use():
            tensors.check_block_ids(block_ids, len(chunks))
            self._switches.note_blocks("store", request, instance_id, block_ids)
            if self._switches.frozen:
                return True
            null = tensors.null_chunks(block_ids, len(chunks))
            wanted = [index for index in range(len(chunks)) if index not in null]
            keys = self._sessions.object_keys(request, chunks)
            missing = tensors.missing_groups(block_ids, len(chunks))
            reservation = self._reserve(
                registration, [keys[index] for index in wanted], ENGINE, [missing[index] for index in wanted]
            )
            started = time.perf_counter()
            jobs = [
                partial(tensors.gather, index, block_ids, self._view(entry))
                for index, entry in zip(wanted, reservation.entries, strict=True)
                if entry is not None
            ]
            self._copy(jobs, reservation)
            if self._registrations.find(instance_id) is not registration:
                # From its unregistration on the client may use its memory for something else.
                self._l1.abort(reservation)
                raise UnknownInstance(instance_id)
            self._commit(reservation)
        self._count_copy(self._stats.store_throughput, reservation.granted, started)
        self._keep_prefix_recent(request, chunks)
        return True

    def retrieve(
        self, request: CacheRequest, instance_id: int, block_ids: Sequence[Sequence[int]], skip_first_n_tokens: int
    ) -> bool:
        """Copies the range's chunks into the client's blocks; False, with nothing written, when one is missing.

        The whole blocks within the first `skip_first_n_tokens` tokens are left alone. Raises BadRequest,
        ClientMemoryError.
        """
        registration, chunks = self._begin(request, instance_id, server_driven=True)
        tensors = registration.tensors
        assert tensors is not None
        if skip_first_n_tokens < 0:
            raise BadRequest(f"skip_first_n_tokens {skip_first_n_tokens} is negative")
        with registration.in_use():
            tensors.check_block_ids(block_ids, len(chunks))
            self._switches.note_blocks("retrieve", request, instance_id, block_ids)
            pin = self._pin(request, registration, chunks, ENGINE)
            if pin is None:
                return False
            if usable_chunks([entry.missing for entry in pin.entries], registration.layout.windows) < len(chunks):
                self._l1.unpin(pin)
                return False
            started = time.perf_counter()
            try:
                jobs = []
                for index, entry in enumerate(pin.entries):
                    skip = min(max(0, skip_first_n_tokens - index * self._chunk_size), self._chunk_size)
                    if skip < self._chunk_size:
                        jobs.append(partial(tensors.scatter, index, block_ids, self._view(entry), skip_tokens=skip))
                self._copier.run(jobs)
            except Exception:
                self._stats.transfers["failed"].inc()
                raise
            finally:
                self._l1.unpin(pin)
        self._count_copy(self._stats.load_throughput, pin.entries, started)
        return True

    # ---- the client copies

    def prepare_store(self, request: CacheRequest, instance_id: int) -> PreparedSlots:
        """Reserves slots for those chunks of the range that are wanted. Raises BadRequest."""
        registration, chunks = self._begin(request, instance_id, server_driven=False)
        if not self._offers_shared_memory:
            return PreparedSlots(shared_memory=False)
        if not chunks or self._switches.frozen:
            return PreparedSlots()
        self._pending_stores.check_room(registration.number)
        keys = self._sessions.object_keys(request, chunks)
        reservation = self._reserve(registration, keys, registration.number)
        indices = [index for index, entry in enumerate(reservation.entries) if entry is not None]
        if indices:
            match = Match(registration.number, request.request_id, chunks.start, keys[-1])
            self._pending_stores.add(match, reservation)
            if self._registrations.find(instance_id) is not registration:
                self.forget(registration)
                raise UnknownInstance(instance_id)
        else:
            self._keep_prefix_recent(request, chunks)
        return PreparedSlots(self._slot_views(registration, reservation.granted), indices)

    def commit_store(self, request: CacheRequest, instance_id: int, data: bytes | memoryview = b"") -> bool:
        """Makes the chunks of the matching prepare readable; with `data`, writes them first.

        While the cache is frozen, data that was not prepared for before is left out, which is no failure.
        False when there was no prepare (and no data), when it expired or was cleared, or when there was no room for
        a chunk that came as data. Raises BadRequest, also for data that is not what was registered.
        """
        registration, chunks = self._begin(request, instance_id, server_driven=False)
        if not chunks:
            return False
        reservation = self._prepared(self._match(request, registration, chunks))
        if data and reservation is None and self._switches.frozen:
            return True
        if data:
            return self._commit_data(request, registration, chunks, reservation, data)
        if reservation is None:
            return False
        committed = self._commit(reservation)
        self._keep_prefix_recent(request, chunks)
        return committed

    def _prepared(self, match: Match) -> Reservation | None:
        """The one live reservation made under `match`. Dead ones end here: their client has let go of them.

        Which of several live ones a commit means cannot be told; then none is made readable.
        """
        waiting = self._pending_stores.take_all(match)
        live = [reservation for reservation in waiting if self._l1.is_live(reservation)]
        kept = live[0] if len(live) == 1 else None
        for reservation in waiting:
            if reservation is not kept:
                self._l1.abort(reservation)
        return kept

    def _commit_data(
        self,
        request: CacheRequest,
        registration: Registration,
        chunks: range,
        reservation: Reservation | None,
        data: bytes | memoryview,
    ) -> bool:
        registration.uses_shared_memory = False
        shape, dtype = self._form(registration)
        try:
            tensors = decode_tensors(data, shape, dtype, len(chunks))
        except BadRequest:
            if reservation is not None:
                self._l1.abort(reservation)
            raise
        # From here on the slots belong to this copy: they must not be given away with the worker meanwhile.
        if reservation is None or not self._l1.adopt(reservation):
            reservation = self._reserve(registration, self._sessions.object_keys(request, chunks), ENGINE)
        jobs = [
            partial(_copy_bytes, self._view(entry), tensor)
            for entry, tensor in zip(reservation.entries, tensors, strict=True)
            if entry is not None
        ]
        self._copy(jobs, reservation)
        committed = self._commit(reservation)
        self._keep_prefix_recent(request, chunks)
        return committed and not reservation.refused

    def prepare_retrieve(self, request: CacheRequest, instance_id: int) -> PreparedRetrieve:
        """Pins all chunks of the range until `commit_retrieve`, or answers with their bytes. Raises BadRequest."""
        registration, chunks = self._begin(request, instance_id, server_driven=False)
        if not chunks:
            return PreparedRetrieve()
        by_message = self.answers_in_messages(instance_id)
        if not by_message:
            self._pending_reads.check_room(registration.number)
        pin = self._pin(request, registration, chunks, ENGINE if by_message else registration.number)
        if pin is None:
            return PreparedRetrieve()
        if by_message:
            try:
                shape, dtype = self._form(registration)
                views = [self._view(entry) for entry in pin.entries]
                return PreparedRetrieve(True, [], encode_tensors(views, shape, dtype))
            finally:
                self._l1.unpin(pin)
        match = Match(registration.number, request.request_id, chunks.start, pin.entries[-1].key)
        self._pending_reads.add(match, pin)
        if self._registrations.find(instance_id) is not registration:
            self.forget(registration)
            raise UnknownInstance(instance_id)
        return PreparedRetrieve(True, self._slot_views(registration, pin.entries))

    def answers_in_messages(self, instance_id: int) -> bool:
        """Whether `prepare_retrieve` for this client would copy bytes into its answer."""
        registration = self._registrations.find(instance_id)
        return not self._offers_shared_memory or (registration is not None and not registration.uses_shared_memory)

    def commit_retrieve(self, request: CacheRequest, instance_id: int) -> bool:
        """The client has read its slots. True, also when nothing was prepared. Raises BadRequest."""
        registration, chunks = self._begin(request, instance_id, server_driven=False)
        if chunks:
            pin = self._pending_reads.take_oldest(self._match(request, registration, chunks))
            if pin is not None:
                self._l1.unpin(pin)
        return True

    # ---- steps

    def _begin(self, request: CacheRequest, instance_id: int, *, server_driven: bool) -> tuple[Registration, range]:
        registration = self._registrations.get(instance_id, server_driven=server_driven)
        if registration.scope != (request.model_name, request.world_size):
            raise BadRequest(
                f"instance_id {instance_id} is registered for {registration.scope}, "
                f"the request is about {(request.model_name, request.world_size)}"
            )
        return registration, request.chunk_range(self._chunk_size)

    def message_bytes(self, request: CacheRequest, instance_id: int) -> int:
        """KV bytes that the answer to `prepare_retrieve` would carry; 0 with shared memory. Raises BadRequest."""
        registration, chunks = self._begin(request, instance_id, server_driven=False)
        return len(chunks) * registration.layout.object_bytes if self.answers_in_messages(instance_id) else 0

    def _match(self, request: CacheRequest, registration: Registration, chunks: range) -> Match:
        digest = self._sessions.hashes(request, chunks.stop)[-1]
        key = ObjectKey(digest, request.model_name, request.kv_rank(), 0, request.cache_salt)
        return Match(registration.number, request.request_id, chunks.start, key)

    def _reserve(
        self,
        registration: Registration,
        keys: Sequence[ObjectKey],
        holder: int | str,
        missing: Sequence[int] | None = None,
    ) -> Reservation:
        layout = registration.layout
        reservation = self._l1.reserve(keys, layout.object_bytes, layout.fingerprint, holder, missing)
        if reservation.refused:
            self._stats.allocation_failures.inc(reservation.refused)
        return reservation

    def _copy(self, jobs: Sequence[Callable[[], None]], reservation: Reservation) -> None:
        try:
            self._copier.run(jobs)
        except Exception:
            self._l1.abort(reservation)
            self._stats.transfers["failed"].inc()
            raise

    def _commit(self, reservation: Reservation) -> bool:
        granted = reservation.granted
        committed = not granted or self._l1.commit(reservation)
        self._stats.transfers["stored" if committed else "refused"].inc()
        if committed:
            self._stats.written_chunks.inc(len(granted))
            self._stats.written_bytes.inc(sum(entry.nbytes for entry in granted))
        self._on_written(granted if committed else ())
        return committed

    def _pin(self, request: CacheRequest, registration: Registration, chunks: range, holder: int | str) -> Pin | None:
        keys = self._sessions.object_keys(request, chunks)
        pin = self._l1.pin(keys, registration.layout.fingerprint, holder, request.request_id)
        self._stats.transfers["miss" if pin is None else "hit"].inc()
        if pin is not None:
            self._stats.read_chunks.inc(len(keys))
            self._stats.read_bytes.inc(sum(entry.nbytes for entry in pin.entries))
        return pin

    def _keep_prefix_recent(self, request: CacheRequest, chunks: range) -> None:
        """What was stored follows its prefix: the whole becomes recent, its head most."""
        self._l1.touch(self._sessions.object_keys(request, range(chunks.stop)))

    def _view(self, entry: Entry) -> memoryview:
        return self._segment.view(entry.offset, entry.nbytes)

    @staticmethod
    def _form(registration: Registration) -> tuple[tuple[int, ...], str]:
        shape, dtype = registration.layout.shape, registration.layout.dtype
        assert shape is not None
        assert dtype is not None
        return shape, dtype

    def _slot_views(self, registration: Registration, entries: Sequence[Entry]) -> list[SlotView]:
        shape, dtype = self._form(registration)
        return [SlotView(entry.offset, entry.nbytes, shape, dtype) for entry in entries]

    def _count_copy(self, histogram: Histogram, entries: Sequence[Entry], started: float) -> None:
        if entries:
            nbytes = sum(entry.nbytes for entry in entries)
            histogram.observe(nbytes / GIGABYTE / max(1e-9, time.perf_counter() - started))


def _copy_bytes(target: memoryview, source: memoryview) -> None:
    """Copies bytes without holding the interpreter lock."""
    np.copyto(np.frombuffer(target, dtype=np.uint8), np.frombuffer(source, dtype=np.uint8))
