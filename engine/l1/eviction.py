"""Eviction policies: in which order readable objects should go. They choose; the cache removes.

policy       order
-----------  --------------------------------------------------------------------------------------------
LRU          least recently used first
IsolatedLRU  least recently used first within a cache_salt; the salt furthest over its share of the pool gives first
ARC          adaptive replacement (Megiddo and Modha, FAST 2003): objects used once against objects used again
noop         nothing ever goes

`refresh` and `used` both make an object recent; only `used` says that somebody read it. Callers pass the keys of a
prefix last chunk first, so that a prefix loses its tail before its head: a prefix without its head is useless.
Not thread-safe: the cache's lock guards them.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from heapq import heapify, heappop, heapreplace

from engine.object_key import ObjectKey

Order = OrderedDict[ObjectKey, None]


class EvictionPolicy(ABC):
    """An order over the readable objects of the cache."""

    name: str

    @abstractmethod
    def add(self, key: ObjectKey, nbytes: int) -> None:
        """`key` became readable, as the most recent."""

    @abstractmethod
    def refresh(self, key: ObjectKey) -> None:
        """`key` becomes the most recent."""

    def used(self, key: ObjectKey) -> None:
        """`key` was read, and becomes the most recent."""
        self.refresh(key)

    @abstractmethod
    def remove(self, key: ObjectKey, nbytes: int, *, evicted: bool) -> None:
        """`key` is gone; `evicted` when this policy's order was the reason."""

    @abstractmethod
    def oldest(self) -> Iterator[ObjectKey]:
        """Keys in the order in which they should go. Valid until the next change."""

    def oldest_of(self, cache_salt: str) -> Iterator[ObjectKey]:
        """Keys of one salt in the order in which they should go. Valid until the next change."""
        return (key for key in self.oldest() if key.cache_salt == cache_salt)

    def order_with(self, key: ObjectKey) -> Iterable[ObjectKey]:
        """The order that `key` stands in, the coldest first; nothing when it stands in none. Valid until the next
        change."""
        return ()

    @abstractmethod
    def keys(self) -> Iterator[ObjectKey]:
        """Every key in the order, for the invariant check."""

    def clear(self) -> None:
        """Forgets everything."""
        self.__init__()  # type: ignore[misc]  # the same object, as new


class LRU(EvictionPolicy):
    """One order for all."""

    name = "LRU"

    def __init__(self) -> None:
        self._order: Order = OrderedDict()

    def add(self, key: ObjectKey, nbytes: int) -> None:
        self._order[key] = None

    def refresh(self, key: ObjectKey) -> None:
        self._order.move_to_end(key)

    def remove(self, key: ObjectKey, nbytes: int, *, evicted: bool) -> None:
        del self._order[key]

    def oldest(self) -> Iterator[ObjectKey]:
        return iter(self._order)

    def order_with(self, key: ObjectKey) -> Iterable[ObjectKey]:
        return self._order if key in self._order else ()

    keys = oldest


class IsolatedLRU(EvictionPolicy):
    """An order per cache_salt, and their bytes, so that one tenant's traffic never pushes out another's share."""

    name = "IsolatedLRU"

    def __init__(self, limit_of: Callable[[str], int], capacity: int) -> None:
        """`capacity` in bytes; 0 when it is not known: what is held is all there is to share, then."""
        self._limit_of, self.capacity = limit_of, capacity
        self._orders: dict[str, Order] = {}
        self._bytes: dict[str, int] = {}

    def add(self, key: ObjectKey, nbytes: int) -> None:
        self._orders.setdefault(key.cache_salt, OrderedDict())[key] = None
        self._bytes[key.cache_salt] = self._bytes.get(key.cache_salt, 0) + nbytes

    def refresh(self, key: ObjectKey) -> None:
        self._orders[key.cache_salt].move_to_end(key)

    def remove(self, key: ObjectKey, nbytes: int, *, evicted: bool) -> None:
        order = self._orders[key.cache_salt]
        del order[key]
        self._bytes[key.cache_salt] -= nbytes
        if not order:
            del self._orders[key.cache_salt], self._bytes[key.cache_salt]

    def over_limit(self) -> list[tuple[str, int]]:
        """Salts whose bytes exceed their limit, with that limit in bytes."""
        limits = ((salt, nbytes, self._limit_of(salt)) for salt, nbytes in self._bytes.items())
        return [(salt, limit) for salt, nbytes, limit in limits if nbytes > limit]

    def oldest_of(self, cache_salt: str) -> Iterator[ObjectKey]:
        return iter(self._orders.get(cache_salt, ()))

    def order_with(self, key: ObjectKey) -> Iterable[ObjectKey]:
        order = self._orders.get(key.cache_salt, ())
        return order if key in order else ()

    def oldest(self) -> Iterator[ObjectKey]:
        """Each time the oldest of the salt that would be furthest over its share by then.

        A share is the limit, at most all there is, cut down in proportion when the limits of those present exceed
        that. What an object takes is estimated by its salt's mean object size.
        """
        capacity = self.capacity or sum(self._bytes.values())
        limits = {salt: min(self._limit_of(salt), capacity) for salt in self._orders}
        cut = min(1.0, capacity / max(1, sum(limits.values())))
        heap = [(limits[salt] * cut - nbytes, salt) for salt, nbytes in self._bytes.items()]
        heapify(heap)
        queues: dict[str, Iterator[ObjectKey]] = {}
        while heap:
            room, salt = heap[0]
            key = next(queues.setdefault(salt, iter(self._orders[salt])), None)
            if key is None:
                heappop(heap)
            else:
                yield key
                heapreplace(heap, (room + self._bytes[salt] / len(self._orders[salt]), salt))

    def keys(self) -> Iterator[ObjectKey]:
        for order in self._orders.values():
            yield from order

    def clear(self) -> None:
        self.__init__(self._limit_of, self.capacity)  # type: ignore[misc]  # the same object, as new


class ARC(EvictionPolicy):
    """Two resident lists (seen once, seen again) and two ghost lists of what left them.

    A ghost that comes back moves the target size of the first list towards the list it had left. Capacity is the
    largest number of resident objects seen, since the pool is bounded in bytes and objects differ in size.
    """

    name = "ARC"

    def __init__(self) -> None:
        self._once: Order = OrderedDict()
        self._again: Order = OrderedDict()
        self._ghosts_once: Order = OrderedDict()
        self._ghosts_again: Order = OrderedDict()
        self._target = 0.0
        self._capacity = 0

    def add(self, key: ObjectKey, nbytes: int) -> None:
        once, again = len(self._ghosts_once), len(self._ghosts_again)
        if key in self._ghosts_once:
            self._target = min(float(self._capacity), self._target + max(1.0, again / once))
            del self._ghosts_once[key]
            self._again[key] = None
        elif key in self._ghosts_again:
            self._target = max(0.0, self._target - max(1.0, once / again))
            del self._ghosts_again[key]
            self._again[key] = None
        else:
            self._once[key] = None
        self._capacity = max(self._capacity, len(self._once) + len(self._again))

    def refresh(self, key: ObjectKey) -> None:
        (self._once if key in self._once else self._again).move_to_end(key)

    def used(self, key: ObjectKey) -> None:
        if key in self._once:
            del self._once[key]
            self._again[key] = None
        else:
            self._again.move_to_end(key)

    def remove(self, key: ObjectKey, nbytes: int, *, evicted: bool) -> None:
        first = key in self._once
        del (self._once if first else self._again)[key]
        if evicted:
            (self._ghosts_once if first else self._ghosts_again)[key] = None
            self._trim_ghosts()

    def oldest(self) -> Iterator[ObjectKey]:
        once, again = iter(self._once), iter(self._again)
        left_once, left_again = len(self._once), len(self._again)
        while left_once or left_again:
            if left_once and (left_once > self._target or not left_again):
                left_once -= 1
                yield next(once)
            else:
                left_again -= 1
                yield next(again)

    def order_with(self, key: ObjectKey) -> Iterable[ObjectKey]:
        return next((order for order in (self._once, self._again) if key in order), ())

    def keys(self) -> Iterator[ObjectKey]:
        yield from self._once
        yield from self._again

    def _trim_ghosts(self) -> None:
        while self._ghosts_once and len(self._once) + len(self._ghosts_once) > self._capacity:
            self._ghosts_once.popitem(last=False)
        resident = len(self._once) + len(self._again)
        while self._ghosts_again and (resident + len(self._ghosts_once) + len(self._ghosts_again) > 2 * self._capacity):
            self._ghosts_again.popitem(last=False)


class Noop(EvictionPolicy):
    """Keeps no order and offers nobody."""

    name = "noop"

    def __init__(self) -> None:
        self._known: set[ObjectKey] = set()

    def add(self, key: ObjectKey, nbytes: int) -> None:
        self._known.add(key)

    def refresh(self, key: ObjectKey) -> None:
        """There is no order to change."""

    def remove(self, key: ObjectKey, nbytes: int, *, evicted: bool) -> None:
        self._known.remove(key)

    def oldest(self) -> Iterator[ObjectKey]:
        return iter(())

    def keys(self) -> Iterator[ObjectKey]:
        return iter(self._known)


def make_policy(name: str, limit_of: Callable[[str], int], capacity: int) -> EvictionPolicy:
    """The policy called `name`; `limit_of` and `capacity` (bytes, 0 = not known) matter to IsolatedLRU alone."""
    if name == IsolatedLRU.name:
        return IsolatedLRU(limit_of, capacity)
    plain: dict[str, type[LRU] | type[ARC] | type[Noop]] = {LRU.name: LRU, ARC.name: ARC, Noop.name: Noop}
    return plain[name]()
