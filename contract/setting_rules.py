"""How the text of a setting becomes its value, and the words for what is allowed."""

import math
import re
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Rule:
    """`parse` returns the value of a text or raises ValueError; `allowed` is for people."""

    parse: Callable[[str], Any]
    allowed: str


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


def _within(value: T, is_allowed: bool) -> T:
    if not is_allowed:
        raise ValueError(value)
    return value
