"""`larder threads` and `larder loglevel`: looking into the processes of a running server."""

import re
import sys
from collections.abc import Mapping
from typing import Any

import click

from cli.errors import OK, Unreachable
from cli.options import Call, remote
from cli.render import note, print_json, print_table, say
from cli.text import count, duration, printable

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "NOTSET")
THREAD_LEVELS = ("critical", "high", "medium", "low")


@click.command(short_help="Threads with their stacks, or the loops.")
@click.option("--name", metavar="TEXT", default=None, help="Only threads with this in their name.")
@click.option("--id", "thread_id", type=int, metavar="N", default=None, help="Only the thread with this ident.")
@click.option("--periodic", is_flag=True, help="The engine's loops instead: how often they run, and how well.")
@click.option("--level", type=click.Choice(THREAD_LEVELS), default=None, help="Only loops of this level.")
@remote
def threads(call: Call, name: str | None, thread_id: int | None, periodic: bool, level: str | None) -> int:
    """Each live thread with its stack, or with --periodic the engine's loops."""
    if periodic:
        if thread_id is not None:
            raise click.UsageError("--id is not for --periodic")
        return _print_loops(call, name, level)
    if level is not None:
        raise click.UsageError("--level is for --periodic")
    dump = call.server.text("/threads", {"name": name, "thread_id": thread_id}, admin=True).text
    if call.as_json:
        totals = re.findall(r"^Total threads: (\d+)$", dump, re.MULTILINE)
        print_json({"total_threads": sum(map(int, totals)), "text": dump})
    else:
        sys.stdout.write(printable(dump.rstrip("\n"), keep="\n\t") + "\n")
    return OK


def _print_loops(call: Call, name: str | None, level: str | None) -> int:
    body = call.server.get("/periodic-threads", {"level": level})
    loops = [loop for loop in body["threads"] if (name or "").lower() in loop["name"].lower()]
    sick = call.server.get("/periodic-threads-health")["unhealthy_threads"]
    if any(loop["name"] == "engine" for loop in sick):
        note("the engine does not serve, its loops are missing here or not known as of now")
    if call.as_json:
        print_json({**body, "threads": loops})
        return OK
    print_table(
        ("name", "level", "state", ">every", ">last run", ">runs", ">failed", "last result"), map(_loop_row, loops)
    )
    summary = body["summary"]
    say(
        f"{count(summary['total_count'], 'loop')}, {summary['running_count']} running, {summary['active_count']} active"
    )
    return OK


def _loop_row(loop: Mapping[str, Any]) -> tuple[object, ...]:
    state = "ok" if loop["is_active"] else "SICK" if loop["is_running"] else "not running"
    last_s = loop["last_run_ago"]
    summary = loop.get("last_summary") or {}
    return (
        loop["name"],
        loop["level"],
        state,
        duration(loop["interval"]),
        None if last_s is None else f"{duration(last_s)} ago",
        f"{loop['total_runs']:,}",
        f"{loop['failed_runs']:,}",
        str(summary.get("message") or "")[:60],
    )


@click.command(short_help="Read or set levels of loggers.")
@click.argument("logger", required=False)
@click.argument("level", required=False, type=click.Choice(LEVELS, case_sensitive=False))
@remote
def loglevel(call: Call, logger: str | None, level: str | None) -> int:
    """The level of each logger, of one, or set one in every process.

    \b
    larder loglevel                      all of them
    larder loglevel engine.l2            one
    larder loglevel engine.l2 DEBUG      set it
    larder loglevel engine.l2 NOTSET     let its parent decide again
    """
    if logger is not None and level is not None:
        return _set_level(call, logger, level)
    answer = call.server.text("/loglevel", {"logger_name": logger}).text
    levels = dict(line.rsplit(": ", 1) for line in answer.splitlines() if ": " in line)
    if not levels and answer.strip():
        raise Unreachable(f"{call.server.named('GET', '/loglevel')}: the answer names no level; is this a Larder?")
    if call.as_json:
        print_json(levels)
    elif logger is not None:
        say(levels.get(logger, answer.strip()))
    else:
        print_table(("logger", "level"), sorted(levels.items()))
    return OK


def _set_level(call: Call, logger: str, level: str) -> int:
    query = {"logger_name": logger, "level": level.upper()}
    answer = call.server.text("/loglevel", query, admin=True).text
    if call.as_json:
        print_json({logger: level.upper()})
    else:
        say(answer.strip())
    return OK
