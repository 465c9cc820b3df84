"""What an adapter offers that can be changed at runtime, and what a change answers.

An adapter that has `supported_operations`, `status` and `reconfigure` is reconfigurable; reconfiguring.py finds it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

from engine.errors import EngineError
from engine.l2.base import Stored
from engine.object_key import ObjectKey

Code = Literal["bad_request", "forbidden", "not_found", "conflict", "no_room"]


class ReconfigureError(EngineError):
    """The change was refused. `code` says what kind of refusal it is; `fields` is what else the answer carries.

    `deleted`: keys that are gone all the same.
    """

    def __init__(self, code: Code, message: str, **fields: object) -> None:
        super().__init__(message)
        self.code = code
        self.fields = fields
        self.deleted: tuple[ObjectKey, ...] = ()


@dataclass(frozen=True)
class Reconfigured:
    """A change that was made: the answer's body, the keys it deleted, and the objects it brought in."""

    body: dict[str, object]
    deleted: tuple[ObjectKey, ...] = ()
    found: tuple[Stored, ...] = ()


@runtime_checkable
class Reconfigurable(Protocol):
    """An adapter that can be changed while it is used."""

    supported_operations: ClassVar[tuple[str, ...]]

    def status(self) -> dict[str, object]:
        """What GET /reconfigure/{backend}/status shows of it. Asked twice a second: without a call to the storage."""

    def reconfigure(self, operation: str, fields: Mapping[str, object]) -> Reconfigured:
        """Makes one change at a time; objects stay readable. Raises ReconfigureError."""
