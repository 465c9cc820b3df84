"""The engine is killed under transfer load: seen at once, brought back, and clients go on by themselves."""

import os
import signal
import time
from pathlib import Path

from tests.campaign.transfer_load import TransferLoad
from tests.stack import Larder
from tests.waiting import wait_for

BEAT_S = 1.0
#: What no dying engine excuses; calls that fail and chunks that are gone with it are to be expected.
NEVER = ("other bytes came back", "nobody stored")


def kill_engine(larder: Larder) -> None:
    """kill -9; returns once /healthcheck has said 503. AssertionError when that took more than three beats."""
    pid = larder.engine_pid()
    os.kill(pid, signal.SIGKILL)
    killed_at = time.monotonic()
    wait_for(
        lambda: larder.http("GET", "/healthcheck").status == 503, 10 * BEAT_S, "/healthcheck notices", every_s=0.005
    )
    assert time.monotonic() - killed_at < 3 * BEAT_S + 1.0
    wait_for(lambda: larder.engine_pid() != pid and larder.is_ready(), 60, "the launcher brings the engine back")


def test_a_killed_engine_comes_back_and_its_clients_store_again(tmp_path: Path) -> None:
    with Larder(tmp_path / "larder", eviction_policy="IsolatedLRU", log_level="WARNING") as larder:
        assert larder.http("PUT", "/quota/_default", {"limit_gb": 0.03}).status == 200
        assert larder.http("PUT", "/quota/alice", {"limit_gb": 1.5}).status == 200
        limits = {salt: row["limit_gb"] for salt, row in larder.http("GET", "/quota").json()["users"].items()}

        with TransferLoad(larder.port, call_timeout_s=2.0) as load:
            load.wait_for_rounds(5)
            kill_engine(larder)
            load.wait_for_rounds(5)

        assert not [error for error in load.errors if any(wrong in error for wrong in NEVER)], load.errors
        users = larder.http("GET", "/quota").json()["users"]
        assert {salt: row["limit_gb"] for salt, row in users.items()} == limits
        metrics = larder.http("GET", "/metrics").body.decode()
        assert "\nengine_up 1.0\n" in metrics
