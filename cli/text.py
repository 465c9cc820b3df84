"""Sizes, times and names as people read and write them. Sizes are powers of 1024, as everywhere in the API."""

import re

GIB = 1024**3
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SIZE = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([kmgtp]?i?b?)", re.ASCII | re.IGNORECASE)
MAX_SIZE_CHARACTERS = 64
#: What the server keeps a limit in.
MAX_BYTES = 2**63 - 1


def parse_size(text: str) -> int:
    """Whole bytes of "10GiB", "512 mb", "1.5T"; a bare number is GB, as in the API. Raises ValueError."""
    found = _SIZE.fullmatch(text.strip()) if len(text) <= MAX_SIZE_CHARACTERS else None
    if found is None:
        raise ValueError("wanted a size such as 10GiB, 512MB, 0.5TiB, or a number of GB")
    unit = found[2].lower()[:1] or "g"
    nbytes = int(float(found[1]) * 1024 ** "bkmgtp".index(unit))
    if nbytes > MAX_BYTES:
        raise ValueError("more than 8 EiB")
    return nbytes


def size(nbytes: float) -> str:
    """6291456 is "6.0 MiB"."""
    value = float(nbytes)
    for unit in _UNITS:
        if abs(value) < 1024 or unit == _UNITS[-1]:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("the last unit takes everything")


def percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def duration(seconds: float) -> str:
    """In one or two units: "40 ms", "1.4 s", "12 s", "3 min 20 s", "2 h 5 min", "4 d 1 h"."""
    if seconds < 0.95:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    whole = int(seconds)
    for length, name, smaller, small_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= length:
            rest = whole % length // smaller
            return f"{whole // length} {name}" + (f" {rest} {small_name}" if rest else "")
    return f"{whole} s"


def count(number: float, noun: str, plural: str = "") -> str:
    """1 object, 2 objects."""
    return f"{number:,.0f} {noun if number == 1 else plural or noun + 's'}"


def printable(text: str, keep: str = "") -> str:
    """The text with what could steer a terminal spelled out. `keep`: control characters that stay."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in keep else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )
