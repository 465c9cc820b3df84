"""The server that inference clients talk to: receive, keep order, answer.

thread             does
-----------------  -------------------------------------------------------------------------------------
larder-data-plane  owns the socket; decodes and runs everything short; parks who waits for a lookup
larder-transfer-N  whatever copies KV bytes or has very many tokens, one client's work in order

Every request gets an answer: what fails gets the safe answer of its operation (operations.py). Operations of one
connection that depend on each other are run in order of arrival: while it has work on a transfer thread, its short
operations queue behind that. Results come back to the socket's thread over an eventfd. The rest of the house never
touches the socket, and this file knows no KV bytes.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import zmq

from engine.dataplane import wire
from engine.dataplane.byte_budget import ByteBudget
from engine.dataplane.counters import UNKNOWN, DataPlaneCounters
from engine.dataplane.limits import DataPlaneLimits
from engine.dataplane.operations import Answer, Failure, Operation, Operations, Parked, Refusal
from engine.dataplane.parking import Parking
from engine.dataplane.router import LARGE_FRAME_BYTES, SENT, Call, Router
from engine.dataplane.transfer_pool import TransferPool, Work
from engine.errors import BadRequest, EngineError
from engine.periodic import RunRecord

if TYPE_CHECKING:
    from engine.engine import Engine

logger = logging.getLogger(__name__)

#: The loop turns at least this often.
TURN_S = 0.5
#: Requests handled before other work gets its turn.
BATCH = 64
#: Bad requests are logged at most this often.
COMPLAINT_INTERVAL_S = 1.0
ERROR_OPERATION = wire.encode("error")
MAX_ERROR_TEXT = 500
STOP_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class _Finished:
    """A result on its way from a transfer thread to the socket's thread."""

    call: Call
    name: str
    operation: Operation
    answer: Answer
    held_bytes: int


class DataPlaneServer:
    """Serves one engine on one TCP port. `start` and `stop` are called once each."""

    def __init__(self, engine: "Engine", host: str, port: int, limits: DataPlaneLimits | None = None) -> None:
        self._engine, self._host, self._asked_port = engine, host, port
        self._limits = limits or DataPlaneLimits()
        self._operations = Operations(engine)
        self._pool = TransferPool(self._limits.transfer_threads, self._limits.max_queued_transfers)
        self._budget = ByteBudget(self._limits.max_message_mode_bytes)
        self._counters = DataPlaneCounters(engine.stats.registry, self._operations.names)
        self._counters.read_gauges_from(lambda: self._pool.queued, lambda: self._budget.held_bytes)
        self._finished: deque[_Finished] = deque()
        self._parking = Parking(self._operations.lookup_answer, self._limits.max_parked, self._limits.max_wait_s)
        self._stop_asked = threading.Event()
        self._pool_ended = False
        self._wake_lock, self._wake_closed = threading.Lock(), False
        self._turned_at = time.monotonic()
        self._noted_at = self._complained_at = 0.0
        self._silenced = 0
        self._record = RunRecord("data-plane", "critical", TURN_S * 2)
        self._thread = threading.Thread(target=self._loop, name="larder-data-plane", daemon=True)

    def start(self) -> None:
        """Listens and answers from now on. Raises StartError when the address cannot be had."""
        self._router = Router(self._host, self._asked_port, self._limits)
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poller = zmq.Poller()
        self._poller.register(self._router.socket, zmq.POLLIN)
        self._poller.register(self._wake_fd, zmq.POLLIN)
        self._record.is_running = True
        self._engine.threads.add(self._record)
        self._turned_at = time.monotonic()
        self._engine.on_lookup_finished = self.lookups_changed
        self._pool.start()
        self._thread.start()
        logger.info("data plane: listening on %s port %d", self._host, self.port)

    @property
    def port(self) -> int:
        """The port listened on; a free one when 0 was asked for."""
        return self._router.port

    def turn_age_s(self) -> float:
        """How long ago the socket's thread began its last turn."""
        return time.monotonic() - self._turned_at

    def lookups_changed(self) -> None:
        """A lookup has finished: clients that wait for one are asked for again. Any thread may call."""
        with self._wake_lock:
            if not self._wake_closed:
                os.eventfd_write(self._wake_fd, 1)

    def stop(self) -> None:
        """Answers what is under way, refuses what is queued, closes the port. Harmless when stopped already."""
        if self._stop_asked.is_set():
            return
        self._stop_asked.set()
        self._record.stopped_on_purpose = True
        os.eventfd_write(self._wake_fd, 1)
        self._thread.join(STOP_TIMEOUT_S)
        if self._thread.is_alive():
            logger.error("data plane: a request still runs %d s after the stop, left alone", STOP_TIMEOUT_S)
        elif self._pool_ended:
            with self._wake_lock:
                self._wake_closed = True
                os.close(self._wake_fd)
            logger.info("data plane: stopped")
        else:
            logger.error("data plane: a copy still runs after the stop, left alone")

    # ---- the socket's thread

    def _loop(self) -> None:
        try:
            while not self._stop_asked.is_set():
                try:
                    self._turn()
                except Exception:
                    logger.exception("data plane: a turn failed, the loop goes on")
                    self._stop_asked.wait(0.05)
            self._pool_ended = self._pool.close()
            self._send_finished()
            self._answer_parked(self._parking.leave())
        finally:
            self._record.is_running = False
            self._router.close()

    def _turn(self) -> None:
        self._turned_at = now = time.monotonic()
        if now - self._noted_at >= TURN_S:
            self._noted_at = now
            self._record.ran(time.time(), success=True)
        parked_s = self._parking.seconds_left()
        wait_s = TURN_S if parked_s is None else min(TURN_S, parked_s)
        events = dict(self._poller.poll(int(wait_s * 1000) + 1))
        self._turned_at = time.monotonic()
        if self._wake_fd in events:
            os.eventfd_read(self._wake_fd)
            self._send_finished()
            self._answer_parked(self._parking.finished())
        self._budget.collect()
        if self._router.socket in events:
            for _ in range(BATCH):
                call = self._router.receive()
                if call is None:
                    break
                self._handle(call)
        self._answer_parked(self._parking.expired())

    def _handle(self, call: Call) -> None:
        if call.operation == wire.STREAM_CONTROL and call.parameters:
            return
        try:
            name = wire.operation_name(call.operation)
        except BadRequest as error:
            self._refuse_unknown(call, str(error))
            return
        operation = self._operations.get(name)
        if operation is None:
            self._refuse_unknown(call, f"operation {name[:80]!r} is not offered by this server")
            return
        self._counters.request(name)
        if len(call.parameters) not in operation.parameters:
            text = f"{name} with {len(call.parameters)} parameters"
            self._reply(call, name, operation, self._failed(name, operation, "bad_request", text))
            return
        kv_bytes = operation.kv_bytes(call.parameters)
        other_bytes = call.nbytes - kv_bytes
        held_bytes = kv_bytes + (other_bytes if other_bytes >= LARGE_FRAME_BYTES else 0)
        if other_bytes > operation.max_request_bytes:
            text = f"{other_bytes} bytes, at most {operation.max_request_bytes} are allowed"
            self._reply(call, name, operation, self._failed(name, operation, "bad_request", text))
        elif self._operations.needs_thread(operation, call.parameters):
            self._queue(call, name, operation, held_bytes)
        elif operation.ordered and self._pool.is_busy(call.identity):
            self._queue(call, name, operation, held_bytes, extra_room=self._limits.max_queued_short)
        else:
            self._reply(call, name, operation, self._run(call, name, operation))

    def _refuse_unknown(self, call: Call, text: str) -> None:
        self._counters.request(UNKNOWN)
        self._counters.failure(UNKNOWN, "bad_request")
        self._complain(text)
        self._send(call, Refusal(text))

    def _queue(self, call: Call, name: str, operation: Operation, held_bytes: int, *, extra_room: int = 0) -> None:
        """To a transfer thread, unless bytes in messages or what is queued have reached their bound."""
        if not self._budget.take(held_bytes):
            text = f"{held_bytes} bytes in a message beside {self._budget.held_bytes} held already"
            self._reply(call, name, operation, self._failed(name, operation, "busy", text))
            return

        def finish(answer: Answer) -> None:
            self._finished.append(_Finished(call, name, operation, answer, held_bytes))
            os.eventfd_write(self._wake_fd, 1)

        work = Work(
            run=lambda: finish(self._run(call, name, operation)),
            refuse=lambda: finish(self._failed(name, operation, "busy", "the server stops")),
        )
        if not self._pool.submit(call.identity, work, extra_room=extra_room):
            finish(self._failed(name, operation, "busy", f"{self._pool.queued} transfers queued"))

    def _send_finished(self) -> None:
        while self._finished:
            done = self._finished.popleft()
            self._budget.give_back(done.held_bytes)
            self._reply(done.call, done.name, done.operation, done.answer)

    # ---- answers

    def _run(self, call: Call, name: str, operation: Operation) -> Answer:
        """The operation's answer, or its failure answer. Any thread; never raises."""
        held_bytes = 0
        try:
            wanted = self._operations.message_bytes(operation, call.parameters)
            if not self._budget.take(wanted):
                text = f"an answer of {wanted} bytes beside {self._budget.held_bytes} held in messages already"
                return self._failed(name, operation, "busy", text)
            held_bytes = wanted
            answer = operation.run(call.parameters)
            held_bytes -= _large_bytes(answer)
            return answer
        except BadRequest as error:
            return self._failed(name, operation, "bad_request", str(error))
        except EngineError as error:
            return self._failed(name, operation, "error", str(error))
        except Exception:
            logger.exception("data plane: %s failed", name)
            return self._failed(name, operation, "error", "internal error")
        finally:
            self._budget.give_back(held_bytes)

    def _failed(self, name: str, operation: Operation, reason: str, text: str) -> Failure:
        self._counters.failure(name, reason)
        self._complain(f"{name}: {text}")
        return operation.failed(text)

    def _reply(self, call: Call, name: str, operation: Operation, answer: Answer) -> None:
        if isinstance(answer, Parked):
            if self._parking.add(call, answer):
                return
            answer = self._failed(name, operation, "busy", f"{len(self._parking)} clients wait already")
        self._send(call, answer)

    def _answer_parked(self, answers: Iterator[tuple[Call, Failure]]) -> None:
        for call, answer in answers:
            self._send(call, answer)

    def _send(self, call: Call, answer: Failure) -> None:
        if isinstance(answer, Refusal):
            sent = self._router.send(call, ERROR_OPERATION, wire.encode(answer.text[:MAX_ERROR_TEXT]))
        else:
            sent = self._router.send(call, call.operation, *answer)
        if sent is None:
            self._counters.undeliverable()
            self._budget.give_back(_large_bytes(answer))
        elif sent is not SENT:
            self._budget.give_back_when_sent(sent, _large_bytes(answer))

    def _complain(self, text: str) -> None:
        """Logs, but not a line for each message of a client that has gone wrong."""
        now = time.monotonic()
        if now - self._complained_at < COMPLAINT_INTERVAL_S:
            self._silenced += 1
            return
        self._complained_at, silenced, self._silenced = now, self._silenced, 0
        logger.warning("data plane: refused: %s (%d refusals not shown before)", text, silenced)


def _large_bytes(answer: Answer) -> int:
    """Bytes of an answer that count as KV bytes in a message."""
    if isinstance(answer, tuple) and answer and len(answer[0]) >= LARGE_FRAME_BYTES:
        return len(answer[0])
    return 0
