"""HTTP metrics of this process group, and the one text in which they and the engine's are shown.

Under gunicorn the counts of all workers lie in files of PROMETHEUS_MULTIPROC_DIR. Each worker writes under the number
of its place among the workers, not its pid: who takes the place of a killed worker goes on with its
counts, and the number of files is bounded by the number of workers. Everywhere else the counts are in this process's
memory, also where that variable is set: the files there are the host's, whose metrics know nothing of ours.
"""

import logging
import os
import secrets
import time

from flask import Flask, Request, Response, request
from prometheus_client import CollectorRegistry, Counter, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_flask_exporter import PrometheusMetrics

from app.backend import Backend
from app.baseline import ENGINE, WEB, Baselines, as_text, samples_of, subtract
from app.own_metrics import OwnRegistry
from contract.commands import PublishMetrics
from contract.errors import EngineAway, RedisAway
from contract.snapshots import METRICS, Snapshot

logger = logging.getLogger(__name__)

MULTIPROCESS_DIR = "PROMETHEUS_MULTIPROC_DIR"
UNMATCHED = "(none)"
SECONDS = "larder_http_request_duration_seconds"
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0)

#: Kinds of errors, by the first digit of the status.
ERRORS = {4: "client", 5: "server"}

_place = "main"
_errors: Counter | None = None
_run = secrets.token_hex(6)


class HttpMetrics(PrometheusMetrics):
    """Counts and times requests by method, route and status. All label values are bounded."""

    def info(self, *args: object, **kwargs: object) -> None:
        """Leaves out the exporter's note on its own version: a gauge per worker that tells nothing."""


def install(app: Flask, *, multiprocess: bool) -> CollectorRegistry:
    """Counts every request of the app from here on. Returns the registry for further metrics of the app.

    `multiprocess`: where PROMETHEUS_MULTIPROC_DIR is set, all metrics of this process lie there under its place.
    """
    registry: CollectorRegistry = OwnRegistry()
    if multiprocess and MULTIPROCESS_DIR in os.environ:
        os.makedirs(os.environ[MULTIPROCESS_DIR], exist_ok=True)
        values.ValueClass = values.MultiProcessValue(process_identifier=_worker_place)
        registry = CollectorRegistry()
    HttpMetrics(app, path=None, defaults_prefix="larder", group_by=route, buckets=BUCKETS_S, registry=registry)
    _count_errors(app, registry)
    app.wsgi_app = _OnlyKnownMethods(app.wsgi_app)  # type: ignore[method-assign]
    return registry


def _count_errors(app: Flask, registry: CollectorRegistry) -> None:
    global _errors
    errors = Counter(
        "larder_http_errors", "Requests that were answered with an error, by route and whose it is",
        ["method", "route", "kind"], registry=registry,
    )  # fmt: skip
    if _is_shared(registry):
        _errors = errors

    @app.after_request
    def count(response: Response) -> Response:
        kind = ERRORS.get(response.status_code // 100)
        if kind is not None:
            errors.labels(request.method, route(request), kind).inc()
        return response


def expect_routes(app: Flask, registry: CollectorRegistry) -> None:
    """Makes the series of all routes, at 0: an alert on a rate needs them before the first request."""
    errors, seconds = (registry._names_to_collectors[name] for name in ("larder_http_errors", SECONDS))
    for name, status in (("larder_http_request", "200"), ("larder_http_request_exceptions", "500")):
        registry._names_to_collectors[name].labels("GET", status)  # type: ignore[attr-defined]
    for rule in app.url_map.iter_rules():
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            seconds.labels(method, rule.rule, "200")  # type: ignore[attr-defined]
            for kind in ERRORS.values():
                errors.labels(method, rule.rule, kind)  # type: ignore[attr-defined]


def begin_run() -> None:
    """The counts begin at zero from here on. Called in gunicorn's master before its first worker."""
    global _run
    _run = secrets.token_hex(6)


def take_place(place: int) -> None:
    """Counts under this number from now on. Called in a new worker, before it serves; live workers never share one."""
    global _place
    _place = str(place)
    if _errors is not None:
        _errors.labels("GET", UNMATCHED, "client").inc(0)  # has all series written under the new place


def route(request: Request) -> str:
    """The pattern of the route that took the request: bounded, unlike its path."""
    return request.url_rule.rule if request.url_rule is not None else UNMATCHED


def render(backend: Backend, registry: CollectorRegistry, baselines: Baselines) -> str:
    """All metrics as Prometheus text. Answers without Redis and without the engine, and says so in it."""
    http_text = _http_text(registry)
    engine_is_up, redis_is_up, snapshot, queue_length = False, True, None, 0
    try:
        record = backend.engine_record(reuse=False)
        engine_is_up = record is not None and record.is_alive(time.time()) and record.state == "ready"
        snapshot = backend.last_snapshot(METRICS)
        queue_length = backend.queue_length()
    except RedisAway:
        redis_is_up = False
    baselines.follow(backend.metrics_baselines)
    texts = [subtract(http_text, baselines.of(_group(registry), _run))]
    gauges = [
        ("larder_engine_up", "Whether the engine is alive and ready", float(engine_is_up)),
        ("engine_up", "The same as larder_engine_up", float(engine_is_up)),
        ("larder_redis_up", "Whether Redis answered this scrape", float(redis_is_up)),
        ("larder_command_queue_length", "Commands that wait or run, as Redis has them", float(queue_length)),
    ]
    if snapshot is not None:
        gauges.append(("larder_engine_snapshot_age_seconds", "Age of the engine's metrics", snapshot.age_s))
        if engine_is_up:
            texts.append(subtract(snapshot.body["text"], baselines.of(ENGINE, snapshot.boot_id)))
    texts.extend(f"# HELP {name} {text}\n# TYPE {name} gauge\n{name} {value}\n" for name, text, value in gauges)
    return merge_families(texts)


def reset(backend: Backend, registry: CollectorRegistry, baselines: Baselines) -> None:
    """From now on all counters and histograms are shown less what they are now. Raises ContractError: OthersAway when
    this process alone does so yet."""
    snapshot = _latest_of_engine(backend)
    kept = {} if snapshot is None else {ENGINE: (snapshot.boot_id, samples_of(snapshot.body["text"]))}
    http_samples = samples_of(_http_text(registry))
    if _group(registry) == WEB:
        kept[WEB] = (_run, http_samples)
    else:
        baselines.keep(_group(registry), _run, http_samples)
    if kept:
        backend.write_metrics_baselines({group: as_text(run, samples) for group, (run, samples) in kept.items()})


def _latest_of_engine(backend: Backend) -> Snapshot | None:
    """Its metrics with all that was counted until now; of an engine that cannot be asked what it published last."""
    try:
        backend.call(PublishMetrics())
    except EngineAway:
        pass
    return backend.last_snapshot(METRICS)


def _is_shared(registry: CollectorRegistry) -> bool:
    """Whether it counts for all workers together."""
    return not isinstance(registry, OwnRegistry)


def _group(registry: CollectorRegistry) -> str:
    return WEB if _is_shared(registry) else "process"


def merge_families(texts: list[str]) -> str:
    """One Prometheus text out of several, in which each family has one header and all its samples under it."""
    headers: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for text in texts:
        family, is_first = "", True
        for line in text.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                name = line.split(" ", 3)[2]
                if name != family:
                    family, is_first = name, name not in headers
                if is_first:
                    headers.setdefault(name, []).append(line)
            elif line and not line.startswith("#"):
                samples.setdefault(family, []).append(line)
    families = dict.fromkeys([*headers, *samples])
    return "".join(f"{line}\n" for name in families for line in (*headers.get(name, ()), *samples.get(name, ())))


def _http_text(registry: CollectorRegistry) -> str:
    if _is_shared(registry):
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
    return generate_latest(registry).decode()


def _worker_place() -> str:
    return _place


class _OnlyKnownMethods:
    """Gives made-up HTTP methods one name, so that they cannot grow the metrics without bound."""

    KNOWN = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})

    def __init__(self, wsgi_app) -> None:
        self._wsgi_app = wsgi_app

    def __call__(self, environ, start_response):
        if environ["REQUEST_METHOD"] not in self.KNOWN:
            environ["REQUEST_METHOD"] = "OTHER"
        return self._wsgi_app(environ, start_response)
