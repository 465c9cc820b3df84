"""The unmodified client lmcache 0.5.6 against a running Larder: its benchmark, and its vLLM adapter classes.

Both run in an environment of their own (`make compat`, or tests/compat/make_env.sh). The benchmark exits 0 even when a
retrieve fails, so its output is read; the adapters' bytes are compared by adapter_client.py.
"""

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.served_engine import ServedEngine
from tests.stack import Larder, need
from tests.waiting import wait_for

HERE = Path(__file__).resolve().parent
VENV = Path(os.environ.get("LARDER_COMPAT_VENV", HERE.parent.parent / ".venv-compat"))
RUN_TIMEOUT_S = 300
EXIT_TIMEOUT_S = 60
SEQUENCES = 2
SPEC = "(2,128,16,4,32):float16:4"
MLA_SPEC = "(1,128,16,1,128):float16:4"
TWO_GROUPS_SPEC = "(1,128,16,1,64):bfloat16:2;(2,128,16,4,32):float16:2"

pytestmark = [pytest.mark.soak, pytest.mark.lmcache, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", autouse=True)
def lmcache() -> None:
    need("lmcache", (VENV / ".installed").exists(), f"{VENV} is missing: `make compat` makes it")


@dataclass(frozen=True)
class Mode:
    """How the client copies, and what the server offers."""

    transfer: str
    shm_name: str = ""

    def environment(self) -> dict[str, str]:
        return {**os.environ, "LMCACHE_MP_TRANSFER_MODE": self.transfer, "LMCACHE_DISABLE_BANNER": "1"}


MODES = {
    "shared memory": Mode("engine_driven"),
    "messages": Mode("engine_driven", shm_name="off"),
    "server copies": Mode("lmcache_driven"),
}


@contextmanager
def served(mode: Mode, port: int = 0) -> Iterator[ServedEngine]:
    with ServedEngine(port=port, chunk_size=256, l1_size_bytes=256 << 20, shm_name=mode.shm_name) as engine:
        yield engine


class Adapters:
    """The program adapter_client.py, running."""

    def __init__(self, port: int, mode: Mode, *, mla: bool, rounds: int = 1) -> None:
        options = {"url": f"tcp://127.0.0.1:{port}", "mode": mode.transfer, "mla": mla, "rounds": rounds}
        self._process = subprocess.Popen(
            [VENV / "bin" / "python", HERE / "adapter_client.py", json.dumps(options)],
            env=mode.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._lines: list[str] = []

    def event(self, wanted: str) -> dict[str, Any]:
        """Reads on until the program tells `wanted`; AssertionError with its output when it ends without."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line)
            if line.startswith("{"):
                told: dict[str, Any] = json.loads(line)
                assert told["event"] == wanted
                return told
        raise AssertionError(f"ended with {self._process.wait()}:\n" + "".join(self._lines[-60:]))

    def go_on(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def __enter__(self) -> "Adapters":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Lets the program end by itself, unless the test failed; removes the KV segments of a killed one."""
        try:
            self._process.communicate(timeout=0 if kind else EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            for segment in Path("/dev/shm").glob(f"lmcache_kv_{self._process.pid}_*"):
                segment.unlink(missing_ok=True)
            assert kind, "the program did not end"
        if kind is None:
            assert self._process.returncode == 0


@pytest.mark.parametrize("mla", [False, True], ids=["plain", "mla"])
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_the_adapters_get_back_what_they_stored(mode: Mode, mla: bool) -> None:
    with served(mode) as engine:
        with Adapters(engine.port, mode, mla=mla) as adapters:
            adapters.event("done")

        assert engine.held() == {}
        assert engine.engine.registrations.all() == []


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_the_adapters_register_again_after_a_restart_and_go_on(mode: Mode) -> None:
    with served(mode) as first:
        port = first.port
        adapters = Adapters(port, mode, mla=False, rounds=2)
        with adapters:
            adapters.event("ready")
            first.server.stop()
            with served(mode, port) as second:
                adapters.go_on()
                adapters.event("done")

                assert second.held() == {}


def bench(port: int, directory: Path, mode: Mode, arguments: Sequence[str], url: str = "http://127.0.0.1:9") -> str:
    """The output of the benchmark, whose own verdict is checked to be all good."""
    report = directory / "report.json"
    command = [VENV / "bin" / "lmcache", "bench", "server", "--mode", "cpu", "--transfer-mode", mode.transfer]
    command += ["--rpc-url", f"tcp://127.0.0.1:{port}", "--url", url, "--num-tokens", "600", "--num-blocks", "128"]
    command += ["--start", "0", "--end", str(SEQUENCES), "--interval", "0", "--format", "json", "--output", str(report)]
    done = subprocess.run(
        [*command, *arguments],
        env=mode.environment(),
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    results = json.loads(report.read_text())["metrics"]["results"]
    assert (results["checksum_ok"], results["checksum_fail"]) == (SEQUENCES, 0), output
    return output


BENCHES = {
    "plain": ["--kvcache-shape-spec", SPEC],
    "tp 2": ["--kvcache-shape-spec", SPEC, "--tp-size", "2"],
    "mla": ["--kvcache-shape-spec", MLA_SPEC, "--use-mla"],
    "mla tp 2": ["--kvcache-shape-spec", MLA_SPEC, "--use-mla", "--tp-size", "2"],
}


def check_every_step(output: str) -> None:
    for number in range(SEQUENCES):
        for step in (
            f"[seq {number}/cold] LOOKUP: 0/2 chunks hit",
            f"[seq {number}/cold] STORE: stored (512 tokens",
            f"[seq {number}/warm] LOOKUP: 2/2 chunks hit",
            f"[seq {number}/warm] RETRIEVE: retrieved (512 tokens",
            f"[seq {number}] CHECKSUM MATCH OK",
        ):
            assert step in output, f"{step!r} is missing:\n{output}"


@pytest.mark.parametrize("arguments", BENCHES.values(), ids=BENCHES)
@pytest.mark.parametrize("mode", [MODES["shared memory"], MODES["messages"]], ids=["shared memory", "messages"])
def test_the_benchmark_passes_when_the_client_copies(tmp_path: Path, mode: Mode, arguments: Sequence[str]) -> None:
    with served(mode) as engine:
        check_every_step(bench(engine.port, tmp_path, mode, arguments))

        assert engine.held() == {}


@pytest.mark.parametrize(
    "arguments",
    [*BENCHES.values(), ["--kvcache-shape-spec", TWO_GROUPS_SPEC]],
    ids=[*BENCHES, "two groups"],
)
def test_the_benchmark_passes_when_the_server_copies(tmp_path: Path, arguments: Sequence[str]) -> None:
    with Larder(tmp_path / "larder", l1_size_gb=0.25) as larder:
        check_every_step(bench(larder.port, tmp_path, MODES["server copies"], arguments, larder.url))


@pytest.mark.parametrize(
    "mode", [MODES["shared memory"], MODES["server copies"]], ids=["shared memory", "server copies"]
)
def test_after_kill_9_of_the_engine_the_adapters_store_again(tmp_path: Path, mode: Mode) -> None:
    with (
        Larder(tmp_path / "larder", l1_size_gb=0.25) as larder,
        Adapters(larder.port, mode, mla=False, rounds=2) as adapters,
    ):
        adapters.event("ready")
        killed = larder.engine_pid()
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: larder.engine_pid() not in (0, killed) and larder.is_ready(), 60, "the engine is back")
        adapters.go_on()
        adapters.event("done")
