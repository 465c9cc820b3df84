"""An inference process that embeds the cache through our client, with an internal API server of its own.

`python -m tests.client_process tcp://host:port PORT` registers KV memory and serves until SIGTERM.
"""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from app.internal_server import InternalAPIConfig
from engine.dataplane.client import LarderClient, SharedKV
from tests.stack import Answer, Part, answers, free_port, http
from workers.client_api import internal_api_of

SHAPE = (2, 8, 16, 1, 8)
WORKER = 2


class ClientProcess(Part):
    """Ready when its server answers."""

    name = "client"

    def __init__(self, directory: Path, server: str) -> None:
        super().__init__(directory)
        self._server, self._port = server, free_port()
        self.url = f"http://127.0.0.1:{self._port}"

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", "tests.client_process", self._server, str(self._port)]

    def is_ready(self) -> bool:
        return answers(self.url)

    def http(self, method: str, path: str) -> Answer:
        return http(method, self.url + path)


def serve(server: str, port: int) -> None:
    """Until SIGTERM."""
    wanted = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    port_start = port - 1 - WORKER
    config = InternalAPIConfig(enabled=True, host="127.0.0.1", port_start=port_start, run_script_enabled=True)
    with (
        SharedKV([SHAPE] * 2) as memory,
        LarderClient(server, "client-process", world_size=4, worker_id=WORKER) as client,
    ):
        client.register_shared(memory)
        with internal_api_of(client, config):
            signal.sigwait(wanted)
        client.timeout_s = 5.0  # whatever was set meanwhile
        client.unregister()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
