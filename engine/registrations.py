"""Which workers are known, what their KV memory looks like, and whether they still live.

A worker is known by its instance id. Any message of it is a sign of life. It is removed after `reap_timeout_s` of
silence when it has ever pinged, after `grace_s` when it never did. Clients register again only after a ping that
failed, so the first ping of an instance that is not known here fails, and the next one succeeds.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count

from engine.device.tensors import KVTensors
from engine.errors import BadRequest, UnknownInstance
from engine.kv_layout import EngineDrivenRegistration, ObjectLayout
from engine.l1.leases import Scope

#: Most workers, and most unknown instances whose first ping is remembered.
MAX_INSTANCES = 4096


_NUMBERS = count(1)


class Registration:
    """One worker's registration: `tensors` is its KV memory when the server copies, `client` what it said otherwise."""

    def __init__(
        self,
        instance_id: int,
        scope: Scope,
        layout: ObjectLayout,
        tensors: KVTensors | None,
        client: EngineDrivenRegistration | None = None,
    ) -> None:
        self.instance_id, self.scope, self.layout, self.tensors = instance_id, scope, layout, tensors
        self.client = client
        #: Names this registration for ever; the instance id may come back as another one.
        self.number = next(_NUMBERS)
        #: Engine-driven: whether the client maps the pool; learned from what it sends.
        self.uses_shared_memory = True
        self.has_pinged = False
        self.last_seen = time.monotonic()
        self._copies = 0
        self._removed = False
        self._lock = threading.Lock()

    def is_same_kind(self, other: "Registration") -> bool:
        """Whether both are of the same transfer mode."""
        return (self.tensors is None) == (other.tensors is None)

    def agrees_with(self, other: "Registration") -> bool:
        """Whether model, world size, layout and memory are the same."""
        mine = self.tensors.memory_id if self.tensors is not None else None
        theirs = other.tensors.memory_id if other.tensors is not None else None
        return (self.scope, self.layout, mine) == (other.scope, other.layout, theirs)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keeps the tensors open during a copy. Raises UnknownInstance when the worker was removed meanwhile."""
        with self._lock:
            if self._removed:
                raise UnknownInstance(self.instance_id)
            self._copies += 1
        try:
            yield
        finally:
            with self._lock:
                self._copies -= 1
                last = self._removed and not self._copies
            if last:
                self._close()

    def remove(self) -> None:
        """The worker is gone: closes its tensors, or leaves that to the last copy under way."""
        with self._lock:
            self._removed = True
            idle = not self._copies
        if idle:
            self._close()

    def _close(self) -> None:
        if self.tensors is not None:
            self.tensors.close()


class Registrations:
    """instance id -> registration, of both kinds. Thread-safe."""

    def __init__(self, reap_timeout_s: float, grace_s: float) -> None:
        self._reap_timeout_s, self._grace_s = reap_timeout_s, grace_s
        self._known: dict[int, Registration] = {}
        self._layouts: dict[Scope, dict[bytes, tuple[int, ...]]] = {}
        self._object_layouts: dict[Scope, tuple[ObjectLayout, ...]] = {}
        self._strangers: OrderedDict[int, None] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, registration: Registration) -> bool:
        """Whether it was added: False when the instance is known already, which counts as a sign of life.

        Raises BadRequest when the id is registered in the other transfer mode, or the table is full.
        """
        with self._lock:
            known = self._known.get(registration.instance_id)
            if known is not None:
                if not known.is_same_kind(registration):
                    raise BadRequest(f"instance_id {known.instance_id} is registered in the other transfer mode")
                known.last_seen = time.monotonic()
                return False
            if len(self._known) >= MAX_INSTANCES:
                raise BadRequest(f"{MAX_INSTANCES} instances are registered, no more are taken")
            self._strangers.pop(registration.instance_id, None)
            self._known[registration.instance_id] = registration
            self._update_layouts(registration.scope)
            return True

    def get(self, instance_id: int, *, server_driven: bool) -> Registration:
        """The registration of the kind asked for, which counts as a sign of life. Raises UnknownInstance."""
        registration = self._known.get(instance_id)
        if registration is None or (registration.tensors is not None) != server_driven:
            raise UnknownInstance(instance_id)
        registration.last_seen = time.monotonic()
        return registration

    def find(self, instance_id: int) -> Registration | None:
        """The registration of either kind, without a sign of life."""
        return self._known.get(instance_id)

    def remove(self, registration: Registration, *, only_if_silent: bool = False) -> tuple[bool, bool]:
        """(whether it was still known and is removed now, whether it was the last of its scope)."""
        with self._lock:
            if self._known.get(registration.instance_id) is not registration:
                return False, False
            if only_if_silent and not self._is_silent(registration):
                return False, False
            del self._known[registration.instance_id]
            last = not self._update_layouts(registration.scope)
        registration.remove()
        return True, last

    def layouts(self, scope: Scope) -> Mapping[bytes, tuple[int, ...]]:
        """Fingerprint -> windows of the layouts registered for a (model, world size); empty when nobody is."""
        return self._layouts.get(scope, {})

    def object_layouts(self, scope: Scope) -> tuple[ObjectLayout, ...]:
        """The layouts registered for a (model, world size), each once; empty when nobody is."""
        return self._object_layouts.get(scope, ())

    def ping(self, instance_id: int) -> bool:
        """A sign of life. False exactly for the first ping of an instance that is not known."""
        with self._lock:
            registration = self._known.get(instance_id)
            if registration is not None:
                registration.last_seen = time.monotonic()
                registration.has_pinged = True
                return True
            if instance_id in self._strangers:
                return True
            self._strangers[instance_id] = None
            if len(self._strangers) > MAX_INSTANCES:
                self._strangers.popitem(last=False)
            return False

    def silent(self) -> list[Registration]:
        """Workers whose silence is longer than allowed."""
        return [known for known in self.all() if self._is_silent(known)]

    def _is_silent(self, registration: Registration) -> bool:
        allowed_s = self._reap_timeout_s if registration.has_pinged else self._grace_s
        return self._reap_timeout_s > 0 and time.monotonic() - registration.last_seen > allowed_s

    def all(self) -> list[Registration]:
        """Every registration, by instance id."""
        with self._lock:
            return [self._known[instance_id] for instance_id in sorted(self._known)]

    def _update_layouts(self, scope: Scope) -> bool:
        """The mapping is replaced, never changed, so that readers need no lock."""
        layouts = [known.layout for known in self._known.values() if known.scope == scope]
        found = {layout.fingerprint: layout.windows for layout in layouts}
        if found:
            self._layouts[scope] = found
            self._object_layouts[scope] = tuple({layout.fingerprint: layout for layout in layouts}.values())
        else:
            self._layouts.pop(scope, None)
            self._object_layouts.pop(scope, None)
        return bool(found)
