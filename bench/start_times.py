"""How long after `./larder server` does the web tier answer, and when is the engine ready?"""

import tempfile
import time
from pathlib import Path

from bench.report import Row, percentile
from tests.stack import Larder, answers
from tests.waiting import wait_for

ROUNDS = 3
POOL_GIB = 1.0
WEB_LIMIT_S = 2.5
ENGINE_LIMIT_S = 5.0


def start_once(directory: Path) -> tuple[float, float]:
    """Seconds until `/` answers and until /healthcheck is 200."""
    larder = Larder(directory, l1_size_gb=POOL_GIB)
    started = time.perf_counter()
    larder.launch()
    try:
        wait_for(lambda: answers(larder.url + "/"), 60, "the web tier answers", every_s=0.005)
        web_s = time.perf_counter() - started
        wait_for(larder.is_ready, 60, "the engine is ready", every_s=0.005)
        return web_s, time.perf_counter() - started
    finally:
        larder.stop()


def measure() -> list[Row]:
    with tempfile.TemporaryDirectory() as directory:
        times = [start_once(Path(directory, str(number))) for number in range(ROUNDS)]
    web_s, engine_s = (percentile(column, 50) for column in zip(*times, strict=True))
    return [
        Row("`/` answers", web_s, WEB_LIMIT_S, "s", "allowed", 1.0),
        Row(f"engine ready, {POOL_GIB:g} GiB pool", engine_s, ENGINE_LIMIT_S, "s", "allowed", 1.0),
    ]
