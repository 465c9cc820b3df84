"""The completion scripts: bash loads its one and completes with it; the others are printed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.cli_runner import clean_environ, larder
from tests.stack import ROOT, Larder, need

COMPLETE = """
source <(larder completion bash)
COMP_WORDS=({words})
COMP_CWORD={last}
_larder_completion larder
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture
def path_with_larder(tmp_path: Path) -> dict[str, str]:
    """An environment in which `larder` is a command."""
    program = tmp_path / "bin" / "larder"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT / "larder"} "$@"\n')
    program.chmod(0o755)
    return clean_environ({"PATH": f"{program.parent}:{os.environ['PATH']}"})


def complete(environ: dict[str, str], *words: str) -> list[str]:
    """What bash offers for the last word."""
    script = COMPLETE.format(words=" ".join(f"'{word}'" for word in ("larder", *words)), last=len(words))
    done = subprocess.run(
        ["bash", "-euc", script], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("q",), ["quota"]),
        (("s",), ["server", "status", "scrub"]),
        (("quota", "s"), ["set"]),
        (("status", "--j"), ["--json"]),
        (("server", "--l2-s"), ["--l2-store-policy"]),
        (("loglevel", "engine", "de"), ["debug"]),
        (("completion", ""), ["bash", "zsh", "fish"]),
        (("threads", "--periodic", "--level", "c"), ["critical"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_bash_completes(path_with_larder: dict[str, str], words: tuple[str, ...], offered: list[str]) -> None:
    assert [word.lower() for word in complete(path_with_larder, *words)] == offered


@pytest.mark.redis
def test_bash_completes_what_the_server_knows(path_with_larder: dict[str, str], tmp_path: Path) -> None:
    with Larder(tmp_path / "larder", l2_adapter=f'{{"type": "fs", "base_path": "{tmp_path / "kv"}"}}') as server:
        environ = {**path_with_larder, "LARDER_URL": server.url}
        for tenant in ("alice", "bob"):
            assert larder("quota", "set", tenant, "1", environ=environ).code == 0

        assert complete(environ, "quota", "get", "") == ["alice", "bob"]
        assert complete(environ, "keys", "--adapter", "") == ["fs"]
        assert complete(environ, "describe", "adapter", "f") == ["fs"]


def test_a_server_that_is_away_completes_nothing_and_says_nothing(path_with_larder: dict[str, str]) -> None:
    assert complete({**path_with_larder, "LARDER_URL": "http://127.0.0.1:1"}, "quota", "get", "") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(shell: str) -> None:
    named, found = larder("completion", shell), larder("completion", environ={"SHELL": f"/usr/bin/{shell}"})

    assert named == found
    assert named.code == 0
    assert f"_LARDER_COMPLETE={shell}_complete" in named.out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_can_read_its_script(shell: str, tmp_path: Path) -> None:
    need(shell, shutil.which(shell) is not None, "the shell is not installed")
    script = tmp_path / "script"
    script.write_text(larder("completion", shell).out)

    done = subprocess.run([shell, "-n", str(script)], capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stderr) == (0, "")
