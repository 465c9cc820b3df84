"""The small HTTP server under an internal API server: cheroot, with bounds on everything a caller can make it hold.

what                              bound
--------------------------------  ------------------------------------------------------------------------------
threads that answer               THREADS
connections that wait for one     MAX_WAITING, and as many in the kernel; more get 503
idle connections                  MAX_IDLE, for IDLE_S
request line and headers, bytes   MAX_HEAD_BYTES
time to send a request            READ_S, or HURRIED_S while other connections wait for a thread
time to take an answer            WRITE_S; without taking anything IDLE_S, or HURRIED_WRITE_S while others wait

A client that sends its next requests before it has taken an answer is let go after that answer. `Host` and what else
a request can only have once is refused with 400 when it comes twice, and so is a body of which two readers could see
different ends. A body in chunks ends the connection: what of it is not read must not be taken for the next request.

It listens on a socket that is given to it, whatever the process's environment says.
"""

import logging
import socket
import threading
import time
from typing import Any

from cheroot import wsgi
from cheroot.connections import ConnectionManager
from cheroot.makefile import StreamReader, StreamWriter
from cheroot.server import HeaderReader, HTTPConnection, HTTPRequest

logger = logging.getLogger(__name__)

THREADS = 8
MAX_WAITING = 64
MAX_IDLE = 16
IDLE_S = 10
MAX_HEAD_BYTES = 32 * 1024
READ_S = 5.0
#: Eight threads let go of 32 silent connections within a second.
HURRIED_S = 0.2
WRITE_S = 20.0
#: A client whose window has been closed for as long does not read.
HURRIED_WRITE_S = 2.0
#: How often a reader or a writer looks whether others wait.
SLICE_S = 0.05
#: A connection that is gone again before it is accepted holds up nobody for longer.
ACCEPT_S = 1.0
STOP_TIMEOUT_S = 5.0


class BoundedServer(wsgi.Server):
    """Serves a WSGI application on a listening socket in daemon threads; `begin` returns at once, `end` ends it."""

    def __init__(
        self, listener: socket.socket, app: Any, *, name: str, max_body_bytes: int, log: logging.Logger
    ) -> None:
        """Owns `listener` from now on. `name` begins the names of the threads."""
        address = listener.getsockname()
        super().__init__(
            address if isinstance(address, str) else address[:2],
            app,
            numthreads=THREADS,
            max=THREADS,
            request_queue_size=MAX_WAITING,
            timeout=IDLE_S,
            shutdown_timeout=int(STOP_TIMEOUT_S),
            accepted_queue_size=MAX_WAITING,
            accepted_queue_timeout=1,
        )
        self._listener, self._name, self._log = listener, name, log
        self.ConnectionClass = _Connection
        self.keep_alive_conn_limit = MAX_IDLE
        self.max_request_header_size = MAX_HEAD_BYTES
        self.max_request_body_size = max_body_bytes
        self.server_name = self.software = "larder"
        self._is_ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def begin(self) -> None:
        """Answers from now on."""
        self._listener.listen(MAX_WAITING)
        self._thread.start()
        self._is_ready.wait(STOP_TIMEOUT_S)

    def end(self) -> None:
        """Lets answers under way finish for a while. A view that hangs is left behind in its daemon thread."""
        stopper = threading.Thread(target=self.stop, name=f"{self._name}-stop", daemon=True)
        stopper.start()
        stopper.join(2 * STOP_TIMEOUT_S)
        self._listener.close()
        self._thread.join(STOP_TIMEOUT_S)
        if stopper.is_alive():
            logger.warning("%s: an answer is still under way, not waiting longer", self._name)

    @property
    def is_busy(self) -> bool:
        """Whether connections wait for a thread."""
        return bool(self.requests.qsize)

    def _run(self) -> None:
        # Here, since threads are daemons when the thread is that starts them.
        self.prepare()
        for number, worker in enumerate(self.requests._threads):
            worker.name = f"{self._name}-{number}"
        self._is_ready.set()
        self.serve()

    def prepare(self) -> None:
        """What cheroot does, but for the socket: it would take one that systemd gave to the whole process."""
        self._interrupt = None
        self.socket = self._listener
        self.socket.settimeout(ACCEPT_S)
        if self.socket.family != socket.AF_UNIX:
            # Accepted connections inherit it. Head and body go out in two pieces, and the second would wait for the
            # acknowledgement of the first, which a client delays by 40 ms.
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections = ConnectionManager(self)
        self.requests.start()
        self.ready = True
        self._start_time = time.time()

    def error_log(self, msg: str = "", level: int = logging.INFO, traceback: bool = False) -> None:
        self._log.log(level, "%s", msg, exc_info=traceback)


class _Headers(HeaderReader):
    """Those of one request. Raises ValueError where two readers of them could take different values."""

    ONCE = frozenset({b"Host", b"Authorization", b"Content-Length", b"Transfer-Encoding", b"Origin", b"Sec-Fetch-Site"})

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def __call__(self, rfile: Any, hdict: dict[bytes, bytes] | None = None) -> dict[bytes, bytes]:
        headers: dict[bytes, bytes] = super().__call__(rfile, hdict)
        length = headers.get(b"Content-Length")
        if length is not None and not length.isdigit():
            raise ValueError("Content-Length is no number")
        if length is not None and b"Transfer-Encoding" in headers:
            raise ValueError("Content-Length and Transfer-Encoding were both sent")
        return headers

    def _allow_header(self, key_name: bytes) -> bool:
        # Also called for a continuation line, which would replace the value.
        if key_name in self._seen:
            raise ValueError(f"{key_name.decode()} was sent twice")
        # WSGI has one name for `X_A` and `X-A`.
        if b"_" in key_name:
            raise ValueError("a header has an underscore in its name")
        if key_name in self.ONCE:
            self._seen.add(key_name)
        return True


class _Request(HTTPRequest):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.header_reader = _Headers()

    def read_request_headers(self) -> bool:
        is_fit = bool(super().read_request_headers())
        self.close_connection = self.close_connection or self.chunked_read
        return is_fit


class _Connection(HTTPConnection):
    """One connection. Its time runs from the moment a thread takes it up."""

    server: BoundedServer
    RequestHandlerClass = _Request

    def __init__(self, server: BoundedServer, sock: socket.socket, makefile: Any = None) -> None:
        self.began = time.monotonic()
        self.was_blocked = False
        super().__init__(server, sock, self._make_file)

    def _make_file(self, sock: socket.socket, mode: str, size: int) -> Any:
        if "r" in mode:
            reader: Any = _BoundedLines(sock, mode, size)
            reader._raw = _Reader(sock, self)
            return reader
        writer: Any = StreamWriter(sock, mode, size)
        writer._raw = _Writer(sock, self)
        return writer

    def communicate(self) -> bool:
        self.began, self.was_blocked = time.monotonic(), False
        goes_on = bool(super().communicate())
        return goes_on and not (self.was_blocked and self.rfile.has_data())

    def age_s(self) -> float:
        """How long a thread has had it."""
        return time.monotonic() - self.began


class _BoundedLines(StreamReader):
    """No line is kept that is longer than a whole head may be."""

    def readline(self, size: int | None = -1) -> bytes:
        return bytes(super().readline(MAX_HEAD_BYTES if size is None or size < 0 else size))


class _Reader(socket.SocketIO):
    """Gives up on a client that takes too long to say what it wants."""

    def __init__(self, sock: socket.socket, connection: _Connection) -> None:
        super().__init__(sock, "rb")
        self._socket, self._connection = sock, connection

    def readinto(self, buffer: Any) -> int:
        connection = self._connection
        self._socket.settimeout(SLICE_S)
        try:
            while connection.age_s() < (HURRIED_S if connection.server.is_busy else READ_S):
                try:
                    return self._socket.recv_into(buffer)
                except TimeoutError:
                    continue
        finally:
            self._socket.settimeout(IDLE_S)
        # The words by which cheroot knows that it is to answer 408.
        raise TimeoutError("timed out")


class _Writer(socket.SocketIO):
    """Gives up on a client that does not take its answer."""

    def __init__(self, sock: socket.socket, connection: _Connection) -> None:
        super().__init__(sock, "wb")
        self._socket, self._connection, self._began = sock, connection, 0.0

    def write(self, data: Any) -> int:
        connection, now = self._connection, time.monotonic()
        if self._began < connection.began:
            self._began = now
        self._socket.settimeout(SLICE_S)
        try:
            while not self._is_over(now):
                try:
                    return self._socket.send(data)
                except TimeoutError:
                    connection.was_blocked = True
        finally:
            self._socket.settimeout(IDLE_S)
        raise TimeoutError("timed out")

    def _is_over(self, stuck_since: float) -> bool:
        now = time.monotonic()
        patience_s = HURRIED_WRITE_S if self._connection.server.is_busy else IDLE_S
        return now - self._began > WRITE_S or now - stuck_since > patience_s
