"""JSON Schema of the types in which routes describe their bodies.

type                                   schema
-------------------------------------  --------------------------------------------------------------
str int float bool None                the type of that name; float is any number
bytes                                  a string that is not text
Any                                    anything
list[X], dict[str, X]                  array, object with values of X
Literal["a", "b"]                      one of these
X | Y                                  one of both
Annotated[X, "words"]                  X with this description
Annotated[X, {"minimum": 0}]           X with further keywords
a TypedDict                            a component of its name; NotRequired members may be missing
{"name": X, ...: Y}                    an object without a name, all members required; others are Y, if they may be
"""

import types
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

_PLAIN = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    type(None): "null",
    None: "null",
}
PREFIX = "#/components/schemas/"


class Components:
    """The schemas with a name, gathered while others refer to them."""

    def __init__(self) -> None:
        self.schemas: dict[str, dict[str, Any]] = {}
        self._owners: dict[str, Any] = {}

    def schema_of(self, kind: Any) -> dict[str, Any]:
        """The schema of a type. Raises TypeError for one that is not in the table, ValueError when two have a name."""
        origin, args = get_origin(kind), get_args(kind)
        if origin is Annotated:
            return self._annotated(args[0], args[1:])
        if isinstance(kind, dict):
            members = {name: self.schema_of(member) for name, member in kind.items() if name is not ...}
            others = {"additionalProperties": self.schema_of(kind[...])} if ... in kind else {}
            return {"type": "object", "properties": members, "required": list(members), **others}
        if kind in (Any, object):
            return {}
        if kind is bytes:
            return {"type": "string", "format": "binary"}
        if kind in _PLAIN:
            return {"type": _PLAIN[kind]}
        if is_typeddict(kind):
            return self._component(kind)
        if origin in (Required, NotRequired):
            return self.schema_of(args[0])
        if origin is Literal:
            return {"enum": list(args)}
        if origin in (Union, types.UnionType):
            return _alternatives([self.schema_of(arg) for arg in args])
        if origin is list:
            return {"type": "array", "items": self.schema_of(args[0])}
        if origin is dict and args[0] is str:
            return {"type": "object", "additionalProperties": self.schema_of(args[1])}
        raise TypeError(f"no JSON schema is known for {kind!r}")

    def _annotated(self, kind: Any, notes: tuple[Any, ...]) -> dict[str, Any]:
        schema = dict(self.schema_of(kind))
        for note in notes:
            schema.update({"description": note} if isinstance(note, str) else note)
        return schema

    def _component(self, kind: Any) -> dict[str, Any]:
        name = kind.__name__
        owner = self._owners.setdefault(name, kind)
        if owner is not kind:
            raise ValueError(f"{owner.__module__} and {kind.__module__} both describe a {name}")
        if name not in self.schemas:
            self.schemas[name] = {}  # a type that holds itself finds its name taken
            members = get_type_hints(kind, include_extras=True)
            schema: dict[str, Any] = {
                "type": "object",
                "properties": {member: self.schema_of(hint) for member, hint in members.items()},
            }
            if required := [member for member in members if member in kind.__required_keys__]:
                schema["required"] = required
            if kind.__doc__:
                schema["description"] = " ".join(kind.__doc__.split())
            self.schemas[name] = schema
        return {"$ref": PREFIX + name}


def _alternatives(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    if all(list(schema) == ["type"] for schema in schemas):
        return {"type": [schema["type"] for schema in schemas]}
    return {"anyOf": schemas}
