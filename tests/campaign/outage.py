"""What must hold while Redis is away under transfer load, and after it: short in the suite, long in the soak."""

import time
from dataclasses import dataclass, field

from tests.campaign.transfer_load import TransferLoad
from tests.stack import Larder, RedisServer, http
from tests.waiting import wait_for

#: Every route that needs Redis: method, path, body.
REDIS_ROUTES = (
    ("GET", "/status", None),
    ("GET", "/quota", None),
    ("GET", "/quota/alice", None),
    ("PUT", "/quota/alice", {"limit_gb": 2}),
    ("DELETE", "/quota/nobody", None),
    ("POST", "/clear-cache", None),
    ("GET", "/kvcache/check?block_ids=0&chunk_size=1", None),
)
ANSWER_TIMEOUT_S = 2.0
RECOVERY_TIMEOUT_S = 20.0
#: Longer than a gunicorn worker takes Redis for away without asking again (app/fuse.py).
SETTLED_S = 1.5


def reads_settle(larder: Larder) -> bool:
    """Whether reads work for a while, so that no worker is left which still takes Redis for away.

    Each finds out for itself, and one worker may well get all the connections of a moment.
    """
    end = time.monotonic() + SETTLED_S
    while time.monotonic() < end:
        if any(larder.http("GET", path).status != 200 for path in ("/status", "/quota")):
            return False
    return True


@dataclass
class Outage:
    """What was seen from outside while Redis was away; `complaints` says what was not as promised."""

    complaints: list[str] = field(default_factory=list)
    probes: int = 0

    def probe_all(self, larder: Larder) -> None:
        """Asks every route once."""
        self.probes += 1
        self._expect(larder, "GET", "/healthcheck", None, 200)
        for method, path, body in REDIS_ROUTES:
            self._expect(larder, method, path, body, 503)

    def _expect(self, larder: Larder, method: str, path: str, body: object, status: int) -> None:
        before = time.monotonic()
        try:
            answer = http(method, larder.url + path, body, timeout_s=5 * ANSWER_TIMEOUT_S)
        except OSError as error:
            self.complaints.append(f"{method} {path}: {error}")
            return
        took_s = time.monotonic() - before
        if answer.status != status:
            self.complaints.append(f"{method} {path}: {answer.status} {answer.body!r}, {status} wanted")
        elif status == 503:
            shape = answer.json()
            if not (shape.get("reason") or shape.get("error")):
                self.complaints.append(f"{method} {path}: 503 without a reason: {shape}")
        if took_s > ANSWER_TIMEOUT_S:
            self.complaints.append(f"{method} {path}: answered after {took_s:.1f} s")


def run_outage(larder: Larder, redis: RedisServer, *, frozen: bool, seconds: float) -> None:
    """Redis is frozen or killed for `seconds` and comes back; AssertionError for every broken promise."""
    quota = larder.http("PUT", "/quota/alice", {"limit_gb": 1})
    assert quota.status == 200, quota.body
    outage = Outage()
    with TransferLoad(larder.port) as load:
        load.wait_for_rounds(5)
        redis.freeze() if frozen else redis.kill()
        try:
            rounds_before, end = load.rounds, time.monotonic() + seconds
            while time.monotonic() < end:
                outage.probe_all(larder)
            assert load.rounds > rounds_before + outage.probes, "the data plane stood still while Redis was away"
        finally:
            redis.thaw() if frozen else redis.start()
        wait_for(
            lambda: larder.http("PUT", "/quota/bob", {"limit_gb": 3}).status == 200, RECOVERY_TIMEOUT_S, "commands work"
        )
        wait_for(lambda: reads_settle(larder), RECOVERY_TIMEOUT_S, "every worker reads")
        load.wait_for_rounds(5)
    assert outage.complaints == []
    assert load.errors == []
    assert larder.http("GET", "/healthcheck").status == 200
    answer = larder.http("GET", "/quota")
    assert answer.status == 200, answer.body
    users = answer.json()["users"]
    assert users["bob"]["limit_gb"] == 3
    assert users["alice"]["limit_gb"] in (1, 2)  # a PUT that was answered 503 may still have been applied
