"""`larder prefetch` outlives the engine it asked: it waits for the next one, which does the job again."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.e2e.cli_runner import argv, clean_environ
from tests.e2e.prefetch_stack import MODEL, PrefetchStack
from tests.waiting import wait_for

CHUNKS = 8

pytestmark = pytest.mark.redis


def test_a_job_is_followed_across_the_death_of_its_engine(tmp_path: Path) -> None:
    stack, program = PrefetchStack(tmp_path), None
    try:
        stack.start()
        tokens = stack.fill(CHUNKS)
        stack.engine.stop()
        stack.start_engine(latency_s=1.0)
        words = argv("prefetch", "--json", "--model", MODEL, "--url", stack.web.url)
        with stack.worker():
            program = subprocess.Popen(
                words, env=clean_environ(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            assert program.stdin is not None
            program.stdin.write(json.dumps(tokens).encode())
            program.stdin.close()
            program.stdin = None
            wait_for(lambda: "running" in str(stack.web.http("GET", "/jobs/prefetch").body), 20, "the job runs")
            stack.engine.kill()
        wait_for(lambda: stack.web.http("GET", "/healthcheck").status == 503, 20, "the engine is missed")
        stack.start_engine()
        with stack.worker():
            out, complaint = program.communicate(timeout=60)
    finally:
        if program is not None and program.poll() is None:
            program.kill()
            program.communicate()
        stack.stop()

    assert program.returncode == 0, complaint
    job = json.loads(out)
    assert (job["status"], job["found_keys"] + job["resident_keys"]) == ("completed", CHUNKS)
    assert complaint.count(b"\n") <= 1
