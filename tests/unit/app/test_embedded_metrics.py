"""An internal API server inside a process that keeps its own metrics in multiprocess mode, and those metrics."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.stack import ROOT, free_port

HOST = """
import json, sys
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector

early = Counter("host_requests", "The host's own", ["model"])
early.labels("a").inc()
before = values.ValueClass

from tests.internal_client import ask, server

port = int(sys.argv[1])
one = server(port_start=port)
one.start()
early.labels("b").inc()
Histogram("host_seconds", "Made later").observe(0.5)
ask(port, "GET", "/version")
ask(port, "GET", "/no-such-route")
shown = ask(port, "GET", "/metrics").body.decode()
ask(port, "POST", "/metrics/reset")
one.stop()
registry = CollectorRegistry()
MultiProcessCollector(registry)
print(json.dumps([values.ValueClass is before, shown, generate_latest(registry).decode()]))
"""


def test_the_metrics_of_a_host_in_multiprocess_mode_stay_its_own(tmp_path: Path) -> None:
    host_metrics = ""
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", HOST, str(free_port())],
            cwd=ROOT,
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        untouched, shown, host_metrics = json.loads(done.stdout)
        assert untouched
        assert 'larder_http_request_total{method="GET",status="200"} 1.0' in shown
        assert (
            'larder_http_request_duration_seconds_bucket{le="5.0",method="GET",route="/version",status="200"} 1.0'
            in (shown)
        )
        assert 'larder_http_errors_total{kind="client",method="GET",route="(none)"} 1.0' in shown
        assert "larder_audit_lost_total 0.0" in shown
        assert "host_" not in shown
    assert 'host_requests_total{model="a"} 2.0' in host_metrics
    assert 'host_requests_total{model="b"} 2.0' in host_metrics
    assert "host_seconds_count 2.0" in host_metrics
    assert "larder" not in host_metrics
    assert len(list(tmp_path.glob("counter_*.db"))) == 2
    assert not list(tmp_path.glob("*_main.db"))
