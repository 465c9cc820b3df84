"""Runs several clients of prefix_client.py against one server, kills one of them, and sums up what they saw."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.campaign.prefix_client import OBJECT_BYTES
from tests.stack import ROOT
from tests.waiting import wait_for

#: What /status calls holds on objects; all 0 when nobody is doing anything.
HOLDS = ("write_locked_count", "read_locked_count", "leases", "pins", "reservations", "doomed_objects")
GIB = 1024**3


@dataclass(frozen=True)
class Campaign:
    """`prompts` is how many different prefixes of 8 chunks there are, half of whose chunks are shared."""

    port: int
    clients: int
    seconds: float
    prompts: int
    seed: int = 1


def prompts_for(pool_bytes: int, times: int) -> int:
    """How many prompts hold `times` as many bytes as the pool; a tree has about twice as many chunks as leaves."""
    return times * pool_bytes // OBJECT_BYTES // 2


def run_campaign(campaign: Campaign, *, while_running: Callable[[], Any]) -> dict[str, int]:
    """The summed tallies of the clients that lived; one is killed at a random moment in the middle of the campaign.

    `while_running` is called again and again meanwhile. AssertionError when a client that was not killed failed.
    """
    chance = random.Random(campaign.seed)
    processes = [_start_client(campaign, number) for number in range(campaign.clients)]
    try:
        doomed = processes[chance.randrange(campaign.clients)]
        _wait(campaign.seconds * chance.uniform(0.3, 0.7), while_running)
        assert doomed.poll() is None, f"a client ended early: {doomed.communicate()[1]}"
        doomed.kill()
        doomed.communicate()
        sums: dict[str, int] = {}
        for process in processes:
            if process is doomed:
                continue
            wait_for(lambda p=process: while_running() or p.poll() is not None, campaign.seconds + 60, "a client ends")
            output, complaint = process.communicate()
            assert process.returncode == 0, f"a client ended with {process.returncode}: {complaint}"
            for name, count in json.loads(output).items():
                sums[name] = sums.get(name, 0) + count
        return sums
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _start_client(campaign: Campaign, number: int) -> "subprocess.Popen[str]":
    arguments = {
        "port": campaign.port,
        "seed": campaign.seed * 1000 + number,
        "seconds": campaign.seconds,
        "prompts": campaign.prompts,
    }
    command = [sys.executable, "-m", "tests.campaign.prefix_client", json.dumps(arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _wait(seconds: float, while_running: Callable[[], Any]) -> None:
    """Lets the campaign go on for a while, working meanwhile."""
    process = subprocess.Popen(["sleep", str(seconds)])
    try:
        wait_for(lambda: while_running() or process.poll() is not None, seconds + 60, "time passes")
    finally:
        process.kill()
        process.wait()


def holds_left(l1_status: dict[str, Any]) -> dict[str, int]:
    """Those counts of `l1_manager` in a status that should be 0 when all is quiet and are not."""
    return {name: l1_status[name] for name in HOLDS if l1_status[name]}
