"""`larder prefetch`: warms L1 from L2 with a prompt's objects, and follows the job to its end.

The server hands a result out once. Somebody else may have taken it, or the connection broke while it came: then the
job's record says the same. A server that goes away meanwhile is waited for, since a job outlives its engine.
"""

import json
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click

from cli.errors import INTERRUPTED, OK, REFUSED, CliError, Refused, Unhealthy, Unreachable
from cli.options import Call, remote
from cli.render import is_fancy, note, print_json, print_pairs, say
from cli.text import duration
from cli.token_input import read_tokens
from contract.token_ids import MAX_TOKEN_IDS

JOBS_LOOKED_AT = 1000
POLL_S = 1
LONG_POLL_S = 10
AWAY_PAUSE_S = 1.0
COUNTS = ("found_keys", "resident_keys", "missing_keys", "failed_keys", "over_quota_keys")


@click.command(
    short_help="Load a prompt from L2 into L1, and wait.",
    epilog=f"At most {MAX_TOKEN_IDS:,} ids; only whole chunks count.",
)
@click.argument("source", metavar="FILE", default="-", type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--model", "model_name", metavar="NAME", required=True, help="As a worker registered it.")
@click.option("--world-size", type=click.IntRange(1), default=1, show_default=True, help="As a worker registered it.")
@click.option("--salt", "cache_salt", metavar="TENANT", default="", help="The tenant. [default: the empty salt]")
@click.option("--no-wait", is_flag=True, help="Print the job's id and end.")
@click.option(
    "--give-up-after",
    type=click.FloatRange(1),
    default=3600.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the end; the job goes on.",
)
@remote
def prefetch(
    call: Call, source: str, model_name: str, world_size: int, cache_salt: str, no_wait: bool, give_up_after: float
) -> int:
    """Load a prompt's objects from L2 into L1, by its token ids.

    FILE, or stdin, holds the ids: a JSON list, or numbers divided by white space or commas. Ctrl-C asks whether to
    cancel the job; without a terminal it goes on.
    """
    job = _submit(call, _tokens(source), model_name, world_size, cache_salt)
    if "request_id" not in job:
        note("less than a chunk: nothing to load")
        return _end(call, {**job, **dict.fromkeys(("total_keys", *COUNTS), 0), "status": "noop"})
    if no_wait:
        print_json(job) if call.as_json else say(job["request_id"])
        return OK
    watch = Watch(call, job["request_id"], time.monotonic() + give_up_after)
    try:
        return _end(call, _follow(watch, job["chunks"]))
    except KeyboardInterrupt:
        return _interrupted(call, watch)


@dataclass
class Watch:
    """One job that somebody waits for."""

    call: Call
    request_id: str
    give_up_at: float

    @property
    def path(self) -> str:
        return f"/l2/prefetch/{self.request_id}"

    def record(self) -> dict[str, Any]:
        """The job's record; empty when it is not among the latest. Raises CliError."""
        jobs = self.call.server.get("/jobs/prefetch", {"limit": JOBS_LOOKED_AT}, admin=True)["jobs"]
        return next((dict(job) for job in jobs if job["request_id"] == self.request_id), {})

    def result(self, wait_s: int) -> dict[str, Any] | None:
        """The job when it is over, None while it is not. Raises Refused when nobody knows it."""
        try:
            taken = self.call.server.json("GET", self.path, {"wait": wait_s}, patience_s=wait_s)
        except Refused as error:
            if error.status != 404 or not (record := self.record()) or not is_over(record):
                raise
            return record
        if taken["status"] == "pending":
            return None
        outcome = {"status": taken.get("outcome", taken["status"]), "error": taken.get("error", "")}
        return {**taken, **self._counts(), **outcome, "request_id": self.request_id}

    def _counts(self) -> dict[str, Any]:
        """What the record tells beyond the result; a record that cannot be read takes nothing from the result."""
        try:
            return self.record()
        except CliError:
            return {}


def is_over(record: Mapping[str, Any]) -> bool:
    return record["status"] not in ("submitted", "running")


def _tokens(source: str) -> str:
    if source == "-" and sys.stdin.isatty():
        raise click.UsageError("name a file with token ids, or pipe them in")
    try:
        text, count = read_tokens(source)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise click.UsageError(f"{'stdin' if source == '-' else source}: no token ids: {why}") from error
    if not count:
        raise click.UsageError(f"{'stdin' if source == '-' else source}: no token ids in it")
    return text


def _submit(call: Call, token_ids: str, model_name: str, world_size: int, cache_salt: str) -> dict[str, Any]:
    head = json.dumps({"model_name": model_name, "world_size": world_size, "cache_salt": cache_salt})
    body = f'{head[:-1]}, "token_ids": {token_ids}}}'.encode()
    return dict(call.server.json("POST", "/l2/prefetch", body=body))


def _follow(watch: Watch, chunks: int) -> dict[str, Any]:
    """The job when it is over. A bar moves on a terminal, a long poll waits elsewhere."""
    if not is_fancy(sys.stderr):
        return _wait(watch, LONG_POLL_S, lambda record: None)
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("keys"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("submitted", total=None)

        def show(record: Mapping[str, Any]) -> None:
            total = record.get("total_keys") or chunks
            done = sum(record.get(name) or 0 for name in COUNTS)
            bar.update(task, description=str(record.get("status", "waiting")), total=total, completed=done)

        return _wait(watch, POLL_S, show)


def _wait(watch: Watch, poll_s: int, show: Any) -> dict[str, Any]:
    """Raises CliError when the time is up, naming the job."""
    told = False
    pause = threading.Event()
    problem: CliError | None = None
    while (left_s := watch.give_up_at - time.monotonic()) > 0:
        try:
            result = watch.result(max(1, min(poll_s, int(left_s))))
            if result is not None:
                return result
            show(watch.record())
            problem = None
        except (Unreachable, Unhealthy) as error:
            problem = error
            if not told:
                note(f"{error}; the job goes on when the server is back, waiting for it")
                told = True
            pause.wait(min(AWAY_PAUSE_S, left_s))
    if problem is not None:
        raise type(problem)(f"job {watch.request_id} is not over: {problem}")
    raise Refused(f"job {watch.request_id} is not over; it goes on")


def _interrupted(call: Call, watch: Watch) -> int:
    """Asks, on a terminal, whether the job is to be cancelled."""
    question = f"Cancel job {watch.request_id}?"
    try:
        wanted = sys.stdin.isatty() and sys.stderr.isatty() and click.confirm(f"\n{question}", err=True)
    except (click.Abort, KeyboardInterrupt):
        wanted = False
    if not wanted:
        note(f"job {watch.request_id} goes on; DELETE {watch.path} cancels it")
        return INTERRUPTED
    try:
        call.server.json("DELETE", watch.path)
    except Refused as error:
        if error.status != 404:  # 404: it ended in the meantime
            raise
    return _end(call, _wait(watch, POLL_S, lambda record: None))


def _end(call: Call, job: Mapping[str, Any]) -> int:
    """Shows the counts. A key that is in neither tier is no failure, an error of a storage is not the server's no."""
    if call.as_json:
        print_json(job)
    else:
        pairs: list[tuple[str, object]] = [("job", job.get("request_id")), ("outcome", job["status"])]
        pairs.append(("chunks", job.get("chunks")))
        pairs.append(("keys", job["total_keys"]))
        names = ("loaded from L2", "in L1 before", "missing", "failed", "over quota")
        pairs += [(name, job.get(field)) for name, field in zip(names, COUNTS, strict=True)]
        if job.get("finished_at") and job.get("started_at"):
            pairs.append(("took", duration(max(0.0, job["finished_at"] - job["started_at"]))))
        print_pairs(pairs)
    if job["status"] in ("completed", "noop"):
        return OK
    note(f"job {job.get('request_id')} {job['status']}: {job.get('error') or 'no reason given'}")
    return REFUSED
