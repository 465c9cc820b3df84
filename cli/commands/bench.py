"""`larder bench`: the benchmarks of the project, or a quick store and load through a running server's data plane.

Both run in a process of their own: they use the engine's client, which this program does not import.
"""

import json
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cli.commands.keys import pages
from cli.data_plane import NotKnown, address_in
from cli.errors import OK, CliError, Refused, Unreachable
from cli.options import Call, remote
from cli.render import note, print_json, print_pairs, print_table

ROOT = Path(__file__).resolve().parents[2]
AUTO = "auto"
ALL = "all"
#: bench.quick ends with this when nobody answers.
QUICK_UNREACHABLE = 3
MAX_KEYS_DELETED_AT_ONCE = 1000
MIN_LOOKS, MAX_LOOKS, LOOK_INTERVAL_S = 2, 10, 0.3


@click.command(short_help="Measure this machine, or a running server.")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--data-plane", metavar="URL", default=None, help="tcp://host:port, or auto: where the server says.")
@click.option(
    "--mib", type=click.IntRange(1, 4096), default=32, show_default=True, metavar="N", help="Of KV in each round."
)
@click.option("--rounds", type=click.IntRange(1, 1000), default=5, show_default=True, metavar="N", help="How often.")
@click.option("--salt", "cache_salt", metavar="TENANT", default="", help="The tenant. [default: the empty salt]")
@remote
def bench(call: Call, names: tuple[str, ...], data_plane: str | None, mib: int, rounds: int, cache_salt: str) -> int:
    """Measure: the project's benchmarks by name (or all), or a running server.

    \b
    larder bench all                     each question, beside its yardstick
    larder bench copies isolation        two of them
    larder bench --data-plane auto       store and load through the server at --url

    The quick one takes room in L1, which the cache gives back by itself, and removes what it left in L2.
    """
    if bool(names) == (data_plane is not None):
        raise click.UsageError("wanted either names of benchmarks (or all), or --data-plane URL (or auto)")
    if data_plane is None:
        return _run_benchmarks(names, as_json=call.as_json)
    model_name = f"larder-bench-{secrets.token_hex(4)}"
    address = _address_of(call) if data_plane == AUTO else data_plane
    try:
        report = _run_quick([address, model_name, str(mib), str(rounds), cache_salt, str(call.server.timeout_s)])
    except Refused:
        _remove_from_l2(call, model_name)
        raise
    _remove_from_l2(call, model_name)
    if call.as_json:
        print_json(report)
    else:
        _print_quick(report)
    return OK


def _address_of(call: Call) -> str:
    try:
        return address_in(call.server.get("/conf"), call.address)
    except NotKnown as unknown:
        raise Unreachable(f"the data plane cannot be reached from here: {unknown}") from unknown


def _run_benchmarks(names: Sequence[str], *, as_json: bool) -> int:
    """The benchmarks print for themselves. 1: a limit was missed."""
    wanted = [] if list(names) == [ALL] else list(names)
    program = _program("bench", *(["--json"] if as_json else []), *wanted)
    try:
        return program.wait()
    except KeyboardInterrupt:
        program.wait()
        raise


def _run_quick(arguments: Sequence[str]) -> dict[str, Any]:
    """Raises CliError with what the last line says."""
    with tempfile.TemporaryFile("w+") as complaints:
        program = _program("bench.quick", *arguments, stdout=subprocess.PIPE, stderr=complaints, text=True)
        try:
            output, _ = program.communicate()
        except KeyboardInterrupt:
            program.communicate()
            raise
        complaints.seek(0)
        lines = complaints.read().strip().splitlines()
    if program.returncode == OK:
        return dict(json.loads(output))
    kind: type[CliError] = Unreachable if program.returncode == QUICK_UNREACHABLE else Refused
    raise kind(lines[-1] if lines else f"the benchmark ended with {program.returncode} and said nothing")


def _program(module: str, *arguments: str, **options: Any) -> "subprocess.Popen[Any]":
    return subprocess.Popen([sys.executable, "-m", module, *arguments], cwd=ROOT, **options)


def _print_quick(report: dict[str, Any]) -> None:
    where = f"{report['address']}, {report['rounds']} rounds of {report['mib']:g} MiB, bytes compared"
    print_pairs([("data plane", where), ("ping", f"{report['ping_ms']['median']:.2f} ms")])
    rows = [
        (name, f"{part['median']:.2f}", f"{part['min']:.2f}", f"{part['max']:.2f}", unit)
        for name, unit, part in (
            ("store", "GB/s", report["store_gb_per_s"]),
            ("lookup", "ms", report["lookup_ms"]),
            ("load", "GB/s", report["load_gb_per_s"]),
        )
    ]
    print_table(("", ">median", ">least", ">most", "unit"), rows)


def _remove_from_l2(call: Call, model_name: str) -> None:
    """Best effort: what is left there is told, and the adapters' own eviction takes it in its time.

    Looks more than once, since what is being written at one look is there at the next.
    """
    pause = threading.Event()
    try:
        adapters = [entry["type_name"] for entry in call.server.get("/l2/adapters")["adapters"]]
        for look in range(MAX_LOOKS if adapters else 0):
            deleted = sum(_delete_all(call, adapter, model_name) for adapter in dict.fromkeys(adapters))
            if not deleted and look >= MIN_LOOKS:
                return
            pause.wait(LOOK_INTERVAL_S)
    except CliError as error:
        note(f"objects of model {model_name} may be left in L2: {error}")


def _delete_all(call: Call, adapter: str, model_name: str) -> int:
    """How many keys were listed, and asked to be deleted."""
    keys = [entry["key"] for entries, _ in pages(call, adapter, model_name) for entry in entries]
    for start in range(0, len(keys), MAX_KEYS_DELETED_AT_ONCE):
        body = json.dumps({"keys": keys[start : start + MAX_KEYS_DELETED_AT_ONCE]}).encode()
        call.server.json("DELETE", "/l2", {"adapter": adapter}, body)
    return len(keys)
