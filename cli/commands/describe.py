"""`larder describe`: what is it, in words. The server, one L2 adapter, or one stored object."""

import time
from collections.abc import Mapping
from typing import Any

import click

from cli.commands.health import adapter_label, complaints, quota_line, switched_pairs
from cli.commands.keys import pages
from cli.errors import OK, UNHEALTHY, CliError, Refused, Unhealthy
from cli.options import Call, adapter_option, complete_from, remote
from cli.render import note, print_json, say
from cli.text import count, duration, percent, size

BREAKERS = {
    "closed": "Its breaker is closed: the storage answers.",
    "open": "Its breaker is OPEN: the storage failed too often and is left alone",
    "half-open": "Its breaker is half-open: one call is let through to see whether the storage answers again.",
}
MIN_HASH_CHARACTERS = 4
MAX_MATCHES = 100


@click.group()
def describe() -> None:
    """What is it, in words: the server, an adapter, an object."""


@describe.command("server")
@remote
def describe_server(call: Call) -> int:
    """What runs there, and how it is doing."""
    report = call.server.get("/status")
    version, conf = call.server.get("/version"), call.server.get("/conf")
    if call.as_json:
        print_json({"version": version, "status": report, "conf": conf})
    else:
        for line in server_lines(call.address.shown, version, report, conf.get("mp", {})):
            say(line)
    return OK if report["is_healthy"] else UNHEALTHY


def server_lines(url: str, version: str, report: Mapping[str, Any], mp: Mapping[str, Any]) -> list[str]:
    """Sentences about a server."""
    storage = report["storage_manager"]
    l1, eviction = storage["l1_manager"], storage["l1_eviction_controller"]
    used, total, mark = l1["memory_used_bytes"], l1["memory_total_bytes"], eviction["trigger_watermark"]
    up = f", up for {duration(max(0.0, time.time() - report['started_at']))}" if report.get("started_at") else ""
    lines = [
        f"Larder {version} at {url}, instance {mp.get('instance_id', '?')}, boot {report.get('boot_id', '?')}{up}."
    ]
    sick = ", ".join(complaints(report))
    lines.append("It is healthy." if report["is_healthy"] else f"It is UNHEALTHY: {sick or 'it does not say why'}.")
    lines += [f"Switched by an operator: {what}." for _, what in switched_pairs(report)]
    lines.append(f"A chunk is {report['chunk_size']} tokens; its name is made with {report['hash_algorithm']}.")
    lines.append(f"Inference clients connect to tcp://{mp.get('host', '?')}:{mp.get('port', '?')}.")
    lines.append(
        f"L1 holds {count(l1['total_object_count'], 'object')}, {size(used)} of {size(total)} ({percent(used, total)})."
    )
    low = mark * (1 - eviction["eviction_ratio"])
    lines.append(
        f"{eviction['eviction_policy']} evicts when it is above {100 * mark:.0f} %, down to {100 * low:.0f} %."
    )
    clients = len(report["cache_context_meta"]) + len(report["non_cuda_context_meta"])
    jobs = count(report["active_prefetch_jobs"], "prefetch job")
    lines.append(
        f"{count(clients, 'client')} registered, {count(report['active_sessions'], 'session')}, {jobs} at work."
    )
    adapters = [adapter_label(adapter) for adapter in storage["l2_adapters"]]
    lines.append(f"Behind L1: {', '.join(adapters)}." if adapters else "Nothing is behind L1: what it evicts is gone.")
    lines.append(f"Quotas: {quota_line(report.get('quotas', {}))}.")
    return lines


@describe.command("adapter")
@click.argument(
    "name",
    metavar="TYPE",
    shell_complete=complete_from("/l2/adapters", lambda body: [entry["type_name"] for entry in body["adapters"]]),
)
@remote
def describe_adapter(call: Call, name: str) -> int:
    """An L2 adapter, by its type (fs), or its number and type (0-fs)."""
    storage = call.server.get("/status")["storage_manager"]
    found = [entry for entry in storage["l2_adapters"] if name in (entry.get("type_name"), adapter_label(entry))]
    if not found:
        there = ", ".join(map(adapter_label, storage["l2_adapters"])) or "none"
        raise Refused(f"{call.server.named('GET', '/status')}: no L2 adapter {name!r}; there are: {there}")
    adapter = found[0]
    queue = storage["store_controller"].get("queues", {}).get(adapter_label(adapter), {})
    scrub = _scrub_of(call, adapter) if not call.as_json else None
    if call.as_json:
        print_json({**adapter, "write_back": queue})
    else:
        for line in adapter_lines(adapter, queue, scrub):
            say(line)
    return OK if adapter["is_healthy"] else UNHEALTHY


def _scrub_of(call: Call, adapter: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Its scrub's state; None for a second adapter of a type, which cannot be asked for, and when nobody answers."""
    try:
        state = call.server.get("/l2/scrub", {"adapter": adapter["type_name"]})
    except CliError:
        return None
    return dict(state) if state["adapter_index"] == adapter["adapter_index"] else None


def adapter_lines(
    adapter: Mapping[str, Any], queue: Mapping[str, Any], scrub: Mapping[str, Any] | None = None
) -> list[str]:
    """Sentences about an adapter."""
    role = "the primary one" if adapter.get("primary") else "not the primary one"
    shared = "shared with other servers" if adapter.get("shared") else "this server's alone"
    lines = [f"{adapter_label(adapter)} is an L2 adapter ({adapter['type']}), {role}, {shared}."]
    lines.append("It is healthy." if adapter["is_healthy"] else "It is UNHEALTHY.")
    if adapter.get("bypassed"):
        lines.append("It is BYPASSED by an operator: it is neither asked nor written.")
    place = adapter.get("base_path") or adapter.get("endpoint")
    if place:
        lines.append(f"Its data is at {place}.")
    used, capacity = adapter["current_size_bytes"], adapter.get("max_capacity_bytes")
    room = f" of {size(capacity)} ({percent(used, capacity)})" if capacity else ", with no known limit"
    lines.append(f"It holds {count(adapter['stored_object_count'], 'object')}, {size(used)}{room}.")
    serde = " then ".join(
        str(step.get("type", step)) if isinstance(step, dict) else str(step) for step in adapter["serde"]
    )
    lines.append(f"Objects pass through {serde} on their way." if serde else "Objects are stored as they are.")
    order = "use" if adapter.get("keeps_order_of_use") else "writing"
    policy = adapter["eviction_policy"]
    lines.append(
        "Nothing is evicted from it." if policy == "noop" else f"{policy} evicts from it, by order of {order}."
    )
    lines.append(_breaker_line(adapter.get("breaker", {})))
    catalog = adapter.get("catalog", {})
    if not catalog.get("complete", True):
        why = f", hindered by: {catalog['error']}" if catalog.get("error") else ""
        lines.append(f"Its catalog is still being read: {count(catalog.get('scanned', 0), 'object')} so far{why}.")
    waiting = queue.get("queued_objects", 0) + queue.get("waiting_for_retry", 0)
    lines.append(f"{count(waiting, 'object')} to be written to it, {size(queue.get('dirty_bytes', 0))} dirty in L1.")
    if adapter.get("quarantined"):
        lines.append(f"{count(len(adapter['quarantined']), 'object')} found damaged and set aside.")
    if queue.get("dead_letters"):
        lines.append(f"{count(len(queue['dead_letters']), 'object')} could not be written and were given up.")
    if scrub is not None:
        done = scrub["good_objects"] + scrub["corrupt_objects"]
        found = f", {count(done, 'object')} checked, {scrub['corrupt_objects']:,} corrupt"
        lines.append(f"Scrub: {scrub['state']}{found if scrub['state'] != 'never' else ''}.")
    return lines


def _breaker_line(breaker: Mapping[str, Any]) -> str:
    state = str(breaker.get("state", "?"))
    line = BREAKERS.get(state, f"Its breaker is {state}.")
    return f"{line}, for {duration(breaker.get('retry_in_seconds') or 0)} more." if state == "open" else line


@describe.command("object")
@click.argument("chunk_hash", metavar="HASH")
@adapter_option
@remote
def describe_object(call: Call, chunk_hash: str, adapter: str | None) -> int:
    """What L1 and L2 hold under a chunk hash, or its first characters.

    Of L2 the listings of all adapters are looked through, or with --adapter one.
    """
    wanted = chunk_hash.lower()
    if len(wanted) < MIN_HASH_CHARACTERS or wanted.strip("0123456789abcdef"):
        raise click.UsageError(f"HASH: wanted at least {MIN_HASH_CHARACTERS} hexadecimal digits")
    in_l1 = call.server.get("/l1/objects", {"chunk_hash": wanted})
    matches: list[dict[str, Any]] = [{**entry, "tier": "l1"} for entry in in_l1["entries"]]
    for name in [adapter] if adapter is not None else _adapter_names(call):
        matches += _matches_in(call, name, wanted)
    objects = _by_object(matches)
    if call.as_json:
        print_json(matches)
    else:
        for places in objects[:MAX_MATCHES]:
            say(object_line(places))
    if not matches:
        asked = call.server.named("GET", "/l1/objects")
        raise Refused(f"{asked}: no object in L1 or L2 has a chunk hash that begins with {wanted}")
    if in_l1["has_more"]:
        note(f"more than {len(in_l1['entries'])} objects in L1 match, the others are left out")
    if len(objects) > MAX_MATCHES and not call.as_json:
        note(f"{len(objects)} objects match, the first {MAX_MATCHES} are shown")
    return OK


def _by_object(matches: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The places of each object together, in the order in which the objects were first met."""
    objects: dict[tuple[object, ...], list[dict[str, Any]]] = {}
    for match in matches:
        objects.setdefault(tuple(match["key"].values()), []).append(match)
    return list(objects.values())


def _adapter_names(call: Call) -> list[str]:
    """The types that can be listed, each once: of several adapters of a type the first answers."""
    return list(dict.fromkeys(entry["type_name"] for entry in call.server.get("/l2/adapters")["adapters"]))


def _matches_in(call: Call, adapter: str, wanted: str) -> list[dict[str, Any]]:
    """An adapter that cannot be listed is told about and passed over."""
    found: list[dict[str, Any]] = []
    try:
        for entries, _ in pages(call, adapter, None):
            found += [
                {**entry, "tier": "l2", "adapter": adapter}
                for entry in entries
                if entry["key"]["chunk_hash_hex"].startswith(wanted)
            ]
    except (Refused, Unhealthy) as error:
        if isinstance(error, Refused) and error.status != 501:
            raise
        note(f"adapter {adapter} is left out: {error}")
    return found


def object_line(places: list[dict[str, Any]]) -> str:
    """One sentence about an object and all places where it is."""
    key = places[0]["key"]
    rank, world = key["kv_rank"] >> 16 & 0xFF, key["kv_rank"] >> 24 & 0xFF
    tenant = f"tenant {key['cache_salt']!r}" if key["cache_salt"] else "the tenant with the empty salt"
    return (
        f"{key['chunk_hash_hex']}: the KV of one chunk, for {key['model_name']}, rank {rank} of {world}, "
        f"object group {key['object_group_id']}, of {tenant}; {', '.join(map(_place, places))}."
    )


def _place(place: Mapping[str, Any]) -> str:
    if place["tier"] == "l2":
        return f"{size(place['size_bytes'])} in {place['adapter']}"
    holders = [count(place[name], name[:-1]) for name in ("leases", "pins") if place[name]]
    facts = [f"held by {' and '.join(holders)}" if holders else "held by nobody"]
    if place["state"] == "writing":
        facts = ["being written"]
    if place["to_be_written_to"]:
        facts.append(f"on its way to {', '.join(place['to_be_written_to'])}")
    if place["ordered_objects"] is not None:
        facts.append(f"{place['colder_objects']:,} of {count(place['ordered_objects'], 'object')} go before it")
    return f"{size(place['size_bytes'])} in L1 ({'; '.join(facts)})"
