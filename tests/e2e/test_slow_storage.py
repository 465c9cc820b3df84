"""A storage that takes its time keeps up no command about anything else."""

import json
import threading
import time
from pathlib import Path

from tests.conftest import start_redis
from tests.stack import EngineProcess, WebProcess
from tests.waiting import wait_for

ADAPTERS = [{"type": "memory"}, {"type": "fault", "inner": {"type": "memory"}, "shared": True}]


def test_listings_of_a_slow_storage_leave_the_others_alone(tmp_path: Path) -> None:
    with (
        start_redis("redis", tmp_path / "redis") as redis,
        EngineProcess(tmp_path / "larder", redis.url, l2_adapter=json.dumps(ADAPTERS)),
        WebProcess(tmp_path / "larder", redis.url) as web,
    ):
        assert web.http("POST", "/reconfigure/fault/set", {"latency_rate": 1, "latency_s": 60}).status == 200
        answers: list[int] = []
        listings = [
            threading.Thread(target=lambda: answers.append(web.http("GET", "/l2/keys?adapter=fault").status))
            for _ in range(4)
        ]
        for listing in listings:
            listing.start()
        wait_for(lambda: answers == [503] * 3, 8, "all but one are asked to come again")

        began = time.monotonic()
        assert web.http("GET", "/l2/scrub?adapter=memory").status == 200
        assert web.http("GET", "/l2/scrub?adapter=fault").status == 200
        assert web.http("GET", "/l2/keys?adapter=memory").status == 200
        assert time.monotonic() - began < 3

        assert web.http("POST", "/reconfigure/fault/set", {"latency_rate": 0}).status == 200
        for listing in listings:
            listing.join(20)
        assert sorted(answers) == [200, 503, 503, 503]
