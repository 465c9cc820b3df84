"""`larder scrub`: reading and verifying all that an L2 adapter holds."""

import time
from collections.abc import Mapping
from typing import Any

import click

from cli.errors import OK
from cli.options import Call, adapter_option, remote
from cli.render import print_json, print_pairs
from cli.text import count, duration, percent, size

PATH = "/l2/scrub"


@click.group(short_help="Verify all that an L2 adapter holds.")
def scrub() -> None:
    """Verify all that an L2 adapter holds, in the background: start, stop, state."""


@scrub.command("start")
@adapter_option
@remote
def start_scrub(call: Call, adapter: str | None) -> int:
    """Begin to read and verify every object, slowly. What is damaged is taken out of service."""
    return _show(call, call.server.json("POST", PATH, {"adapter": adapter}))


@scrub.command("stop")
@adapter_option
@remote
def stop_scrub(call: Call, adapter: str | None) -> int:
    """End the running scrub."""
    return _show(call, call.server.json("DELETE", PATH, {"adapter": adapter}))


@scrub.command("state")
@adapter_option
@remote
def scrub_state(call: Call, adapter: str | None) -> int:
    """How far the running scrub is, or how the last one ended."""
    return _show(call, call.server.get(PATH, {"adapter": adapter}))


def scrub_pairs(state: Mapping[str, Any]) -> list[tuple[str, object]]:
    """A scrub's state, in lines."""
    pairs: list[tuple[str, object]] = [("adapter", f"{state['adapter_index']}-{state['adapter']}")]
    name = str(state["state"])
    pairs.append(("scrub", f"{name}: {state['error']}" if state["error"] else name))
    if name == "never":
        return pairs
    done, total = state["checked_objects"] + state["gone_objects"] + state["failed_objects"], state["total_objects"]
    known = f" of {total:,} ({percent(done, total)})" if total else ""
    pairs.append(("done", f"{count(done, 'object')}{known}, {size(state['checked_bytes'])} read"))
    pairs.append(("good", f"{state['good_objects']:,}"))
    pairs.append(("corrupt", f"{state['corrupt_objects']:,}"))
    pairs.append(("gone", f"{state['gone_objects']:,}"))
    pairs.append(("not read", f"{state['failed_objects']:,}"))
    ended_at = state["finished_at"]
    since = f", ended {duration(max(0.0, time.time() - ended_at))} ago" if ended_at else ""
    pairs.append(("took" if ended_at else "for", duration(state["elapsed_seconds"]) + since))
    if state["eta_seconds"] is not None:
        pairs.append(("left", f"about {duration(state['eta_seconds'])} at {size(state['bytes_per_second'])}/s"))
    return pairs


def _show(call: Call, state: Mapping[str, Any]) -> int:
    if call.as_json:
        print_json(state)
    else:
        print_pairs(scrub_pairs(state))
        if state.get("stopped") is False:
            print_pairs([("note", "no scrub was running")])
    return OK
