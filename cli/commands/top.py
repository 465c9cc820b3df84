"""`larder top`: a live view of tiers, tenants, hit rates and queues; one plain picture where there is no terminal."""

import dataclasses
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from cli.commands.health import L2_COLUMNS, complaints, l1_pairs, l2_rows, quota_line, switched_pairs
from cli.errors import OK, UNHEALTHY, CliError
from cli.options import Call, remote
from cli.render import (
    cell_text,
    heading,
    is_terminal,
    make_table,
    note,
    print_json,
    print_pairs,
    print_table,
    say,
    style_of,
)
from cli.sample import (
    COMMAND_QUEUE,
    DATA_PLANE_REQUESTS,
    HIT,
    LOOKED_UP,
    QUEUED_TRANSFERS,
    RUNNING_LOADS,
    WAITING_LOADS,
    WAITING_LOOKUPS,
    Rates,
    Sample,
    rates_between,
    take_sample,
)
from cli.text import GIB, count, percent, printable, size

if TYPE_CHECKING:
    from rich.console import Group

MAX_TENANTS = 20
TENANT_COLUMNS = ("tenant", ">limit", ">used", ">of limit", ">in L1", ">in L2")


@click.command()
@click.option(
    "--interval",
    type=click.FloatRange(0.5, 60),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks.",
)
@click.option("--count", "looks", type=click.IntRange(0), default=0, metavar="N", help="Looks; 0 for until Ctrl-C.")
@remote
def top(call: Call, interval: float, looks: int) -> int:
    """Watch tiers, tenants, hit rates and queues. Ctrl-C ends it.

    Without a terminal it prints one picture, or --count of them; with --json one line for each.
    """
    if is_terminal() and not call.as_json:
        return _watch(call, interval, looks)
    before: Sample | None = None
    pause = threading.Event()
    for number in range(looks or 1):
        if number:
            pause.wait(interval)
        sample = take_sample(call)
        _print_picture(call, sample, rates_between(before, sample))
        before = sample
    assert before is not None
    return OK if before.status["is_healthy"] else UNHEALTHY


def _print_picture(call: Call, sample: Sample, rates: Rates) -> None:
    if call.as_json:
        shown = {"status": sample.status, "tenants": sample.tenants, "rates": dataclasses.asdict(rates)}
        print_json({**shown, "metrics": sample.metrics, "problems": sample.problems})
        return
    print_pairs(overview(call, sample, rates))
    for name, columns, rows in tables(sample):
        say()
        heading(name)
        print_table(columns, rows)
    for problem in sample.problems:
        note(problem)


def overview(call: Call, sample: Sample, rates: Rates) -> list[tuple[str, object]]:
    """The lines above the tables."""
    status = sample.status
    storage = status["storage_manager"]
    well = "healthy" if status["is_healthy"] else f"UNHEALTHY: {', '.join(complaints(status))}"
    waiting = {
        "command": COMMAND_QUEUE,
        "transfer": QUEUED_TRANSFERS,
        "lookup": WAITING_LOOKUPS,
        "load": WAITING_LOADS,
    }
    queues = ", ".join(count(sample.value(name), what) for what, name in waiting.items())
    loads = f"{count(sample.value(RUNNING_LOADS), 'load')} from L2 running"
    taken = "" if rates.commands_per_s is None else f", {_rate(rates.commands_per_s)} commands taken"
    return [
        ("server", f"{call.address.shown}  {well}"),
        *switched_pairs(status),
        *l1_pairs(storage)[:2],
        ("hits", _hits(sample, rates)),
        *(
            [("misses", ", ".join(f"{why} {_share(part)}" for why, part in rates.missed.items()))]
            if rates.missed
            else []
        ),
        ("traffic", _traffic(sample, rates)),
        ("waiting", f"{queues}; {loads}{taken}"),
        ("quotas", quota_line(status.get("quotas", {}))),
    ]


def _hits(sample: Sample, rates: Rates) -> str:
    """Of the tokens looked up: lately, by tier, and since the start, or since the metrics were reset."""
    ever = percent(sample.value(HIT), sample.value(LOOKED_UP))
    if rates.hit_share is None:
        return f"nothing was looked up lately; {ever} in all"
    by_tier = f"L1 {_share(rates.l1_share)}, L2 {_share(rates.l2_share)}"
    if rates.lookups_per_s is None:
        return f"{ever} of tokens in all ({by_tier})"
    return f"{_share(rates.hit_share)} of tokens ({by_tier}); {ever} in all"


def _traffic(sample: Sample, rates: Rates) -> str:
    if rates.data_plane_per_s is None:
        return f"{sample.value(DATA_PLANE_REQUESTS):,.0f} data plane messages in all"
    parts = {"data plane": rates.data_plane_per_s, "lookups": rates.lookups_per_s, "HTTP": rates.http_per_s}
    return ", ".join(f"{name} {_rate(value)}" for name, value in {**parts, "evicted": rates.evicted_per_s}.items())


def tables(sample: Sample) -> Iterator[tuple[str, tuple[str, ...], list[tuple[object, ...]]]]:
    """The tables that have rows: L2 adapters, and the tenants that use most."""
    rows = list(l2_rows(sample.status["storage_manager"]))
    if rows:
        yield "L2 adapters", L2_COLUMNS, rows
    by_use = sorted(sample.tenants.items(), key=lambda item: -item[1]["current_usage_gb"])
    if by_use:
        more = f" (the {MAX_TENANTS} largest of {len(by_use)})" if len(by_use) > MAX_TENANTS else ""
        yield "Tenants" + more, TENANT_COLUMNS, [_tenant_row(salt, user) for salt, user in by_use[:MAX_TENANTS]]


def _tenant_row(salt: str, user: dict[str, Any]) -> tuple[object, ...]:
    limit, used = user["limit_gb"] * GIB, user["current_usage_gb"] * GIB
    tiers = (size(user.get(f"{tier}_usage_gb", 0.0) * GIB) for tier in ("l1", "l2"))
    return (salt, size(limit), size(used), percent(used, limit), *tiers)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}/s"


def _watch(call: Call, interval_s: float, looks: int) -> int:
    """Draws until Ctrl-C. A server that is away is told on the screen and asked again."""
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False, markup=False, emoji=False)
    before: Sample | None = None
    latest: Sample | None = None
    problem = ""
    pause = threading.Event()
    number = 0
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                try:
                    latest, problem = take_sample(call), ""
                    live.update(_picture(call, latest, rates_between(before, latest), interval_s), refresh=True)
                    before = latest
                except CliError as error:
                    problem = str(error)
                    live.update(_away(problem), refresh=True)
                number += 1
                if looks and number >= looks:
                    break
                pause.wait(interval_s)
    except KeyboardInterrupt:
        pass
    if problem:
        note(problem)
        return UNHEALTHY
    return OK if latest is None or latest.status["is_healthy"] else UNHEALTHY


def _picture(call: Call, sample: Sample, rates: Rates, interval_s: float) -> "Group":
    from rich.console import Group
    from rich.text import Text

    lines: list[Any] = [
        Text.assemble((f"{name:<8}", "dim"), "  ", (cell_text(value), style_of(cell_text(value))))
        for name, value in overview(call, sample, rates)
    ]
    for name, columns, rows in tables(sample):
        lines += [Text(), Text(name, style="bold")]
        lines.append(make_table(columns, [[cell_text(cell) for cell in row] for row in rows]))
    lines += [Text(printable(problem), style="red") for problem in sample.problems]
    lines.append(Text(f"\n{time.strftime('%H:%M:%S')}, every {interval_s:g} s, Ctrl-C ends", style="dim"))
    return Group(*lines)


def _away(problem: str) -> Any:
    from rich.text import Text

    return Text(f"{printable(problem)}\n\nasking again, Ctrl-C ends", style="bold red")
