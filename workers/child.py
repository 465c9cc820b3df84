"""One process that the launcher keeps alive.

A child leads a session of its own, so that Ctrl-C reaches the launcher alone and whatever the child started can be
ended with it; and it gets SIGTERM when the launcher dies.
"""

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from workers.errors import EXIT_CANNOT_START

logger = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
FIRST_BACK_OFF_S = 0.2
LONGEST_BACK_OFF_S = 10.0
#: A child that ran this long starts afresh with the shortest back-off.
STEADY_S = 30.0
#: A group that was killed is gone within moments.
GROUP_END_TIMEOUT_S = 5.0

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class ChildPlan:
    """What to run. `is_ready(pid)` tells whether it serves; `stop_timeout_s` is its time to end on SIGTERM.

    `told`: a short text for its standard input, at each of its starts, which nobody else gets to see. A child that is
    told something has a log of its own: its standard output is not shown.
    """

    name: str
    argv: Sequence[str]
    environ: Mapping[str, str]
    directory: Path
    is_ready: Callable[[int], bool]
    stop_timeout_s: float
    told: str = field(default="", repr=False)


class Child:
    """A plan's process, through its restarts. For the launcher's main thread alone (PDEATHSIG follows the thread)."""

    def __init__(self, plan: ChildPlan) -> None:
        self.plan = plan
        self.was_ready = False
        self.is_ready = False
        self.failures_in_a_row = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._back_off_s = FIRST_BACK_OFF_S
        self._start_again_at: float | None = None

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def pid(self) -> int:
        return 0 if self._process is None else self._process.pid

    def start(self) -> None:
        """Starts the process; OSError when it cannot be run at all."""
        launcher = os.getpid()

        def prepare() -> None:
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != launcher:
                os._exit(1)

        self._start_again_at = None
        self._started_at = time.monotonic()
        self._process = subprocess.Popen(
            self.plan.argv,
            env=dict(self.plan.environ),
            cwd=self.plan.directory,
            stdin=subprocess.PIPE if self.plan.told else subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if self.plan.told else None,
            start_new_session=True,
            preexec_fn=prepare,
        )
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
                pipe.write(self.plan.told.encode())

    def check(self) -> int | None:
        """Looks at the process: notices that it is ready, or that it died, and starts it again when that is due.

        Returns the exit code when it died since the last look, else None.
        """
        if self._start_again_at is not None:
            if time.monotonic() >= self._start_again_at:
                logger.info("starting %s again", self.name)
                self.start()
            return None
        if self._process is None:
            return None
        code = self._process.poll()
        if code is None:
            if not self.is_ready and self.plan.is_ready(self.pid):
                self._became_ready()
            return None
        self._died(code)
        return code

    def _became_ready(self) -> None:
        verb = "ready again" if self.was_ready else "ready"
        logger.info(
            "%s is %s after %.1f s (process %d)", self.name, verb, time.monotonic() - self._started_at, self.pid
        )
        self.is_ready = self.was_ready = True
        self.failures_in_a_row = 0

    def _died(self, code: int) -> None:
        lived_s = time.monotonic() - self._started_at
        self._end_group()
        if lived_s >= STEADY_S:
            self._back_off_s = FIRST_BACK_OFF_S
        self.failures_in_a_row += not self.is_ready
        self.is_ready = False
        is_hopeless = code == EXIT_CANNOT_START and not self.was_ready
        what_next = "trying again will not help" if is_hopeless else f"starting it again in {self._back_off_s:.1f} s"
        logger.error(
            "%s (process %d) ended with %s after %.1f s, %s",
            self.name, self.pid, describe_exit(code), lived_s, what_next,
        )  # fmt: skip
        self._start_again_at = time.monotonic() + self._back_off_s
        self._back_off_s = min(LONGEST_BACK_OFF_S, self._back_off_s * 2)

    def kill(self) -> None:
        """Ends the process without asking; the next check() finds it dead."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()

    def stop(self) -> None:
        """Ends the process and everything in its session; returns when nothing of it is left."""
        self._start_again_at = None
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(self.plan.stop_timeout_s)
            except subprocess.TimeoutExpired:
                logger.error("%s did not end within %g s, killing it", self.name, self.plan.stop_timeout_s)
                self._process.kill()
                self._process.wait()
        self._end_group()
        logger.info("%s stopped (%s)", self.name, describe_exit(self._process.returncode))
        self._process = None

    def _end_group(self) -> None:
        """Kills what the dead process left in its session: workers of gunicorn would keep the port."""
        pause = threading.Event()
        deadline = time.monotonic() + GROUP_END_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                return
            except PermissionError:
                return
            pause.wait(0.01)
        logger.error("processes that %s left behind do not end", self.name)


def describe_exit(code: int) -> str:
    """`exit code 1`, or the signal's name."""
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
