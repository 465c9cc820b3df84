"""Takes commands from the queue, runs them, answers. While Redis is away it tries on for ever.

A command's failure is answered, never raised here. Slow commands run beside the loop; a command whose effect a
snapshot shows is answered by the publisher.
"""

import functools
import logging
import threading
import time
from typing import Any

from prometheus_client import CollectorRegistry

from contract.command_queue import BUSY
from contract.command_taker import CommandTaker, Delivery
from contract.errors import RedisAway
from engine.periodic import PeriodicThreads, RunRecord
from workers.command_handlers import Worker, failure_of, lane_of, run
from workers.outage import Outage
from workers.publisher import Publisher
from workers.queue_metrics import CommandTimes
from workers.slow_commands import SlowCommands

logger = logging.getLogger(__name__)

#: The longest wait for a command; open the taker's blocking client with it.
BLOCK_S = 0.5
#: A turn takes at most the block, the client's patience on top of it, and the pause after a failure.
TURN_S = 2.0
STOP_TIMEOUT_S = 10.0


class CommandLoop:
    """One thread that takes, plus those for slow commands. `start` and `stop` are called once each."""

    def __init__(
        self,
        taker: CommandTaker,
        worker: Worker,
        publisher: Publisher,
        threads: PeriodicThreads,
        block_s: float = BLOCK_S,
        registry: CollectorRegistry | None = None,
    ) -> None:
        """`registry` takes the durations of the commands."""
        self._times = CommandTimes(registry or CollectorRegistry())
        self._taker = taker
        self._block_s = block_s
        self._worker = worker
        self._publisher = publisher
        self._threads = threads
        self._slow = SlowCommands()
        self._record = RunRecord("command-loop", "critical", TURN_S)
        self._outage = Outage(logger, "command loop")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="larder-command-loop", daemon=True)

    def start(self) -> None:
        self._threads.add(self._record)
        self._record.is_running = True
        self._thread.start()

    def stop(self) -> None:
        """Takes nothing more and waits for what runs."""
        self._record.stopped_on_purpose = True
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_TIMEOUT_S)
        self._slow.stop()

    def _loop(self) -> None:
        try:
            while not self._stopping.is_set():
                started = time.time()
                try:
                    took = self._turn()
                except RedisAway as error:
                    self._outage.failed(error)
                    self._record.ran(started, success=False, message=str(error))
                    self._stopping.wait(self._outage.pause_s)
                except Exception as error:  # a loop top: commands must go on after a bug
                    logger.exception("a turn of the command loop failed")
                    self._record.ran(started, success=False, message=repr(error))
                    self._taker.recover()
                    self._stopping.wait(self._outage.pause_s)
                else:
                    self._record.ran(started, success=True, count=took)
        finally:
            self._record.is_running = False

    def _turn(self) -> bool:
        """Whether there was a command. Raises RedisAway."""
        delivery = self._taker.take(self._block_s)
        self._outage.worked()
        if delivery is None:
            return False
        self._dispatch(delivery)
        return True

    def _dispatch(self, delivery: Delivery) -> None:
        if not delivery.command.slow:
            self._run(delivery)
        elif not self._slow.offer(lane_of(self._worker, delivery.command), functools.partial(self._run, delivery)):
            delivery.fail(BUSY, f"{delivery.command.op}: too many slow commands of this kind run or wait")

    def _timed(self, delivery: Delivery) -> dict[str, Any]:
        began = time.monotonic()
        try:
            return run(self._worker, delivery.command)
        finally:
            self._times.ran(delivery.command.op, time.monotonic() - began)

    def _run(self, delivery: Delivery) -> None:
        op, command_id = delivery.command.op, delivery.command_id
        began = time.monotonic()
        try:
            if not delivery.begin():
                return
            self._times.waited(delivery.age_s())
            result = self._timed(delivery)
        except RedisAway as error:
            logger.warning("command %s %s not begun, it comes again: %s", op, command_id, error)
        except Exception as error:  # noqa: BLE001  # the command's top: its failure is its answer, and logged
            delivery.fail(*failure_of(delivery.command, error))
        else:
            level = logging.INFO if delivery.command.changes_snapshots else logging.DEBUG
            logger.log(level, "command %s %s done in %.1f ms", op, command_id, (time.monotonic() - began) * 1000)
            if delivery.command.changes_snapshots:
                self._publisher.after_next(functools.partial(delivery.reply, result))
            else:
                delivery.reply(result)
