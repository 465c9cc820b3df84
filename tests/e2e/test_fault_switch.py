"""Faults of a storage switched on and off over HTTP while the server runs."""

import json
from pathlib import Path

from tests.conftest import start_redis
from tests.stack import EngineProcess, WebProcess
from tests.waiting import wait_for

ADAPTERS = [{"type": "memory"}, {"type": "fault", "inner": {"type": "memory"}, "latency_rate": 0.5}]


def test_faults_are_switched_on_and_off(tmp_path: Path) -> None:
    with (
        start_redis("redis", tmp_path / "redis") as redis,
        EngineProcess(tmp_path / "larder", redis.url, l2_adapter=json.dumps(ADAPTERS)),
        WebProcess(tmp_path / "larder", redis.url) as web,
    ):
        assert web.http("GET", "/reconfigure/backends").json()["backends"] == ["fault"]

        changed = web.http("POST", "/reconfigure/fault/set", {"error_rate": 1, "adapter_index": 0})

        assert changed.status == 200
        shown = web.http("GET", "/reconfigure/fault/status").json()["adapters"][0]
        assert (shown["supported_operations"], shown["l2_adapter_index"]) == (["status", "set"], 1)
        assert shown["status"]["faults"] == changed.json()["faults"]
        assert (shown["status"]["faults"]["error_rate"], shown["status"]["faults"]["latency_rate"]) == (1.0, 0.5)
        for fields in ({"colour": 1}, {"error_rate": 2}, {"error_rate": "x"}, {}):
            assert web.http("POST", "/reconfigure/fault/set", fields).status == 400
        assert web.http("POST", "/reconfigure/fault/grow", {}).status == 400
        assert web.http("POST", "/reconfigure/fault/set", {"error_rate": 0, "adapter_index": 1}).status == 404
        assert web.http("POST", "/reconfigure/fault/set", {"error_rate": 0}).json()["faults"]["error_rate"] == 0.0
        wait_for(
            lambda: (
                web.http("GET", "/status").json()["storage_manager"]["l2_adapters"][1]["breaker"]["state"] == "closed"
            ),
            20,
            "the storage answers again",
        )
