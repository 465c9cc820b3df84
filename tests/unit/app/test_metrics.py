"""One text of metrics from two sources, whatever is away."""

from collections import Counter

import pytest
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

from app.metrics import merge_families
from contract.errors import RedisAway
from tests.unit.app.memory_backend import MemoryBackend, record


def scrape(client: FlaskClient) -> tuple[str, dict[str, float]]:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.content_type.startswith("text/plain")
    samples = {
        sample.name: sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.labels.get("route") is None
    }
    return answer.text, samples


def test_engine_and_http_metrics_in_one_text(client: FlaskClient) -> None:
    client.get("/status")

    text, samples = scrape(client)

    assert samples["lmcache_mp_x"] == 1.0
    assert samples["larder_engine_up"] == samples["engine_up"] == samples["larder_redis_up"] == 1.0
    assert samples["larder_engine_snapshot_age_seconds"] == 0.25
    assert 'larder_http_request_total{method="GET",status="200"} 1.0' in text


def test_each_family_has_one_header(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.bodies["metrics"] = {"text": "# HELP engine_up theirs\n# TYPE engine_up gauge\nengine_up 7.0\n"}

    text, _ = scrape(client)

    headers = Counter(line for line in text.splitlines() if line.startswith("# TYPE"))
    assert set(headers.values()) == {1}


@pytest.mark.parametrize("state", ["starting", "draining", "failed"])
def test_an_engine_that_does_not_serve_is_down(client: FlaskClient, backend: MemoryBackend, state: str) -> None:
    backend.engine = record(state)

    _, samples = scrape(client)

    assert samples["larder_engine_up"] == samples["engine_up"] == 0.0
    assert "lmcache_mp_x" not in samples


def test_a_dead_engine_is_down(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.engine = record(age_s=10)

    assert scrape(client)[1]["engine_up"] == 0.0


def test_without_redis_the_engine_may_still_be_up(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.fails = RedisAway("timed out")

    _, samples = scrape(client)

    assert samples["larder_redis_up"] == 0.0
    assert samples["engine_up"] == 1.0


def test_made_up_paths_and_methods_add_no_series(client: FlaskClient) -> None:
    for number in range(20):
        client.get(f"/made-up-{number}")
        client.open("/", method=f"VERB{number}")
        client.get(f"/quota/salt-{number}")

    text, _ = scrape(client)

    assert "made-up" not in text
    assert "VERB" not in text
    assert "salt-1" not in text
    assert 'larder_http_request_total{method="OTHER",status="405"} 20.0' in text


def test_families_are_merged_sample_by_sample() -> None:
    first = '# HELP a one\n# TYPE a counter\na{x="1"} 1\n# HELP b two\n# TYPE b gauge\nb 2\n'
    second = '# HELP a other words\n# TYPE a counter\na{x="2"} 3\n'

    assert merge_families([first, second]) == (
        '# HELP a one\n# TYPE a counter\na{x="1"} 1\na{x="2"} 3\n# HELP b two\n# TYPE b gauge\nb 2\n'
    )
