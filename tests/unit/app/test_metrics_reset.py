"""A reset of the metrics: what goes to zero, what stays, and whose baseline counts."""

import json

import pytest
from flask.testing import FlaskClient

from app import start_loops
from app.baseline import Baselines, samples_of, subtract
from contract.errors import QueueFull, RedisAway
from tests.unit.app.memory_backend import BOOT, MemoryBackend
from tests.waiting import wait_for

TEXT = """# HELP c_total a counter
# TYPE c_total counter
c_total{a="b c",d="e"} 7.0
c_total{a="x"} 0.0
# HELP g a gauge
# TYPE g gauge
g 3.0
# HELP h a histogram
# TYPE h histogram
h_bucket{le="1.0"} 2.0
h_bucket{le="+Inf"} 5.0
h_count 5.0
h_sum 4.25
# HELP process_cpu_seconds_total not ours
# TYPE process_cpu_seconds_total counter
process_cpu_seconds_total 9.5
"""


def test_counters_and_histograms_are_what_a_reset_keeps() -> None:
    assert samples_of(TEXT) == {
        'c_total{a="b c",d="e"}': 7.0, 'h_bucket{le="1.0"}': 2.0, 'h_bucket{le="+Inf"}': 5.0, "h_count": 5.0,
        "h_sum": 4.25,
    }  # fmt: skip


def test_what_was_kept_is_subtracted_and_nothing_goes_below_zero() -> None:
    later = TEXT.replace('d="e"} 7.0', 'd="e"} 9.0').replace("h_sum 4.25", "h_sum 4.0")

    shown = subtract(later, {**samples_of(TEXT), "g": 3.0, "process_cpu_seconds_total": 9.5})

    assert 'c_total{a="b c",d="e"} 2.0\n' in shown
    assert 'h_bucket{le="+Inf"} 0.0\nh_count 0.0\nh_sum 0.0\n' in shown
    assert "\ng 3.0\n" in shown
    assert shown.endswith("process_cpu_seconds_total 9.5\n")
    assert subtract(TEXT, {}) == TEXT


@pytest.mark.parametrize(
    "text", ["", "7", "[]", '{"boot_id": "b"}', '{"boot_id": "b", "samples": {"a": "x"}}', "[" * 100_000]
)
def test_a_field_that_somebody_else_wrote_is_ignored(text: str) -> None:
    baselines = Baselines()

    baselines.follow(lambda: {"web": text, "engine": json.dumps({"boot_id": "b", "samples": {"a": 1}})})

    assert (baselines.of("web", "b"), baselines.of("engine", "b"), baselines.of("engine", "c")) == ({}, {"a": 1.0}, {})


def test_the_engines_counters_go_to_zero_for_this_boot_alone(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.bodies["metrics"] = {"text": "# TYPE lmcache_mp_n_total counter\nlmcache_mp_n_total 4.0\n"}

    answer = client.post("/metrics/reset")

    assert (answer.status_code, answer.content_type, answer.text) == (200, "text/plain; charset=utf-8", "ok")
    assert [command.op for command in backend.commands] == ["metrics.publish"]
    assert json.loads(backend.baselines["engine"]) == {"boot_id": BOOT, "samples": {"lmcache_mp_n_total": 4.0}}
    assert "lmcache_mp_n_total 0.0\n" in client.get("/metrics").text

    backend.fails = RedisAway("timed out")
    client.get("/metrics")
    backend.fails = None
    assert "lmcache_mp_n_total 0.0\n" in client.get("/metrics").text

    backend.baselines["engine"] = backend.baselines["engine"].replace(BOOT, "boot-0")
    assert "lmcache_mp_n_total 4.0\n" in client.get("/metrics").text


def test_a_redis_that_lost_its_data_brings_no_count_back(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.bodies["metrics"] = {"text": "# TYPE lmcache_mp_n_total counter\nlmcache_mp_n_total 4.0\n"}
    client.post("/metrics/reset")
    kept = dict(backend.baselines)
    client.get("/metrics")

    backend.baselines.clear()

    assert "lmcache_mp_n_total 0.0\n" in client.get("/metrics").text
    start_loops(client.application)
    wait_for(lambda: backend.baselines == kept, 10, "it is written again")


def test_a_worker_that_never_showed_metrics_knows_the_baseline(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.bodies["metrics"] = {"text": "# TYPE lmcache_mp_n_total counter\nlmcache_mp_n_total 4.0\n"}
    backend.baselines["engine"] = json.dumps({"boot_id": BOOT, "samples": {"lmcache_mp_n_total": 4.0}})
    start_loops(client.application)
    wait_for(lambda: client.get("/periodic-threads/web-follower").get_json()["total_runs"], 10, "it has looked")

    backend.metrics_baselines = away  # type: ignore[method-assign]

    assert "lmcache_mp_n_total 0.0\n" in client.get("/metrics").text


def away() -> dict[str, str]:
    raise RedisAway("timed out")


def test_http_counts_go_to_zero(client: FlaskClient) -> None:
    for _ in range(3):
        client.get("/unknown")

    client.post("/metrics/reset")
    client.get("/unknown")

    assert 'larder_http_request_total{method="GET",status="404"} 1.0\n' in client.get("/metrics").text


def test_a_missing_engine_does_not_hinder_and_redis_does(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.engine = None
    assert client.post("/metrics/reset").text == "ok"

    backend.fails = RedisAway("timed out")
    answer = client.post("/metrics/reset")
    assert (answer.status_code, answer.text) == (503, "Redis does not answer: timed out")


def test_a_full_queue_says_so_in_plain_text(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.replies["metrics.publish"] = QueueFull("1000 commands wait", 1.0)

    answer = client.post("/metrics/reset")

    assert (answer.status_code, answer.text, answer.headers["Retry-After"]) == (503, "1000 commands wait", "1")
    assert client.post("/metrics/reset", environ_base={"REMOTE_ADDR": "192.0.2.7"}).status_code == 403
