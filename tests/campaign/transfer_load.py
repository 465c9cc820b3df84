"""A thread that stores and retrieves all the time and notes everything that is not as it should be."""

import threading
import time
from types import TracebackType
from typing import Self

import numpy as np

from engine.dataplane.client import LarderClient, LarderClientError, SharedKV
from tests.waiting import wait_for

CHUNK_TOKENS = 256
BLOCK_TOKENS = 16
CHUNKS = 2
BLOCKS = CHUNKS * CHUNK_TOKENS // BLOCK_TOKENS


class TransferLoad:
    """Round after round: new chunks are looked up, stored, erased here, found again, retrieved, compared.

    `rounds` counts the good ones, `errors` says what went wrong; both may be read at any time.
    """

    def __init__(self, port: int, *, call_timeout_s: float = 10.0) -> None:
        self.rounds = 0
        self.errors: list[str] = []
        self.longest_round_s = 0.0
        self._stop = threading.Event()
        self._memory = SharedKV([(2, BLOCKS, BLOCK_TOKENS, 2, 16)] * 2, "float16")
        self._client = LarderClient(f"tcp://127.0.0.1:{port}", "load/model", timeout_s=call_timeout_s)
        self._thread = threading.Thread(target=self._run, name="transfer-load")

    def wait_for_rounds(self, more: int, timeout_s: float = 30.0) -> None:
        """Returns once `more` further rounds went well."""
        wanted = self.rounds + more
        wait_for(
            lambda: self.rounds >= wanted, timeout_s, f"{more} more rounds of transfers; errors: {self.errors[-3:]}"
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._client.close()
        self._memory.close()

    def _run(self) -> None:
        number = 0
        registered = False
        while not self._stop.is_set():
            number += 1
            started = time.monotonic()
            try:
                if not registered:
                    self._client.register_shared(self._memory)
                    registered = True
                self._one_round(number)
            except (LarderClientError, AssertionError) as error:
                self.errors.append(f"round {number}: {type(error).__name__}: {error}")
                self._stop.wait(0.05)
            else:
                self.longest_round_s = max(self.longest_round_s, time.monotonic() - started)
                self.rounds += 1

    def _one_round(self, number: int) -> None:
        tokens = [number, *range(1, CHUNKS * CHUNK_TOKENS)]
        blocks = list(range(BLOCKS))
        request = f"load-{number}"
        content = np.random.default_rng(number).integers(0, 1 << 16, self._memory.layers[0].shape, dtype=np.uint16)

        hit = self._client.lookup(tokens, request)
        assert hit == 0, f"{hit} tokens found of a prompt nobody stored"
        for layer in self._memory.layers:
            layer.view(np.uint16)[:] = content
        self._client.store(tokens, blocks, request)
        for layer in self._memory.layers:
            layer.fill(0)
        hit = self._client.lookup(tokens, request)
        assert hit == len(tokens), f"{hit} of {len(tokens)} tokens found right after they were stored"
        self._client.retrieve(tokens, blocks, request)
        for layer in self._memory.layers:
            assert np.array_equal(layer.view(np.uint16), content), "other bytes came back"
        self._client.end_session(request)
