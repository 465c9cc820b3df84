"""How the text of a setting becomes its value, and the words for what is allowed."""

import json
import math
import re
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

MAX_ADAPTERS = 16
#: They reach the engine in one variable of its environment, which has 128 KiB at most.
MAX_ADAPTERS_CHARACTERS = 65536


@dataclass(frozen=True)
class Rule:
    """`parse` returns the value of a text or raises ValueError; `allowed` is for people.

    A rule that is `repeatable` gets the texts of all its flags as a list, and what a file has as the file has it.
    The flag of a rule that `is_switch` means true when no value follows it.
    """

    parse: Callable[[Any], Any]
    allowed: str
    repeatable: bool = False
    is_switch: bool = False


class Refused(ValueError):
    """What is wrong with a value, in words that do not show it."""


def integer(least: int, most: int) -> Rule:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d{1,20}", text.strip()):
            raise ValueError(text)
        return _within(int(text), least <= int(text) <= most)

    return Rule(parse, f"a whole number from {least} to {most}")


def number(*, above: float | None = None, least: float | None = None, most: float | None = None) -> Rule:
    """A finite number above `above` (or at least `least`) and at most `most`."""

    def parse(text: str) -> float:
        value = float(text)
        low_enough = most is None or value <= most
        high_enough = (above is None or value > above) and (least is None or value >= least)
        return _within(value, math.isfinite(value) and low_enough and high_enough)

    low = f"above {above:g}" if above is not None else f"of at least {least:g}"
    return Rule(parse, f"a number {low}" + ("" if most is None else f" and at most {most:g}"))


def boolean() -> Rule:
    def parse(text: str) -> bool:
        word = text.strip().lower()
        if word not in ("true", "false", "1", "0", "yes", "no", "on", "off"):
            raise ValueError(text)
        return word in ("true", "1", "yes", "on")

    return Rule(parse, "true or false", is_switch=True)


def module_names(longest: int) -> Rule:
    """Names of Python modules: with commas or spaces between them in a text, or a list."""

    def parse(given: str | Sequence[Any]) -> tuple[str, ...]:
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise Refused("is no list of names")
        names = [name for text in texts for name in re.split(r"[\s,\[\]\"']+", text) if name]
        if not all(part.isidentifier() for name in names for part in name.split(".")):
            raise Refused("has a word that is no name of a module")
        return tuple(_within(names, len(names) <= longest))

    return Rule(parse, f"at most {longest} names of modules with commas between them", repeatable=True)


def integers(least: int, most: int, longest: int) -> Rule:
    """Whole numbers: with commas between them in a text, or a list."""
    one = integer(least, most)

    def parse(given: str | Sequence[Any]) -> tuple[int, ...]:
        texts = [given] if isinstance(given, str) else [str(part) for part in given]
        joined = ",".join(text.strip().removeprefix("[").removesuffix("]") for text in texts)
        parts = [part for part in joined.split(",") if part.strip()]
        return tuple(one.parse(part) for part in _within(parts, len(parts) <= longest))

    allowed = f"at most {longest} whole numbers from {least} to {most} with commas between them"
    return Rule(parse, allowed, repeatable=True)


def one_of(*choices: str) -> Rule:
    """One of the words; case does not matter where the words differ without it."""

    def parse(text: str) -> str:
        for choice in choices:
            if text.strip().lower() == choice.lower():
                return choice
        raise ValueError(text)

    return Rule(parse, "one of " + ", ".join(choices))


def text(longest: int) -> Rule:
    def parse(value: str) -> str:
        return _within(value.strip(), 0 < len(value.strip()) <= longest and value.isprintable())

    return Rule(parse, f"a text of 1 to {longest} printable characters")


def name(longest: int) -> Rule:
    def parse(value: str) -> str:
        return _within(value, bool(re.fullmatch(rf"[A-Za-z0-9_.-]{{1,{longest}}}", value)))

    return Rule(parse, f"1 to {longest} letters, digits, dots, dashes and underscores")


def shared_memory_name() -> Rule:
    def parse(value: str) -> str:
        return _within(value, bool(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}", value)))

    return Rule(parse, "empty, off, or a name of 1 to 200 letters, digits, dots, dashes and underscores")


def redis_url() -> Rule:
    def parse(value: str) -> str:
        parts = urllib.parse.urlsplit(value)
        has_place = bool(parts.path) if parts.scheme == "unix" else bool(parts.hostname)
        _ = parts.port  # raises ValueError where it is no port
        return _within(value, parts.scheme in ("redis", "rediss", "unix") and has_place)

    return Rule(parse, "a URL like redis://host:6379/0, rediss://... or unix:///path")


def token() -> Rule:
    def parse(value: str) -> str:
        return _within(value, bool(re.fullmatch(r"[!-~]{1,512}", value)))

    return Rule(parse, "1 to 512 visible ASCII characters without spaces")


def adapters() -> Rule:
    """JSON objects with a `type`: one as a text, a list of them as a text or as it is, or several such texts."""

    def parse(given: str | Sequence[Any]) -> tuple[dict[str, Any], ...]:
        parts = [given] if isinstance(given, str) else given
        if not isinstance(parts, list):
            raise Refused("is neither an object nor a list of objects")
        values = [_json_value(part) if isinstance(part, str) else part for part in parts]
        found = [item for value in values for item in (value if isinstance(value, list) else [value])]
        for number, item in enumerate(found):
            if not isinstance(item, dict):
                raise Refused(f"has no object as number {number}")
            if not isinstance(item.get("type"), str) or not item["type"]:
                raise Refused(f'has no text "type" in number {number}')
        if len(found) > MAX_ADAPTERS:
            raise Refused(f"has {len(found)} adapters")
        return tuple(_plain(found))

    allowed = f'objects like {{"type": "fs", "base_path": "/data/kv"}}, at most {MAX_ADAPTERS}'
    return Rule(parse, allowed, repeatable=True)


def _json_value(text: str) -> Any:
    def refuse(word: str) -> NoReturn:
        raise Refused(f"has {word}, which is no JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise Refused(f"is not JSON at character {error.pos + 1}: {error.msg}") from None
    except RecursionError:
        raise Refused("is nested too deeply") from None
    except Refused:
        raise
    except ValueError:
        raise Refused("has a number that is too long") from None


def _plain(values: list[Any]) -> list[Any]:
    """The values as they come out of JSON again. YAML knows more, dates for example."""
    try:
        text = json.dumps(values, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise Refused(
            "has a value that JSON does not know; a text in YAML that looks like a date needs quotes"
        ) from None
    if len(text) > MAX_ADAPTERS_CHARACTERS:
        raise Refused(f"takes {len(text)} characters of JSON, {MAX_ADAPTERS_CHARACTERS} are taken")
    return list(json.loads(text))


def _within(value: T, is_allowed: bool) -> T:
    if not is_allowed:
        raise ValueError(value)
    return value
