"""`larder status` and `larder ping`: how is it, and is it there at all. Both end with 4 when it is not well."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import click

from cli.connection import reason_in
from cli.data_plane import NotKnown, address_in
from cli.data_plane import ping as ping_data_plane
from cli.errors import OK, UNHEALTHY, CliError, Unreachable
from cli.options import Call, remote
from cli.render import heading, print_json, print_pairs, print_table, say
from cli.text import count, duration, percent, size

Report = Mapping[str, Any]


@click.command()
@remote
def status(call: Call) -> int:
    """How the server is: health, L1, L2, tenants, clients."""
    report = call.server.get("/status")
    if call.as_json:
        print_json(report)
    else:
        _print_report(call, report)
    return OK if report["is_healthy"] else UNHEALTHY


def complaints(report: Report) -> Iterator[str]:
    """Which parts of a status report are not well."""
    storage = report["storage_manager"]
    yield from (f"thread {name}" for name in map(_thread_name, report.get("unhealthy_threads", ())))
    for name, part in storage.items():
        if isinstance(part, dict) and part.get("is_healthy") is False:
            yield name
    for adapter in storage.get("l2_adapters", ()):
        if not adapter.get("is_healthy", True):
            yield f"L2 adapter {adapter_label(adapter)}"


def adapter_label(adapter: Report) -> str:
    """As metrics and queues name it: "0-fs"."""
    return f"{adapter.get('adapter_index', '?')}-{adapter.get('type_name', adapter.get('type', '?'))}"


def _thread_name(entry: object) -> str:
    return str(entry.get("name", "?")) if isinstance(entry, dict) else str(entry)


def _print_report(call: Call, report: Report) -> None:
    sick = list(complaints(report))
    storage = report["storage_manager"]
    well = "healthy" if report["is_healthy"] else f"UNHEALTHY: {', '.join(sick) or 'it does not say why'}"
    started_at = report.get("started_at")
    pairs: list[tuple[str, object]] = [("server", call.address.shown), ("health", well)]
    if started_at:
        pairs.append(("engine up", duration(max(0.0, time.time() - started_at))))
    pairs.append(("chunks", f"{report['chunk_size']} tokens, named by {report['hash_algorithm']}"))
    pairs += switched_pairs(report)
    pairs += l1_pairs(storage)
    pairs.append(("quotas", quota_line(report.get("quotas", {}))))
    sessions, jobs = report["active_sessions"], report["active_prefetch_jobs"]
    pairs.append(("at work", f"{count(sessions, 'session')}, {count(jobs, 'prefetch job')}"))
    print_pairs(pairs)
    if storage.get("l2_adapters"):
        say()
        heading("L2 adapters")
        print_table(L2_COLUMNS, l2_rows(storage))
    clients = list(_client_rows(report))
    if clients:
        say()
        heading("Clients")
        print_table(("instance", "model", ">world size", "copies"), clients)


def switched_pairs(report: Report) -> list[tuple[str, object]]:
    """A line on what is switched off; none while all is on."""
    off = []
    if report.get("frozen"):
        off.append("FROZEN: nothing is stored, only L1 answers")
    if report.get("hot_cache") is False:
        off.append("hot cache off: what is in L2 leaves L1")
    adapters = report["storage_manager"].get("l2_adapters", ())
    off += [f"L2 adapter {adapter_label(adapter)} bypassed" for adapter in adapters if adapter.get("bypassed")]
    return [("switched", "; ".join(off))] if off else []


def l1_pairs(storage: Report) -> list[tuple[str, object]]:
    """L1 in two lines."""
    l1, eviction = storage["l1_manager"], storage.get("l1_eviction_controller", {})
    used, total = l1["memory_used_bytes"], l1["memory_total_bytes"]
    held = [
        count(l1.get("leased_objects", 0), "leased object"),
        f"{l1.get('pinned_objects', 0):,} pinned",
        f"{l1.get('reservations', 0):,} being written",
    ]
    if "largest_hole_bytes" in l1:
        held.append(f"largest hole {size(l1['largest_hole_bytes'])}")
    if l1.get("doomed_objects"):
        held.append(f"{size(l1.get('doomed_bytes', 0))} cleared but still held")
    policy = eviction.get("eviction_policy", "?")
    return [
        ("L1", f"{size(used)} of {size(total)} ({percent(used, total)}), {count(l1['total_object_count'], 'object')}"),
        ("", ", ".join(held)),
        ("eviction", f"{policy}, above {100 * eviction.get('trigger_watermark', 0):.0f} %"),
    ]


def quota_line(quotas: Report) -> str:
    """Whether quotas act, and where."""
    registered = count(quotas.get("registered", 0), "tenant") + " with a quota"
    if not quotas.get("enforced"):
        return f"{registered}, without effect: {quotas.get('not_enforced_because') or 'not enforced'}"
    line = f"{registered}, enforced on {', '.join(quotas.get('enforced_on', ()))}"
    suspended = quotas.get("unregistered_suspended_because")
    return f"{line}; limit 0 of others SUSPENDED: {suspended}" if suspended else line


L2_COLUMNS = ("adapter", "health", "breaker", ">objects", ">stored", ">capacity", ">to write", ">dirty")


def l2_rows(storage: Report) -> Iterator[tuple[object, ...]]:
    """One row per adapter, for L2_COLUMNS."""
    queues = storage.get("store_controller", {}).get("queues", {})
    for adapter in storage.get("l2_adapters", ()):
        label = adapter_label(adapter)
        queue = queues.get(label, {})
        capacity = adapter.get("max_capacity_bytes")
        waiting = queue.get("queued_objects", 0) + queue.get("running_objects", 0) + queue.get("waiting_for_retry", 0)
        yield (
            label,
            "ok" if adapter.get("is_healthy", True) else "SICK",
            breaker_text(adapter.get("breaker", {})),
            f"{adapter.get('stored_object_count', 0):,}",
            size(adapter.get("current_size_bytes", 0)),
            size(capacity) if capacity else None,
            f"{waiting:,}",
            size(queue.get("dirty_bytes", 0)),
        )


def breaker_text(breaker: Report) -> str:
    state = str(breaker.get("state", "?"))
    retry_s = breaker.get("retry_in_seconds") or 0
    return f"{state}, retry in {duration(retry_s)}" if state == "open" else state


def _client_rows(report: Report) -> Iterator[tuple[object, ...]]:
    for copies, group in (("server", "cache_context_meta"), ("client", "non_cuda_context_meta")):
        for instance, context in report.get(group, {}).items():
            yield instance, context.get("model_name"), context.get("world_size"), copies


@click.command(short_help="Whether HTTP and the data plane answer.")
@click.option("--data-plane", metavar="URL", default=None, help="tcp://host:port. [default: what the server says]")
@click.option("--http-only", is_flag=True, help="Do not ask the data plane.")
@remote
def ping(call: Call, data_plane: str | None, http_only: bool) -> int:
    """Whether the server answers: health over HTTP, and the data plane."""
    result: dict[str, Any] = {"http": _ping_http(call)}
    if not http_only:
        result["data_plane"] = _ping_data_plane(call, data_plane)
    if call.as_json:
        print_json(result)
    else:
        for name, part in result.items():
            took = f"  {part['ms']:.1f} ms" if part["ms"] is not None else ""
            why = f"  {part['reason']}" if part["reason"] else ""
            say(f"{name.replace('_', ' '):<10}  {part['state']:<9}  {part['address']}{took}{why}")
    return UNHEALTHY if any(part["state"] == "unhealthy" for part in result.values()) else OK


def _ping_http(call: Call) -> dict[str, Any]:
    """Raises Unreachable."""
    began = time.perf_counter()
    answer = call.server.ask("GET", "/healthcheck", admin=False)
    took_ms = round((time.perf_counter() - began) * 1000, 2)
    is_well = answer.status == 200
    reason = None if is_well else f"{answer.status} {reason_in(answer)}"
    return _part("healthy" if is_well else "unhealthy", call.address.shown, took_ms, reason)


def _ping_data_plane(call: Call, given: str | None) -> dict[str, Any]:
    try:
        address = given or address_in(call.server.get("/conf"), call.address)
    except NotKnown as unknown:
        return _part("skipped", "", None, str(unknown))
    except CliError as error:
        return _part("skipped", "", None, f"its address is not known: {error}")
    try:
        return _part("healthy", address, round(ping_data_plane(address, call.server.timeout_s), 2), None)
    except Unreachable as error:
        return _part("unhealthy", address, None, str(error).removeprefix(f"{address}: "))


def _part(state: str, address: str, ms: float | None, reason: str | None) -> dict[str, Any]:
    return {"state": state, "address": address, "ms": ms, "reason": reason}
