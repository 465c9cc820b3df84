"""How answers look: rich tables on a terminal, aligned text in a pipe, a file or with NO_COLOR, JSON when asked.

Whatever the server sent is shown with control characters spelled out, and never read as markup.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import IO, TYPE_CHECKING, Any

from cli.text import printable

if TYPE_CHECKING:
    from rich.table import Table

Row = Sequence[object]
#: Given before a heading: the column is aligned to the right.
RIGHT = ">"
GAP = "  "


def is_fancy(stream: IO[str] | None = None) -> bool:
    """Whether the stream is a terminal whose owner wants colours and boxes."""
    stream = stream or sys.stdout
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "") not in ("", "dumb")


def is_terminal() -> bool:
    """Whether stdout is a terminal on which a picture can be drawn over and over."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def say(line: str = "") -> None:
    """One line on stdout."""
    sys.stdout.write(printable(line) + "\n")


def note(line: str) -> None:
    """One line on stderr: worth knowing, no part of the answer."""
    sys.stdout.flush()
    sys.stderr.write(f"larder: {printable(line)}\n")


def print_json(value: object) -> None:
    """One line of ASCII: no byte of it can steer a terminal."""
    sys.stdout.write(json.dumps(value) + "\n")


def heading(text: str) -> None:
    """A line above what belongs together."""
    if is_fancy():
        from rich.text import Text

        _console().print(Text(text, style="bold"))
    else:
        say(text)


def print_table(columns: Sequence[str], rows: Iterable[Row], *, with_heading: bool = True, fold: bool = True) -> None:
    """A table; headings with `>` before them are of columns aligned to the right.

    Without `fold` cells stay whole, so that they can be copied, however narrow the terminal is.
    """
    cells = [[cell_text(cell) for cell in row] for row in rows]
    if is_fancy():
        options = (
            {} if fold else {"width": sum(max(map(len, column)) + 3 for column in zip(*cells, columns, strict=True))}
        )
        _console(**options).print(make_table(columns, cells, with_heading=with_heading))
    else:
        _print_aligned(columns, cells, with_heading=with_heading)


def print_pairs(pairs: Iterable[tuple[str, object]]) -> None:
    """Names and values below each other."""
    cells = [(name, cell_text(value)) for name, value in pairs]
    width = max((len(name) for name, _ in cells), default=0)
    for name, value in cells:
        if is_fancy():
            from rich.text import Text

            line = Text.assemble((f"{name:<{width}}", "dim"), GAP, (value, style_of(value)))
            _console().print(line, soft_wrap=True)
        else:
            say(f"{name:<{width}}{GAP}{value}".rstrip())


def make_table(columns: Sequence[str], cells: Iterable[Sequence[str]], *, with_heading: bool = True) -> "Table":
    """The rich table that print_table shows."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_header=with_heading, show_edge=False, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.lstrip(RIGHT), justify="right" if column.startswith(RIGHT) else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell, style=style_of(cell)) for cell in row))
    return table


def cell_text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else printable(str(value))


def style_of(cell: str) -> str:
    """Green for what is well, red for what is not."""
    if any(word in cell for word in ("UNHEALTHY", "SUSPENDED", "FROZEN")):
        return "bold red"
    word = re.split(r"[ ,:]", cell, maxsplit=1)[0].lower()
    if word in ("healthy", "ok", "closed", "completed"):
        return "green"
    return "bold red" if word in ("unhealthy", "open", "failed", "sick") else ""


def _print_aligned(columns: Sequence[str], cells: list[list[str]], *, with_heading: bool) -> None:
    rows = [[column.lstrip(RIGHT).upper() for column in columns]] if with_heading else []
    rows += cells
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        parts = [
            f"{cell:>{width}}" if column.startswith(RIGHT) else f"{cell:<{width}}"
            for cell, width, column in zip(row, widths, columns, strict=True)
        ]
        sys.stdout.write(GAP.join(parts).rstrip() + "\n")


def _console(**options: Any) -> Any:
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, **options)
