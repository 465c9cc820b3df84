"""What changing an adapter at runtime answers: a body for the caller, and what the catalog must learn."""

from dataclasses import dataclass
from typing import Literal

from engine.errors import EngineError
from engine.l2.base import Stored
from engine.object_key import ObjectKey

Code = Literal["bad_request", "forbidden", "not_found", "conflict", "no_room"]


class ReconfigureError(EngineError):
    """The change was refused. `code` says what kind of refusal it is; `fields` is what else the answer carries."""

    def __init__(self, code: Code, message: str, **fields: object) -> None:
        super().__init__(message)
        self.code = code
        self.fields = fields


@dataclass(frozen=True)
class Reconfigured:
    """A change that was made: the answer's body, the keys it deleted, and the objects it brought in."""

    body: dict[str, object]
    deleted: tuple[ObjectKey, ...] = ()
    found: tuple[Stored, ...] = ()
