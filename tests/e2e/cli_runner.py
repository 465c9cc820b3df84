"""The `larder` command as a person or a script runs it: in a pipe, or on a terminal."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.stack import ROOT
from tests.waiting import wait_for

TIMEOUT_S = 60.0
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Ended:
    """How a run of the command ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """The one JSON value on stdout; AssertionError when there is more or less."""
        return json.loads(self.out)

    def error_line(self) -> str:
        """The one line on stderr."""
        assert self.err.endswith("\n"), self.err
        assert self.err.count("\n") == 1, self.err
        return self.err.strip()


def clean_environ(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what would change the command's ways, and with `environ`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LARDER_")}
    for name in ("NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR"):
        kept.pop(name, None)
    return {**kept, "TERM": "xterm-256color", **(environ or {})}


def argv(*words: str) -> list[str]:
    return [sys.executable, str(ROOT / "larder"), *words]


def larder(*words: str, environ: Mapping[str, str] | None = None, stdin: str = "") -> Ended:
    """Runs the command in pipes."""
    done = subprocess.run(
        argv(*words),
        env=clean_environ(environ),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        cwd="/",
    )
    return Ended(done.returncode, done.stdout, done.stderr)


class Terminal:
    """The command on a terminal of its own, 100 columns wide. A context manager; what still runs is killed."""

    def __init__(self, *words: str, environ: Mapping[str, str] | None = None) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        self.output = ""
        self.process = subprocess.Popen(
            argv(*words),
            env=clean_environ(environ),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.close(self._ours)

    @property
    def text(self) -> str:
        """What was written so far, without colours and cursor movements."""
        return ESCAPE.sub("", self.output)

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def wait_for(self, text: str) -> None:
        """Returns when `text` was written; AssertionError with all that was."""
        try:
            wait_for(lambda: self._read() and text in self.text, TIMEOUT_S, f"{text!r} is on the terminal")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.text}") from None

    def end(self) -> int:
        """Reads until the command ends, and gives its exit code."""
        wait_for(lambda: self._read() and self.process.poll() is not None, TIMEOUT_S, "the command ends")
        self._read()
        return self.process.returncode

    def _read(self) -> bool:
        """Takes what is there; always true."""
        while select.select([self._ours], [], [], 0.01)[0]:
            try:
                piece = os.read(self._ours, 65536)
            except OSError:  # EIO: the other side is closed
                break
            if not piece:
                break
            self.output += piece.decode(errors="replace")
        return True
