"""Reads the small part of pickle that tensors need, and runs nothing.

Globals and calls become records that only name what was asked for, so no class is looked up and no function called. An
opcode outside the table below, a length beyond the data, or more steps than allowed ends the reading with BadRequest.
Python's own unpickler would have to be trusted with more: even without classes, one opcode of six bytes makes it
allocate gigabytes.

values      None, bool, int, str, bytes (as a view into the data), tuple, list, dict with str keys
records     Global(module, name), Call(function, arguments), Persistent(identity)
memo        put and get by number
skipped     protocol number, frame lengths
"""

import struct
from dataclasses import dataclass
from typing import NamedTuple

from engine.errors import BadRequest

_MAX_TEXT_BYTES = 4096
_MAX_INT_BYTES = 16


@dataclass(frozen=True, slots=True)
class Global:
    """The name of something importable; it is never imported."""

    module: str
    name: str


@dataclass(frozen=True, slots=True)
class Call:
    """A call that the stream wanted; it is never made."""

    function: Global
    arguments: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Persistent:
    """What the stream refers to by an identity of its own."""

    identity: object


class Loaded(NamedTuple):
    """A value, and the position after its last byte."""

    value: object
    end: int


def load(data: memoryview, start: int, *, max_steps: int) -> Loaded:
    """The value of the pickle that begins at `start`. Raises BadRequest."""
    return _Reader(data, start).run(max_steps)


class _Mark:
    """Stands on the stack where a run of items begins."""


class _Reader:
    def __init__(self, data: memoryview, start: int) -> None:
        self._data, self._at = data, start
        self._stack: list[object] = []
        self._memo: dict[int, object] = {}

    def run(self, max_steps: int) -> Loaded:
        for _ in range(max_steps):
            opcode = self._take(1)[0]
            if opcode == ord("."):
                return Loaded(self._pop(), self._at)
            self._step(opcode)
        raise BadRequest(f"pickle: more than {max_steps} steps")

    def _step(self, opcode: int) -> None:
        if opcode in _CONSTANTS:
            self._stack.append(_CONSTANTS[opcode])
        elif opcode in _INTEGERS:
            self._stack.append(self._number(_INTEGERS[opcode]))
        elif opcode in _TEXTS:
            self._stack.append(self._text(self._number(_TEXTS[opcode])))
        elif opcode in _BYTES:
            self._stack.append(self._take(self._number(_BYTES[opcode])))
        elif opcode in _PUTS:
            self._memo[self._number(_PUTS[opcode])] = self._top()
        elif opcode in _GETS:
            self._stack.append(self._recall(self._number(_GETS[opcode])))
        elif opcode in _SMALL_TUPLES:
            self._stack.append(tuple(self._pop() for _ in range(_SMALL_TUPLES[opcode]))[::-1])
        elif opcode in _SKIPPED:
            self._take(_SKIPPED[opcode])
        else:
            self._build(opcode)

    def _build(self, opcode: int) -> None:
        match chr(opcode):
            case "\x94":  # memoize
                self._memo[len(self._memo)] = self._top()
            case "\x8a":  # an integer with its length in one byte
                length = min(self._number("<B"), _MAX_INT_BYTES + 1)
                self._stack.append(int.from_bytes(self._take(length), "little", signed=True))
            case "(":
                self._stack.append(_Mark())
            case "t":
                self._stack.append(tuple(self._items()))
            case "]":
                self._stack.append([])
            case "}":
                self._stack.append({})
            case "a":
                item = self._pop()
                self._list_on_top().append(item)
            case "e":
                items = self._items()
                self._list_on_top().extend(items)
            case "s":
                value, key = self._pop(), self._pop()
                self._set_items([key, value])
            case "u":
                self._set_items(self._items())
            case "c":
                self._stack.append(Global(self._line(), self._line()))
            case "\x93":
                name, module = self._pop(), self._pop()
                if not isinstance(name, str) or not isinstance(module, str):
                    raise BadRequest("pickle: a global without a name")
                self._stack.append(Global(module, name))
            case "R":
                self._call()
            case "Q":
                self._stack.append(Persistent(self._pop()))
            case _:
                raise BadRequest(f"pickle: opcode {opcode:#04x} is not allowed")

    def _call(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise BadRequest("pickle: a call of something without a name")
        self._stack.append(Call(function, arguments))

    def _set_items(self, items: list[object]) -> None:
        target = self._top()
        if not isinstance(target, dict) or len(items) % 2:
            raise BadRequest("pickle: items are set on something that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                raise BadRequest("pickle: a dict key that is no text")
            target[key] = value

    def _take(self, length: int) -> memoryview:
        end = self._at + length
        if end > len(self._data):
            raise BadRequest(f"pickle: ends at byte {len(self._data)}, {end} are needed")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def _number(self, layout: str) -> int:
        (number,) = struct.unpack(layout, self._take(struct.calcsize(layout)))
        return int(number)

    def _text(self, length: int) -> str:
        if length > _MAX_TEXT_BYTES:
            raise BadRequest(f"pickle: text of {length} bytes, at most {_MAX_TEXT_BYTES} are allowed")
        try:
            return str(self._take(length), "utf-8")
        except UnicodeDecodeError as error:
            raise BadRequest("pickle: text that is not UTF-8") from error

    def _line(self) -> str:
        window = bytes(self._data[self._at : self._at + _MAX_TEXT_BYTES])
        length = window.find(b"\n")
        if length < 0:
            raise BadRequest("pickle: a global's name has no end")
        text = self._text(length)
        self._at += 1
        return text

    def _recall(self, number: int) -> object:
        if number not in self._memo:
            raise BadRequest(f"pickle: memo {number} was never set")
        return self._memo[number]

    def _pop(self) -> object:
        value = self._top()
        self._stack.pop()
        return value

    def _top(self) -> object:
        if not self._stack or isinstance(self._stack[-1], _Mark):
            raise BadRequest("pickle: the stack is empty")
        return self._stack[-1]

    def _items(self) -> list[object]:
        for depth in range(len(self._stack) - 1, -1, -1):
            if isinstance(self._stack[depth], _Mark):
                items = self._stack[depth + 1 :]
                del self._stack[depth:]
                return items
        raise BadRequest("pickle: items without a mark")

    def _list_on_top(self) -> list[object]:
        target = self._top()
        if not isinstance(target, list):
            raise BadRequest("pickle: items are appended to something that is no list")
        return target


_CONSTANTS: dict[int, object] = {ord("N"): None, 0x88: True, 0x89: False, ord(")"): ()}
_INTEGERS = {ord("J"): "<i", ord("K"): "<B", ord("M"): "<H"}
_TEXTS = {0x8C: "<B", ord("X"): "<I"}
_BYTES = {ord("C"): "<B", ord("B"): "<I", 0x8E: "<Q"}
_PUTS = {ord("q"): "<B", ord("r"): "<I"}
_GETS = {ord("h"): "<B", ord("j"): "<I"}
_SMALL_TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}
_SKIPPED = {0x80: 1, 0x95: 8}
