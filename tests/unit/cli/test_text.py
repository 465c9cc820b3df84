"""How people write sizes, and how sizes, times and names are shown to them."""

import pytest

from cli.text import duration, parse_size, percent, printable, size

GIB = 1024**3


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("10GiB", 10 * GIB),
        ("10 gb", 10 * GIB),
        ("10", 10 * GIB),
        ("1.5", 3 * GIB // 2),
        (".5t", GIB * 512),
        ("512MB", GIB // 2),
        ("7b", 7),
        ("3k", 3072),
        ("0", 0),
        (" 2GiB ", 2 * GIB),
    ],
)
def test_a_size_is_read(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize(
    "text", ["", "GB", "-1", "1e3", "nan", "inf", "3x", "1,5GB", "١GB", "9" * 70, "9EiB", "8388608T"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_size(text)


def test_sizes_and_shares_are_shown_short() -> None:
    assert [size(0), size(1023), size(1536), size(6291456), size(2**60)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "6.0 MiB",
        "1024.0 PiB",
    ]
    assert (percent(1, 8), percent(1, 0)) == ("12.5 %", "-")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.04, "40 ms"),
        (1, "1 s"),
        (1.44, "1.4 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (4 * 86400 + 3700, "4 d 1 h"),
    ],
)
def test_a_duration_has_two_units_at_most(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_nothing_shown_can_steer_a_terminal() -> None:
    assert printable("a\x1b[31mb\r\n\x9b") == "a\\x1b[31mb\\r\\n\\x9b"
    assert printable("one\ntwo\x07", keep="\n") == "one\ntwo\\x07"
    assert printable("grün 模型") == "grün 模型"
    assert printable("\ud800") == "\\ud800"
